"""The tests' own Airflow, and a fixture that runs the DAG in it."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import sqlite3
import subprocess
import tempfile
import threading
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from sandbox import airflow_home
from sandbox.airflow_home import AIRFLOW_VERSION, START, WAIT

SLOW_MARKS = {
    "deployment": "a real scheduler; takes minutes",
    "celery": "a distributed Airflow on PostgreSQL and Redis; takes minutes",
}


def pytest_addoption(parser):
    parser.addoption("--schedules", type=int, default=20, help="how many random fault schedules to run (default: 20)")
    parser.addoption(
        "--seed", type=int, default=random.randrange(10**6), help="the seed of the first (default: random)"
    )


def pytest_configure(config):
    for mark, needs in SLOW_MARKS.items():
        config.addinivalue_line("markers", f"{mark}: {needs}: pytest -m {mark}")


def pytest_report_header(config):
    return f"random fault schedules: --schedules {config.option.schedules} --seed {config.option.seed}"


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        first = metafunc.config.option.seed
        metafunc.parametrize("seed", range(first, first + metafunc.config.option.schedules))


def pytest_collection_modifyitems(config, items):
    """Without `-m`, skip what takes minutes."""
    for item in items:
        for mark in SLOW_MARKS:
            if item.get_closest_marker(mark) and not config.option.markexpr:
                item.add_marker(pytest.mark.skip(reason=f"takes minutes: pytest -m {mark}"))


def pytest_sessionstart(session):
    """Replace the environment by that of a throwaway Airflow, before any test module imports Airflow."""
    home = Path(tempfile.mkdtemp(prefix="airflow-home-"))
    environ = airflow_home.environment(home)
    os.environ.clear()
    os.environ.update(environ)


def pytest_sessionfinish(session):
    shutil.rmtree(os.environ["AIRFLOW_HOME"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def home() -> Path:
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
    airflow_home.create(home, dict(os.environ), stdout=subprocess.DEVNULL)
    return home


class Run(NamedTuple):
    """How a run of the DAG ended: its state, its tasks' states, their XComs, and all that was logged."""

    state: str
    tasks: dict[str, str]
    job_id: int | None
    job: dict | None
    log: str


@pytest.fixture
def run(monkeypatch, capfd):
    """A function that runs the DAG with `dag.test()`, as fast as Airflow can."""

    def run(host: str, conf: dict | None = None, variables: dict | None = None, policy: dict | None = None) -> Run:
        """
        :param host: of the HTTP connection
        :param conf: the parameters that the run is triggered with
        :param variables: environment variables that differ from `airflow_home.dag_settings`; None unsets one
        :param policy: the tasks' attributes that differ from the DAG file, by task
        """
        for name, value in {**airflow_home.dag_settings(host), **(variables or {})}.items():
            monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
        no_delay = {"retry_delay": 0, "max_retry_delay": 1e-6}
        tasks = {START: {**no_delay}, WAIT: {**no_delay, "poke_interval": 0, "timeout": 120}}
        for task_id, changes in (policy or {}).items():
            tasks[task_id].update(changes)
        monkeypatch.setenv("TASK_POLICY", json.dumps(tasks))
        capfd.readouterr()
        dag_run = airflow_home.load_dag().test(run_conf=conf)
        log = re.sub(r"\x1b\[[0-9;]*m", "", "".join(capfd.readouterr()))
        instances = {ti.task_id: ti for ti in dag_run.get_task_instances()}
        return Run(
            str(dag_run.state),
            {task_id: str(ti.state) for task_id, ti in instances.items()},
            instances[START].xcom_pull(task_ids=START),
            instances[WAIT].xcom_pull(task_ids=WAIT, key="job"),
            " ".join(log.split()),
        )

    return run


@pytest.fixture
def scheduled_pokes(home):
    """
    The seconds from each poke to the next one, as Airflow has scheduled it.

    Nobody waits for it: what is scheduled for later becomes due at once.
    """
    seconds: list[float] = []
    done = threading.Event()

    def let_time_pass() -> None:
        with closing(sqlite3.connect(home / "airflow.db", timeout=30)) as database:
            database.execute("DELETE FROM task_reschedule")
            database.commit()
            while not done.wait(0.1):
                rows = database.execute(
                    "SELECT id, end_date, reschedule_date FROM task_reschedule ORDER BY id"
                ).fetchall()
                for row_id, end, reschedule in rows[len(seconds) :]:
                    seconds.append((datetime.fromisoformat(reschedule) - datetime.fromisoformat(end)).total_seconds())
                    database.execute("UPDATE task_reschedule SET reschedule_date = end_date WHERE id = ?", [row_id])
                    database.commit()

    thread = threading.Thread(target=let_time_pass)
    thread.start()
    yield seconds
    done.set()
    thread.join()


@pytest.fixture
def endless(airbyte):
    """Syncs that run until the test lets them end, with `airbyte.job_seconds = 0`."""
    airbyte.job_seconds = 3600
    yield
    airbyte.job_seconds = 0
