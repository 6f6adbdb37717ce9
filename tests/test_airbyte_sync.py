"""
The promises of the two tasks that start a sync and wait for it, wherever these stand.

The tests run the tasks on a throwaway Airflow against the fake Airbyte. They run no other task of the DAG, and expect
no setting that you may change: schedule, limits, intervals, tags, alerts.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import time
import warnings

import pytest
from sandbox.fake_airbyte import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, NOBODY_THERE, WORKSPACE_ID, FakeAirbyte, Fault
from sandbox.fixtures import (
    CLOSED,
    FOR_EVER,
    JOBS_END,
    RUNNING,
    START_FAILS,
    WAIT_FAILS,
    needs_try_count,
)
from sandbox.throwaway_airflow import (
    DAGS,
    HTTP_CONNECTION_VARIABLE,
    START,
    WAIT,
    airbyte_tasks,
    files_in,
    leaks,
    load_dag,
)

OTHER_CONNECTION_ID = "0b9f6f2e-1111-4c4c-8d8d-5f2f3c4d5e6f"
ID, CLIENT, SECRET, TOKEN = (
    f"AIRFLOW_VAR_{name}"
    for name in ("MY_EXAMPLE_CONNECTION_ID", "AIRBYTE_CLIENT_ID", "AIRBYTE_CLIENT_SECRET", "CLOUD_API_TOKEN")
)
KEYS_OF_AIRFLOW = ("openlineage", "airflow/task_span_detail_level")  # which TriggerDagRunOperator and people add


# A sync that goes well.


def test_waits_until_the_sync_has_succeeded_and_leaves_the_job_for_later_tasks(scenario):
    statuses = ("pending", "queued", "running", "incomplete", "running", "in_a_status_unknown_today", "succeeded")
    result, airbyte = scenario(statuses=statuses)
    assert len(airbyte.requests_of("get_job")) == len(statuses)
    assert (result.job["rowsSynced"], result.job["bytesSynced"]) == (125_000, 48_211_904)


def test_sends_what_airbyte_asks_for(scenario):
    _, airbyte = scenario()
    assert json.loads(airbyte.requests_of("create_job")[0].body) == {"connectionId": CONNECTION_ID, "jobType": "sync"}
    assert {(request.method, request.status) for request in airbyte.requests} == {("POST", 200), ("GET", 200)}
    for request in airbyte.requests:
        sent = [request.headers[name] for name in ("accept", "content-type")]
        assert sent == ["application/json", "application/json"]
        assert "python" not in request.headers["user-agent"]


@pytest.mark.parametrize(
    "conf, variable, synced",
    [
        pytest.param(None, f" {CONNECTION_ID}\n", CONNECTION_ID, id="the Variable's"),
        pytest.param({"connection_id": ""}, CONNECTION_ID, CONNECTION_ID, id="an empty form"),
        pytest.param({"connection_id": f" {OTHER_CONNECTION_ID} "}, CONNECTION_ID, OTHER_CONNECTION_ID, id="the run's"),
        pytest.param({"connection_id": OTHER_CONNECTION_ID}, None, OTHER_CONNECTION_ID, id="the run's alone"),
        pytest.param(dict.fromkeys(KEYS_OF_AIRFLOW, 1), CONNECTION_ID, CONNECTION_ID, id="keys of Airflow's own"),
    ],
)
def test_syncs_the_connection_of_the_run_or_else_of_the_variable(run_dag, conf, variable, synced):
    if "connection_id" in (conf or ()) and "connection_id" not in load_dag().params:
        pytest.skip("this DAG has no parameter connection_id")
    statuses = dict.fromkeys([CONNECTION_ID, OTHER_CONNECTION_ID], ("running", "succeeded"))
    with FakeAirbyte(statuses=statuses) as airbyte:
        result = run_dag(airbyte.url, conf, {ID: variable})
    assert result.state == "success"
    assert [job.connection_id for job in airbyte.jobs] == [synced]


def test_gets_a_new_token_for_the_start_and_for_every_poke(scenario):
    _, airbyte = scenario(statuses=("running", "running", "succeeded"))
    used = {request.headers["authorization"] for request in airbyte.requests if request.operation != "create_token"}
    assert len(used) == len(airbyte.tokens) == 4


def test_a_token_in_the_variable_takes_precedence_over_the_client(run_dag):
    with FakeAirbyte() as airbyte:
        airbyte.tokens["a-token"] = float("inf")
        assert run_dag(airbyte.url, variables={TOKEN: " a-to\nken\n"}).state == "success"
    assert airbyte.requests_of("create_token") == []


# Another job is in the way.


@pytest.mark.parametrize("job_type", ["sync", "refresh"])
def test_joins_the_job_that_is_running(scenario, job_type):
    scenario(existing_jobs=({**RUNNING, "type": job_type},), new_jobs=0, says="Airbyte job 1001 is already running")


@pytest.mark.parametrize("job_type", [pytest.param("reset", marks=pytest.mark.airflow_3_0), "clear"])
def test_waits_until_a_reset_has_ended_and_then_syncs(scenario, job_type):
    says = f"Airbyte job 1001 is a {job_type}, not a sync"
    scenario(existing_jobs=({**RUNNING, "type": job_type},), posts=3, says=says)
    scenario(before_syncs=(job_type,), posts=None, new_jobs=2, says=says)


# A sync is neither lost nor doubled.


@needs_try_count
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(no_answer="closed", carried_out=True), id="connection lost"),
        pytest.param(Fault(no_answer="silent", carried_out=True), id="no answer"),
        pytest.param(Fault(body="<html>", carried_out=True), id="HTML"),
    ],
)
def test_follows_the_sync_whose_answer_was_lost_even_if_it_has_ended(scenario, fault):
    scenario(faults={"create_job": [fault], "list_jobs": [JOBS_END]}, says="following job 1001")


def test_a_retry_does_not_follow_an_older_sync(scenario):
    scenario(faults={"create_job": [CLOSED]}, existing_jobs=({"age": 10, "duration": 1},), posts=2)


# A hiccup costs a try, and in a poke, where nobody refuses, not even that.

HICCUPS = {"refused": Fault(403), "no pod": NOBODY_THERE, "connection lost": CLOSED}
ON = {
    "token": lambda fault: {"create_token": [fault]},
    "start": lambda fault: {"create_job": [fault]},
    "look-up": lambda fault: {"create_job": [CLOSED], "list_jobs": [fault]},
    "token of a poke": lambda fault: {"create_token": [None, None, None, None, fault]},
    "poke": lambda fault: {"get_job": [None, fault]},
}


@pytest.mark.parametrize(
    "request_of, hiccup",
    [(request_of, "refused") for request_of in ON]
    + [("token", "no pod"), ("start", "connection lost"), ("look-up", "no pod")]
    + [("token of a poke", "connection lost"), ("poke", "no pod"), ("poke", "connection lost")],
)
def test_a_hiccup_never_costs_the_run(scenario, request_of, hiccup):
    costs_a_try = request_of == "token of a poke" or hiccup == "refused"
    scenario(
        faults=ON[request_of](HICCUPS[hiccup]),
        statuses=("running",) * 4 + ("succeeded",),
        posts=None,
        wait_retries=FOR_EVER if costs_a_try else 0,
    )


@pytest.mark.parametrize("status", [429, 502])
def test_no_number_of_troubled_pokes_ends_the_wait(scenario, status):
    scenario(faults={"get_job": [Fault(status)] * 8})


# What lasts ends the run, and the log says why.


@needs_try_count
def test_a_start_that_is_refused_fails_at_the_sixth_try(scenario):
    lasting = {"create_job": [Fault(403)] * FOR_EVER}
    result, _ = scenario(faults=lasting, ends=START_FAILS, posts=6, new_jobs=0, start_retries=FOR_EVER)
    assert "Runner" in result.log
    assert "Caller does not have the required permissions" in result.log, "Airbyte's own words"


@needs_try_count
def test_a_wait_that_is_refused_fails_at_the_sixth_try(scenario):
    _, airbyte = scenario(faults={"get_job": [Fault(403)] * FOR_EVER}, ends=WAIT_FAILS, wait_retries=FOR_EVER)
    assert len(airbyte.requests_of("get_job")) == 6


def test_a_refused_poke_does_not_sleep_in_its_worker_slot(scenario):
    slow = {WAIT: {"retry_delay": 25}}
    _, airbyte = scenario(faults={"get_job": [Fault(403)]}, ends=WAIT_FAILS, run={"policy": slow})
    assert time.time() - airbyte.requests[-1].time < 20


@pytest.mark.parametrize(
    "status, base_path",
    [pytest.param("failed", "", id="failed on Cloud"), pytest.param("cancelled", "/api/public", id="cancelled")],
)
def test_fails_with_a_link_if_the_job_has_failed(scenario, status, base_path):
    result, airbyte = scenario(statuses=("running", status), base_path=base_path, ends=WAIT_FAILS, wait_retries=2)
    ui = airbyte.url[: len(airbyte.url) - len(base_path)]
    page = f"{ui}/workspaces/{WORKSPACE_ID}/connections/{CONNECTION_ID}/timeline?openLogs=true&jobId=1001"
    assert f"Airbyte job 1001 {status}: {page}" in result.log
    assert len(airbyte.requests_of("get_job")) == 2


def test_the_whole_wait_has_an_end(scenario):
    short = {WAIT: {"timeout": 5, "poke_interval": 1, "retries": FOR_EVER}}
    hiccups = {"get_job": [None, Fault(403), None, Fault(403)]}
    result, airbyte = scenario(faults=hiccups, statuses=("running",) * FOR_EVER, ends=WAIT_FAILS, run={"policy": short})
    assert "Airbyte job 1001 has not ended" in result.log
    assert "Clear this task to wait longer" in result.log
    assert 4 < airbyte.requests[-1].time - airbyte.requests[0].time < 15


SET_CLIENT = "Set the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET, or CLOUD_API_TOKEN"
CHECK_CLIENT = "Check the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET"
CHECK_HOST = "https://api.airbyte.com or https://<your host>/api/public"
HTTPS = json.dumps({"conn_type": "https", "host": "127.0.0.1:1"})


@pytest.mark.parametrize(
    "says, arguments",
    [
        pytest.param("Set the Variable MY_EXAMPLE_CONNECTION_ID", {"variables": {ID: None}}, id="no connection id"),
        pytest.param(SET_CLIENT, {"variables": {CLIENT: None}}, id="no client id"),
        pytest.param(SET_CLIENT, {"variables": {SECRET: " \n"}}, id="a blank client secret"),
        pytest.param(CHECK_CLIENT, {"variables": {SECRET: "wrong"}}, id="a wrong client secret"),
        pytest.param("Check CLOUD_API_TOKEN", {"variables": {TOKEN: "stale"}}, id="an expired token"),
        pytest.param("isn't defined", {"variables": {HTTP_CONNECTION_VARIABLE: None}}, id="no Airflow connection"),
        pytest.param("to HTTP", {"variables": {HTTP_CONNECTION_VARIABLE: HTTPS}}, id="the type https"),
        pytest.param(CHECK_HOST, {"host": "http://127.0.0.1:1"}, id="a wrong host"),
        pytest.param(CHECK_HOST, {"host": "{url}/v1"}, id="a host with /v1"),
        pytest.param("no login", {"login": {"login": "me", "password": "a-password"}}, id="a login"),
    ],
)
def test_says_what_is_missing_or_wrong(scenario, says, arguments):
    arguments = dict(arguments)
    run = {"variables": arguments.pop("variables", {})}
    result, _ = scenario(**arguments, run=run, ends=START_FAILS, says=says, posts=None, new_jobs=0, start_retries=1)
    assert "a-password" not in result.log


def test_fails_at_once_if_the_connection_id_is_mistyped(scenario):
    mistyped, says = {"variables": {ID: CONNECTION_ID[:-1]}}, f"It is: '{CONNECTION_ID[:-1]}'"
    result, airbyte = scenario(run=mistyped, ends=START_FAILS, says=says, posts=0, new_jobs=0, start_retries=3)
    assert result.tries[START] == 1
    assert airbyte.requests == []


def test_fails_at_once_if_a_parameter_is_mistyped(scenario):
    mistyped = {"conf": {"connectionId": CONNECTION_ID}}
    scenario(run=mistyped, ends=START_FAILS, says="No such parameter: connectionId", posts=0, new_jobs=0)


# Secrets.


def test_no_template_field_holds_the_token():
    for task in airbyte_tasks(load_dag()).values():
        assert "uthorization" not in repr([getattr(task, name) for name in task.template_fields])


def test_no_secret_is_kept(run_dag, airflow_home):
    with FakeAirbyte(statuses={CONNECTION_ID: ("failed",)}) as airbyte:
        assert run_dag(airbyte.url).state == "failed"
        stale = {TOKEN: "a-token-that-has-grown-stale"}
        assert run_dag(airbyte.url, variables=stale, policy={START: {"retries": 0}}).state == "failed"
        secrets = [CLIENT_ID, CLIENT_SECRET, *stale.values(), *airbyte.tokens]
    assert len(secrets) > 4
    assert leaks(files_in(airflow_home), secrets) == set()


@pytest.mark.parametrize("variables", [{}, {TOKEN: "a-token-to\nquote"}], ids=["a new token", "CLOUD_API_TOKEN"])
@pytest.mark.parametrize("status", [403, 503])
def test_an_answer_that_quotes_the_token_is_logged_without_it(scenario, status, variables):
    def know_the_token(airbyte: FakeAirbyte) -> None:
        airbyte.tokens["a-token-toquote"] = float("inf")

    gateway = Fault(status, body='{"you sent": "{authorization}"}', before=know_the_token)
    says = '"you sent": "Bearer ***"'
    result, airbyte = scenario(faults={"create_job": [gateway]}, posts=2, run={"variables": variables}, says=says)
    assert leaks({"log": result.log.encode()}, ["a-token-to", *airbyte.tokens]) == set()


def test_a_login_in_the_host_is_never_shown(scenario):
    with_login = {"host": "http://user:a-password@127.0.0.1:1"}
    result, _ = scenario(**with_login, ends=START_FAILS, says=CHECK_HOST, posts=None, new_jobs=0, start_retries=1)
    assert "a-password" not in result.log


# The files.


@pytest.mark.parametrize("file", sorted(DAGS.rglob("*.py")), ids=lambda file: file.name)
def test_every_dag_file_loads_without_a_warning(file):
    importlib.import_module("airflow.models")  # It redirects warnings.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runpy.run_path(str(file), run_name="a_dag")
    assert [str(warning.message) for warning in caught if warning.filename == str(file)] == []


def test_the_dag_loads_without_a_database_and_defers_nothing(airflow_home, tmp_path):
    environ = {
        **os.environ,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/none.db",
        "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True",
    }
    code = (
        "from sandbox.throwaway_airflow import *;"
        "print([getattr(task, 'deferrable', False) for task in airbyte_tasks(load_dag()).values()])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert loaded.stdout.splitlines()[-1] == "[False, False]", loaded.stderr
    assert not (tmp_path / "none.db").exists()
