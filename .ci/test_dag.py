"""The DAG file by itself: what it contains, and that it loads anywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from datetime import timedelta

import pendulum
import pytest
from sandbox.throwaway_airflow import DAG_FILE, DAG_ID, HTTP_CONNECTION, START, WAIT, load_dag


@pytest.fixture
def dag():
    return load_dag()


def test_has_the_names_that_people_know(dag):
    assert dag.dag_id == DAG_ID
    assert [task.task_id for task in dag.topological_sort()] == [START, WAIT]
    assert {task.http_conn_id for task in dag.tasks} == {HTTP_CONNECTION}
    assert set(dag.tags) == {"airbyte"}
    for name in ("trigger_sync = SimpleHttpOperator(", "wait_for_sync_to_complete = HttpSensor("):
        assert name in DAG_FILE.read_text()


VARIABLES = ["MY_EXAMPLE_CONNECTION_ID", "AIRBYTE_CLIENT_ID", "AIRBYTE_CLIENT_SECRET", "CLOUD_API_TOKEN"]
ADVICE = [
    "does not stop the sync",
    "*Pre Execute*",
    "the run goes on by itself",
    f"clear `{START}` of a run that has ended",
]


@pytest.mark.parametrize("text", [START, WAIT, HTTP_CONNECTION, "connection_id", *VARIABLES, *ADVICE])
def test_its_documentation_in_the_ui_says(dag, text):
    assert text in " ".join(dag.doc_md.split())


def test_runs_only_when_it_is_triggered(dag):
    assert type(dag.timetable).__name__ == "NullTimetable"
    assert dag.catchup is False
    assert dag.start_date.isoformat() == "2023-03-01T00:00:00+00:00"
    assert dict(dag.params) == {"connection_id": ""}


def test_waits_for_a_day_without_a_worker_slot(dag):
    wait = dag.get_task(WAIT)
    assert (wait.mode, wait.poke_interval, wait.timeout, wait.soft_fail) == ("reschedule", 15, 24 * 60 * 60, False)
    assert wait.extra_options["timeout"] == 60
    assert wait.retries * wait.max_retry_delay >= timedelta(seconds=wait.timeout)
    assert wait.retry_delay * 10 == timedelta(minutes=5), "for so long a refused poke is asked again"
    assert dag.max_active_runs == 256


def test_retries_the_start_with_growing_delays_for_20_minutes(dag):
    start = dag.get_task(START)
    assert start.extra_options["timeout"] == 180
    delays = [min(start.retry_delay * 2**retry, start.max_retry_delay) for retry in range(start.retries)]
    assert start.retry_exponential_backoff
    assert sum(delays, timedelta()) >= timedelta(minutes=20)


def test_no_task_that_a_user_adds_inherits_anything_of_airbyte(dag):
    assert set(dag.default_args) == {"deferrable", "retry_delay", "retry_exponential_backoff", "max_retry_delay"}


NOW = pendulum.datetime(2026, 11, 1)


def job(age: int, **changes) -> dict:
    """Return a running job that was started `age` seconds before NOW."""
    start = NOW.subtract(seconds=age).to_iso8601_string()
    return {"jobId": 1, "jobType": "sync", "status": "running", "startTime": start, **changes}


def history(*seconds: int, **changes) -> list[dict]:
    """Return succeeded syncs that took so long."""
    return [
        {"jobId": 100 + number, "jobType": "sync", "status": "succeeded", "duration": f"PT{duration}S", **changes}
        for number, duration in enumerate(seconds)
    ]


@pytest.mark.parametrize(
    "age, others, shortest, expected",
    [
        (30, history(240, 250, 260, 270, 280), 15, 230),  # the third quickest
        (30, history(280, 0, 270, 260, 250), 15, 230),  # one that had nothing to do does not count
        (30, history(100, 200), 15, 170),  # of fewer than three, the slowest
        (30, history(0, duration="PT1M40S"), 15, 70),
        (30, history(36_000, 36_000, 36_000), 15, 300),  # five minutes at most
        (90, history(100, 100, 100), 15, 15),  # it would have ended in 10 seconds
        (600, history(602, 602, 602), 15, 15),  # also where a thirtieth of the age is longer
        (1500, history(100, 100, 100), 15, 50),  # it should have ended: a thirtieth of the age
        (1500, [], 15, 50),
        (90_000, [], 15, 300),
        (-3600, [], 15, 15),  # clocks that differ
        (90_000, [], 600, 600),  # the user's own longer interval
        (30, history(100, 100, 100), 600, 600),
        (30, history(100, jobType="refresh"), 15, 70),
        (30, history(100, jobType="reset"), 15, 15),
        (30, history(100, status="failed"), 15, 15),
        (30, history(100, jobId=1), 15, 15),  # the job itself, which has ended since
        (30, [{"jobId": 2, "jobType": "sync", "status": "pending"}, *history(100)], 15, 70),
    ],
)
def test_the_next_poke_comes_when_the_sync_can_have_ended(dag_file, age, others, shortest, expected):
    assert dag_file["seconds_to_next_poke"](job(age), others, shortest, NOW) == expected


REFUSED, TROUBLE = PermissionError, RuntimeError
HOST, CLIENT, ACCESS, BUSY = "https://<your host>/api/public", "the Variables AIRBYTE_CLIENT_ID", "no login", "busy"
NO_DATABASE = '{"message":"Could not get the current Airbyte user due to an internal error."}'


@pytest.mark.parametrize(
    "status, text, of_the_token, of_any_other",
    [
        *((status, "{}", (REFUSED, CLIENT), (REFUSED, ACCESS)) for status in (400, 401, 403, 409, 422)),
        (404, "{}", (TROUBLE, HOST), (REFUSED, ACCESS)),
        (401, NO_DATABASE, (TROUBLE, BUSY), (TROUBLE, BUSY)),
        *((status, "{}", (TROUBLE, BUSY), (TROUBLE, BUSY)) for status in (408, 429, 500, 502, 503, 504)),
        *((status, "<html>", (TROUBLE, HOST), (TROUBLE, HOST)) for status in (200, 302, 400, 401, 403, 404, 405)),
        (404, "404 page not found", (TROUBLE, HOST), (TROUBLE, HOST)),
        (405, "{}", (TROUBLE, HOST), (TROUBLE, HOST)),
        (200, "{}", (TROUBLE, HOST), (TROUBLE, HOST)),
    ],
)
def test_advice_fits_the_answer(dag_file, status, text, of_the_token, of_any_other):
    for of_token, (error, advice) in ((True, of_the_token), (False, of_any_other)):
        judged = dag_file["judge"](status, text, of_token)
        assert judged[0] is error
        assert advice in judged[1]


def test_imports_nothing_but_airflow_pendulum_and_the_standard_library():
    modules = set(re.findall(r"^ *(?:import|from) (\w+)", DAG_FILE.read_text(), re.MULTILINE))
    assert modules - set(sys.stdlib_module_names) == {"airflow", "pendulum"}


def test_gives_no_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(DAG_FILE.read_text(), str(DAG_FILE), "exec"), {"__name__": "a_dag", "__doc__": ""})
    assert [str(warning.message) for warning in caught if warning.filename == str(DAG_FILE)] == []


@pytest.mark.parametrize("default_deferrable", ["False", "True"])
def test_loads_without_a_database_and_defers_nothing(tmp_path, default_deferrable):
    environ = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/none.db",
        "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": default_deferrable,
    }
    code = (
        "import json, runpy, sys; dag = runpy.run_path(sys.argv[1])['dag'];"
        "print(json.dumps({task.task_id: getattr(task, 'deferrable', False) for task in dag.tasks}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code, DAG_FILE], env=environ, capture_output=True, text=True)
    assert json.loads(loaded.stdout.splitlines()[-1]) == {START: False, WAIT: False}, loaded.stderr
    assert not (tmp_path / "none.db").exists()
