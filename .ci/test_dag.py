"""The DAG file by itself: its names, what its functions decide, and what a user's own tasks get of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pendulum
import pytest
from sandbox.fake_airbyte import CONNECTION_ID, FakeAirbyte, Fault
from sandbox.fixtures import CLOSED
from sandbox.throwaway_airflow import AIRFLOW_VERSION, DAG_FILE, DAG_ID, HTTP_CONNECTION, START, dag_settings, load_dag

NOW = pendulum.datetime(2026, 11, 1)


def test_has_the_names_that_people_know():
    dag = load_dag()
    assert [task.task_id for task in dag.topological_sort()] == ["start_airbyte_sync", "wait_for_airbyte_sync"]
    assert {task.http_conn_id for task in dag.tasks} == {HTTP_CONNECTION}
    for name in ("trigger_sync = SimpleHttpOperator(", "wait_for_sync_to_complete = HttpSensor("):
        assert name in DAG_FILE.read_text()


def test_no_request_but_the_post_takes_longer_than_20_seconds_and_all_fit_into_the_execution_timeout(dag_file):
    assert sum(dag_file["TIMEOUT"]) <= 20
    for task in load_dag().tasks:
        longest = task.extra_options["timeout"]
        longest = sum(longest) if isinstance(longest, tuple) else 2 * longest
        assert task.execution_timeout.total_seconds() > longest + 3 * 20


def history(*seconds: int, **changes) -> list[dict]:
    """Return succeeded syncs that took so long."""
    return [{"jobType": "sync", "status": "succeeded", "duration": f"PT{each}S", **changes} for each in seconds]


@pytest.mark.parametrize(
    "age, others, shortest, expected",
    [
        pytest.param(30, history(240, 250, 260, 270, 280), 15, 230, id="the third quickest"),
        pytest.param(30, history(280, 0, 270, 260, 250), 15, 230, id="one had nothing to do"),
        pytest.param(30, history(100, 200), 15, 170, id="fewer than three"),
        pytest.param(30, history(0, duration="PT1M40S"), 15, 70, id="minutes"),
        pytest.param(30, history(0, duration="PT100.5S"), 15, 70.5, id="a fraction"),
        pytest.param(30, history(36_000, 36_000, 36_000), 15, 300, id="five minutes at most"),
        pytest.param(90, history(100, 100, 100), 15, 15, id="nearly ended"),
        pytest.param(600, history(602, 602, 602), 15, 15, id="nearly ended, though old"),
        pytest.param(1500, history(100, 100, 100), 15, 50, id="a thirtieth of its age"),
        pytest.param(1500, [], 15, 50, id="no history"),
        pytest.param(-3600, [], 15, 15, id="clocks that differ"),
        pytest.param(90_000, [], 600, 600, id="the user's own interval"),
        pytest.param(30, history(100, jobType="refresh"), 15, 70, id="a refresh counts"),
        pytest.param(30, history(100, jobType="of_a_new_type"), 15, 70, id="a new type counts"),
        pytest.param(30, history(100, jobType="reset"), 15, 15, id="a reset does not"),
        pytest.param(30, history(100, status="failed"), 15, 15, id="a failed one does not"),
        *(
            pytest.param(30, [*history(0, duration=odd), *history(100)], 15, 70, id=f"a duration of {odd!r}")
            for odd in (None, "", "PT-5S", "-PT5S", "soon")
        ),
    ],
)
def test_the_next_poke_comes_when_the_sync_can_have_ended(dag_file, age, others, shortest, expected):
    assert dag_file["seconds_to_next_poke"](age, others, shortest) == expected


@pytest.mark.parametrize(
    "text, shown",
    [
        ("http://user:pass@host/v1", "http://host/v1"),
        ("see https://user@host and http://a:b@c:1/", "see https://host and http://c:1/"),
        ("https://user:p@ss@host", "https://host"),
        ("http://host/v1?mail=a@b", "http://host/v1?mail=a@b"),
    ],
)
def test_shows_no_login_of_a_url(dag_file, text, shown):
    assert dag_file["without_login"](text) == shown


def test_imports_nothing_but_airflow_pendulum_and_the_standard_library():
    modules = set(re.findall(r"^ *(?:import|from) (\w+)", DAG_FILE.read_text(), re.MULTILINE))
    assert modules - set(sys.stdlib_module_names) == {"airflow", "pendulum"}


# What is sent, and when.


def test_asks_for_no_more_than_it_needs(scenario):
    _, airbyte = scenario(statuses=("running", "running", "succeeded"))
    expected = ["create_job", *["get_job", "list_jobs"] * 2, "get_job"]
    assert [request.operation for request in airbyte.requests if request.operation != "create_token"] == expected
    listed = {"connectionId": CONNECTION_ID, "orderBy": "createdAt|DESC"}
    assert [request.query for request in airbyte.requests_of("list_jobs")] == [listed] * 2


@pytest.mark.airflow_3_0
def test_the_next_poke_comes_when_the_other_syncs_would_have_ended(run_dag):
    with FakeAirbyte() as airbyte:
        for _ in range(3):
            airbyte.add_job(age=60, duration=4)
        assert run_dag(airbyte.url).state == "success"
    pokes = airbyte.requests_of("get_job")
    assert pokes[1].time - pokes[0].time > 2, "the interval of the tests is 0"


@pytest.mark.parametrize("base_path, slash", [("", ""), ("", "/"), ("/api/public", ""), ("/api/public", "/")])
def test_the_host_of_the_connection_may_have_a_path_and_a_slash(run_dag, base_path, slash):
    with FakeAirbyte(base_path=base_path) as airbyte:
        assert run_dag(airbyte.url + slash).state == "success"
    assert {request.status for request in airbyte.requests} == {200}


# As a program, and with Airflow's commands.


@pytest.mark.airflow_3_0
@pytest.mark.parametrize(
    "setting, value, says",
    [
        ("MY_EXAMPLE_CONNECTION_ID", CONNECTION_ID, "The sync has succeeded."),
        ("MY_EXAMPLE_CONNECTION_ID", "", "The run failed: Set the Variable MY_EXAMPLE_CONNECTION_ID"),
        ("AIRBYTE_CLIENT_SECRET", "wrong", "The run failed: Airbyte answered POST"),
    ],
    ids=["succeeds", "no connection id", "a wrong secret"],
)
def test_the_file_runs_by_itself_and_its_last_line_says_what_happened(airflow_home, setting, value, says):
    with FakeAirbyte(statuses={CONNECTION_ID: ("succeeded",)}) as airbyte:
        environ = {**os.environ, **dag_settings(airbyte.url), f"AIRFLOW_VAR_{setting}": value}
        ended = subprocess.run([sys.executable, DAG_FILE], env=environ, capture_output=True, text=True, timeout=180)
    if AIRFLOW_VERSION == (3, 0) and says.startswith("The run failed"):
        says = "The run failed: see the log above"  # There a callback does not learn the exception.
    last_line = (ended.stderr if ended.returncode else ended.stdout).splitlines()[-1]
    assert last_line.startswith(says), ended.stdout[-2000:] + ended.stderr[-2000:]
    assert ended.returncode == says.startswith("The run failed")


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
        ended = subprocess.run([sys.executable, file], env=environ, text=True, capture_output=True, timeout=180)
    assert ended.returncode == 1, "the other server answers 404"
    assert [request.status for request in another.requests] == [404]
    assert "authorization" not in another.requests[0].headers
    assert airbyte.jobs[0].ended


@pytest.mark.skipif(AIRFLOW_VERSION < (2, 10), reason="counts tries from 1 here")
def test_airflow_tasks_test_starts_a_sync(airflow_home):
    with FakeAirbyte() as airbyte:
        airbyte.add_job(age=60, duration=30)
        environ = {**os.environ, **dag_settings(airbyte.url)}
        command = ["airflow", "tasks", "test", DAG_ID, "start_airbyte_sync", "2026-11-01"]
        subprocess.run(command, env=environ, check=True, capture_output=True, timeout=180)
    assert len(airbyte.jobs) == 2


@pytest.mark.skipif(AIRFLOW_VERSION >= (3, 0), reason="the option is read by Airflow 2 alone in dag.test()")
def test_syncs_the_runs_connection_even_where_conf_does_not_override_params(run_dag, monkeypatch):
    other = "0b9f6f2e-1111-4c4c-8d8d-5f2f3c4d5e6f"
    monkeypatch.setenv("AIRFLOW__CORE__DAG_RUN_CONF_OVERRIDES_PARAMS", "False")
    with FakeAirbyte(statuses={other: ("succeeded",)}) as airbyte:
        assert run_dag(airbyte.url, {"connection_id": other}).state == "success"
    assert [job.connection_id for job in airbyte.jobs] == [other]


def test_no_duplicate_after_a_lost_request(run_dag):
    with FakeAirbyte({"create_job": [CLOSED, Fault(503)]}) as airbyte:
        assert run_dag(airbyte.url, policy={START: {"retries": 3}}).state == "success"
    assert len(airbyte.jobs) == 1
