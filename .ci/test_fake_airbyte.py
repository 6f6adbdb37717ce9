"""
The fake Airbyte answers and refuses as Airbyte does, or the other tests would prove nothing.

Where they are installed, clients that others wrote for the real one judge it: Airbyte's SDK, the Airbyte provider of
Airflow, Dagster and PyAirbyte. (`test_openapi.py` lets Airbyte's documents judge it.) What no client judges is only
pinned here, to what Airbyte's documentation, its source and its users say.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter

import pytest
import requests
from dateutil.parser import parse
from sandbox.fake_airbyte import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, WORKSPACE_ID, FakeAirbyte, Fault

CLIENT = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
SYNC = {"connectionId": CONNECTION_ID, "jobType": "sync"}
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(params=["", "/api/public"], ids=["cloud", "self-managed"])
def airbyte(request):
    with FakeAirbyte(base_path=request.param) as airbyte:
        airbyte.tokens["token"] = float("inf")
        yield airbyte


@pytest.fixture
def sdk(airbyte, monkeypatch):
    """A function that asks through Airbyte's SDK, which must know everything in the answer."""
    airbyte_api = pytest.importorskip("airbyte_api")
    # The SDK would send the token that it got in the last test.
    monkeypatch.setattr("airbyte_api._hooks.clientcredentials.ClientCredentialsHook._sessions", {})

    def ask(operation: str, secret: str = CLIENT_SECRET, **request):
        client = {**CLIENT, "client_secret": secret, "token_url": "v1/applications/token"}
        security = airbyte_api.models.Security(client_credentials=client)
        api = airbyte_api.AirbyteAPI(server_url=f"{airbyte.url}/v1", security=security)
        answer = attrgetter(operation)(api)(request=request)
        known = next(value for _, value in answer if hasattr(value, "model_dump"))
        assert known.model_dump(mode="json", by_alias=True, exclude_unset=True) == answer.raw_response.json()
        return known

    return ask


def ask(airbyte: FakeAirbyte, method: str, path: str, token: str = "token", **body):
    """Return the status and the JSON of an answer."""
    headers = {"Authorization": f"Bearer {token}"}
    response = requests.request(method, f"{airbyte.url}/v1/{path}", headers=headers, timeout=5, **body)
    return response.status_code, response.json()


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


@pytest.mark.parametrize(
    "operation, arguments, cloud, self_managed",
    [
        ("jobs.list_jobs", {"secret": "wrong"}, 401, 400),
        ("jobs.create_job", SYNC, 409, 409),
        ("jobs.create_job", {**SYNC, "connectionId": UNKNOWN}, 403, 404),
        ("jobs.get_job", {"job_id": 1}, 403, 409),
        ("jobs.cancel_job", {"job_id": 1}, 403, 409),
        ("connections.get_connection", {"connection_id": UNKNOWN}, 403, 404),
    ],
)
def test_the_sdk_is_refused(airbyte, sdk, operation, arguments, cloud, self_managed):
    airbyte.add_job(statuses=("running",))
    status = self_managed if airbyte.self_managed else cloud
    with pytest.raises(Exception, match=f"API error occurred: Status {status}|Unexpected status code {status}"):
        sdk(operation, **arguments)


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
        **{"poll_interval": 0, "poll_timeout": 9, "cancel_on_termination": True, "poll_previous_running_sync": True},
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


def test_a_token_expires(airbyte):
    status, answer = ask(airbyte, "POST", "applications/token", json=CLIENT)
    token = answer.pop("access_token")
    assert (status, answer) == (200, {"token_type": "Bearer", "expires_in": 900})
    assert ask(airbyte, "GET", "jobs", token)[0] == 200
    airbyte.tokens[token] -= 900
    assert [ask(airbyte, "GET", "jobs", each)[0] for each in (token, "token")] == [401, 200]


@pytest.mark.parametrize("job_type", ["sync", "reset", "refresh", "clear"])
def test_what_is_pending_comes_before_a_sync_and_is_in_its_way_once_it_has_begun(airbyte, job_type):
    airbyte.before_syncs = [job_type]
    assert ask(airbyte, "POST", "jobs", json=SYNC)[1]["jobType"] == job_type
    job = airbyte.jobs[0]
    job.statuses = ("pending", "queued", "running", "pending", "succeeded")
    for job.step, job_id in enumerate([1001, 1001, None, None, 1002]):
        status, answer = ask(airbyte, "POST", "jobs", json=SYNC)
        assert (status, answer.get("jobId")) == (200 if job_id else 409, job_id)
        if status == 409:
            assert answer["data"] == {"message": f"A sync is already running for: {CONNECTION_ID}"}
    assert answer["jobType"] == "sync"


def test_a_job_goes_through_its_statuses_and_says_only_what_is_known(airbyte):
    airbyte.add_job(age=250)
    jobs = [ask(airbyte, "GET", "jobs/1001")[1] for _ in range(4)]
    assert [job["status"] for job in jobs] == ["pending", "running", "succeeded", "succeeded"]
    assert [job.get("duration", "none")[:5] for job in jobs] == ["none", "PT4M1", "PT4M1", "PT4M1"]
    assert ["lastUpdatedAt" in job for job in jobs] == [False, False, True, True]
    assert [job["rowsSynced"] for job in jobs] == [0, 0, 125_000, 125_000]


def test_the_duration_of_a_running_job_ends_with_its_last_change(airbyte):
    airbyte.job_seconds = 100
    airbyte.add_job(age=60)
    assert ask(airbyte, "GET", "jobs/1001")[1]["duration"] == "PT50S"


@pytest.mark.parametrize(
    "offset, job_ids, links",
    [(0, [1003, 1002], ["", "2"]), (2, [1001], ["0", "4"]), (4, [], ["2", ""])],
    ids=["first page", "last page", "empty page"],
)
def test_a_page_links_to_the_next_unless_it_is_empty(airbyte, offset, job_ids, links):
    for age in (3, 2, 1):
        airbyte.add_job(age=age)
    query = {"connectionId": CONNECTION_ID, "limit": 2, "offset": offset, "orderBy": "createdAt|DESC"}
    page = ask(airbyte, "GET", "jobs", params=query)[1]
    assert [job["jobId"] for job in page["data"]] == job_ids
    start = f"{airbyte.url}/v1/jobs?connectionId={CONNECTION_ID}&limit=2&offset="
    assert [page[name] for name in ("previous", "next")] == [start + link if link else "" for link in links]


def test_a_request_that_takes_long_holds_up_no_other(airbyte):
    airbyte.faults, start = {"list_jobs": [Fault(seconds=0.5)] * 10}, time.monotonic()
    with ThreadPoolExecutor(10) as clients:
        assert {*clients.map(lambda _: ask(airbyte, "GET", "jobs")[0], range(10))} == {200}
    assert 0.5 <= time.monotonic() - start < 2


def test_airbytes_clock_may_be_ahead(airbyte):
    airbyte.clock_offset = 7200
    airbyte.add_job(duration=0)
    response = requests.get(f"{airbyte.url}/v1/jobs", headers={"Authorization": "Bearer token"}, timeout=5)
    (job,) = response.json()["data"]
    times = [parse(job["startTime"]), parse(job["lastUpdatedAt"]), parse(response.headers["Date"])]
    assert all(7190 < each.timestamp() - time.time() < 7210 for each in times)


def test_a_fault_may_have_headers_of_its_own_and_drip(airbyte):
    airbyte.faults["list_jobs"] = [Fault(503, headers={"Retry-After": "9", "Date": "today"}, drip=True)]
    start = time.monotonic()
    response = requests.get(f"{airbyte.url}/v1/jobs", timeout=1, stream=True)
    assert [response.headers[name] for name in ("Retry-After", "Date")] == ["9", "today"]
    assert [byte for byte, _ in zip(response.iter_content(1), range(4))] == [b"<", b"h", b"t", b"m"]
    assert time.monotonic() - start > 1
