"""A distributed deployment: CeleryExecutor with two workers, Redis and PostgreSQL, each of which dies once."""

from __future__ import annotations

import json
import signal
import uuid
from importlib.util import find_spec

import psutil
import pytest
from sandbox import services
from sandbox.airflow_home import START, WAIT, dag_settings
from sandbox.deployment import Deployment
from sandbox.fake_airbyte import FakeAirbyte, Fault, Request

pytestmark = [
    pytest.mark.celery,
    pytest.mark.skipif(
        # find_spec() of an Airflow submodule would import Airflow, before its policy is in place.
        not (services.available() and find_spec("celery")),
        reason="needs apache-airflow-providers-celery[redis], psycopg2-binary, asyncpg, PostgreSQL and Redis",
    ),
]

CONNECTION_IDS = [str(uuid.UUID(int=number, version=4)) for number in range(1, 13)]
WORKERS = ("worker-1", "worker-2")
SHORT_DELAYS = {"retry_delay": 1, "max_retry_delay": 1}
POLICY = {START: SHORT_DELAYS, WAIT: {**SHORT_DELAYS, "poke_interval": 5}}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    with (tmp_path_factory.mktemp("celery") / "out.log").open("w") as out:
        yield out


@pytest.fixture(scope="module")
def postgres(out):
    with services.postgres(out) as server:
        yield server


@pytest.fixture(scope="module")
def redis(out):
    with services.redis(out) as server:
        yield server


@pytest.fixture(scope="module")
def airbyte():
    statuses = dict.fromkeys(CONNECTION_IDS, ("pending", "running", "succeeded"))
    with FakeAirbyte(statuses=statuses) as airbyte:
        yield airbyte


@pytest.fixture(scope="module")
def deployment(airbyte, postgres, redis, out, tmp_path_factory):
    """An Airflow with two Celery workers, of four slots each."""
    environ = {
        **dag_settings(airbyte.url),
        "TASK_POLICY": json.dumps(POLICY),
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": services.sqlalchemy_url(postgres),
        "AIRFLOW__CELERY__BROKER_URL": f"redis://127.0.0.1:{redis.port}/0",
        "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{services.sqlalchemy_url(postgres)}",
        "AIRFLOW__CELERY__WORKER_CONCURRENCY": "4",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "20",  # for a task that a dead worker or broker had in its queue
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
        "C_FORCE_ROOT": "1",
    }
    options = ["--skip-serve-logs", "--without-gossip", "--without-mingle"]
    workers = {
        name: ["airflow", "celery", "worker", "--celery-hostname", f"{name}@127.0.0.1", *options] for name in WORKERS
    }
    home = tmp_path_factory.mktemp("deployment")
    with Deployment(home, environ, out, more=workers) as deployment:
        yield deployment
    assert deployment.running() == [], "nothing is left behind"


@pytest.fixture
def one_sync(deployment, airbyte, endless):
    """A run that waits for its sync. In the end it must succeed, with that one sync."""
    jobs = len(airbyte.jobs)
    run_id = deployment.trigger(connection_id=CONNECTION_IDS[0])
    deployment.wait_for(lambda: deployment.tasks(run_id)[WAIT]["state"] == "up_for_reschedule", "the wait")
    polls = len(airbyte.requests_of("get_job"))
    yield run_id

    def another_poke() -> bool:
        deployment.restart_what_has_ended()  # Without its database, Airflow's scheduler may give up.
        return len(airbyte.requests_of("get_job")) > polls

    deployment.wait_for(another_poke, "another poke", 180)
    airbyte.job_seconds = 0
    assert deployment.end_of(run_id, 180) == "success"
    assert len(airbyte.jobs) == jobs + 1


def kill_worker_of(deployment: Deployment, request: Request) -> str:
    """Kill the worker, with all its children, that made a request, and return its name. The request has no answer yet."""
    holder = deployment.process_of(request.port)
    ancestors = {process.pid for process in holder.parents()}
    (name,) = [name for name in WORKERS if deployment.processes[name].pid in ancestors]
    worker = psutil.Process(deployment.processes[name].pid)
    family = [worker, *worker.children(recursive=True)]
    assert holder in family
    for process in family:
        process.kill()
    deployment.kill(name)
    deployment.wait_for(lambda: all(is_dead(process) for process in family), "their death")
    return name


def is_dead(process: psutil.Process) -> bool:
    """Return whether a process has ended. (Where nobody reaps orphans they stay, as zombies.)"""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_twelve_syncs_at_once(deployment, airbyte):
    airbyte.job_seconds = 20
    runs = [deployment.trigger(connection_id=connection_id) for connection_id in CONNECTION_IDS]
    assert [deployment.end_of(run_id, 300) for run_id in runs] == ["success"] * 12
    assert sorted(job.connection_id for job in airbyte.jobs) == sorted(CONNECTION_IDS)


@pytest.mark.parametrize("operation, carried_out", [("create_job", True), ("get_job", False)])
def test_a_worker_dies_during_a_request(deployment, airbyte, endless, operation, carried_out):
    jobs, requests = len(airbyte.jobs), len(airbyte.requests_of(operation))
    airbyte.next_meets(operation, Fault(no_answer="silent", carried_out=carried_out))
    run_id = deployment.trigger(connection_id=CONNECTION_IDS[0])
    request = deployment.wait_for(lambda: next(iter(airbyte.requests_of(operation)[requests:]), None), operation)
    deployment.wait_for(lambda: request.answer, "the fault")
    polls = len(airbyte.requests_of("get_job"))
    killed = kill_worker_of(deployment, request)
    deployment.wait_for(lambda: len(airbyte.requests_of("get_job")) > polls, "a poke of the other worker", 180)
    airbyte.job_seconds = 0
    assert deployment.end_of(run_id, 180) == "success"
    assert len(airbyte.jobs) == jobs + 1
    deployment.start(killed)


def test_redis_dies_during_the_wait(one_sync, redis):
    redis.end(signal.SIGKILL)
    redis.start()


def test_postgres_restarts_during_the_wait(one_sync, postgres):
    postgres.end(signal.SIGINT)
    postgres.start()


def test_the_scheduler_dies_during_the_wait(one_sync, deployment):
    deployment.kill("scheduler")
    deployment.start("scheduler")
