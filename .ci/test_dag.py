"""The DAG file by itself: its names, what its functions decide, and what a user's own tasks get of it."""

import json
import os
import re
import subprocess
import sys

import pytest
from sandbox.fake_airbyte import CONNECTION_ID, OTHER_CONNECTION_ID, FakeAirbyte
from sandbox.throwaway_airflow import AIRFLOW_VERSION, DAG_FILE, DAG_ID, HTTP_CONNECTION, dag_settings, load_dag

ID, SECRET = "AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID", "AIRFLOW_VAR_AIRBYTE_CLIENT_SECRET"
TWO = dict.fromkeys([CONNECTION_ID, OTHER_CONNECTION_ID], ("running", "succeeded"))


def test_has_the_names_that_people_know():
    dag = load_dag()
    assert [task.task_id for task in dag.topological_sort()] == ["start_airbyte_sync", "wait_for_airbyte_sync"]
    assert {task.http_conn_id for task in dag.tasks} == {HTTP_CONNECTION}
    for name in ("trigger_sync = SimpleHttpOperator(", "wait_for_sync_to_complete = HttpSensor("):
        assert name in DAG_FILE.read_text()
    assert dag.default_args["retries"] >= 2, "as the test that Astro generates into a project wants"


def test_no_request_but_the_post_takes_longer_than_20_seconds_and_all_fit_into_the_execution_timeout(dag_file):
    assert sum(dag_file["REQUEST_TIMEOUT"]) <= 20
    for task in load_dag().tasks:
        longest = task.extra_options["timeout"]
        longest = sum(longest) if isinstance(longest, tuple) else 2 * longest
        assert task.execution_timeout.total_seconds() > longest + 3 * 20


@pytest.mark.parametrize(
    "shortest, age, quick_duration, expected",
    [
        pytest.param(15, 30, 250, 220, id="when it can have ended"),
        pytest.param(15, 30, 36_000, 300, id="five minutes at most"),
        pytest.param(15, 600, 602, 15, id="nearly ended"),
        pytest.param(600, 90_000, 0, 600, id="the user's own interval"),
    ],
)
def test_the_next_poke_comes_when_the_sync_can_have_ended(dag_file, shortest, age, quick_duration, expected):
    assert dag_file["seconds_to_next_poke"](shortest, age, quick_duration) == expected


def test_runs_that_wait_together_do_not_poke_together(dag_file):
    seconds = [dag_file["seconds_to_next_poke"](15, 1500, 100) for _ in range(100)]
    assert 1500 / 35 <= min(seconds) < 1500 / 30 < max(seconds) <= 1500 / 25


def history(*minutes: int, **changes) -> list[dict]:
    """Return succeeded syncs that took so long."""
    job = {"jobType": "sync", "status": "succeeded", "startTime": "2026-11-01T10:00Z"}
    return [{**job, "lastUpdatedAt": f"2026-11-01T10:{each:02}:30Z", **changes} for each in minutes]


@pytest.mark.parametrize(
    "jobs, expected",
    [
        pytest.param(history(20, 0, 10, 6, 5), 390, id="the third quickest"),
        pytest.param(history(1, 2), 150, id="fewer than three"),
        pytest.param([], 0, id="no history"),
        pytest.param(history(1, jobType="of_a_new_type"), 90, id="a new type counts"),
        pytest.param(history(1, jobType="reset"), 0, id="a reset does not"),
        pytest.param(history(1, status="failed"), 0, id="a failed one does not"),
    ],
)
def test_a_sync_is_expected_to_take_as_long_as_the_quickest_ones(dag_file, jobs, expected):
    assert dag_file["get_quick_duration"](jobs) == expected


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
        pytest.param({}, '"status": "succeeded"', id="succeeds"),
        pytest.param({ID: ""}, "Set the Variable MY_EXAMPLE_CONNECTION_ID", id="no connection id"),
        pytest.param({SECRET: "wrong"}, "Airbyte answered POST", id="a wrong secret"),
    ],
)
def test_the_file_runs_by_itself_and_says_at_once_what_is_wrong(airflow_home, setting, says):
    with FakeAirbyte(statuses={CONNECTION_ID: ("succeeded",)}) as airbyte:
        ended = run(sys.executable, DAG_FILE, airbyte=airbyte, **setting)
    assert says in ended.stdout + ended.stderr
    assert ended.returncode == bool(setting), ended.stdout[-2000:] + ended.stderr[-2000:]
    assert len(airbyte.requests_of("create_token")) <= 2, "no retry"


# What people add to the DAG, or change.


def run_text(folder, airbyte, text: str, **environ: str) -> subprocess.CompletedProcess:
    """Run this text as the DAG file, in this folder."""
    file = folder / DAG_FILE.name
    file.write_text(text)
    return run(sys.executable, file, airbyte=airbyte, AIRFLOW__CORE__DAGS_FOLDER=str(folder), **environ)


def run_changed(folder, airbyte, old: str, new: str, **environ: str) -> subprocess.CompletedProcess:
    """Run the DAG file with a change, in this folder."""
    text = DAG_FILE.read_text()
    assert old in text
    return run_text(folder, airbyte, text.replace(old, new), **environ)


def test_works_where_templates_are_rendered_as_native_objects(airflow_home, tmp_path):
    with FakeAirbyte(statuses={CONNECTION_ID: ("succeeded",)}) as airbyte:
        native = "    catchup=False,\n    render_template_as_native_obj=True,\n"
        ended = run_changed(tmp_path, airbyte, "    catchup=False,\n", native)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_works_in_a_mapped_group(airflow_home, tmp_path):
    """One pair of mapped tasks for two connections."""
    with FakeAirbyte(statuses=TWO) as airbyte:
        text = DAG_FILE.read_text()
        for name in ("SimpleHttpOperator", "HttpSensor"):
            text = text.replace(f" = {name}(", f" = {name}.partial(")
        bodies = [json.dumps({"connectionId": each, "jobType": "sync"}) for each in TWO]
        data = re.search(r" +data='.*\n", text)[0]
        text = re.sub(r"(\(minutes=10\),.*\n    \))", rf"\1.expand(data={bodies})", text.replace(data, ""))
        text = text.replace('        endpoint=f"v1/jobs/{trigger_sync.output}",\n', "")
        endpoints = "endpoint=trigger_sync.output.map(lambda job_id: f'v1/jobs/{job_id}')"
        text = re.sub(r"(silent_fail=True,.*\n    \))", rf"\1.expand({endpoints})", text)
        text = re.sub(r" +trigger_sync.retries = 0.*\n", "", text)  # Airflow 2.7 cannot set it on a mapped task.
        ended = run_text(tmp_path, airbyte, text, TASK_POLICY=json.dumps({"wait": {"poke_interval": 1}}))
    log = ended.stdout + ended.stderr
    assert ended.returncode == 0, log
    assert sorted(job.connection_id for job in airbyte.jobs) == sorted(TWO)
    assert "Earlier syncs not known" not in log
    assert "Sensor poke failed" not in log


def test_a_task_for_another_server_does_not_get_the_token(airflow_home, tmp_path):
    added = """
    another = SimpleHttpOperator(task_id="another", http_conn_id="another", endpoint="v1/nothing", retries=0)
    wait_for_sync_to_complete >> another

if __name__"""
    with FakeAirbyte(statuses={CONNECTION_ID: ("succeeded",)}) as airbyte, FakeAirbyte() as another:
        connection = json.dumps({"conn_type": "http", "host": another.url})
        ended = run_changed(tmp_path, airbyte, "\nif __name__", added, AIRFLOW_CONN_ANOTHER=connection)
    assert ended.returncode == 1, "the other server answers 404"
    assert [request.status for request in another.requests] == [404]
    assert "authorization" not in another.requests[0].headers
    assert airbyte.jobs[0].ended


@pytest.mark.skipif(AIRFLOW_VERSION < (2, 10), reason="counts tries from 1 here")
@pytest.mark.parametrize("task_id, new_jobs", [("start_airbyte_sync", 1), ("wait_for_airbyte_sync", 0)])
def test_airflow_tasks_test_runs_each_task(airflow_home, task_id, new_jobs):
    with FakeAirbyte() as airbyte:
        airbyte.add_job(age=60, duration=30)
        environ = {
            "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0",  # Else it has the retries of another test.
            "TASK_POLICY": json.dumps({"wait": {"endpoint": "v1/jobs/1001"}}),
        }
        ended = run("airflow", "tasks", "test", DAG_ID, task_id, "2026-11-01", airbyte=airbyte, **environ)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(airbyte.jobs) == 1 + new_jobs, ended.stdout + ended.stderr
