"""A real deployment with one worker slot: scheduler, web server, REST API, and processes that die."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest
from proved_deployment import AIRFLOW_3, SHORT_DELAYS, ProvedDeployment, sender
from sandbox.fake_airbyte import (
    CLIENT_ID,
    CLIENT_SECRET,
    CONNECTION_ID,
    FAILING_CONNECTION_ID,
    THIRD_CONNECTION_ID,
    Fault,
)
from sandbox.throwaway_airflow import DAG_FILE, DAG_ID, files_in, leaks
from test_readme import with_alerts

START, WAIT = "start_airbyte_sync", "wait_for_airbyte_sync"
STALE_TOKEN = "a-token-that-has-grown-stale"
THREE_CONNECTIONS = (CONNECTION_ID, THIRD_CONNECTION_ID, FAILING_CONNECTION_ID)
pytestmark = [pytest.mark.deployment, pytest.mark.usefixtures("fresh_airbyte")]


@pytest.fixture(scope="module")
def deployment(airbyte, tmp_path_factory):
    """An Airflow with one worker slot, whose Variables and connection are set as the README says."""
    folder = tmp_path_factory.mktemp("deployment")
    environ = {
        "TASK_POLICY": json.dumps(SHORT_DELAYS),
        "AIRFLOW__CORE__PARALLELISM": "1",
        "AIRFLOW__CORE__SENSITIVE_VAR_CONN_NAMES": "client_id",  # Else the API shows that Variable as it is.
    }
    with (folder / "out.log").open("w") as out:
        deployment = ProvedDeployment(folder, environ, out)
        (folder / "dags" / DAG_FILE.name).write_text(with_alerts().replace("print(", 'print("An alert:", '))
        with deployment:
            deployment.configure(airbyte.url)
            yield deployment


def test_the_dag_appears_without_a_warning(deployment):
    assert deployment.api("/dagWarnings")["total_entries"] == 0


def test_three_syncs_share_one_worker_slot(deployment, airbyte, endless):
    airbyte.faults["get_job"] = [Fault(seconds=2)] * 99
    runs = [deployment.trigger(connection_id=connection_id) for connection_id in THREE_CONNECTIONS]
    deployment.wait_for(lambda: len({poke.path for poke in airbyte.requests_of("get_job")}) == 3, "three sensors", 180)
    airbyte.job_seconds = 0
    assert [deployment.end_of(run_id) for run_id in runs] == ["success", "success", "failed"]
    assert sorted(job.connection_id for job in airbyte.jobs) == sorted(THREE_CONNECTIONS)
    pokes = [poke.time for poke in airbyte.requests_of("get_job")]
    assert min(later - earlier for earlier, later in zip(pokes, pokes[1:])) >= 2, "no two pokes overlap"


def test_pokes_next_when_the_sync_may_have_ended(deployment, airbyte, endless):
    airbyte.add_job(age=24 * 60 * 60, duration=40)
    run_id = deployment.trigger()
    deployment.wait_for_request(airbyte, "get_job")
    airbyte.job_seconds = 0
    assert deployment.end_of(run_id) == "success"
    first, second = (poke.time - airbyte.jobs[-1].created for poke in airbyte.requests_of("get_job"))
    assert first < 35 <= second < 75


@pytest.mark.parametrize("operation", ["create_job", "get_job"])
def test_a_killed_task_neither_loses_nor_doubles_the_sync(deployment, airbyte, operation):
    airbyte.job_seconds = 0  # It has ended by the time of the retry.
    airbyte.faults[operation] = [Fault(no_answer="silent", carried_out=True)]
    run_id = deployment.trigger()
    sender(deployment.wait_for_request(airbyte, operation)).kill()
    assert deployment.end_of(run_id) == "success"
    assert len(airbyte.jobs) == 1


def test_an_alert_comes_for_a_task_that_airflow_has_lost(deployment, airbyte):
    airbyte.job_seconds = 0
    airbyte.faults["create_job"] = [Fault(no_answer="silent", carried_out=True)]
    run_id = deployment.trigger()
    task = sender(deployment.wait_for_request(airbyte, "create_job"))
    for process in (task.parent(), task):  # With its supervisor, nobody is left to report the end.
        process.kill()
    assert deployment.end_of(run_id, 180) == "success"
    alert = f"An alert: {DAG_ID} {START} {None if AIRFLOW_3 else ''}".encode()
    assert any(alert in content for content in files_in(deployment.airflow_home).values())


def test_the_wait_survives_a_killed_scheduler(deployment, airbyte, endless):
    run_id = deployment.waiting_run()
    deployment.kill("scheduler")
    deployment.start("scheduler")
    assert deployment.end_after_a_poke(airbyte, run_id) == "success"
    assert len(airbyte.jobs) == 1


def test_clearing_the_start_syncs_anew_and_clearing_the_wait_waits_for_the_same_job(deployment, airbyte, endless):
    run_id = deployment.waiting_run()
    airbyte.job_seconds = 0
    for task_id, jobs in ((START, 2), (START, 3), (WAIT, 3)):  # during the run, and twice after its end
        airbyte.requests.clear()
        options = {"dry_run": False, "only_failed": False, "include_downstream": True, "reset_dag_runs": True}
        deployment.api(f"/dags/{DAG_ID}/clearTaskInstances", {"dag_run_id": run_id, "task_ids": [task_id], **options})
        assert deployment.end_of(run_id) == "success"
        assert [job.connection_id for job in airbyte.jobs] == [CONNECTION_ID] * jobs, "the Variable's"
        assert airbyte.requests_of("get_job")[-1].path.endswith(f"/{airbyte.jobs[-1].id}")


def test_no_secret_is_kept_anywhere_but_in_the_variables(deployment, airbyte):
    ends = [deployment.end_of(deployment.trigger(connection_id=connection_id)) for connection_id in THREE_CONNECTIONS]
    deployment.api("/variables", {"key": "CLOUD_API_TOKEN", "value": STALE_TOKEN})
    ends.append(deployment.end_of(deployment.trigger()))
    deployment.api("/variables/CLOUD_API_TOKEN", method="DELETE")
    assert ends == ["success", "success", "failed", "failed"]

    answers = [deployment.api("/variables")] if AIRFLOW_3 else []  # The API of Airflow 2 shows Variables as they are.
    for task in deployment.api(f"/dags/{DAG_ID}/dagRuns/~/taskInstances")["task_instances"]:
        path = f"/dags/{DAG_ID}/dagRuns/{task['dag_run_id']}/taskInstances/{task['task_id']}"
        answers += [task, deployment.api(f"{path}/xcomEntries")]
        answers += [deployment.api(f"{path}/xcomEntries/{entry['key']}") for entry in answers[-1]["xcom_entries"]]
        answers += [deployment.api(f"{path}/logs/{number}") for number in range(1, task["try_number"] + 1)]
    kept = {"the REST API": json.dumps(answers).encode(), **files_in(deployment.airflow_home)}
    assert any(START in name for name in kept), "the logs are among what is searched"
    assert b"with 401" in kept["the REST API"], "here, too"
    assert b'"endpoint": "v1/jobs' in kept["the REST API"].replace(b"\\", b""), "and the rendered fields"
    secrets = [CLIENT_ID, CLIENT_SECRET, STALE_TOKEN, *airbyte.tokens]
    assert len(secrets) > 6
    assert leaks(kept, secrets) == set()


def test_a_token_in_an_answer_is_masked_in_the_log(deployment, airbyte):
    """The last test: Airflow 3 also copies the line, unmasked, to the scheduler's output."""
    job = {"jobId": 1001, "status": "running", "jobType": "sync", "connectionId": CONNECTION_ID}
    job["startTime"] = datetime.now(timezone.utc).isoformat()
    airbyte.faults["get_job"] = [Fault(body=json.dumps({**job, "quoted": "{authorization}"}))]
    run_id = deployment.trigger()
    assert deployment.end_of(run_id) == "success"
    path = f"/dags/{DAG_ID}/dagRuns/{run_id}/taskInstances/{WAIT}/logs/1"
    log = json.dumps(deployment.wait_for(lambda: deployment.api(path), "the log"))
    assert "quoted" in log
    assert leaks({"log": log.encode()}, [*airbyte.tokens]) == set()
