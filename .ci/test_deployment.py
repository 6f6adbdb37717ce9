"""A real deployment with one worker slot: scheduler, web server, REST API, and processes that die."""

from __future__ import annotations

import json

import pytest
from proved_deployment import AIRFLOW_3, SHORT_DELAYS, ProvedDeployment, sender
from sandbox.fake_airbyte import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, SUCCEEDS, FakeAirbyte, Fault
from sandbox.throwaway_airflow import AIRFLOW_VERSION, DAG_ID, files_in, leaks

START, WAIT = "start_airbyte_sync", "wait_for_airbyte_sync"
pytestmark = [
    pytest.mark.deployment,
    pytest.mark.usefixtures("fresh_airbyte"),
    pytest.mark.skipif(
        AIRFLOW_VERSION < (2, 11) or (3, 0) <= AIRFLOW_VERSION < (3, 2),
        reason="the newest of Airflow 2 and of Airflow 3 will do",
    ),
]

*FIVE, FAILS = (f"00000000-0000-4000-8000-{number:012}" for number in range(1, 7))
STATUSES = {**dict.fromkeys((CONNECTION_ID, *FIVE), SUCCEEDS), FAILS: ("running", "failed")}
STALE_TOKEN = "a-token-that-has-grown-stale"


@pytest.fixture(scope="module")
def airbyte():
    with FakeAirbyte(statuses=STATUSES) as airbyte:
        yield airbyte


@pytest.fixture(scope="module")
def deployment(airbyte, tmp_path_factory):
    """An Airflow with one worker slot, whose Variables and connection are set as the README says."""
    folder = tmp_path_factory.mktemp("deployment")
    environ = {
        "TASK_POLICY": json.dumps(SHORT_DELAYS),
        "AIRFLOW__CORE__PARALLELISM": "1",
        "AIRFLOW__CORE__SENSITIVE_VAR_CONN_NAMES": "client_id",  # Else the API shows that Variable as it is.
    }
    with (folder / "out.log").open("w") as out, ProvedDeployment(folder, environ, out) as deployment:
        deployment.configure(airbyte.url)
        yield deployment


def test_the_dag_appears_without_an_error_or_a_warning(deployment):
    assert deployment.api("/importErrors")["total_entries"] == 0
    assert deployment.api("/dagWarnings")["total_entries"] == 0
    tasks = deployment.api(f"/dags/{DAG_ID}/tasks")["tasks"]
    assert {task["task_id"] for task in tasks} == {START, WAIT}


def test_five_syncs_share_one_worker_slot(deployment, airbyte, endless):
    airbyte.faults["get_job"] = [Fault(seconds=2)] * 99
    runs = [deployment.trigger(connection_id=connection_id) for connection_id in FIVE]
    deployment.wait_for(lambda: len({poke.path for poke in airbyte.requests_of("get_job")}) > 1, "two sensors", 180)
    airbyte.job_seconds = 0
    assert [deployment.end_of(run_id) for run_id in runs] == ["success"] * 5
    assert sorted(job.connection_id for job in airbyte.jobs) == FIVE
    pokes = [poke.time for poke in airbyte.requests_of("get_job")]
    assert min(later - earlier for earlier, later in zip(pokes, pokes[1:])) >= 2, "no two pokes overlap"


@pytest.mark.parametrize("age, durations, second_poke", [(0, [40] * 5, 35), (900, [], 930)])
def test_pokes_next_when_the_sync_may_have_ended(deployment, airbyte, endless, age, durations, second_poke):
    for days, duration in enumerate(durations, 1):
        airbyte.add_job(age=days * 24 * 60 * 60, duration=duration)
    job = airbyte.add_job(age=age)
    run_id = deployment.trigger()
    deployment.wait_for_request(airbyte, "get_job")
    airbyte.job_seconds = 0
    assert deployment.end_of(run_id) == "success"
    first, second = (poke.time - job.created for poke in airbyte.requests_of("get_job"))
    assert first < second_poke <= second < second_poke + 40


@pytest.mark.parametrize("operation", ["create_job", "get_job"])
@pytest.mark.parametrize("connection_id, state", [(CONNECTION_ID, "success"), (FAILS, "failed")])
def test_a_killed_task_neither_loses_nor_doubles_the_sync(deployment, airbyte, operation, connection_id, state):
    airbyte.job_seconds = 0  # It has ended by the time of the retry.
    airbyte.faults[operation] = [Fault(no_answer="silent", carried_out=True)]
    run_id = deployment.trigger(connection_id=connection_id)
    sender(deployment.wait_for_request(airbyte, operation)).kill()
    assert deployment.end_of(run_id) == state
    assert len(airbyte.jobs) == 1


def test_the_wait_survives_a_killed_scheduler(deployment, airbyte, endless):
    run_id = deployment.waiting_run()
    deployment.kill("scheduler")
    deployment.start("scheduler")
    assert deployment.end_after_a_poke(airbyte, run_id) == "success"
    assert len(airbyte.jobs) == 1


def test_clearing_the_wait_waits_for_the_same_job_again(deployment, airbyte):
    run_id = deployment.trigger()
    assert deployment.end_of(run_id) == "success"
    airbyte.requests.clear()
    deployment.clear(run_id, WAIT)
    assert deployment.wait_for_request(airbyte, "get_job").path.endswith(f"/{airbyte.jobs[0].id}")
    assert deployment.end_of(run_id) == "success"
    assert [job.connection_id for job in airbyte.jobs] == [CONNECTION_ID], "the Variable's"


@pytest.mark.parametrize("run_has_ended", [True, False])
def test_clearing_the_start_starts_a_new_sync(deployment, airbyte, endless, run_has_ended):
    run_id = deployment.waiting_run()
    airbyte.job_seconds = 0
    if run_has_ended:
        assert deployment.end_of(run_id) == "success"
    airbyte.requests.clear()
    deployment.clear(run_id, START)
    deployment.wait_for_request(airbyte, "create_job")
    assert deployment.end_of(run_id) == "success"
    assert len(airbyte.jobs) == 2
    assert airbyte.requests_of("get_job")[-1].path.endswith(f"/{airbyte.jobs[1].id}")


def test_no_secret_is_kept_anywhere_but_in_the_variables(deployment, airbyte):
    ends = [deployment.end_of(deployment.trigger(connection_id=each)) for each in (CONNECTION_ID, FAILS)]
    deployment.api("/variables", {"key": "CLOUD_API_TOKEN", "value": STALE_TOKEN})
    refused = deployment.trigger()
    ends.append(deployment.end_of(refused))
    deployment.api("/variables/CLOUD_API_TOKEN", method="DELETE")
    assert ends == ["success", "failed", "failed"]
    log = deployment.api(f"/dags/{DAG_ID}/dagRuns/{refused}/taskInstances/{START}/logs/1")
    assert "with 401" in json.dumps(log)

    answers = [deployment.api("/variables")] if AIRFLOW_3 else []  # The API of Airflow 2 shows Variables as they are.
    for run in deployment.api(f"/dags/{DAG_ID}/dagRuns")["dag_runs"]:
        for task_id, task in deployment.tasks(run["dag_run_id"]).items():
            path = f"/dags/{DAG_ID}/dagRuns/{run['dag_run_id']}/taskInstances/{task_id}"
            answers += [task, deployment.api(f"{path}/xcomEntries")]
            answers += [deployment.api(f"{path}/xcomEntries/{entry['key']}") for entry in answers[-1]["xcom_entries"]]
            answers += [deployment.api(f"{path}/logs/{number}") for number in range(1, task["try_number"] + 1)]
    kept = {"the REST API": json.dumps(answers).encode(), **files_in(deployment.airflow_home)}
    assert any(START in name for name in kept), "the logs are among what is searched"
    assert b'"endpoint": "v1/jobs' in kept["the REST API"].replace(b"\\", b""), "and the rendered fields"

    secrets = [CLIENT_ID, CLIENT_SECRET, STALE_TOKEN, *airbyte.tokens]
    assert len(secrets) > 6
    assert leaks(kept, secrets) == set()


def test_a_token_in_an_answer_is_masked_in_the_log(deployment, airbyte):
    """The last test: Airflow 3 also copies the line, unmasked, to the scheduler's output."""
    job = {"jobId": 1001, "status": "running", "jobType": "sync", "connectionId": CONNECTION_ID}
    airbyte.faults["get_job"] = [Fault(body=json.dumps({**job, "quoted": "{authorization}"}))]
    run_id = deployment.trigger()
    assert deployment.end_of(run_id) == "success"
    log = json.dumps(deployment.api(f"/dags/{DAG_ID}/dagRuns/{run_id}/taskInstances/{WAIT}/logs/1"))
    assert "quoted" in log
    assert leaks({"log": log.encode()}, [*airbyte.tokens]) == set()
