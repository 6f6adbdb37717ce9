"""
A real Airflow on loopback: scheduler, web server and, on Airflow 3, DAG processor, each a process of its own.

`airflow standalone` would open a log server to the network, and its parts cannot be killed one by one.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from sandbox import airflow_home
from sandbox.airflow_home import AIRFLOW_VERSION, DAG_FILE, DAG_ID

AIRFLOW_3 = AIRFLOW_VERSION >= (3, 0)


def free_port(preferred: int = 0) -> int:
    """Return the preferred port if nobody listens on it, else a free one."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", preferred))
        except OSError:
            listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def process_group(command: list[str], **options):
    """Run a command in a process group of its own. Whatever happens, end the whole group when the block ends."""
    child = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, **options)
    try:
        yield child
    finally:
        end_group(child)


def end_group(child: subprocess.Popen, *signals: signal.Signals) -> None:
    """End a process and its group: politely, and after 10 seconds with SIGKILL."""
    for number in signals or (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(timeout=10)
        except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            pass
    child.wait()


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return all processes that work in a folder or below it. (Some overwrite their command line and environment.)"""
    folder, found = folder.resolve(), []
    for candidate in psutil.process_iter():
        try:
            cwd = Path(candidate.cwd())
            if folder == cwd or folder in cwd.parents:
                found.append(candidate)
        except (psutil.Error, OSError):
            pass
    return found


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

    :param home: an empty folder for it
    :param environ: further environment variables: Variables, connections, settings
    :param out: the file for what the processes print
    :param port: the web server's, if it is free
    :param more: further commands to run, by name, such as workers or a triggerer
    """

    def __init__(
        self, home: Path, environ: dict[str, str], out, port: int = 0, more: dict[str, list[str]] | None = None
    ) -> None:
        self.home = home
        port = free_port(port)
        self.url = f"http://127.0.0.1:{port}"
        self.api_url = f"{self.url}/api/v{2 if AIRFLOW_3 else 1}"
        self.out = out
        dags = home / "dags"
        dags.mkdir(parents=True)
        shutil.copy(DAG_FILE, dags)
        secret = base64.urlsafe_b64encode(os.urandom(32)).decode()
        self.environ = {
            **airflow_home.environment(home, dags),
            "AIRFLOW__CORE__FERNET_KEY": secret,
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            # Airflow 3: nobody has to log in, and all parts share their keys.
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__SECRET_KEY": secret,
            "AIRFLOW__API_AUTH__JWT_SECRET": secret,
            # Airflow 2
            "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.default",
            "AIRFLOW__WEBSERVER__SECRET_KEY": secret,
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
        (home / "webserver_config.py").write_text("AUTH_ROLE_PUBLIC = 'Admin'\n")  # of Airflow 2: no login
        serve = ["api-server", "--host"] if AIRFLOW_3 else ["webserver", "--hostname"]
        self.commands = {
            "web": ["airflow", *serve, "127.0.0.1", "--port", str(port), "--workers", "1"],
            "scheduler": ["airflow", "scheduler", "--skip-serve-logs"],
            **({"dag-processor": ["airflow", "dag-processor"]} if AIRFLOW_3 else {}),
            **(more or {}),
        }
        self.processes: dict[str, subprocess.Popen] = {}
        self.stack = ExitStack()
        self.token = None
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # No proxy leads to this machine.

    def __enter__(self) -> Deployment:
        streams = {"stdout": self.out, "stderr": subprocess.STDOUT}
        airflow_home.create(self.home, self.environ, **streams)
        try:
            for name in self.commands:
                self.start(name)
            self.wait_for(lambda: self.api(f"/dags/{DAG_ID}"), "the DAG", 120)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info) -> None:
        self.stack.close()
        kill_processes_in(self.home)  # of a scheduler that was killed

    def running(self) -> list[psutil.Process]:
        """Return all processes of this Airflow."""
        return processes_in(self.home)

    def process_of(self, port: int) -> psutil.Process:
        """Return the process that is connected to the fake Airbyte from this port."""
        for candidate in self.running():
            for connection in candidate.connections("tcp"):
                if connection.laddr.port == port and connection.raddr:
                    return candidate
        raise LookupError(f"no process is connected from port {port}")

    def start(self, name: str) -> None:
        """Start one of the commands, again if it was killed."""
        run = process_group(
            self.commands[name], env=self.environ, cwd=self.home, stdout=self.out, stderr=subprocess.STDOUT
        )
        self.processes[name] = self.stack.enter_context(run)

    def kill(self, name: str) -> None:
        """Kill one of the commands with every process it started, as if its machine died."""
        end_group(self.processes[name], signal.SIGKILL)

    def restart_what_has_ended(self) -> None:
        """Start the commands again that have ended by themselves, as a service manager does."""
        for name, process in list(self.processes.items()):
            if process.poll() is not None:
                self.kill(name)
                self.start(name)

    def airflow(self, *arguments: str) -> str:
        """Run an `airflow` command in this Airflow and return what it prints."""
        command = ["airflow", *arguments]
        return subprocess.run(
            command, env=self.environ, check=True, text=True, stdout=subprocess.PIPE, stderr=self.out
        ).stdout

    def api(self, path: str, body: dict | None = None, method: str | None = None):
        """
        Call Airflow's public REST API.

        :param method: by default POST if there is a body, else GET
        :return: its JSON; None if there is no such thing, or nobody answers yet
        :raise RuntimeError: for any other answer
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        try:
            if AIRFLOW_3 and not self.token:
                with self.opener.open(f"{self.url}/auth/token", timeout=30) as response:
                    self.token = json.load(response)["access_token"]
            if self.token:
                headers["Authorization"] = f"Bearer {self.token}"
            request = urllib.request.Request(self.api_url + path, data, headers, method=method)
            with self.opener.open(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise RuntimeError(f"{path}: {error.code} {error.read().decode()}") from error
        except OSError:
            return None

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

    def state(self, run_id: str) -> str:
        """Return the state of a run."""
        return self.api(f"/dags/{DAG_ID}/dagRuns/{run_id}")["state"]

    def tasks(self, run_id: str) -> dict[str, dict]:
        """Return the run's task instances, by task."""
        instances = self.api(f"/dags/{DAG_ID}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return {instance["task_id"]: instance for instance in instances}

    def end_of(self, run_id: str, seconds: float = 120) -> str:
        """Return the state in which a run ends."""

        def ended() -> str | None:
            state = self.state(run_id)
            return state if state in ("success", "failed") else None

        return self.wait_for(ended, f"the end of {run_id}", seconds)

    def clear(self, run_id: str, task_id: str) -> None:
        """Clear a task of a run, and the tasks after it, as the web UI does."""
        body = {
            "dag_run_id": run_id,
            "task_ids": [task_id],
            "dry_run": False,
            "only_failed": False,
            "include_downstream": True,
            "reset_dag_runs": True,
        }
        self.api(f"/dags/{DAG_ID}/clearTaskInstances", body)
