"""A real deployment with one worker slot: scheduler, web server, REST API, and processes that die."""

from __future__ import annotations

import json
import time
import uuid

import pytest
from sandbox.airflow_home import AIRFLOW_VERSION, DAG_ID, HTTP_CONNECTION, START, WAIT, kept_files, leaks
from sandbox.deployment import AIRFLOW_3, Deployment
from sandbox.fake_airbyte import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, SUCCEEDS, FakeAirbyte, Fault, Request

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(
        AIRFLOW_VERSION < (2, 11) or (3, 0) <= AIRFLOW_VERSION < (3, 2),
        reason="the newest of Airflow 2 and of Airflow 3 will do",
    ),
]

OTHERS = [str(uuid.UUID(int=number, version=4)) for number in range(1, 6)]
ENDS_AT_ONCE, FAILS = (str(uuid.UUID(int=number, version=4)) for number in (6, 7))
STATUSES = {
    **dict.fromkeys((CONNECTION_ID, *OTHERS), SUCCEEDS),
    ENDS_AT_ONCE: ("succeeded",),
    FAILS: ("running", "failed"),
}
SHORT_DELAYS = {"retry_delay": 1, "max_retry_delay": 1}
# On Airflow 2 a poke takes the one slot six seconds, and five sensors share it.
POLICY = {START: SHORT_DELAYS, WAIT: {**SHORT_DELAYS, "poke_interval": 5 if AIRFLOW_3 else 10}}
STALE_TOKEN = "a-token-that-has-grown-stale"


@pytest.fixture(scope="module")
def airbyte():
    with FakeAirbyte(statuses=STATUSES) as airbyte:
        yield airbyte


@pytest.fixture(scope="module")
def deployment(airbyte, tmp_path_factory):
    """An Airflow with one worker slot, whose Variables and connection are set as the README says."""
    home = tmp_path_factory.mktemp("deployment")
    environ = {
        "TASK_POLICY": json.dumps(POLICY),
        "AIRFLOW__CORE__PARALLELISM": "1",
        "AIRFLOW__CORE__SENSITIVE_VAR_CONN_NAMES": "client_id",  # as the README says
    }
    with (home / "out.log").open("w") as out:
        with Deployment(home, environ, out) as deployment:
            deployment.airflow("connections", "add", HTTP_CONNECTION, "--conn-type", "http", "--conn-host", airbyte.url)
            deployment.airflow("variables", "set", "MY_EXAMPLE_CONNECTION_ID", CONNECTION_ID)
            deployment.airflow("variables", "set", "AIRBYTE_CLIENT_ID", CLIENT_ID)
            deployment.airflow("variables", "set", "AIRBYTE_CLIENT_SECRET", CLIENT_SECRET)
            yield deployment
        assert deployment.running() == [], "nothing is left behind"


def job_count(airbyte: FakeAirbyte, connection_id: str) -> int:
    """Return how many jobs of a connection there were."""
    return len([job for job in airbyte.jobs if job.connection_id == connection_id])


def next_request(deployment: Deployment, airbyte: FakeAirbyte, operation: str, number: int) -> Request:
    """Wait for the request of an operation that comes after so many, and return it."""
    return deployment.wait_for(lambda: next(iter(airbyte.requests_of(operation)[number:]), None), operation)


def wait_until_it_waits(deployment: Deployment, run_id: str) -> None:
    """Wait until the sensor of a run is between two pokes."""
    deployment.wait_for(lambda: deployment.tasks(run_id)[WAIT]["state"] == "up_for_reschedule", "the wait")


def test_the_dag_appears_without_an_error_or_a_warning(deployment):
    assert deployment.api("/importErrors")["total_entries"] == 0
    assert deployment.api("/dagWarnings")["total_entries"] == 0
    tasks = deployment.api(f"/dags/{DAG_ID}/tasks")["tasks"]
    assert {task["task_id"] for task in tasks} == {START, WAIT}


def test_syncs_the_connection_of_the_variable_or_of_the_run(deployment, airbyte):
    airbyte.job_seconds = 4
    runs = [deployment.trigger(), deployment.trigger(connection_id=OTHERS[0])]
    assert [deployment.end_of(run_id) for run_id in runs] == ["success", "success"]
    assert sorted(job.connection_id for job in airbyte.jobs) == sorted([CONNECTION_ID, OTHERS[0]])


def test_waits_for_five_syncs_with_one_worker_slot(deployment, airbyte, endless):
    runs = [deployment.trigger(connection_id=connection_id) for connection_id in OTHERS]
    rescheduled = set()

    def all_wait() -> bool:
        states = {
            run_id: {task_id: task["state"] for task_id, task in deployment.tasks(run_id).items()} for run_id in runs
        }
        assert [state for tasks in states.values() for state in tasks.values()].count("running") <= 1
        rescheduled.update(run_id for run_id, tasks in states.items() if tasks.get(WAIT) == "up_for_reschedule")
        return len(rescheduled) == len(runs)

    deployment.wait_for(all_wait, "five sensors that wait without a slot", 180)
    assert sorted(job.connection_id for job in airbyte.unfinished()) == sorted(OTHERS)
    airbyte.job_seconds = 0
    assert [deployment.end_of(run_id) for run_id in runs] == ["success"] * 5


@pytest.mark.skipif(not AIRFLOW_3, reason="Airflow 3 will do")
def test_pokes_come_later_if_the_slot_cannot_keep_up(deployment, airbyte, endless, capsys):
    jobs = len(airbyte.jobs)
    runs = [deployment.trigger(connection_id=connection_id) for connection_id in OTHERS]
    deployment.wait_for(lambda: len(airbyte.unfinished()) == len(OTHERS), "the start of all syncs")
    polls = len(airbyte.requests_of("get_job"))
    slow = Fault(before=lambda airbyte: time.sleep(3))
    airbyte.next_meets("get_job", *[slow] * 20)
    time.sleep(15)
    pokes, due = len(airbyte.requests_of("get_job")) - polls, len(OTHERS) * 15 / POLICY[WAIT]["poke_interval"]
    with capsys.disabled():
        print(f"\n{len(OTHERS)} syncs, one worker slot, 3 s for a poke: {due:.0f} were due in 15 s, {pokes} were made.")
    assert 0 < pokes < due / 2
    airbyte.next_meets("get_job")
    airbyte.job_seconds = 0
    assert [deployment.end_of(run_id) for run_id in runs] == ["success"] * len(OTHERS)
    assert sorted(job.connection_id for job in airbyte.jobs[jobs:]) == sorted(OTHERS)


def test_asks_an_old_job_less_often(deployment, airbyte, endless):
    airbyte.add_job(OTHERS[0], age=400)
    polls = len(airbyte.requests_of("get_job"))
    run_id = deployment.trigger(connection_id=OTHERS[0])
    first = next_request(deployment, airbyte, "get_job", polls)
    airbyte.job_seconds = 0
    assert deployment.end_of(run_id) == "success"
    assert airbyte.requests_of("get_job")[polls + 1].time - first.time >= 400 / 20


@pytest.mark.parametrize("connection_id, state", [(ENDS_AT_ONCE, "success"), (FAILS, "failed")])
def test_a_task_killed_during_the_post_neither_loses_the_sync_nor_starts_it_twice(
    deployment, airbyte, connection_id, state
):
    airbyte.job_seconds = 1  # it has ended by the time of the retry
    jobs, posts = job_count(airbyte, connection_id), len(airbyte.requests_of("create_job"))
    airbyte.next_meets("create_job", Fault(no_answer="silent", carried_out=True))
    run_id = deployment.trigger(connection_id=connection_id)
    post = next_request(deployment, airbyte, "create_job", posts)
    deployment.wait_for(lambda: post.answer, "the job")
    deployment.process_of(post.port).kill()
    assert deployment.end_of(run_id) == state
    assert job_count(airbyte, connection_id) == jobs + 1


def test_the_wait_survives_a_task_killed_during_a_poke(deployment, airbyte, endless):
    jobs, polls = job_count(airbyte, CONNECTION_ID), len(airbyte.requests_of("get_job"))
    airbyte.next_meets("get_job", Fault(no_answer="silent"))
    run_id = deployment.trigger()
    poll = next_request(deployment, airbyte, "get_job", polls)
    deployment.process_of(poll.port).kill()
    next_request(deployment, airbyte, "get_job", polls + 1)
    airbyte.job_seconds = 0
    assert deployment.end_of(run_id) == "success"
    assert job_count(airbyte, CONNECTION_ID) == jobs + 1


def test_the_wait_survives_a_killed_scheduler(deployment, airbyte, endless):
    jobs = job_count(airbyte, CONNECTION_ID)
    run_id = deployment.trigger()
    wait_until_it_waits(deployment, run_id)
    deployment.kill("scheduler")
    airbyte.job_seconds = 0
    deployment.start("scheduler")
    assert deployment.end_of(run_id) == "success"
    assert job_count(airbyte, CONNECTION_ID) == jobs + 1


def test_clearing_the_wait_waits_for_the_same_job_again(deployment, airbyte):
    airbyte.job_seconds = 1
    run_id = deployment.trigger()
    assert deployment.end_of(run_id) == "success"
    job, jobs, polls = airbyte.jobs[-1], len(airbyte.jobs), len(airbyte.requests_of("get_job"))
    deployment.clear(run_id, WAIT)
    assert next_request(deployment, airbyte, "get_job", polls).path.endswith(f"/{job.id}")
    assert deployment.end_of(run_id) == "success"
    assert len(airbyte.jobs) == jobs


@pytest.mark.parametrize("run_has_ended", [True, False])
def test_clearing_the_start_starts_a_new_sync(deployment, airbyte, endless, run_has_ended):
    run_id = deployment.trigger()
    wait_until_it_waits(deployment, run_id)
    first = airbyte.jobs[-1]
    airbyte.job_seconds = 0
    assert airbyte.unfinished() == []
    if run_has_ended:
        assert deployment.end_of(run_id) == "success"
    jobs, posts = len(airbyte.jobs), len(airbyte.requests_of("create_job"))
    deployment.clear(run_id, START)
    next_request(deployment, airbyte, "create_job", posts)
    assert deployment.end_of(run_id) == "success"
    assert len(airbyte.jobs) == jobs + 1
    assert airbyte.requests_of("get_job")[-1].path.endswith(f"/{airbyte.jobs[-1].id}")
    assert airbyte.jobs[-1].id != first.id


def test_no_secret_is_kept_anywhere_but_in_the_variables(deployment, airbyte):
    airbyte.job_seconds = 3
    ends = [deployment.end_of(deployment.trigger()), deployment.end_of(deployment.trigger(connection_id=FAILS))]
    deployment.airflow("variables", "set", "CLOUD_API_TOKEN", STALE_TOKEN)
    refused = deployment.trigger()
    ends.append(deployment.end_of(refused))
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
    kept = {"the REST API": json.dumps(answers).encode(), **kept_files(deployment.home)}
    assert any(START in name for name in kept), "the logs are among what is searched"
    assert b"Authorization" in kept["the REST API"], "the rendered fields are among what is searched"

    secrets = [CLIENT_ID, CLIENT_SECRET, STALE_TOKEN, *airbyte.tokens]
    assert len(secrets) > 6
    assert leaks(kept, secrets) == set()
