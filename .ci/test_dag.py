"""The DAG file by itself: its names, what its functions decide, and what a user's own tasks get of it."""

import json
import os
import subprocess
import sys

import pytest
from sandbox.fake_airbyte import CONNECTION_ID, FakeAirbyte
from sandbox.throwaway_airflow import AIRFLOW_VERSION, DAG_FILE, DAG_ID, HTTP_CONNECTION, dag_settings, load_dag

ID, SECRET = "AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID", "AIRFLOW_VAR_AIRBYTE_CLIENT_SECRET"


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
        pytest.param(30, history(280, 0, 270, 260, 250), 15, 230, id="the third quickest"),
        pytest.param(30, history(100, 200), 15, 170, id="fewer than three"),
        pytest.param(30, history(0, duration="PT1M40.5S"), 15, 70.5, id="minutes, and a fraction"),
        pytest.param(30, history(36_000, 36_000, 36_000), 15, 300, id="five minutes at most"),
        pytest.param(600, history(602, 602, 602), 15, 15, id="nearly ended"),
        pytest.param(1500, history(100, 100, 100), 15, 50, id="a thirtieth of its age"),
        pytest.param(1500, [], 15, 50, id="no history"),
        pytest.param(-3600, [], 15, 15, id="clocks that differ"),
        pytest.param(90_000, [], 600, 600, id="the user's own interval"),
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


def test_shows_no_login_of_a_url(dag_file):
    text = "see https://user@host and http://a:b@c:1/, https://user:p@ss@host or http://host/v1?mail=a@b"
    shown = "see https://host and http://c:1/, https://host or http://host/v1?mail=a@b"
    assert dag_file["without_login"](text) == shown


# What is sent, and when.


def test_asks_for_no_more_than_it_needs(scenario):
    slash = {"host": "{url}/", "base_path": "/api/public"}  # The host may end in one.
    _, airbyte = scenario(statuses=("running", "running", "succeeded"), **slash)
    expected = ["create_job", *["get_job", "list_jobs"] * 2, "get_job"]
    assert [request.operation for request in airbyte.requests if request.operation != "create_token"] == expected
    listed = {"connectionId": CONNECTION_ID, "orderBy": "createdAt|DESC"}
    assert [request.query for request in airbyte.requests_of("list_jobs")] == [listed] * 2


@pytest.mark.airflow_3_0
def test_the_next_poke_comes_when_the_other_syncs_would_have_ended(scenario):
    _, airbyte = scenario(existing_jobs=({"age": 60, "duration": 4},) * 3)
    pokes = airbyte.requests_of("get_job")
    assert pokes[1].time - pokes[0].time > 2, "the interval of the tests is 0"


# As a program, and with Airflow's commands.


def run(*command, airbyte: FakeAirbyte, **environ: str) -> subprocess.CompletedProcess:
    """Run a command on the throwaway Airflow, with the DAG's settings for this Airbyte, and more of the environment."""
    environ = {**os.environ, **dag_settings(airbyte.url), **environ}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=180)


@pytest.mark.airflow_3_0
@pytest.mark.parametrize(
    "setting, says",
    [
        pytest.param({}, "The sync has succeeded.", id="succeeds"),
        pytest.param({ID: ""}, "The run failed: Set the Variable MY_EXAMPLE_CONNECTION_ID", id="no connection id"),
        pytest.param({SECRET: "wrong"}, "The run failed: Airbyte answered POST", id="a wrong secret"),
    ],
)
def test_the_file_runs_by_itself_and_its_last_line_says_what_happened(airflow_home, setting, says):
    with FakeAirbyte(statuses={CONNECTION_ID: ("succeeded",)}) as airbyte:
        ended = run(sys.executable, DAG_FILE, airbyte=airbyte, **setting)
    if AIRFLOW_VERSION == (3, 0) and setting:
        says = "The run failed: see the log above"  # There a callback does not learn the exception.
    last_line = (ended.stderr if setting else ended.stdout).splitlines()[-1]
    assert last_line.startswith(says), ended.stdout[-2000:] + ended.stderr[-2000:]
    assert ended.returncode == bool(setting)


def test_a_task_for_another_server_does_not_get_the_token(airflow_home, tmp_path):
    added = """
    another = SimpleHttpOperator(task_id="another", http_conn_id="another", endpoint="v1/nothing")
    wait_for_sync_to_complete >> another

if __name__"""
    file = tmp_path / DAG_FILE.name
    file.write_text(DAG_FILE.read_text().replace("\nif __name__", added))
    with FakeAirbyte(statuses={CONNECTION_ID: ("succeeded",)}) as airbyte, FakeAirbyte() as another:
        connection = json.dumps({"conn_type": "http", "host": another.url})
        environ = {"AIRFLOW_CONN_ANOTHER": connection, "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path)}
        ended = run(sys.executable, file, airbyte=airbyte, **environ)
    assert ended.returncode == 1, "the other server answers 404"
    assert [request.status for request in another.requests] == [404]
    assert "authorization" not in another.requests[0].headers
    assert airbyte.jobs[0].ended


@pytest.mark.skipif(AIRFLOW_VERSION < (2, 10), reason="counts tries from 1 here")
def test_airflow_tasks_test_starts_a_sync(airflow_home):
    with FakeAirbyte() as airbyte:
        airbyte.add_job(age=60, duration=30)
        fresh = {"AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0"}  # Else it has the retries of another test.
        ended = run("airflow", "tasks", "test", DAG_ID, "start_airbyte_sync", "2026-11-01", airbyte=airbyte, **fresh)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(airbyte.jobs) == 2, ended.stdout + ended.stderr
