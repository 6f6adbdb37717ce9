"""A deployment whose processes die, and a PostgreSQL on loopback, for which it needs Debian's package postgresql."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
from sandbox.deployment import AIRFLOW_3, Deployment, free_port
from sandbox.fake_airbyte import FakeAirbyte, Request
from sandbox.throwaway_airflow import DAG_ID, START, WAIT

ONE_SECOND = {"retry_delay": 1, "max_retry_delay": 1}
# On Airflow 2 a poke takes a worker slot for six seconds, and some tests have only one.
SHORT_DELAYS = {START: {**ONE_SECOND, "retries": 2}, WAIT: {**ONE_SECOND, "poke_interval": 5 if AIRFLOW_3 else 10}}


def sender(request: Request) -> psutil.Process:
    """Return the process that sent a request, and waits for the answer."""
    sockets = psutil.net_connections("tcp")
    return psutil.Process(next(each.pid for each in sockets if each.laddr.port == request.port))


class ProvedDeployment(Deployment):
    """A `Deployment` for tests."""

    def kill(self, name: str) -> None:
        """Kill one of the commands with every process it started, as if its machine died."""
        process = self.processes.pop(name)
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # It has just ended.
                each.kill()
        process.wait()

    def waiting_run(self) -> str:
        """Trigger the DAG, and return the id of the run once its sensor is between two pokes."""
        run_id = self.trigger()
        wait = f"/dags/{DAG_ID}/dagRuns/{run_id}/taskInstances/wait_for_airbyte_sync"
        self.wait_for(lambda: self.api(wait)["state"] == "up_for_reschedule", "the wait")
        return run_id

    def wait_for_request(self, airbyte: FakeAirbyte, operation: str) -> Request:
        """Return the first request of an operation, once it is answered, or its fault leaves it without an answer."""
        return self.wait_for(lambda: [each for each in airbyte.requests_of(operation) if each.answer], operation)[0]

    def end_after_a_poke(self, airbyte: FakeAirbyte, run_id: str) -> str:
        """Let all syncs end as soon as one is poked again. Return the state in which the run ends."""
        airbyte.requests.clear()

        def poked() -> list[Request]:
            for name, process in self.processes.items():
                if process.poll() is not None:  # It gave up, such as without its database: restart it, as systemd does.
                    self.start(name)
            return airbyte.requests_of("get_job")

        self.wait_for(poked, "another poke", 180)
        airbyte.job_seconds = 0
        return self.end_of(run_id, 180)


USER = {} if os.geteuid() else {"user": "postgres", "group": "postgres", "extra_groups": []}  # It must not be root.


def run_postgres():
    """Run the server. Yield its address for Airflow, and a function with which `pg_ctl` stops or restarts it."""
    folder, port = tempfile.mkdtemp(prefix="postgres-", dir="/tmp"), free_port()  # where any user may go
    shutil.chown(folder, USER.get("user", os.geteuid()))

    def control(*arguments: str) -> None:
        pg_ctl = max(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
        command = [pg_ctl, *arguments, f"--pgdata={folder}/data", f"--log={folder}/log"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **USER)

    control("init", "--options=--username=airflow --auth=trust --encoding=UTF8")
    control("start", f"--options=-h 127.0.0.1 -p {port} -k {folder} -c max_connections=300")
    try:
        yield f"postgresql+psycopg2://airflow@127.0.0.1:{port}/postgres", control
    finally:
        control("stop", "--mode=immediate")
        shutil.rmtree(folder)
