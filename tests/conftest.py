"""The tests' own Airflow, set up before anything imports Airflow, and one fixture that runs the DAG in it."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import airflow_home
import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--every-row", action="store_true", help="run every row of test_faults.py on Airflow 3.0 and 3.1 too"
    )
    parser.addoption("--schedules", type=int, default=20, help="how many random fault schedules to run (default: 20)")
    parser.addoption("--seed", type=int, default=random.randrange(10**6), help="the first one's seed (default: any)")


def pytest_report_header(config):
    return f"random fault schedules: --schedules {config.option.schedules} --seed {config.option.seed}"


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        first = metafunc.config.option.seed
        metafunc.parametrize("seed", range(first, first + metafunc.config.option.schedules))


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "deployment: takes minutes, with a real scheduler or in an image's place; only with -m deployment"
    )


def pytest_collection_modifyitems(config, items):
    if not config.option.markexpr:
        for item in items:
            if item.get_closest_marker("deployment"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: pytest -m deployment"))


HOME = Path(tempfile.mkdtemp(prefix="airflow-home-"))
ENVIRONMENT = airflow_home.environment(HOME)
os.environ.clear()
os.environ.update(ENVIRONMENT)


@pytest.fixture(scope="session", autouse=True)
def airflow():
    """An Airflow with a database, in a folder that goes when the tests have ended."""
    if (3, 0) <= airflow_home.AIRFLOW_VERSION < (3, 2):
        # There dag.test() prints debug messages, and paints every traceback with its local variables.
        import structlog

        structlog.configure(
            [
                structlog.processors.format_exc_info,
                structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
            ],
            structlog.make_filtering_bound_logger(logging.INFO),
        )
    airflow_home.create(HOME, ENVIRONMENT, stdout=subprocess.DEVNULL)
    yield
    shutil.rmtree(HOME, ignore_errors=True)


class Run(NamedTuple):
    """How a run of the DAG went: its state, its tasks' states, their XComs, and all that was logged."""

    state: str
    tasks: dict[str, str]
    job_id: int | None
    job: dict | None
    log: str


@pytest.fixture
def run(monkeypatch, capfd):
    """Return a function that runs the DAG with `dag.test()`, in as little time as Airflow can."""

    def run(host: str, conf: dict | None = None, variables: dict | None = None, policy: dict | None = None) -> Run:
        """
        :param host: of the HTTP connection
        :param conf: the parameters that the run is triggered with
        :param variables: environment variables that differ from `airflow_home.settings`; None unsets one
        :param policy: what differs from the DAG's own settings, by task
        """
        for name, value in {**airflow_home.settings(host), **(variables or {})}.items():
            monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
        hasty = {"retry_delay": 0, "max_retry_delay": 1e-6}
        tasks = {airflow_home.START: {**hasty}, airflow_home.WAIT: {**hasty, "poke_interval": 0, "timeout": 120}}
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
            instances[airflow_home.START].xcom_pull(task_ids=airflow_home.START),
            instances[airflow_home.WAIT].xcom_pull(task_ids=airflow_home.WAIT, key="job"),
            " ".join(log.split()),
        )

    return run
