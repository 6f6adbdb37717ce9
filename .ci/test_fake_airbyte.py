"""
The fake Airbyte answers and refuses as Airbyte does, or the other tests would prove nothing.

Where they are installed, Airbyte's own documents of its API judge it (`openapi.yaml` has of these the calls that are
made), and clients that others wrote for the real one: Airbyte's SDK, the Airbyte provider of Airflow, Dagster and
PyAirbyte. What none of them judges is only pinned here, to what Airbyte's source and its users say.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from operator import attrgetter
from pathlib import Path

import pytest
import requests
from dateutil.parser import parse
from sandbox.fake_airbyte import (
    CLIENT_ID,
    CLIENT_SECRET,
    CONNECTION_ID,
    CONNECTIONS,
    OPERATIONS,
    OTHER_CONNECTION_ID,
    WORKSPACE_ID,
    FakeAirbyte,
    Fault,
    Request,
)

CLIENT = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
WRONG = {**CLIENT, "client_secret": "wrong"}
SYNC = {"connectionId": CONNECTION_ID, "jobType": "sync"}
UNKNOWN = "00000000-0000-4000-8000-000000000000"
TOKEN, OLD_TOKEN = ({"Authorization": f"Bearer {token}"} for token in ("token", "old"))


@pytest.fixture(params=["", "/api/public"], ids=["cloud", "self-managed"])
def airbyte(request):
    with FakeAirbyte(statuses=CONNECTIONS, base_path=request.param) as airbyte:
        airbyte.tokens.update(token=float("inf"), old=time.time() - 1)
        yield airbyte


def ask(airbyte: FakeAirbyte, asked: str, **options) -> requests.Response:
    """Send a request, such as "GET jobs", by default with a token. Return the answer."""
    method, path = asked.split()
    return requests.request(method, f"{airbyte.url}/v1/{path}", **{"headers": TOKEN, "timeout": 5, **options})


# Judged by Airbyte's documents.

BAD, FORBIDDEN, NOT_FOUND = "400 bad-request", "403 forbidden", "404 resource-not-found"
CONFLICT, RUNS, UNPROCESSABLE = "409 state-conflict", "409 try-again-later", "422 unprocessable-entity"
MICRONAUT_400, MICRONAUT_401 = "400 message _links _embedded", "401 message _links _embedded"


@cache
def documents():
    """Return Airbyte's documents of its API. They judge requests and answers."""
    return pytest.importorskip("openapi_core").OpenAPI.from_file_path(str(Path(__file__).with_name("openapi.yaml")))


def judge(airbyte: FakeAirbyte, request: Request) -> str:
    """Judge a request and its answer. Return the status and, of a refusal, the kind."""
    if request.status == 200:
        api = documents()
        from openapi_core.contrib.requests import RequestsOpenAPIRequest
        from openapi_core.testing import MockResponse

        url = "https://api.airbyte.com" + request.path.replace(airbyte.base_path, "", 1)
        sent = requests.Request(request.method, url, request.headers, None, request.body, request.query)
        api.validate_request(RequestsOpenAPIRequest(sent))
        api.validate_response(RequestsOpenAPIRequest(sent), MockResponse(request.answer.encode()))
        return "200"
    answer = json.loads(request.answer) if request.answer.startswith("{") else {request.answer: ""}
    if "type" not in answer:  # This is none of Airbyte's problems, and documented nowhere.
        return f"{request.status} {' '.join(answer)}"
    title, data = answer["title"], answer["data"]
    end = f"409-{title}" if title == "state-conflict" else title  # airbyte-api/problems-api/…/api-problems.yaml
    assert answer["type"] == f"https://reference.airbyte.com/reference/errors#{end}"
    assert answer["status"] == request.status
    assert [type(value) for value in (answer["detail"], *data.values())] == [str, str]
    assert [*data] == ["resourceId" if title == "resource-not-found" else "message"]
    return f"{request.status} {title}"


@pytest.mark.parametrize(
    "asked, options, cloud, self_managed",
    [
        pytest.param("POST applications/token", {"json": CLIENT}, "200", "200", id="token"),
        pytest.param("POST applications/token", {"data": CLIENT}, "200", "200", id="token by a form"),
        pytest.param("POST applications/token", {"data": WRONG}, "401 errorId", MICRONAUT_400, id="wrong client"),
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
def test_every_answer_is_one_of_airbytes(airbyte, asked, options, cloud, self_managed):
    airbyte.add_job(statuses=("running",))
    airbyte.add_job(OTHER_CONNECTION_ID, age=60, duration=30)
    ask(airbyte, asked, **options)
    assert judge(airbyte, airbyte.requests[0]) == (self_managed if airbyte.self_managed else cloud)


@pytest.mark.parametrize("said", [BAD, MICRONAUT_401, FORBIDDEN, NOT_FOUND, CONFLICT, UNPROCESSABLE])
def test_a_fault_is_one_of_airbytes_answers(airbyte, said):
    airbyte.faults["list_jobs"] = [Fault(int(said[:3]))]
    ask(airbyte, "GET jobs")
    assert judge(airbyte, airbyte.requests[0]) == said


def test_the_dag_asks_as_airbytes_documents_say(airbyte, run_dag):
    airbyte.statuses[CONNECTION_ID] = ("running", "failed")
    airbyte.faults["create_job"] = [Fault(503, carried_out=True)]  # A retry lists the jobs.
    assert run_dag(airbyte.url).state == "failed"
    assert {request.operation for request in airbyte.requests} == {*OPERATIONS.values()} - {"cancel_job"}
    assert {judge(airbyte, request) for request in airbyte.requests if request.status != 503} == {"200"}


# Judged by clients.


@pytest.fixture
def sdk(airbyte, monkeypatch):
    """A function that asks through Airbyte's SDK, which must know everything in the answer."""
    airbyte_api = pytest.importorskip("airbyte_api")
    # The SDK would send the token that it got in the last test.
    monkeypatch.setattr("airbyte_api._hooks.clientcredentials.ClientCredentialsHook._sessions", {})

    def ask(operation: str, **request):
        client = {**CLIENT, "token_url": "v1/applications/token"}
        security = airbyte_api.models.Security(client_credentials=client)
        api = airbyte_api.AirbyteAPI(server_url=f"{airbyte.url}/v1", security=security)
        answer = attrgetter(operation)(api)(request=request)
        known = next(value for _, value in answer if hasattr(value, "model_dump"))
        assert known.model_dump(mode="json", by_alias=True, exclude_unset=True) == answer.raw_response.json()
        return known

    return ask


def test_the_sdk_starts_a_sync_follows_it_and_cancels_it(sdk):
    job = sdk("jobs.create_job", **SYNC)
    assert (job.connection_id, job.job_type, job.status) == (CONNECTION_ID, "sync", "pending")
    assert sdk("jobs.get_job", job_id=job.job_id).status == "pending"
    assert sdk("jobs.cancel_job", job_id=job.job_id).status == "cancelled"
    assert sdk("connections.get_connection", connection_id=CONNECTION_ID).workspace_id == WORKSPACE_ID


def test_the_sdk_knows_jobs_of_every_type_and_status(airbyte, sdk):
    from airbyte_api.models import JobStatusEnum, JobTypeEnum

    kinds = [(job_type, status) for job_type in JobTypeEnum for status in JobStatusEnum]
    for job_type, status in kinds:
        airbyte.add_job(type=job_type.value, statuses=(status.value,))
    assert [(job.job_type, job.status) for job in sdk("jobs.list_jobs", limit=100).data] == kinds
    airbyte.add_job(UNKNOWN, "clear", statuses=("failed",))
    query = {"connection_id": CONNECTION_ID, "status": "failed", "order_by": "createdAt|DESC", "limit": 2, "offset": 1}
    assert [job.job_type for job in sdk("jobs.list_jobs", **query).data] == ["refresh", "reset"]
    assert {job.job_type for job in sdk("jobs.list_jobs", job_type="refresh").data} == {"refresh"}


def test_the_provider_starts_syncs_and_waits_for_them_or_cancels_them(airbyte, sdk, monkeypatch):
    provider = pytest.importorskip("airflow.providers.airbyte.operators.airbyte")
    connection = {"conn_type": "airbyte", "host": f"{airbyte.url}/v1", "login": CLIENT_ID, "password": CLIENT_SECRET}
    monkeypatch.setenv("AIRFLOW_CONN_AIRBYTE_DEFAULT", json.dumps(connection))
    sync = provider.AirbyteTriggerSyncOperator(task_id="sync", connection_id=CONNECTION_ID, wait_seconds=0, timeout=9)
    assert sync.execute({}) == 1001
    airbyte.statuses[CONNECTION_ID] = ("running", "incomplete", "failed")
    with pytest.raises(provider.AirflowException, match="Job failed"):
        sync.execute({})
    airbyte.job_seconds, sync.timeout = 3600, 1e-6
    with pytest.raises(provider.AirflowException, match="Timeout"):  # It cancels the job.
        sync.execute({})
    hook = provider.AirbyteHook()
    assert [hook.get_job_status(job.id) for job in airbyte.jobs] == ["succeeded", "failed", "cancelled"]
    with pytest.raises(provider.AirflowException, match="Status 409"):
        hook.cancel_job(1003)


def test_dagster_lists_jobs_starts_syncs_and_waits_for_them_or_cancels_them(airbyte):
    resources = pytest.importorskip("dagster_airbyte.resources")
    for age in range(5, 0, -1):
        airbyte.add_job(age=60 * age, duration=1)
    client = resources.AirbyteClient(
        rest_api_base_url=f"{airbyte.url}/v1",
        configuration_api_base_url=airbyte.url,
        workspace_id=WORKSPACE_ID,
        **{**CLIENT, "request_timeout": 5, "request_max_retries": 0, "request_retry_delay": 0, "max_items_per_page": 2},
        **{"poll_interval": 0, "poll_timeout": 9},
    )
    assert [job.id for job in client.get_jobs_for_connection(CONNECTION_ID)] == [1001, 1002, 1003, 1004, 1005]
    airbyte.faults[None] = [Fault(body="{}")] * 3  # of Airbyte's other API, for the name of the connection
    assert client.sync_and_poll(CONNECTION_ID).job_details["status"] == "succeeded"
    airbyte.statuses[CONNECTION_ID] = ("running", "incomplete", "failed")
    with pytest.raises(Exception, match="Job failed: 1007"):
        client.sync_and_poll(CONNECTION_ID)
    airbyte.job_seconds, client = 3600, client.model_copy(update={"poll_timeout": 1e-6})
    with pytest.raises(Exception, match="Timeout"):  # It cancels the job.
        client.sync_and_poll(CONNECTION_ID)
    assert client.get_job_details(1008)["status"] == "cancelled"


def test_pyairbyte_lists_jobs_starts_syncs_and_waits_for_them_or_cancels_them(airbyte, monkeypatch):
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    cloud = pytest.importorskip("airbyte.cloud")
    monkeypatch.setattr("airbyte._util.api_util.JOB_WAIT_INTERVAL_SECS", 0.01)
    monkeypatch.setattr("airbyte_api._hooks.clientcredentials.ClientCredentialsHook.sessions", {})
    for age in range(101, 0, -1):
        airbyte.add_job(age=60 * age, duration=1)
    workspace = cloud.CloudWorkspace(workspace_id=WORKSPACE_ID, api_root=f"{airbyte.url}/v1", **CLIENT)
    connection = workspace.get_connection(CONNECTION_ID)
    assert [sync.job_id for sync in connection.get_previous_sync_logs(limit=150)] == [*range(1101, 1000, -1)]
    assert connection.run_sync().records_synced == 125_000
    airbyte.statuses[CONNECTION_ID] = ("running", "incomplete", "failed")
    with pytest.raises(Exception, match="failed"):
        connection.run_sync()
    airbyte.job_seconds = 3600
    sync = connection.run_sync(wait=False)
    with pytest.raises(Exception, match="409"):
        connection.run_sync()
    assert connection.cancel_sync().job_id == sync.job_id == 1104
    assert sync.wait_for_completion() == "cancelled"


# Pinned.


def test_a_job_that_is_pending_is_what_a_start_returns_and_in_its_way_once_it_has_begun(airbyte):
    job = airbyte.add_job(type="refresh", statuses=("pending", "queued", "running", "pending", "succeeded"))
    answers = []
    for job.step in range(5):
        answers.append(ask(airbyte, "POST jobs", json=SYNC))
    assert [answer.status_code for answer in answers] == [200, 200, 409, 409, 200]
    assert [answer.json().get("jobId") for answer in answers] == [1001, 1001, None, None, 1002]


def test_before_2026_a_list_without_a_type_has_only_syncs_and_resets(airbyte):
    airbyte.before_2026 = True
    for job_type in ("sync", "refresh", "reset", "clear"):
        airbyte.add_job(type=job_type)
    assert [job["jobType"] for job in ask(airbyte, "GET jobs").json()["data"]] == ["sync", "reset"]
    asked = ask(airbyte, "GET jobs", params={"jobType": "clear"}).json()["data"]
    assert [job["jobType"] for job in asked] == ["clear"]


def test_a_job_says_what_is_known_and_by_airbytes_own_clock(airbyte):
    airbyte.clock_offset = 7200
    airbyte.add_job()
    pending, running, succeeded = (ask(airbyte, "GET jobs/1001") for _ in range(3))
    assert running.json().keys() - pending.json().keys() == {"duration"}
    assert succeeded.json().keys() - running.json().keys() == {"lastUpdatedAt"}
    times = [succeeded.json()["startTime"], succeeded.json()["lastUpdatedAt"], succeeded.headers["Date"]]
    assert all(7190 < parse(each).timestamp() - time.time() < 7210 for each in times)


def test_an_answer_that_comes_late_and_drips_holds_up_no_other(airbyte):
    airbyte.faults["list_jobs"], start = [Fault(body="{}", seconds=0.5, drip=True)] * 10, time.monotonic()
    with ThreadPoolExecutor(10) as clients:
        assert {*clients.map(lambda _: ask(airbyte, "GET jobs").text, range(10))} == {"{}"}
    assert 1 <= time.monotonic() - start < 3
