"""The tests' own Airflow, and a fixture that runs the DAG in it."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import runpy
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from sandbox import throwaway_airflow
from sandbox.throwaway_airflow import AIRFLOW_VERSION, DAG_FILE, START, WAIT

BACKEND = "sandbox.flaky_secrets.FlakySecrets"


def pytest_addoption(parser):
    parser.addoption("--schedules", type=int, default=20, help="how many random fault schedules to run (default: 20)")
    parser.addoption("--seed", type=int, default=1, help="the seed of the first (default: 1)")


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        first = metafunc.config.option.seed
        metafunc.parametrize("seed", range(first, first + metafunc.config.option.schedules))


def pytest_sessionstart(session):
    """Replace the environment by that of a throwaway Airflow, before any test module imports Airflow."""
    home = Path(tempfile.mkdtemp(prefix="airflow-home-"))
    environ = throwaway_airflow.environment(home)
    os.environ.clear()
    os.environ.update(environ)
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    os.environ["AIRFLOW__SECRETS__BACKEND"] = os.environ["AIRFLOW__WORKERS__SECRETS_BACKEND"] = BACKEND


def pytest_sessionfinish(session):
    shutil.rmtree(os.environ["AIRFLOW_HOME"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def airflow_home() -> Path:
    """The folder of the throwaway Airflow, which has a database now."""
    home = Path(os.environ["AIRFLOW_HOME"])
    if (3, 0) <= AIRFLOW_VERSION < (3, 2):
        # There dag.test() prints debug messages, and every traceback with its local variables.
        import structlog

        structlog.configure(
            [
                structlog.processors.format_exc_info,
                structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
            ],
            structlog.make_filtering_bound_logger(logging.INFO),
        )
    throwaway_airflow.create(home, dict(os.environ), stdout=subprocess.DEVNULL)
    return home


@pytest.fixture(scope="session")
def dag_file(airflow_home) -> dict:
    """What the DAG file defines, by name."""
    return runpy.run_path(str(DAG_FILE))


class DagRunResult(NamedTuple):
    """How a run of the DAG ended: its state, its tasks' states and tries, their XComs, and all that was logged."""

    state: str
    tasks: dict[str, str]
    tries: dict[str, int]
    job_id: int | None
    job: dict | None
    log: str


@pytest.fixture
def run_dag(monkeypatch, capfd):
    """A function that runs the DAG with `dag.test()`, as fast as Airflow can."""
    importlib.import_module("airflow.configuration")  # It imports the backend.
    from sandbox import flaky_secrets

    def run_dag(
        host: str,
        conf: dict | None = None,
        variables: dict[str, str | None] | None = None,
        policy: dict | None = None,
        failing_reads: dict[str, set[int]] | None = None,
    ) -> DagRunResult:
        """
        :param host: of the HTTP connection
        :param conf: the parameters that the run is triggered with
        :param variables: environment variables that differ from `dag_settings`; None unsets one
        :param policy: the tasks' attributes that differ from the DAG file, by task
        :param failing_reads: given these, the Variables and the connection come from `flaky_secrets`
        """
        settings = {**throwaway_airflow.dag_settings(host), **(variables or {})}
        known = {name: value for name, value in settings.items() if failing_reads and value is not None}
        flaky_secrets.store(known, failing_reads or {})
        for name, value in settings.items():
            if value is None or name in known:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        no_delay = {"retry_delay": 0, "max_retry_delay": 1e-6}
        tasks = {START: {**no_delay}, WAIT: {**no_delay, "poke_interval": 0, "timeout": 120}}
        for task_id, changes in (policy or {}).items():
            tasks[task_id].update(changes)
        monkeypatch.setenv("TASK_POLICY", json.dumps(tasks))
        capfd.readouterr()
        dag_run = throwaway_airflow.load_dag().test(run_conf=conf)
        log = re.sub(r"\x1b\[[0-9;]*m", "", "".join(capfd.readouterr()))
        log = re.sub(r'File "[^"]*/tests/.*\n.*', "", log)  # Tracebacks quote the test, and so what it looks for.
        instances = {ti.task_id: ti for ti in dag_run.get_task_instances()}
        return DagRunResult(
            str(dag_run.state),
            {task_id: str(ti.state) for task_id, ti in instances.items()},
            {task_id: ti.try_number for task_id, ti in instances.items()},
            instances[START].xcom_pull(task_ids=START),
            instances[WAIT].xcom_pull(task_ids=WAIT, key="job"),
            " ".join(log.split()),
        )

    return run_dag


@pytest.fixture
def clean_books(airbyte):
    """An Airbyte that knows of no job, and whose syncs take six seconds."""
    airbyte.forget()
    airbyte.job_seconds = 6


@pytest.fixture
def endless(airbyte, clean_books):
    """Syncs that run until the test lets them end, with `airbyte.job_seconds = 0`."""
    airbyte.job_seconds = 3600
    yield
    airbyte.job_seconds = 0
