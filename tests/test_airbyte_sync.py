"""
The promises of the two tasks that start a sync and wait for it, wherever these stand.

The tests run the tasks on a throwaway Airflow against the fake Airbyte. They run no other task of the DAG, and expect
no setting that you may change: schedule, limits, intervals, tags, alerts.
"""

import importlib
import json
import runpy
import subprocess
import sys
import time
import warnings

import pytest
from sandbox.fake_airbyte import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, NOBODY_THERE, WORKSPACE_ID, FakeAirbyte, Fault
from sandbox.fixtures import CLOSED, FOR_EVER, JOBS_END, RUNNING, START_FAILS, WAIT_FAILS, needs_try_count
from sandbox.throwaway_airflow import (
    CONNECTION_VARIABLE,
    DAGS,
    START,
    WAIT,
    airbyte_tasks,
    files_in,
    leaks,
    load_dag,
)

OTHER_CONNECTION_ID = "0b9f6f2e-1111-4c4c-8d8d-5f2f3c4d5e6f"
ID, TOKEN = "AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID", "AIRFLOW_VAR_CLOUD_API_TOKEN"
CLIENT, SECRET = "AIRFLOW_VAR_AIRBYTE_CLIENT_ID", "AIRFLOW_VAR_AIRBYTE_CLIENT_SECRET"
FOREIGN_KEYS = ("openlineage", "airflow/task_span_detail_level")  # TriggerDagRunOperator adds them, or people do.


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
        pytest.param(dict.fromkeys(FOREIGN_KEYS, 1), CONNECTION_ID, CONNECTION_ID, id="foreign keys"),
    ],
)
def test_syncs_the_connection_of_the_run_or_else_of_the_variable(run_dag, monkeypatch, conf, variable, synced):
    if "connection_id" in (conf or ()) and "connection_id" not in load_dag().params:
        pytest.skip("this DAG has no parameter connection_id")
    monkeypatch.setenv("AIRFLOW__CORE__DAG_RUN_CONF_OVERRIDES_PARAMS", "False")  # An administrator of Airflow 2 may.
    statuses = dict.fromkeys([CONNECTION_ID, OTHER_CONNECTION_ID], ("running", "succeeded"))
    with FakeAirbyte(statuses=statuses) as airbyte:
        result = run_dag(airbyte.url, conf, {ID: variable})
    assert result.state == "success"
    assert [job.connection_id for job in airbyte.jobs] == [synced]


@pytest.mark.parametrize("static_token", [None, " \n"], ids=["none", "a blank one"])
def test_gets_a_new_token_for_the_start_and_for_every_poke(scenario, static_token):
    _, airbyte = scenario(statuses=("running", "running", "succeeded"), run={"variables": {TOKEN: static_token}})
    used = {request.headers["authorization"] for request in airbyte.requests if request.operation != "create_token"}
    assert len(used) == len(airbyte.tokens) == 4


def test_a_token_in_the_variable_takes_precedence_over_the_client(run_dag):
    with FakeAirbyte() as airbyte:
        airbyte.tokens["a-token"] = float("inf")
        assert run_dag(airbyte.url, variables={TOKEN: " a-to\nken\n"}).state == "success"
    assert airbyte.requests_of("create_token") == []


# Another job is in the way.


OLD = {"before_2026": True}


@pytest.mark.parametrize(
    "job_type, version", [("sync", {}), ("refresh", {}), ("refresh", OLD), ("of_a_type_unknown_today", {})], ids=str
)
def test_joins_the_job_that_is_running(scenario, job_type, version):
    says = "Airbyte job 1001 is already running"
    scenario(existing_jobs=({**RUNNING, "type": job_type},), new_jobs=0, says=says, **version)


@pytest.mark.parametrize(
    "job_type, version",
    [pytest.param("reset", {}, marks=pytest.mark.airflow_3_0), ("clear", {}), ("clear", OLD)],
    ids=str,
)
def test_waits_until_a_reset_has_ended_and_then_syncs(scenario, job_type, version):
    says = f"Airbyte job 1001 is a {job_type}, not a sync"
    scenario(existing_jobs=({**RUNNING, "type": job_type},), posts=3, says=says, **version)
    scenario(before_syncs=(job_type,), posts=None, new_jobs=2, says=says, **version)


# A sync is neither lost nor doubled.


@needs_try_count
@pytest.mark.parametrize(
    "answer",
    [{"no_answer": "closed"}, {"no_answer": "silent"}, {"body": "<html>"}],
    ids=["connection lost", "no answer", "HTML"],
)
def test_follows_the_sync_whose_answer_was_lost_even_if_it_has_ended(scenario, answer):
    lost = Fault(**answer, carried_out=True)
    scenario(faults={"create_job": [lost], "list_jobs": [JOBS_END]}, says="following job 1001")


def test_a_retry_does_not_follow_an_older_sync(scenario):
    scenario(faults={"create_job": [CLOSED]}, existing_jobs=({"age": 10, "duration": 1},), posts=2)


# A hiccup costs a try, and while the wait waits, where nobody refuses, not even that.

HICCUPS = {"refused": Fault(403), "no pod": NOBODY_THERE, "connection lost": CLOSED}


@pytest.mark.parametrize("hiccup", HICCUPS.values(), ids=HICCUPS)
@pytest.mark.parametrize(
    "meets",
    [
        pytest.param(lambda hiccup: {"create_token": [hiccup]}, id="token"),
        pytest.param(lambda hiccup: {"create_job": [hiccup]}, id="start"),
        pytest.param(lambda hiccup: {"create_job": [CLOSED], "list_jobs": [hiccup]}, id="look-up"),
        pytest.param(lambda hiccup: {"create_token": [None, hiccup]}, id="token of a poke"),
        pytest.param(lambda hiccup: {"get_job": [None, hiccup]}, id="poke"),
    ],
)
def test_a_hiccup_never_costs_the_run(scenario, meets, hiccup):
    scenario(faults=meets(hiccup), posts=None, wait_retries=1)


@pytest.mark.parametrize("trouble", [Fault(429), Fault(502), NOBODY_THERE, CLOSED], ids=str)
@pytest.mark.parametrize("operation", ["create_token", "get_job"])
def test_an_airbyte_that_does_not_answer_costs_the_wait_no_try(scenario, operation, trouble):
    earlier = [None] * (operation == "create_token")  # the start's
    _, airbyte = scenario(faults={operation: [*earlier, *[trouble] * 8]}, wait_retries=0)
    assert len(airbyte.requests_of(operation)) > 8


@needs_try_count
def test_a_refusal_after_an_hour_without_tokens_has_all_its_retries(scenario):
    faults = {"create_token": [None, *[Fault(503)] * 15], "get_job": [Fault(403)] * 2}
    scenario(faults=faults, wait_retries=2)


# What lasts ends the run, and the log says why.


@needs_try_count
@pytest.mark.parametrize(
    "operation, ends", [("create_job", START_FAILS), ("get_job", WAIT_FAILS)], ids=["start", "wait"]
)
def test_what_is_refused_fails_after_the_last_retry(scenario, operation, ends):
    refused, retries = {operation: [Fault(403)] * FOR_EVER}, {"start_retries": 3, "wait_retries": 3}
    result, airbyte = scenario(faults=refused, ends=ends, posts=None, **retries)
    assert len(airbyte.requests_of(operation)) == 4
    assert "role Runner" in result.log
    assert "Caller does not have the required permissions" in result.log, "Airbyte's own words"


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


@needs_try_count
def test_the_wait_has_an_end(scenario):
    short = {WAIT: {"timeout": 5, "poke_interval": 0.2}}
    trouble, says = {"get_job": [None, Fault(503), None, Fault(503)]}, "Sensor has timed out"
    statuses = ("running",) * FOR_EVER
    _, airbyte = scenario(faults=trouble, statuses=statuses, ends=WAIT_FAILS, says=says, run={"policy": short})
    assert airbyte.requests[-1].time - airbyte.requests[0].time < 15


SET_CLIENT = "Set the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET, or CLOUD_API_TOKEN"
CHECK_CLIENT = "Check the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET"
CHECK_HOST = "https://api.airbyte.com or https://<your host>/api/public"
REMOVE_LOGIN = "Remove the login from the host of the Airflow connection"
HTTP_OR_HTTPS = "Begin the host with https:// (or http://, if Airbyte has no TLS)"
HTTPS = json.dumps({"conn_type": "https", "host": "127.0.0.1:1"})


@pytest.mark.parametrize(
    "says, variables, arguments",
    [
        pytest.param("Set the Variable MY_EXAMPLE_CONNECTION_ID", {ID: None}, {}, id="no connection id"),
        pytest.param(SET_CLIENT, {CLIENT: None}, {}, id="no client id"),
        pytest.param(SET_CLIENT, {SECRET: " \n"}, {}, id="a blank client secret"),
        pytest.param(CHECK_CLIENT, {SECRET: "wrong"}, {}, id="a wrong client secret"),
        pytest.param("Check CLOUD_API_TOKEN", {TOKEN: "stale"}, {}, id="an expired token"),
        pytest.param(
            "Create or correct the Airflow connection", {CONNECTION_VARIABLE: None}, {}, id="no Airflow connection"
        ),
        pytest.param("to HTTP", {CONNECTION_VARIABLE: HTTPS}, {}, id="the type https"),
        pytest.param(CHECK_HOST, {}, {"host": "http://127.0.0.1:1"}, id="a wrong host"),
        pytest.param(CHECK_HOST, {}, {"host": "{url}/v1"}, id="a host with /v1"),
        pytest.param(REMOVE_LOGIN, {}, {"host": "http://user:a-pass/w#rd?@127.0.0.1:{port}"}, id="a login in the host"),
        pytest.param(HTTP_OR_HTTPS, {}, {"host": "127.0.0.1:{port}"}, id="a host without https://"),
        pytest.param("no login", {}, {"login": {"login": "me", "password": "a-password"}}, id="a login"),
    ],
)
def test_says_what_is_missing_or_wrong(scenario, says, variables, arguments):
    run = {"variables": variables}
    result, airbyte = scenario(**arguments, run=run, ends=START_FAILS, says=says, posts=None, start_retries=1)
    assert "pass/w" not in result.log
    assert airbyte.requests == [] or says not in (REMOVE_LOGIN, HTTP_OR_HTTPS)


@pytest.mark.parametrize(
    "mistyped, says",
    [
        pytest.param({"variables": {ID: "an-id-or-secret"}}, "It begins with 'an-i' and has 15", id="connection id"),
        pytest.param({"conf": {"connectionId": CONNECTION_ID}}, "No such parameter: connectionId", id="parameter"),
        pytest.param({"conf": {"conection_id": CONNECTION_ID}}, "No such parameter: conection_id", id="one letter"),
    ],
)
def test_fails_at_once_if_something_is_mistyped(scenario, mistyped, says):
    result, airbyte = scenario(run=mistyped, ends=START_FAILS, says=says, posts=0, start_retries=3)
    assert result.tries[START] == 1
    assert airbyte.requests == []
    assert "an-id-or" not in result.log


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


@pytest.mark.parametrize(
    "variables", [{}, {TOKEN: "Bearer “a-token-to\n\u200bquote\"'"}], ids=["a new token", "CLOUD_API_TOKEN"]
)
@pytest.mark.parametrize("status", [403, 503])
def test_an_answer_that_quotes_the_token_is_logged_without_it(scenario, status, variables):
    def know_the_token(airbyte: FakeAirbyte) -> None:
        airbyte.tokens["a-token-toquote"] = float("inf")

    gateway = Fault(status, body='{"you sent": "{authorization}"}', before=know_the_token)
    says = '"you sent": "Bearer ***"'
    scenario(faults={"create_job": [gateway]}, posts=2, run={"variables": variables}, says=says)


# The files.


@pytest.mark.parametrize("file", sorted(DAGS.rglob("*.py")), ids=lambda file: file.name)
def test_every_dag_file_loads_without_a_warning(file):
    importlib.import_module("airflow.models")  # It redirects warnings.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runpy.run_path(str(file), run_name="a_dag")
    assert [str(warning.message) for warning in caught if warning.filename == str(file)] == []


def test_the_dag_loads_without_a_database_and_defers_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{tmp_path}/none.db")
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "True")
    code = """from sandbox.throwaway_airflow import *
print([getattr(task, "deferrable", False) for task in airbyte_tasks(load_dag()).values()])"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.splitlines()[-1] == "[False, False]", loaded.stderr
    assert not (tmp_path / "none.db").exists()
