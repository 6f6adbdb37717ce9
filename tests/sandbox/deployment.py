"""
A real Airflow on loopback: scheduler, web server and, on Airflow 3, DAG processor, each a process of its own.

`airflow standalone` would open a log server to the network, and its parts cannot be killed one by one.
"""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import requests
from sandbox import throwaway_airflow
from sandbox.throwaway_airflow import AIRFLOW_VERSION, DAG_FILE, DAG_ID, HTTP_CONNECTION, VARIABLES

AIRFLOW_3 = AIRFLOW_VERSION >= (3, 0)


def free_port(preferred: int = 0) -> int:
    """Return the preferred port if nobody listens on it, else a free one."""
    port = preferred or random.randrange(20_000, 30_000)  # From 32768 on, the system may give it away.
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return free_port()
    return port


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return all processes that work in a folder or below it. (Some overwrite their command line and environment.)"""
    folder, cwds = folder.resolve(), {each: Path(each.info["cwd"] or "/") for each in psutil.process_iter(["cwd"])}
    return [each for each, cwd in cwds.items() if folder in (cwd, *cwd.parents)]


def kill_processes_in(folder: Path) -> None:
    """Kill every process that works in a folder, including orphans and half-started ones."""
    while found := processes_in(folder):
        for orphan in found:
            with suppress(psutil.NoSuchProcess):
                orphan.kill()
        psutil.wait_procs(found, timeout=10)  # Where nobody reaps orphans they stay, as zombies.


class Deployment:
    """
    An Airflow with the DAG file, copied alone, in its dags folder.

    :param airflow_home: an empty folder for it
    :param environ: further environment variables: Variables, connections, settings
    :param out: the file for what the processes print
    :param port: the web server's, if it is free
    :param more: further commands to run, by name, such as workers or a triggerer
    """

    def __init__(self, airflow_home: Path, environ: dict, out, port: int = 0, more: dict | None = None) -> None:
        self.airflow_home, self.out = airflow_home, out
        port = free_port(port)
        self.url = f"http://127.0.0.1:{port}"
        dags = airflow_home / "dags"
        dags.mkdir(parents=True)
        shutil.copy(DAG_FILE, dags)
        self.environ = {
            **throwaway_airflow.environment(airflow_home, dags),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__API__BASE_URL": self.url,
            # Nobody has to log in: on Airflow 3, and in the REST API of Airflow 2.
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.default",
            # What Airflow does periodically it does often here, so that no test waits for it.
            "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            "AIRFLOW__SCHEDULER__MIN_FILE_PROCESS_INTERVAL": "5",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
            "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": "15",
            "AIRFLOW__SCHEDULER__ZOMBIE_DETECTION_INTERVAL": "5",
            **environ,
        }
        (airflow_home / "webserver_config.py").write_text("AUTH_ROLE_PUBLIC = 'Admin'\n")  # of Airflow 2: no login
        serve = ["api-server", "--host"] if AIRFLOW_3 else ["webserver", "--hostname"]
        self.commands = {
            "web": ["airflow", *serve, "127.0.0.1", "--port", str(port), "--workers", "1"],
            "scheduler": ["airflow", "scheduler", "--skip-serve-logs"],
            **({"dag-processor": ["airflow", "dag-processor"]} if AIRFLOW_3 else {}),
            **(more or {}),
        }
        self.processes: dict[str, psutil.Popen] = {}  # without those that a test has killed
        self.session = requests.Session()
        self.session.trust_env = False  # No proxy leads to this machine.
        # A connection that is kept may be ended by the server just when it is used again.
        self.session.headers.update({"Accept": "application/json", "Connection": "close"})

    def __enter__(self) -> Deployment:
        throwaway_airflow.create(self.airflow_home, self.environ, stdout=self.out, stderr=subprocess.STDOUT)
        try:
            for name in self.commands:
                self.start(name)
            self.wait_for(lambda: self.api(f"/dags/{DAG_ID}"), "the DAG", 120)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info) -> None:
        kill_processes_in(self.airflow_home)

    def start(self, name: str) -> None:
        """Start one of the commands, again if it was killed. In a session of its own, Ctrl-C does not reach it."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": self.out, "stderr": subprocess.STDOUT}
        options = {"env": self.environ, "cwd": self.airflow_home, "start_new_session": True}
        self.processes[name] = psutil.Popen(self.commands[name], **streams, **options)

    def api(self, path: str, body: dict | None = None, method: str = ""):
        """
        Call Airflow's public REST API: POST if there is a body, else GET, unless the method is given.

        :return: its JSON; None if there is no such thing, nothing to say, or nobody answers yet
        :raise RuntimeError: for any other answer
        """
        method, url = method or ("POST" if body else "GET"), f"{self.url}/api/v{2 if AIRFLOW_3 else 1}{path}"
        try:
            if AIRFLOW_3 and "Authorization" not in self.session.headers:
                token = self.session.get(f"{self.url}/auth/token", timeout=30).json()["access_token"]
                self.session.headers["Authorization"] = f"Bearer {token}"
            response = self.session.request(method, url, json=body, timeout=30)
        except requests.RequestException:
            return None
        if response.status_code in (204, 404):
            return None
        if not response.ok:
            raise RuntimeError(f"{path}: {response.status_code} {response.text}")
        return response.json()

    def configure(self, airbyte_url: str) -> None:
        """Create the connection and the Variables that the DAG needs."""
        self.api("/connections", {"connection_id": HTTP_CONNECTION, "conn_type": "http", "host": airbyte_url})
        for name, value in VARIABLES.items():
            self.api("/variables", {"key": name, "value": value})

    def wait_for(self, condition, what: str, seconds: float = 90):
        """Return what the condition returns, once that is true. Raise TimeoutError after so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if result := condition():
                return result
            time.sleep(0.25)
        raise TimeoutError(f"waited {seconds} s for {what}")

    def trigger(self, **conf: str) -> str:
        """Trigger the DAG, with these parameters, and return the id of the run."""
        body = {"conf": conf, **({"logical_date": None} if AIRFLOW_3 else {})}
        return self.api(f"/dags/{DAG_ID}/dagRuns", body)["dag_run_id"]

    def end_of(self, run_id: str, seconds: float = 120) -> str:
        """Return the state in which a run ends."""
        path, ends = f"/dags/{DAG_ID}/dagRuns/{run_id}", ("success", "failed")
        self.wait_for(lambda: self.api(path)["state"] in ends, f"the end of {run_id}", seconds)
        return self.api(path)["state"]
