"""A real deployment with one worker slot: scheduler, web server, REST API, and processes that die."""

from __future__ import annotations

import json
import uuid

import pytest
from airbyte_api import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, SUCCEEDS, AirbyteApi
from airflow_home import AIRFLOW_VERSION, DAG_ID, START, WAIT, files, leaks
from deployment import AIRFLOW_3, Deployment

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(
        AIRFLOW_VERSION < (2, 11) or (3, 0) <= AIRFLOW_VERSION < (3, 2),
        reason="the newest of Airflow 2 and of Airflow 3 will do",
    ),
]

OTHERS = [str(uuid.UUID(int=number, version=4)) for number in range(1, 6)]
SWIFT, FAILS = (str(uuid.UUID(int=number, version=4)) for number in (6, 7))  # connections by what their syncs do
STATUSES = {
    **{connection_id: SUCCEEDS for connection_id in (CONNECTION_ID, *OTHERS)},
    SWIFT: ("succeeded",),
    FAILS: ("running", "failed"),
}
HASTY = {"retry_delay": 1, "max_retry_delay": 1}
# One slot takes Airflow 2 six seconds for a poke, and there are five sensors: it keeps the DAG's own interval.
POLICY = {START: HASTY, WAIT: {**HASTY, **({"poke_interval": 5} if AIRFLOW_3 else {})}}
STALE_TOKEN = "a-token-that-has-grown-stale"


@pytest.fixture(scope="module")
def airbyte():
    with AirbyteApi(statuses=STATUSES) as airbyte:
        yield airbyte


@pytest.fixture(scope="module")
def airflow(airbyte, tmp_path_factory):
    """An Airflow with one worker slot, whose Variables and connection are set as the README says."""
    home = tmp_path_factory.mktemp("deployment")
    environ = {
        "TASK_POLICY": json.dumps(POLICY),
        "AIRFLOW__CORE__PARALLELISM": "1",
        "AIRFLOW__CORE__SENSITIVE_VAR_CONN_NAMES": "client_id",  # as the README says
    }
    with (home / "out.log").open("w") as out:
        with Deployment(home, environ, out) as deployment:
            deployment.airflow(
                "connections", "add", "airbyte-api-cloud-connection", "--conn-type", "http", "--conn-host", airbyte.url
            )
            deployment.airflow("variables", "set", "MY_EXAMPLE_CONNECTION_ID", CONNECTION_ID)
            deployment.airflow("variables", "set", "AIRBYTE_CLIENT_ID", CLIENT_ID)
            deployment.airflow("variables", "set", "AIRBYTE_CLIENT_SECRET", CLIENT_SECRET)
            yield deployment
        assert deployment.running() == [], "nothing is left behind"


@pytest.fixture
def endless(airbyte):
    """Syncs that run until the test lets them end, with `airbyte.job_seconds = 0`."""
    airbyte.job_seconds = 3600
    yield
    airbyte.job_seconds = 0


def jobs_of(airbyte, connection_id: str) -> int:
    """Return how many syncs of a connection there were."""
    return len([job for job in airbyte.jobs if job["connection"] == connection_id])


def call_after(airflow, airbyte, call: str, number: int) -> dict:
    """Wait for the call of a kind that comes after so many, and return its request."""
    return airflow.wait_for(lambda: next(iter(airbyte.calls(call)[number:]), None), f"the {call}")


def test_the_dag_appears_without_an_error_or_a_warning(airflow):
    assert airflow.get("/importErrors")["total_entries"] == 0
    assert airflow.get("/dagWarnings")["total_entries"] == 0
    tasks = airflow.get(f"/dags/{DAG_ID}/tasks")["tasks"]
    assert {task["task_id"] for task in tasks} == {START, WAIT}


def test_syncs_the_connection_of_the_variable_or_of_the_run(airflow, airbyte):
    airbyte.job_seconds = 4
    runs = [airflow.trigger(), airflow.trigger(connection_id=OTHERS[0])]
    assert [airflow.end_of(run_id) for run_id in runs] == ["success", "success"]
    assert sorted(job["connection"] for job in airbyte.jobs) == sorted([CONNECTION_ID, OTHERS[0]])


def test_waits_for_five_syncs_with_one_worker_slot(airflow, airbyte, endless):
    runs = [airflow.trigger(connection_id=connection_id) for connection_id in OTHERS]
    rescheduled = set()

    def all_wait() -> bool:
        states = {
            run_id: {task_id: task["state"] for task_id, task in airflow.tasks(run_id).items()} for run_id in runs
        }
        assert [state for tasks in states.values() for state in tasks.values()].count("running") <= 1
        rescheduled.update(run_id for run_id, tasks in states.items() if tasks.get(WAIT) == "up_for_reschedule")
        return len(rescheduled) == len(runs)

    airflow.wait_for(all_wait, "five sensors that wait without a slot", 180)
    assert sorted(job["connection"] for job in airbyte.running()) == sorted(OTHERS)
    airbyte.job_seconds = 0
    assert [airflow.end_of(run_id) for run_id in runs] == ["success"] * 5


@pytest.mark.parametrize("connection_id, state", [(SWIFT, "success"), (FAILS, "failed")])
def test_a_task_killed_amid_the_post_neither_loses_nor_doubles_the_sync(airflow, airbyte, connection_id, state):
    airbyte.job_seconds = 1  # it has ended by the time of the retry
    before, posts = jobs_of(airbyte, connection_id), len(airbyte.calls("start"))
    airbyte.will_meet("start", "silence after")
    run_id = airflow.trigger(connection_id=connection_id)
    post = call_after(airflow, airbyte, "start", posts)
    airflow.wait_for(lambda: post["answer"], "the job")
    airflow.process_of(post["port"]).kill()
    assert airflow.end_of(run_id) == state
    assert jobs_of(airbyte, connection_id) == before + 1


def test_a_task_killed_amid_a_poll_waits_on(airflow, airbyte, endless):
    before, polls = jobs_of(airbyte, CONNECTION_ID), len(airbyte.calls("poll"))
    airbyte.will_meet("poll", "silence")
    run_id = airflow.trigger()
    poll = call_after(airflow, airbyte, "poll", polls)
    airflow.process_of(poll["port"]).kill()
    airflow.wait_for(lambda: len(airbyte.calls("poll")) > polls + 1, "another poll")
    airbyte.job_seconds = 0
    assert airflow.end_of(run_id) == "success"
    assert jobs_of(airbyte, CONNECTION_ID) == before + 1


def test_a_scheduler_killed_amid_the_wait_waits_on_when_it_is_back(airflow, airbyte, endless):
    before = jobs_of(airbyte, CONNECTION_ID)
    run_id = airflow.trigger()
    airflow.wait_for(lambda: airflow.tasks(run_id)[WAIT]["state"] == "up_for_reschedule", "the wait")
    airflow.kill("scheduler")
    airbyte.job_seconds = 0
    airflow.start("scheduler")
    assert airflow.end_of(run_id) == "success"
    assert jobs_of(airbyte, CONNECTION_ID) == before + 1


def test_no_secret_is_kept_anywhere_but_in_the_variables(airflow, airbyte):
    airbyte.job_seconds = 3
    ends = [airflow.end_of(airflow.trigger()), airflow.end_of(airflow.trigger(connection_id=FAILS))]
    airflow.airflow("variables", "set", "CLOUD_API_TOKEN", STALE_TOKEN)
    refused = airflow.trigger()
    ends.append(airflow.end_of(refused))
    assert ends == ["success", "failed", "failed"]
    log = airflow.get(f"/dags/{DAG_ID}/dagRuns/{refused}/taskInstances/{START}/logs/1")
    assert "with 401" in json.dumps(log)

    answers = [airflow.get("/variables")] if AIRFLOW_3 else []  # The API of Airflow 2 shows Variables as they are.
    for run in airflow.get(f"/dags/{DAG_ID}/dagRuns")["dag_runs"]:
        for task_id, task in airflow.tasks(run["dag_run_id"]).items():
            path = f"/dags/{DAG_ID}/dagRuns/{run['dag_run_id']}/taskInstances/{task_id}"
            answers += [task, airflow.get(f"{path}/xcomEntries")]
            answers += [airflow.get(f"{path}/xcomEntries/{entry['key']}") for entry in answers[-1]["xcom_entries"]]
            answers += [airflow.get(f"{path}/logs/{number}") for number in range(1, task["try_number"] + 1)]
    kept = {"the REST API": json.dumps(answers).encode(), **files(airflow.home)}
    assert any(START in name for name in kept), "the logs are among what is searched"
    assert b"Authorization" in kept["the REST API"], "the rendered fields are among what is searched"

    secrets = [CLIENT_ID, CLIENT_SECRET, STALE_TOKEN, *airbyte.tokens]
    assert len(secrets) > 6
    assert leaks(kept, secrets) == set()
