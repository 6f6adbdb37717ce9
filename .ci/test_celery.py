"""A distributed deployment: CeleryExecutor with two workers, Redis and PostgreSQL, each of which dies once."""

from __future__ import annotations

import json

import pytest
from proved_deployment import SHORT_DELAYS, ProvedDeployment, run_postgres, sender
from sandbox.deployment import free_port
from sandbox.fake_airbyte import CONNECTION_ID, SUCCEEDS, Fault
from sandbox.throwaway_airflow import dag_settings

pytestmark = [pytest.mark.celery, pytest.mark.usefixtures("fresh_airbyte")]
CONNECTION_IDS = [CONNECTION_ID, *(f"00000000-0000-4000-8000-{number:012}" for number in range(1, 12))]
WORKERS = ("worker-1", "worker-2")
postgres = pytest.fixture(run_postgres, scope="module")


@pytest.fixture(scope="module")
def deployment(airbyte, postgres, tmp_path_factory):
    """An Airflow with two Celery workers, of four slots each."""
    folder, port, database = tmp_path_factory.mktemp("deployment"), str(free_port()), postgres[0]
    environ = {
        **dag_settings(airbyte.url),
        "TASK_POLICY": json.dumps(SHORT_DELAYS),
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "AIRFLOW__CELERY__BROKER_URL": f"redis://127.0.0.1:{port}/0",
        "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{database}",
        "AIRFLOW__CELERY__WORKER_CONCURRENCY": "4",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "20",  # for a task that a dead worker or broker had in its queue
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
        "C_FORCE_ROOT": "1",
    }
    # It keeps every command on disk, so that a kill loses nothing.
    redis = ["redis-server", "--bind", "127.0.0.1", "--port", port, "--appendonly", "yes", "--appendfsync", "always"]
    worker = ["airflow", "celery", "worker", "--skip-serve-logs", "--without-gossip", "--without-mingle"]
    workers = {name: [*worker, "--celery-hostname", f"{name}@127.0.0.1"] for name in WORKERS}
    with (folder / "out.log").open("w") as out:
        with ProvedDeployment(folder, environ, out, more={"redis": redis, **workers}) as deployment:
            yield deployment


def test_twelve_syncs_at_once(deployment, airbyte):
    airbyte.statuses = dict.fromkeys(CONNECTION_IDS, SUCCEEDS)
    runs = [deployment.trigger(connection_id=connection_id) for connection_id in CONNECTION_IDS]
    assert [deployment.end_of(run_id, 300) for run_id in runs] == ["success"] * 12
    assert sorted(job.connection_id for job in airbyte.jobs) == sorted(CONNECTION_IDS)


@pytest.mark.parametrize("operation", ["create_job", "get_job"])
def test_a_worker_dies_during_a_request(deployment, airbyte, operation):
    airbyte.job_seconds = 0  # The sync has ended by the time of the retry.
    airbyte.faults[operation] = [Fault(no_answer="silent", carried_out=True)]
    run_id = deployment.trigger()
    request = deployment.wait_for_request(airbyte, operation)
    ancestors = [process.pid for process in sender(request).parents()]
    (worker,) = [name for name in WORKERS if deployment.processes[name].pid in ancestors]
    deployment.kill(worker)
    assert deployment.end_after_a_poke(airbyte, run_id) == "success", "the other worker has taken over"
    assert len(airbyte.jobs) == 1
    deployment.start(worker)


@pytest.mark.parametrize("dies", ["redis", "postgres", "scheduler"])
def test_the_wait_survives(deployment, airbyte, endless, postgres, dies):
    run_id = deployment.waiting_run()
    if dies == "postgres":
        postgres[1]("restart", "--mode=fast")
    else:
        deployment.kill(dies)
        deployment.start(dies)
    assert deployment.end_after_a_poke(airbyte, run_id) == "success"
    assert len(airbyte.jobs) == 1
