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
from types import SimpleNamespace

import pendulum
import pytest
from sandbox import throwaway_airflow
from sandbox.fake_airbyte import CLIENT_SECRET, CONNECTION_ID, CONNECTIONS, ENDED, FakeAirbyte, Fault
from sandbox.throwaway_airflow import AIRFLOW_VERSION, DAG_FILE, START, WAIT, dag_settings

SUCCESS = {START: "success", WAIT: "success"}
START_FAILS = {START: "failed", WAIT: "upstream_failed"}
WAIT_FAILS = {START: "success", WAIT: "failed"}
FOR_EVER = 99  # as many retries, or faults, as no run can use up

CLOSED = Fault(no_answer="closed")
JOBS_END = Fault(before=FakeAirbyte.end_jobs)
RUNNING = {"age": 9, "statuses": ("running", "running", "succeeded")}  # a job that is older than the run

COUNTS_TRIES = AIRFLOW_VERSION >= (2, 10)  # Before, a retry in dag.test() does not know that it is one.
needs_try_count = pytest.mark.skipif(not COUNTS_TRIES, reason="dag.test() does not count tries here")

# What the tests change of the two tasks: no delays, and no alerts.
AS_TESTED = {"retry_delay": 0, "max_retry_delay": 1e-6}
AS_TESTED.update({f"on_{each}_callback": [] for each in ("execute", "failure", "retry", "success")})


def pytest_sessionstart(session):
    """Replace the environment by that of a throwaway Airflow, before any test module imports Airflow."""
    home = Path(tempfile.mkdtemp(prefix="airflow-home-"))
    environ = {**throwaway_airflow.environment(home), "PYTHONPATH": str(throwaway_airflow.SANDBOX.parent)}
    os.environ.clear()
    os.environ.update(environ, AIRFLOW__SECRETS__BACKEND="sandbox.flaky_secrets.FlakySecrets")
    session.config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))


@pytest.fixture(scope="session", autouse=True)
def airflow_home() -> Path:
    """The folder of the throwaway Airflow, which has a database now."""
    home = Path(os.environ["AIRFLOW_HOME"])
    if (3, 0) <= AIRFLOW_VERSION < (3, 2):
        # There dag.test() prints debug messages, and every traceback with its local variables.
        import structlog

        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        structlog.configure([renderer], structlog.make_filtering_bound_logger(logging.INFO))
    throwaway_airflow.create(home, dict(os.environ), stdout=subprocess.DEVNULL)
    return home


@pytest.fixture(scope="session")
def dag_file(airflow_home) -> dict:
    """What the DAG file defines, by name."""
    return runpy.run_path(str(DAG_FILE))


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
        age: float = 0,
        **login: str,
    ) -> SimpleNamespace:
        """
        :param host, login: of the HTTP connection
        :param conf: the parameters that the run is triggered with
        :param variables: environment variables that differ from `dag_settings`; None unsets one
        :param policy: the tasks' attributes that differ from the DAG file, by task
        :param failing_reads: given these, the Variables and the connection come from `flaky_secrets`
        :param age: how many seconds ago the run began, in the eyes of its tasks
        :return: how the run ended: its state, its tasks' states and tries, their XComs, and all that was logged
        """
        flaky_secrets.failing_reads = failing_reads or {}
        flaky_secrets.reads.clear()
        prefix = flaky_secrets.PREFIX if failing_reads else ""
        for name, value in {**dag_settings(host, **login), **(variables or {})}.items():
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(prefix + name, value)
        attributes = {START: {**AS_TESTED}, WAIT: {**AS_TESTED, "poke_interval": 0, "timeout": 120}}
        for role, changes in (policy or {}).items():
            attributes[role].update(changes)
        monkeypatch.setenv("TASK_POLICY", json.dumps(attributes))
        capfd.readouterr()
        dag = throwaway_airflow.load_dag()
        date = "logical_date" if AIRFLOW_VERSION >= (3, 0) else "execution_date"
        options = {date: pendulum.now("UTC").subtract(seconds=age)} if age else {}
        dag_run = throwaway_airflow.run_airbyte_tasks(dag, run_conf=conf, **options)
        log = re.sub(r"\x1b\[[0-9;]*m", "", "".join(capfd.readouterr()))
        log = re.sub(r'File "[^"]*/(tests|\.ci)/.*\n.*', "", log)  # Tracebacks quote the test.
        tasks = throwaway_airflow.airbyte_tasks(dag)
        instances = {role: dag_run.get_task_instance(task.task_id) for role, task in tasks.items()}
        return SimpleNamespace(
            state=str(dag_run.state),
            tasks={role: str(ti.state) for role, ti in instances.items()},
            tries={role: ti.try_number for role, ti in instances.items()},
            job_id=instances[START].xcom_pull(task_ids=tasks[START].task_id),
            job=instances[WAIT].xcom_pull(task_ids=tasks[WAIT].task_id, key="job"),
            log=" ".join(log.split()),
        )

    return run_dag


@pytest.fixture
def scenario(run_dag):
    """A function that plays a scenario and checks how it ends."""

    def scenario(
        *,
        ends: dict[str, str] = SUCCESS,
        says: str = "",
        posts: int | None = 1,
        new_jobs: int | None = None,
        statuses: tuple[str, ...] = ("running", "succeeded"),
        existing_jobs: tuple[dict, ...] = (),
        host: str = "{url}",
        login: dict[str, str] | None = None,
        start_retries: int = 3,
        wait_retries: int = 0,
        run: dict | None = None,
        **airbyte_options,
    ) -> tuple[SimpleNamespace, FakeAirbyte]:
        """
        :param ends: the tasks' states
        :param says: a part of the message to the user
        :param posts: how many requests to create a job are sent; None: any number
        :param new_jobs: how many jobs the scenario adds; None: one, unless the start fails
        :param statuses, airbyte_options: of the FakeAirbyte, such as its faults
        :param existing_jobs: the arguments of FakeAirbyte.add_job
        :param host, login: of the HTTP connection; {url} is Airbyte's, {port} its port
        :param start_retries: of the operator; where retries never end, none if it fails
        :param wait_retries: of the sensor; a poke that goes wrong must not cost a retry
        :param run: further arguments of run_dag
        """
        if ends == START_FAILS and not COUNTS_TRIES:
            start_retries = 0
        if AIRFLOW_VERSION == (3, 0):  # There dag.test() fails every other poke, whatever it is.
            wait_retries = max(wait_retries, 50)
        limit = {"extra_options": {"timeout": 2}}
        policy = {START: {"retries": start_retries, **limit}, WAIT: {"retries": wait_retries, **limit}}
        options = dict(run or {})
        for role, changes in options.pop("policy", {}).items():
            policy[role].update(changes)
        with FakeAirbyte(statuses={CONNECTION_ID: statuses}, **airbyte_options) as airbyte:
            for job in existing_jobs:
                airbyte.add_job(**job)
            host = host.format(url=airbyte.url, port=airbyte.server_port)
            result = run_dag(host, policy=policy, **options, **(login or {}))

        assert result.tasks == ends, result.log[-3000:]
        assert says in result.log
        secrets = [CLIENT_SECRET, "a-password", *(token[:10] for token in airbyte.tokens)]
        assert throwaway_airflow.leaks({"log": result.log.encode()}, secrets) == set()
        assert len(airbyte.jobs) - len(existing_jobs) == (ends != START_FAILS if new_jobs is None else new_jobs)
        assert posts in (None, len(airbyte.requests_of("create_job")))
        if ends == SUCCESS:
            assert result.job["status"] == "succeeded"
            syncs = [job.id for job in airbyte.jobs if job.type not in ("reset", "clear")]
            assert result.job["jobId"] == result.job_id == syncs[-1]
        assert_nothing_is_asked_after_the_end(airbyte, result.log)
        return result, airbyte

    return scenario


def assert_nothing_is_asked_after_the_end(airbyte: FakeAirbyte, log: str) -> None:
    """After the poke that says how the job ended, at most its page is asked for."""
    asked = [request for request in airbyte.requests if request.operation not in ("create_token", "get_connection")]
    ends = [number for number, request in enumerate(asked) if request.job_status in ENDED and request.status == 200]
    if ends and "following job" in log and asked[ends[0] - 1].operation == "list_jobs":
        ends.pop(0)  # The retry of the start has seen it first.
    assert ends in ([], [len(asked) - 1])


@pytest.fixture(scope="module")
def airbyte():
    """An Airbyte for all tests of a file."""
    with FakeAirbyte(statuses=CONNECTIONS) as airbyte:
        yield airbyte


@pytest.fixture
def fresh_airbyte(airbyte):
    """An Airbyte that knows of no job, and whose syncs take six seconds."""
    airbyte.forget()
    airbyte.job_seconds = 6


@pytest.fixture
def endless(airbyte, fresh_airbyte):
    """Syncs that run until the test lets them end, with `airbyte.job_seconds = 0`."""
    airbyte.job_seconds = 3600
    yield
    airbyte.job_seconds = 0
