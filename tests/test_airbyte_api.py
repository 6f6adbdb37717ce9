"""The stand-in refuses what Airbyte refuses: else the other tests would prove nothing."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

import pytest
from airbyte_api import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, AirbyteApi

CLIENT = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, "grant-type": "client_credentials"}
SYNC = {"connectionId": CONNECTION_ID, "jobType": "sync"}
OTHER = "0b9f6f2e-1111-4c4c-8d8d-5f2f3c4d5e6f"


def call(airbyte, path: str, body=None, **headers) -> tuple[int, dict]:
    """Make a request, a POST if it has a body, and return the status and the JSON of its answer."""
    headers = {"User-Agent": "test", "Content-Type": "application/json", **headers}
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(airbyte.url + path, data, {k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def airbyte():
    with AirbyteApi(statuses={CONNECTION_ID: ("pending", "running", "succeeded"), OTHER: ("failed",)}) as airbyte:
        yield airbyte


@pytest.fixture
def token(airbyte):
    return {"Authorization": "Bearer " + call(airbyte, "/v1/applications/token", CLIENT)[1]["access_token"]}


@pytest.mark.parametrize(
    "status, path, body, headers",
    [
        (403, "/v1/jobs", SYNC, {"User-Agent": "python-requests/2.32"}),
        (403, "/v1/jobs", SYNC, {"User-Agent": ""}),
        (415, "/v1/jobs", SYNC, {"Content-Type": "application/x-www-form-urlencoded"}),
        (415, "/v1/applications/token", b"client_id=1", {"Content-Type": "application/x-www-form-urlencoded"}),
        (400, "/v1/jobs", b"{", {}),
        (422, "/v1/jobs", {**SYNC, "idempotencyKey": "1"}, {}),
        (422, "/v1/jobs", {**SYNC, "jobType": "truncate"}, {}),
        (422, "/v1/applications/token", {**CLIENT, "grant_type": "client_credentials"}, {}),
        (401, "/v1/applications/token", {**CLIENT, "client_secret": "wrong"}, {}),
        (400, "/v1/jobs", {**SYNC, "connectionId": "1234"}, {}),
        (403, "/v1/jobs", {**SYNC, "connectionId": "00000000-0000-4000-8000-000000000000"}, {}),
        (401, "/v1/jobs", SYNC, {"Authorization": "Bearer none"}),
        (401, "/v1/jobs", SYNC, {"Authorization": "Basic dXNlcjpwYXNz"}),
        (400, "/v1/jobs/None", None, {}),
        (404, "/v1/jobs/1", None, {}),
        (400, "/v1/jobs?limit=0", None, {}),
        (400, "/v1/jobs?connectionID=x", None, {}),
        (404, "/v1/connections", None, {}),
    ],
)
def test_refuses(airbyte, token, status, path, body, headers):
    answered, problem = call(airbyte, path, body, **{**token, **headers})
    assert answered == status
    assert "message" in problem.get("data", problem)
    assert airbyte.jobs == []


def test_tokens_end(airbyte, token):
    airbyte.token_seconds = 0.1
    brief = {"Authorization": "Bearer " + call(airbyte, "/v1/applications/token", CLIENT)[1]["access_token"]}
    assert call(airbyte, "/v1/jobs", None, **brief)[0] == 200
    time.sleep(0.15)
    assert call(airbyte, "/v1/jobs", None, **brief)[0] == 401
    assert call(airbyte, "/v1/jobs", None, **token)[0] == 200


def test_a_second_sync_of_a_connection_is_refused_while_the_first_runs(airbyte, token):
    first = call(airbyte, "/v1/jobs", SYNC, **token)[1]
    assert set(first) == {"jobId", "status", "jobType", "startTime", "connectionId"}
    status, problem = call(airbyte, "/v1/jobs", SYNC, **token)
    assert (status, problem["title"]) == (409, "try-again-later")
    assert problem["data"]["message"] == f"A sync is already running for: {CONNECTION_ID}"
    assert call(airbyte, "/v1/jobs", {**SYNC, "connectionId": OTHER}, **token)[0] == 200
    statuses = [call(airbyte, f"/v1/jobs/{first['jobId']}", **token)[1]["status"] for _ in range(4)]
    assert statuses == ["pending", "running", "succeeded", "succeeded"]
    assert call(airbyte, "/v1/jobs", SYNC, **token)[0] == 200


def test_lists_the_oldest_jobs_first_unless_asked_otherwise(airbyte, token):
    old = airbyte.add_job(age=50)["id"]
    reset = airbyte.add_job(age=40, kind="reset")["id"]
    new = airbyte.add_job(age=30)["id"]
    airbyte.add_job(OTHER, age=20)

    def ids(query: str) -> list[int]:
        return [
            job["jobId"] for job in call(airbyte, f"/v1/jobs?connectionId={CONNECTION_ID}{query}", **token)[1]["data"]
        ]

    assert ids("") == [old, reset, new]
    assert ids("&jobType=sync") == [old, new]
    assert ids("&jobType=sync&orderBy=createdAt%7CDESC&limit=1") == [new]
    assert ids("&status=running") == []


def test_a_base_path_is_needed_where_there_is_one():
    with AirbyteApi(base_path="/api/public") as airbyte:
        assert call(airbyte, "/v1/applications/token", CLIENT)[0] == 200
        airbyte.url = airbyte.url[: -len("/api/public")]
        assert call(airbyte, "/v1/applications/token", CLIENT)[0] == 404
