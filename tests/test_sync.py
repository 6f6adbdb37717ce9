"""A sync that goes well: what is sent to Airbyte, and what the run leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from sandbox.airflow_home import AIRFLOW_VERSION, DAG_FILE, START, WAIT, dag_settings, kept_files, leaks
from sandbox.fake_airbyte import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, FakeAirbyte, Fault

OTHER_CONNECTION_ID = "0b9f6f2e-1111-4c4c-8d8d-5f2f3c4d5e6f"


def test_starts_the_sync_and_waits_until_it_has_succeeded(run):
    statuses = ("pending", "queued", "running", "incomplete", "running", "in_a_status_unknown_today", "succeeded")
    with FakeAirbyte(statuses={CONNECTION_ID: statuses}) as airbyte:
        result = run(airbyte.url)
    assert result.state == "success"
    assert result.tasks == {START: "success", WAIT: "success"}
    assert len(airbyte.jobs) == 1
    assert len(airbyte.requests_of("get_job")) == len(statuses)


def test_leaves_the_job_for_later_tasks(run):
    with FakeAirbyte() as airbyte:
        result = run(airbyte.url)
    assert result.job_id == airbyte.jobs[0].id
    assert result.job == airbyte.job_response(airbyte.jobs[0], with_stats=True)
    assert (result.job["rowsSynced"], result.job["bytesSynced"]) == (125_000, 48_211_904)
    assert json.dumps(result.job) in result.log
    assert '"status": "pending"' in result.log, "the answer to the start"


def test_sends_what_airbyte_asks_for_and_nothing_else(run):
    with FakeAirbyte() as airbyte:
        run(airbyte.url)
    assert json.loads(airbyte.requests_of("create_job")[0].body) == {"connectionId": CONNECTION_ID, "jobType": "sync"}
    assert {request.operation for request in airbyte.requests} == {"create_token", "create_job", "get_job"}
    for request in airbyte.requests:
        assert request.headers["accept"] == "application/json"
        assert request.headers["content-type"] == "application/json"
        assert "airbyte_api_sync_demo" in request.headers["user-agent"]
        assert request.query == {}


def test_gets_a_new_token_for_every_task_start_and_every_poke(run):
    with FakeAirbyte() as airbyte:
        run(airbyte.url)
    used = [request.headers["authorization"] for request in airbyte.requests if request.operation != "create_token"]
    assert len(used) == len(set(used)) == len(airbyte.tokens) == 4


@pytest.mark.parametrize("blank", ["", "  \n"])
def test_a_token_in_the_variable_takes_precedence_over_the_client(run, blank):
    with FakeAirbyte() as airbyte:
        airbyte.tokens["a-token"] = float("inf")
        result = run(airbyte.url, variables={"AIRFLOW_VAR_CLOUD_API_TOKEN": f"{blank}a-to{blank}ken{blank}"})
        assert result.state == "success"
        assert airbyte.requests_of("create_token") == []
        result = run(airbyte.url, variables={"AIRFLOW_VAR_CLOUD_API_TOKEN": blank})
        assert result.state == "success"
        assert airbyte.requests_of("create_token")


@pytest.mark.parametrize(
    "conf, synced",
    [
        (None, CONNECTION_ID),
        ({}, CONNECTION_ID),
        ({"connection_id": ""}, CONNECTION_ID),
        ({"connection_id": None}, CONNECTION_ID),
        ({"connection_id": f" {OTHER_CONNECTION_ID} "}, OTHER_CONNECTION_ID),
    ],
)
def test_syncs_the_connection_of_the_run_or_else_of_the_variable(run, conf, synced):
    statuses = dict.fromkeys([CONNECTION_ID, OTHER_CONNECTION_ID], ("running", "succeeded"))
    with FakeAirbyte(statuses=statuses) as airbyte:
        result = run(airbyte.url, conf=conf)
    assert result.state == "success"
    assert [job.connection_id for job in airbyte.jobs] == [synced]


def test_needs_no_variable_if_the_run_names_the_connection(run):
    unset = {"AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID": None}
    with FakeAirbyte() as airbyte:
        result = run(airbyte.url, conf={"connection_id": CONNECTION_ID}, variables=unset)
    assert result.state == "success"


@pytest.mark.parametrize(
    "age, poke_interval, seconds",
    [
        (0, 30, 30),
        (600, 30, 30),
        (1200, 30, 60),
        (3600, 30, 180),
        (6000, 30, 300),
        (24 * 3600, 30, 300),
        (1200, 120, 120),
        (24 * 3600, 600, 600),
        (-3600, 30, 30),
    ],
)
def test_asks_an_old_job_less_often(run, scheduled_pokes, age, poke_interval, seconds):
    with FakeAirbyte() as airbyte:
        airbyte.add_job(statuses=("running", "running", "succeeded"), age=age)
        result = run(airbyte.url, policy={WAIT: {"poke_interval": poke_interval}})
    assert result.state == "success"
    assert len(scheduled_pokes) >= (1 if AIRFLOW_VERSION == (3, 0) else 2)  # whose dag.test() fails every other poke
    assert scheduled_pokes == pytest.approx([seconds] * len(scheduled_pokes), abs=5)


@pytest.mark.parametrize("start_time", ["", '"startTime": "soon", ', '"startTime": null, ', '"startTime": 5, '])
def test_accepts_a_job_without_a_start_time(run, scheduled_pokes, start_time):
    job = Fault(body=f'{{{start_time}"jobId": 1001, "status": "running", "jobType": "sync"}}')
    with FakeAirbyte(faults={"get_job": [job, job]}) as airbyte:
        result = run(airbyte.url, policy={WAIT: {"poke_interval": 30}})
    assert result.state == "success"
    assert scheduled_pokes
    assert scheduled_pokes == pytest.approx([30] * len(scheduled_pokes), abs=5)


@pytest.mark.parametrize("connection_id, exit_code", [(CONNECTION_ID, 0), ("", 1)])
def test_the_file_runs_by_itself(home, connection_id, exit_code):
    with FakeAirbyte(statuses={CONNECTION_ID: ("succeeded",)}) as airbyte:
        variable = {"AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID": connection_id}
        environ = {**os.environ, **dag_settings(airbyte.url), **variable}
        command = [sys.executable, DAG_FILE]
        run = subprocess.run(command, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.returncode == exit_code, run.stdout
    if exit_code:
        assert run.stdout.endswith("The run failed: the last traceback above says why.\n")
        assert "Set the Variable MY_EXAMPLE_CONNECTION_ID" in run.stdout.rpartition("Traceback")[2]


@pytest.mark.parametrize("base_path, slash", [("", ""), ("", "/"), ("/api/public", ""), ("/api/public", "/")])
def test_the_host_of_the_connection_may_have_a_path_and_a_slash(run, base_path, slash):
    with FakeAirbyte(base_path=base_path) as airbyte:
        result = run(airbyte.url + slash)
    assert result.state == "success"
    assert {request.status for request in airbyte.requests} == {200}


def test_no_secret_is_kept(run, home):
    stale_token = "a-token-that-has-grown-stale"
    with FakeAirbyte() as airbyte:
        assert run(airbyte.url).state == "success"
        airbyte.statuses = {CONNECTION_ID: ("failed",)}
        assert run(airbyte.url).state == "failed"
        assert run(airbyte.url, variables={"AIRFLOW_VAR_CLOUD_API_TOKEN": stale_token}).state == "failed"
        secrets = [CLIENT_ID, CLIENT_SECRET, stale_token, *airbyte.tokens]
    kept = kept_files(home)
    assert any(b"Authorization" in content for content in kept.values()), "the rendered fields are searched"
    assert leaks(kept, secrets) == set()
