"""A sync that goes well: what is sent to Airbyte, and what the run leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from sandbox.fake_airbyte import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, FakeAirbyte
from sandbox.throwaway_airflow import AIRFLOW_VERSION, DAG_FILE, DAG_ID, START, WAIT, dag_settings, files_in, leaks

OTHER_CONNECTION_ID = "0b9f6f2e-1111-4c4c-8d8d-5f2f3c4d5e6f"


def test_starts_the_sync_waits_until_it_has_succeeded_and_leaves_the_job_for_later_tasks(run_dag):
    statuses = ("pending", "queued", "running", "incomplete", "running", "in_a_status_unknown_today", "succeeded")
    with FakeAirbyte(statuses={CONNECTION_ID: statuses}) as airbyte:
        result = run_dag(airbyte.url)
    assert (result.state, result.tasks) == ("success", {START: "success", WAIT: "success"})
    assert len(airbyte.requests_of("get_job")) == len(statuses)
    assert [job.id for job in airbyte.jobs] == [result.job_id]
    assert result.job == airbyte.job_response(airbyte.jobs[0], with_stats=True)
    assert (result.job["rowsSynced"], result.job["bytesSynced"]) == (125_000, 48_211_904)
    assert json.dumps(result.job) in result.log
    assert '"status": "pending"' in result.log, "the answer to the start"


def test_sends_what_airbyte_asks_for_and_nothing_else(run_dag):
    with FakeAirbyte() as airbyte:
        run_dag(airbyte.url)
    assert json.loads(airbyte.requests_of("create_job")[0].body) == {"connectionId": CONNECTION_ID, "jobType": "sync"}
    expected = ["create_job", *["get_job", "list_jobs"] * 2, "get_job"]
    assert [request.operation for request in airbyte.requests if request.operation != "create_token"] == expected
    for request in airbyte.requests:
        assert request.headers["accept"] == "application/json"
        assert request.headers["content-type"] == "application/json"
        assert "airbyte_api_sync_demo" in request.headers["user-agent"]
        jobs_of_the_connection = {"connectionId": CONNECTION_ID, "orderBy": "createdAt|DESC"}
        assert request.query == (jobs_of_the_connection if request.operation == "list_jobs" else {})


def test_gets_a_new_token_for_every_task_start_and_every_poke(run_dag):
    with FakeAirbyte() as airbyte:
        run_dag(airbyte.url)
    used = {request.headers["authorization"] for request in airbyte.requests if request.operation != "create_token"}
    assert len(used) == len(airbyte.tokens) == 4, "one for the start, and one for each of the three pokes"


@pytest.mark.parametrize("blank", ["", "  \n"])
def test_a_token_in_the_variable_takes_precedence_over_the_client(run_dag, blank):
    with FakeAirbyte() as airbyte:
        airbyte.tokens["a-token"] = float("inf")
        result = run_dag(airbyte.url, variables={"AIRFLOW_VAR_CLOUD_API_TOKEN": f"{blank}a-to{blank}ken{blank}"})
        assert result.state == "success"
        assert airbyte.requests_of("create_token") == []
        result = run_dag(airbyte.url, variables={"AIRFLOW_VAR_CLOUD_API_TOKEN": blank})
        assert result.state == "success"
        assert airbyte.requests_of("create_token")


@pytest.mark.parametrize(
    "conf, variable, synced",
    [
        (None, CONNECTION_ID, CONNECTION_ID),
        ({}, CONNECTION_ID, CONNECTION_ID),
        ({"connection_id": ""}, f" {CONNECTION_ID}\n", CONNECTION_ID),
        ({"connection_id": None}, CONNECTION_ID, CONNECTION_ID),
        ({"connection_id": f" {OTHER_CONNECTION_ID} "}, CONNECTION_ID, OTHER_CONNECTION_ID),
        ({"connection_id": OTHER_CONNECTION_ID}, None, OTHER_CONNECTION_ID),
    ],
)
def test_syncs_the_connection_of_the_run_or_else_of_the_variable(run_dag, conf, variable, synced):
    statuses = dict.fromkeys([CONNECTION_ID, OTHER_CONNECTION_ID], ("running", "succeeded"))
    with FakeAirbyte(statuses=statuses) as airbyte:
        result = run_dag(airbyte.url, conf, {"AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID": variable})
    assert result.state == "success"
    assert [job.connection_id for job in airbyte.jobs] == [synced]


@pytest.mark.airflow_3_0
def test_the_next_poke_comes_when_the_other_syncs_would_have_ended(run_dag):
    with FakeAirbyte() as airbyte:
        for _ in range(3):
            airbyte.add_job(age=60, duration=4)
        assert run_dag(airbyte.url).state == "success"
    pokes = airbyte.requests_of("get_job")
    assert pokes[1].time - pokes[0].time > 2, "the interval of the tests is 0"


@pytest.mark.airflow_3_0
@pytest.mark.parametrize(
    "setting, value, says",
    [
        ("MY_EXAMPLE_CONNECTION_ID", CONNECTION_ID, ""),
        ("MY_EXAMPLE_CONNECTION_ID", "", "Set the Variable MY_EXAMPLE_CONNECTION_ID"),
        ("AIRBYTE_CLIENT_SECRET", "wrong", "Check the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET."),
    ],
)
def test_the_file_runs_by_itself_and_says_at_once_what_is_wrong(airflow_home, setting, value, says):
    with FakeAirbyte(statuses={CONNECTION_ID: ("succeeded",)}) as airbyte:
        environ = {**os.environ, **dag_settings(airbyte.url), f"AIRFLOW_VAR_{setting}": value}
        command = [sys.executable, DAG_FILE]
        ended = subprocess.run(
            command, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
    assert ended.returncode == bool(says), ended.stdout
    if says:
        assert ended.stdout.endswith("The run failed: the last traceback above says why.\n")
        assert says in ended.stdout.rpartition("Traceback")[2]


def test_a_task_for_another_server_does_not_get_the_token(airflow_home, tmp_path):
    added = """
    another = SimpleHttpOperator(task_id="another", http_conn_id="another", endpoint="v1/nothing")
    wait_for_sync_to_complete >> another

if __name__"""
    file = tmp_path / DAG_FILE.name
    file.write_text(DAG_FILE.read_text().replace("\nif __name__", added))
    with FakeAirbyte(statuses={CONNECTION_ID: ("succeeded",)}) as airbyte, FakeAirbyte() as another:
        connection = {"AIRFLOW_CONN_ANOTHER": json.dumps({"conn_type": "http", "host": another.url})}
        environ = {**os.environ, **dag_settings(airbyte.url), **connection, "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path)}
        ended = subprocess.run([sys.executable, file], env=environ, text=True, capture_output=True, timeout=60)
    assert ended.returncode == 1, "the other server answers 404"
    assert [request.status for request in another.requests] == [404]
    assert "authorization" not in another.requests[0].headers
    assert airbyte.jobs[0].ended


@pytest.mark.skipif(AIRFLOW_VERSION < (2, 10), reason="counts tries from 1 here")
def test_airflow_tasks_test_starts_a_sync(airflow_home):
    with FakeAirbyte() as airbyte:
        airbyte.add_job(age=60, duration=30)
        environ = {**os.environ, **dag_settings(airbyte.url)}
        command = ["airflow", "tasks", "test", DAG_ID, START, "2026-11-01"]
        subprocess.run(command, env=environ, check=True, capture_output=True, timeout=60)
    assert len(airbyte.jobs) == 2


@pytest.mark.parametrize("base_path, slash", [("", ""), ("", "/"), ("/api/public", ""), ("/api/public", "/")])
def test_the_host_of_the_connection_may_have_a_path_and_a_slash(run_dag, base_path, slash):
    with FakeAirbyte(base_path=base_path) as airbyte:
        result = run_dag(airbyte.url + slash)
    assert result.state == "success"
    assert {request.status for request in airbyte.requests} == {200}


def test_no_secret_is_kept(run_dag, airflow_home):
    stale_token = "a-token-that-has-grown-stale"
    with FakeAirbyte() as airbyte:
        assert run_dag(airbyte.url).state == "success"
        airbyte.statuses = {CONNECTION_ID: ("failed",)}
        assert run_dag(airbyte.url).state == "failed"
        stale = {"AIRFLOW_VAR_CLOUD_API_TOKEN": stale_token}
        assert run_dag(airbyte.url, variables=stale, policy={START: {"retries": 0}}).state == "failed"
        secrets = [CLIENT_ID, CLIENT_SECRET, stale_token, *airbyte.tokens]
    kept = files_in(airflow_home)
    assert any(b"Authorization" in content for content in kept.values()), "the rendered fields are searched"
    assert leaks(kept, secrets) == set()
