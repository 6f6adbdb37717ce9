"""
See the DAG work, in a minute: no Airbyte account, no Docker, and nobody's own Airflow is touched.

`python tests/demo.py` runs the unchanged DAG file on a real Airflow of its own against a stand-in for Airbyte.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from airbyte_api import AirbyteApi

try:
    import airflow_home
except PackageNotFoundError:
    sys.exit("Airflow is not installed here. Install it first: pip install -r requirements.txt")

SYNC_SECONDS = 7
# Run in a process of its own, so that Airflow's log goes to a file.
RUN = """
import json, sys
from airflow_home import WAIT, load_dag

run = load_dag().test()
job = run.get_task_instance(WAIT).xcom_pull(task_ids=WAIT, key="job")
json.dump({"state": run.state, "job": job}, open(sys.argv[1], "w"))
"""


@contextmanager
def process(command: list[str], **options):
    """Run a command in a process group of its own, and end the whole group at the end."""
    child = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield child
    finally:
        for end in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(child.pid, end)
                child.wait(timeout=10)
            except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
                pass
        child.wait()


def line(request: dict) -> str:
    """Return what a person wants to see of a request and its answer."""
    answer = json.loads(request["text"])
    if request["call"] == "token":
        said = f"a token for {answer['expires_in'] // 60} minutes"
    else:
        said = f"job {answer['jobId']} is {answer['status']}"
    return f"{request['method']:4} {request['path']:23} {request['answer']}  {said}"


def main() -> int:
    """Run the DAG once. Return 0 if the run has succeeded, else 1."""
    home = Path(tempfile.mkdtemp(prefix="airflow-home-"))
    log = home.with_name(f"{home.name}.log")
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begin:5.1f} s  {text}", flush=True)

    try:
        with AirbyteApi(job_seconds=SYNC_SECONDS, log=lambda request: say(line(request))) as airbyte, log.open(
            "w"
        ) as out:
            say(f"A stand-in for Airbyte answers at {airbyte.url}")
            say(f"Setting up an Airflow in {home}; its log is {log}")
            environ = {
                **airflow_home.environment(home),
                **airflow_home.settings(airbyte.url),
                "TASK_POLICY": json.dumps({airflow_home.WAIT: {"poke_interval": 2, "retry_delay": 1}}),
            }
            streams = {"stdout": out, "stderr": subprocess.STDOUT}
            airflow_home.create(home, environ, **streams)
            say(f"Running the DAG {airflow_home.DAG_ID}, which polls every 2 seconds here")
            result = home / "result.json"
            command = [sys.executable, "-c", RUN, str(result)]
            with process(command, env=environ, cwd=Path(__file__).parent, **streams) as run:
                run.wait()
            outcome = json.loads(result.read_text()) if result.exists() else {"state": "unknown"}
        if outcome["state"] != "success":
            say(f"The run has ended as {outcome['state']}: {log} says why")
            return 1
        job = outcome["job"]
        say(f"The sync has succeeded: {job['rowsSynced']:,} rows, {job['bytesSynced']:,} bytes, in {job['duration']}")
        return 0
    except subprocess.CalledProcessError:
        say(f"Airflow could not be set up: {log} says why")
        return 1
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
