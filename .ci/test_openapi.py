"""
The fake Airbyte's answers, and the DAG's requests, are as Airbyte's own documents say.

`openapi/` has these documents, cut to the calls that are made. What they do not describe (401, a path that is no
route, a wrong client) is only pinned here, to what Airbyte's source and its users say.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from sandbox.fake_airbyte import (
    CLIENT_ID,
    CLIENT_SECRET,
    CONNECTION_ID,
    FAILING_CONNECTION_ID,
    OPERATIONS,
    OTHER_CONNECTION_ID,
    THREE_CONNECTIONS,
    FakeAirbyte,
    Fault,
    Request,
)

openapi_core = pytest.importorskip("openapi_core")
import yaml  # noqa: E402
from openapi_core.testing import MockRequest, MockResponse  # noqa: E402
from openapi_schema_validator import OAS30Validator  # noqa: E402

CLIENT = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
SYNC = {"connectionId": CONNECTION_ID, "jobType": "sync"}
UNKNOWN = "00000000-0000-4000-8000-000000000000"
TOKEN, OLD_TOKEN = ({"Authorization": f"Bearer {token}"} for token in ("token", "old"))


@pytest.fixture(params=["", "/api/public"], ids=["cloud", "self-managed"])
def airbyte(request):
    with FakeAirbyte(statuses=dict(THREE_CONNECTIONS), base_path=request.param) as airbyte:
        airbyte.tokens["token"] = float("inf")
        yield airbyte


@pytest.fixture(scope="module")
def judge():
    """A function that judges a request and its answer. It returns the status and, of a refusal, the kind."""
    files = Path(__file__).parent.glob("openapi/*.yaml")
    documents = {file.stem.rpartition("_")[2]: yaml.safe_load(file.read_text()) for file in files}
    components = documents.pop("api-problems")["components"]
    problems = {}
    for schema in components["schemas"].values():
        if "allOf" in schema:  # The defaults of a problem are constants.
            constants = (schema["allOf"][1]["properties"][name]["default"] for name in ("status", "type", "title"))
            problems[tuple(constants)] = OAS30Validator({**schema, "components": components})
    apis = {name: openapi_core.OpenAPI.from_dict(document) for name, document in documents.items()}

    def judge(airbyte: FakeAirbyte, request: Request) -> str:
        path = request.path.replace(airbyte.base_path, "", 1)
        if request.status == 200:
            url, body = "https://api.airbyte.com", request.body.encode()
            asked = MockRequest(url, request.method, path, None, request.query, {}, request.headers, {}, body)
            asked.content_type = request.headers.get("content-type", "")
            api = apis[path.split("/")[2]]
            api.validate_request(asked)
            api.validate_response(asked, MockResponse(request.answer.encode()))
            return "200"
        answer = json.loads(request.answer) if request.answer.startswith("{") else {request.answer: ""}
        if "type" not in answer:  # This is none of Airbyte's problems, and documented nowhere.
            return f"{request.status} {' '.join(answer)}"
        problems[request.status, answer["type"], answer["title"]].validate(answer)
        assert answer["status"] == request.status
        return f"{request.status} {answer['title']}"

    return judge


BAD, FORBIDDEN, NOT_FOUND = "400 bad-request", "403 forbidden", "404 resource-not-found"
CONFLICT, RUNS, UNPROCESSABLE = "409 state-conflict", "409 try-again-later", "422 unprocessable-entity"
MICRONAUT_400, MICRONAUT_401 = "400 message _links _embedded", "401 message _links _embedded"


@pytest.mark.parametrize(
    "asked, body, cloud, self_managed",
    [
        pytest.param("POST applications/token", {"json": CLIENT}, "200", "200", id="token"),
        pytest.param("POST applications/token", {"data": CLIENT}, "200", "200", id="token by a form"),
        pytest.param("POST applications/token", {"json": {}}, "401 errorId", MICRONAUT_400, id="wrong client"),
        pytest.param("POST jobs", {"json": {**SYNC, "connectionId": OTHER_CONNECTION_ID}}, "200", "200", id="start"),
        pytest.param("POST jobs", {"json": SYNC}, RUNS, RUNS, id="start while a job runs"),
        pytest.param("POST jobs", {"json": {**SYNC, "connectionId": UNKNOWN}}, FORBIDDEN, NOT_FOUND, id="start none"),
        pytest.param("POST jobs", {"json": {**SYNC, "jobType": "refresh"}}, UNPROCESSABLE, UNPROCESSABLE, id="refresh"),
        pytest.param("POST jobs", {"data": "{"}, BAD, BAD, id="malformed JSON"),
        pytest.param("GET jobs/1001", {}, "200", "200", id="running job"),
        pytest.param("GET jobs/1002", {}, "200", "200", id="ended job"),
        pytest.param("GET jobs/1", {}, FORBIDDEN, CONFLICT, id="unknown job"),
        pytest.param("DELETE jobs/1001", {}, "200", "200", id="cancel"),
        pytest.param("DELETE jobs/1002", {}, CONFLICT, CONFLICT, id="cancel an ended job"),
        pytest.param("DELETE jobs/1", {}, FORBIDDEN, CONFLICT, id="cancel an unknown job"),
        pytest.param("GET jobs", {"params": {"limit": 1, "offset": 1}}, "200", "200", id="page"),
        pytest.param("GET jobs", {"params": {"limit": 101}}, BAD, BAD, id="page of more than 100"),
        pytest.param("GET jobs", {"params": {"connectionId": UNKNOWN}}, FORBIDDEN, "200", id="jobs of nothing"),
        pytest.param(f"GET connections/{OTHER_CONNECTION_ID}", {}, "200", "200", id="connection"),
        pytest.param(f"GET connections/{UNKNOWN}", {}, FORBIDDEN, NOT_FOUND, id="unknown connection"),
        pytest.param("GET jobs", {"headers": OLD_TOKEN}, MICRONAUT_401, MICRONAUT_401, id="old token"),
        pytest.param("GET no/path", {}, "404 message code", "404 Object not found.", id="unknown path"),
        pytest.param("GET no/path", {"headers": {}}, "404 message code", MICRONAUT_401, id="unknown path, no token"),
    ],
)
def test_every_answer_is_one_of_airbytes(airbyte, judge, asked, body, cloud, self_managed):
    airbyte.add_job(statuses=("running",))
    airbyte.add_job(OTHER_CONNECTION_ID, age=60, duration=30)
    method, path = asked.split()
    requests.request(method, f"{airbyte.url}/v1/{path}", **{"headers": TOKEN, "timeout": 5, **body})
    assert judge(airbyte, airbyte.requests[0]) == (self_managed if airbyte.self_managed else cloud)


@pytest.mark.parametrize("said", [BAD, MICRONAUT_401, FORBIDDEN, NOT_FOUND, CONFLICT, UNPROCESSABLE])
def test_a_fault_is_one_of_airbytes_answers(airbyte, judge, said):
    airbyte.faults["list_jobs"] = [Fault(int(said[:3]))]
    requests.get(f"{airbyte.url}/v1/jobs", timeout=5)
    assert judge(airbyte, airbyte.requests[0]) == said


def test_the_dag_asks_as_airbytes_documents_say(airbyte, judge, tmp_path):
    pytest.importorskip("airflow")
    from sandbox import throwaway_airflow

    airbyte.statuses[CONNECTION_ID] = THREE_CONNECTIONS[FAILING_CONNECTION_ID]
    airbyte.faults["create_job"] = [Fault(503, carried_out=True)]  # A retry lists the jobs.
    environ = {**throwaway_airflow.environment(tmp_path), **throwaway_airflow.dag_settings(airbyte.url)}
    environ["PYTHONPATH"] = str(throwaway_airflow.SANDBOX.parent)
    no_delay = {"retry_delay": 0, "max_retry_delay": 1e-6}
    policy = {throwaway_airflow.START: no_delay, throwaway_airflow.WAIT: {"poke_interval": 1}}
    environ["TASK_POLICY"] = json.dumps(policy)
    throwaway_airflow.create(tmp_path, environ, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-m", "sandbox.throwaway_airflow"], env=environ, cwd=tmp_path, capture_output=True)
    assert {request.operation for request in airbyte.requests} == {*OPERATIONS.values()} - {"cancel_job"}
    assert {judge(airbyte, request) for request in airbyte.requests if request.status != 503} == {"200"}
