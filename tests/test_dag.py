"""The DAG file by itself: what it contains, and that it loads anywhere."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import warnings
from datetime import timedelta

import pytest
from sandbox.airflow_home import DAG_FILE, DAG_ID, HTTP_CONNECTION, START, WAIT, load_dag


@pytest.fixture
def dag():
    return load_dag()


def test_has_the_names_that_people_know(dag):
    assert dag.dag_id == DAG_ID
    assert [task.task_id for task in dag.topological_sort()] == [START, WAIT]
    assert {task.http_conn_id for task in dag.tasks} == {HTTP_CONNECTION}
    assert set(dag.tags) == {"airbyte"}
    names = {node.id for node in ast.walk(ast.parse(DAG_FILE.read_text())) if isinstance(node, ast.Name)}
    assert {"SimpleHttpOperator", "trigger_sync", "wait_for_sync_to_complete"} <= names


@pytest.mark.parametrize(
    "name",
    [
        START,
        WAIT,
        HTTP_CONNECTION,
        "MY_EXAMPLE_CONNECTION_ID",
        "AIRBYTE_CLIENT_ID",
        "AIRBYTE_CLIENT_SECRET",
        "CLOUD_API_TOKEN",
        "connection_id",
        "does not stop the sync",
    ],
)
def test_its_documentation_in_the_ui_names(dag, name):
    assert dag.description
    assert name in dag.doc_md


def test_runs_only_when_it_is_triggered(dag):
    assert type(dag.timetable).__name__ == "NullTimetable"
    assert dag.catchup is False
    assert dag.start_date.isoformat() == "2023-03-01T00:00:00+00:00"
    assert dict(dag.params) == {"connection_id": ""}


def test_waits_for_a_day_without_a_worker_slot(dag):
    wait = dag.get_task(WAIT)
    assert (wait.mode, wait.poke_interval, wait.timeout, wait.soft_fail) == ("reschedule", 30, 24 * 60 * 60, False)
    assert wait.extra_options["timeout"] == 60
    assert wait.retries * wait.max_retry_delay >= timedelta(seconds=wait.timeout)


def test_lets_many_runs_wait_at_once(dag):
    assert dag.max_active_runs == 256


def test_asks_again_after_a_refused_poke_within_five_minutes(dag):
    assert timedelta(seconds=30) <= dag.get_task(WAIT).retry_delay <= timedelta(minutes=4)


def test_retries_the_start_with_growing_delays_for_20_minutes(dag):
    start = dag.get_task(START)
    assert start.extra_options["timeout"] == 180
    delays = [min(start.retry_delay * 2**retry, start.max_retry_delay) for retry in range(start.retries)]
    assert start.retry_exponential_backoff
    assert sum(delays, timedelta()) >= timedelta(minutes=20)


def test_imports_nothing_but_airflow_pendulum_and_the_standard_library():
    modules = set()
    for node in ast.walk(ast.parse(DAG_FILE.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.partition(".")[0])
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
