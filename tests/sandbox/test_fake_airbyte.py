"""The fake Airbyte answers and refuses as Airbyte does, or the other tests would prove nothing."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from urllib.parse import urlencode

import pytest
from sandbox.fake_airbyte import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, WORKSPACE_ID, FakeAirbyte

CLIENT = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
SYNC = {"connectionId": CONNECTION_ID, "jobType": "sync"}
OTHER = "0b9f6f2e-1111-4c4c-8d8d-5f2f3c4d5e6f"
UNKNOWN = "00000000-0000-4000-8000-000000000000"
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
BASE_PATHS = pytest.mark.parametrize("base_path", ["", "/api/public"], ids=["cloud", "self-managed"])


class Client:
    """Talks to a fake Airbyte."""

    def __init__(self, airbyte: FakeAirbyte) -> None:
        self.airbyte = airbyte
        self.token = self.call("POST", "/v1/applications/token", CLIENT)[1]["access_token"]

    def call(self, method: str, path: str, body=None, token: str | None = None, content_type: str = JSON):
        """Make a request, and return the status and the JSON of the answer."""
        token = token or getattr(self, "token", "")
        headers = {"Content-Type": content_type, **({"Authorization": f"Bearer {token}"} if token else {})}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.airbyte.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def create(self, job_type: str = "sync", connection_id: str = CONNECTION_ID):
        return self.call("POST", "/v1/jobs", {"connectionId": connection_id, "jobType": job_type})

    def status(self, job_id: int) -> str:
        return self.call("GET", f"/v1/jobs/{job_id}")[1]["status"]

    def listed(self, query: str) -> list[int]:
        return [job["jobId"] for job in self.call("GET", f"/v1/jobs?{query}")[1]["data"]]


@pytest.fixture
def start():
    """A function that starts a fake Airbyte, and returns a client of it."""
    started = []

    def start(**arguments) -> Client:
        statuses = {CONNECTION_ID: ("pending", "running", "succeeded"), OTHER: ("failed",)}
        started.append(FakeAirbyte(**{"statuses": statuses, **arguments}).__enter__())
        return Client(started[-1])

    yield start
    for airbyte in started:
        airbyte.__exit__()


# Tokens.


@BASE_PATHS
@pytest.mark.parametrize("grant", [{}, {"grant-type": "client_credentials"}, {"grant_type": "client_credentials"}])
@pytest.mark.parametrize("content_type, encode", [(JSON, json.dumps), (FORM, urlencode)], ids=["json", "form"])
def test_gives_a_token(start, base_path, grant, content_type, encode):
    body = encode({**CLIENT, **grant}).encode()
    status, token = start(base_path=base_path).call("POST", "/v1/applications/token", body, content_type=content_type)
    assert status == 200
    assert (token["token_type"], token["expires_in"]) == ("Bearer", 900)


@pytest.mark.parametrize("base_path, status, key", [("", 401, "errorId"), ("/api/public", 400, "_embedded")])
def test_refuses_a_wrong_client(start, base_path, status, key):
    client = start(base_path=base_path)
    answer = client.call("POST", "/v1/applications/token", {**CLIENT, "client_secret": "wrong"})
    assert answer[0] == status
    assert key in answer[1]


def test_tokens_expire(start):
    client = start()
    client.airbyte.token_seconds = 0.1
    brief = client.call("POST", "/v1/applications/token", CLIENT)[1]["access_token"]
    assert client.call("GET", "/v1/jobs", token=brief)[0] == 200
    time.sleep(0.15)
    assert client.call("GET", "/v1/jobs", token=brief)[0] == 401
    assert client.call("GET", "/v1/jobs")[0] == 200


def test_a_base_path_is_needed_if_there_is_one(start):
    client = start(base_path="/api/public")
    client.airbyte.url = client.airbyte.url[: -len("/api/public")]
    status, answer = client.call("POST", "/v1/applications/token", CLIENT)
    assert (status, answer["code"]) == (404, 404)


# Refusals, and what they look like.


@pytest.mark.parametrize(
    "method, path, body, cloud, self_managed",
    [
        ("POST", "/v1/jobs", b"{", 400, 400),
        ("POST", "/v1/jobs", {**SYNC, "jobType": "truncate"}, 400, 400),
        ("POST", "/v1/jobs", {**SYNC, "jobType": "refresh"}, 422, 422),
        ("POST", "/v1/jobs", {**SYNC, "connectionId": "1234"}, 403, 500),
        ("POST", "/v1/jobs", {**SYNC, "connectionId": UNKNOWN}, 403, 404),
        ("POST", "/v1/applications/token", {**CLIENT, "grant-type": "password"}, 400, 400),
        ("GET", "/v1/jobs/none", None, 400, 400),
        ("GET", "/v1/jobs/1", None, 403, 409),
        ("DELETE", "/v1/jobs/1", None, 403, 409),
        ("GET", "/v1/jobs?limit=0", None, 400, 400),
        ("GET", "/v1/jobs?limit=101", None, 400, 400),
        ("GET", "/v1/jobs?offset=-1", None, 400, 400),
        ("GET", "/v1/jobs?status=done", None, 400, 400),
        ("GET", "/v1/jobs?jobType=truncate", None, 400, 400),
        ("GET", "/v1/jobs?orderBy=name%7CASC", None, 400, 400),
        ("GET", "/v1/jobs?createdAtStart=yesterday", None, 400, 400),
        ("GET", f"/v1/jobs?connectionId={UNKNOWN}", None, 403, 200),
        ("GET", "/v1/jobs?connectionId=1234", None, 403, 500),
        ("GET", f"/v1/connections/{UNKNOWN}", None, 403, 404),
        ("GET", "/v1/connections/1234", None, 403, 500),
        ("GET", "/v1/nothing", None, 404, 404),
    ],
)
@BASE_PATHS
def test_refuses(start, base_path, method, path, body, cloud, self_managed):
    client = start(base_path=base_path)
    status, answer = client.call(method, path, body)
    assert status == (self_managed if base_path else cloud)
    assert status == 200 or {"message", "errorId", "data"} & set(answer)
    assert client.airbyte.jobs == []


@pytest.mark.parametrize("authorization", ["Bearer none", "Basic dXNlcjpwYXNz"])
def test_refuses_a_request_without_a_token(start, authorization):
    client = start()
    client.token = authorization
    assert client.create()[0] == 401


def test_the_form_of_a_problem(start):
    client = start(statuses={CONNECTION_ID: ("running",)})
    client.create()
    status, problem = client.create()
    assert (status, problem["status"], problem["title"]) == (409, 409, "try-again-later")
    assert problem["type"] == "https://reference.airbyte.com/reference/errors#try-again-later"
    assert problem["data"] == {"message": f"A sync is already running for: {CONNECTION_ID}"}
    assert None not in problem.values()


# Jobs.


def test_a_job_goes_through_its_statuses(start):
    client = start()
    status, job = client.create()
    assert status == 200
    assert set(job) == {"jobId", "status", "jobType", "startTime", "connectionId"}, "what is not known is left out"
    answers = [client.call("GET", f"/v1/jobs/{job['jobId']}")[1] for _ in range(4)]
    assert [answer["status"] for answer in answers] == ["pending", "running", "succeeded", "succeeded"]
    assert "duration" not in answers[0]
    assert "lastUpdatedAt" not in answers[1]
    assert {"duration", "lastUpdatedAt"} <= set(answers[2])
    assert [answer["rowsSynced"] for answer in answers] == [0, 0, 125_000, 125_000]


def test_one_job_of_a_connection_runs_at_a_time(start):
    client = start()
    job = client.create()[1]
    assert client.create() == (200, job), "not begun yet"
    assert client.status(job["jobId"]) == "pending"
    assert client.create()[0] == 409, "running"
    assert client.create(connection_id=OTHER)[0] == 200
    assert client.status(job["jobId"]) == "running"
    assert client.create()[1]["jobId"] != job["jobId"], "ended"


@pytest.mark.parametrize("job_type", ["reset", "refresh", "clear"])
def test_a_job_of_any_type_is_in_the_way(start, job_type):
    client = start()
    client.airbyte.add_job(type=job_type, statuses=("running", "succeeded"))
    assert client.create()[0] == 409


@pytest.mark.parametrize("job_type", ["reset", "refresh"])
def test_what_is_pending_comes_before_a_sync(start, job_type):
    client = start(pending=(job_type,))
    job = client.create()[1]
    assert job["jobType"] == job_type
    assert client.create()[1]["jobId"] == job["jobId"], "not begun yet"


@pytest.mark.parametrize("job_type", ["reset", "clear"])
def test_a_reset_cancels_what_runs(start, job_type):
    client = start()
    sync = client.create()[1]["jobId"]
    status, reset = client.create(job_type)
    assert (status, reset["jobType"]) == (200, "reset")
    assert client.status(sync) == "cancelled"


def test_an_old_job_id_cancels_what_runs_now(start):
    client = start()
    old = client.airbyte.add_job(statuses=("succeeded",), age=60).id
    new = client.create()[1]["jobId"]
    status, job = client.call("DELETE", f"/v1/jobs/{old}")
    assert (status, job["jobId"], job["status"]) == (200, old, "succeeded")
    assert client.status(new) == "cancelled"
    assert client.call("DELETE", f"/v1/jobs/{old}")[0] == 409, "nothing runs"


def test_tells_the_workspace_of_a_connection(start):
    connection = start().call("GET", f"/v1/connections/{CONNECTION_ID}")[1]
    assert (connection["workspaceId"], connection["status"]) == (WORKSPACE_ID, "active")


@pytest.fixture
def history(start):
    """A client of an Airbyte with four jobs of one connection, the last of them running, and one of another."""
    client = start()
    for age, job_type, statuses in (
        (50, "sync", ("succeeded",)),
        (40, "reset", ("succeeded",)),
        (30, "refresh", ("failed",)),
        (20, "sync", ("running",)),
    ):
        client.airbyte.add_job(type=job_type, statuses=statuses, age=age)
    client.airbyte.add_job(OTHER, age=10)
    return client


@pytest.mark.parametrize(
    "query, ids",
    [
        ("", [1001, 1002, 1003, 1004, 1005]),
        (f"connectionId={CONNECTION_ID}", [1001, 1002, 1003, 1004]),
        (f"workspaceIds={WORKSPACE_ID}", [1001, 1002, 1003, 1004, 1005]),
        (f"workspaceIds={UNKNOWN}", []),
        ("jobType=sync", [1001, 1004, 1005]),
        ("jobType=refresh", [1003]),
        ("status=succeeded", [1001, 1002]),
        ("orderBy=createdAt%7CDESC&limit=2", [1005, 1004]),
        ("orderBy=createdAt%7CDESC&limit=2&offset=2", [1003, 1002]),
        ("orderBy=updatedAt%7CASC&limit=1", [1004]),
        ("offset=4", [1005]),
        ("createdAtStart=2999-01-01T00:00:00Z", []),
        ("createdAtEnd=2999-01-01T00:00:00Z&limit=1", [1001]),
        ("updatedAtEnd=1999-01-01T00:00:00Z", []),
    ],
)
def test_lists_jobs(history, query, ids):
    assert history.listed(query) == ids


def test_lists_syncs_and_resets_only_before_february_2026(history):
    history.airbyte.lists = ("sync", "reset")
    assert history.listed(f"connectionId={CONNECTION_ID}") == [1001, 1002, 1004]
    assert history.listed("jobType=refresh") == [1003]


def test_says_where_the_next_page_is(history):
    page = history.call("GET", "/v1/jobs?limit=2&offset=2")[1]
    assert page["next"].endswith("/v1/jobs?limit=2&offset=4")
    assert page["previous"].endswith("/v1/jobs?limit=2&offset=0")
    assert history.call("GET", "/v1/jobs?offset=9")[1] == {
        "data": [],
        "next": "",
        "previous": page["previous"].replace("limit=2", "limit=20"),
    }
