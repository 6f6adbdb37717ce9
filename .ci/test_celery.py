"""A distributed deployment: CeleryExecutor with two workers, Redis and PostgreSQL, each of which dies once."""

from __future__ import annotations

import json
import signal
from importlib.util import find_spec

import pytest
import services
from proved_deployment import SHORT_DELAYS, ProvedDeployment
from sandbox.fake_airbyte import CONNECTION_ID, SUCCEEDS, FakeAirbyte, Fault
from sandbox.throwaway_airflow import dag_settings

pytestmark = [
    pytest.mark.celery,
    pytest.mark.usefixtures("fresh_airbyte"),
    pytest.mark.skipif(
        not (find_spec("celery") and services.program("postgres") and services.program("redis-server")),
        reason="needs apache-airflow-providers-celery[redis], psycopg2-binary, asyncpg, PostgreSQL and Redis",
    ),
]

CONNECTION_IDS = [CONNECTION_ID, *(f"00000000-0000-4000-8000-{number:012}" for number in range(1, 12))]
WORKERS = ("worker-1", "worker-2")


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
    with FakeAirbyte(statuses=dict.fromkeys(CONNECTION_IDS, SUCCEEDS)) as airbyte:
        yield airbyte


@pytest.fixture(scope="module")
def deployment(airbyte, postgres, redis, out, tmp_path_factory):
    """An Airflow with two Celery workers, of four slots each."""
    environ = {
        **dag_settings(airbyte.url),
        "TASK_POLICY": json.dumps(SHORT_DELAYS),
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": services.sqlalchemy_url(postgres),
        "AIRFLOW__CELERY__BROKER_URL": f"redis://127.0.0.1:{redis.port}/0",
        "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{services.sqlalchemy_url(postgres)}",
        "AIRFLOW__CELERY__WORKER_CONCURRENCY": "4",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "20",  # for a task that a dead worker or broker had in its queue
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
        "C_FORCE_ROOT": "1",
    }
    worker = ["airflow", "celery", "worker", "--skip-serve-logs", "--without-gossip", "--without-mingle"]
    workers = {name: [*worker, "--celery-hostname", f"{name}@127.0.0.1"] for name in WORKERS}
    with ProvedDeployment(tmp_path_factory.mktemp("deployment"), environ, out, more=workers) as deployment:
        yield deployment
    assert deployment.running() == [], "nothing is left behind"


@pytest.fixture
def one_sync(deployment, airbyte, endless):
    """A run that waits for its sync. In the end it must succeed, with that one sync."""
    run_id = deployment.trigger()
    deployment.wait_until_it_waits(run_id)
    yield
    assert deployment.end_after_a_poke(airbyte, run_id) == "success"
    assert len(airbyte.jobs) == 1


def test_twelve_syncs_at_once(deployment, airbyte):
    runs = [deployment.trigger(connection_id=connection_id) for connection_id in CONNECTION_IDS]
    assert [deployment.end_of(run_id, 300) for run_id in runs] == ["success"] * 12
    assert sorted(job.connection_id for job in airbyte.jobs) == sorted(CONNECTION_IDS)


@pytest.mark.parametrize("operation", ["create_job", "get_job"])
def test_a_worker_dies_during_a_request(deployment, airbyte, operation):
    airbyte.job_seconds = 0  # The sync has ended by the time of the retry.
    airbyte.faults[operation] = [Fault(no_answer="silent", carried_out=True)]
    run_id = deployment.trigger()
    request = deployment.wait_for_request(airbyte, operation)
    ancestors = [process.pid for process in deployment.process_of(request.port).parents()]
    (worker,) = [name for name in WORKERS if deployment.processes[name].pid in ancestors]
    deployment.kill(worker)
    assert deployment.end_after_a_poke(airbyte, run_id) == "success", "the other worker has taken over"
    assert len(airbyte.jobs) == 1
    deployment.start(worker)


def test_redis_dies_during_the_wait(one_sync, redis):
    redis.end(signal.SIGKILL)
    redis.start()


def test_postgres_restarts_during_the_wait(one_sync, postgres):
    postgres.end(signal.SIGINT)
    postgres.start()


def test_the_scheduler_dies_during_the_wait(one_sync, deployment):
    deployment.kill("scheduler")
    deployment.start("scheduler")
