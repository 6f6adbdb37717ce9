"""
See the DAG work, without an Airbyte account and without Docker. No existing Airflow is touched.

`python tests/demo.py` runs the real DAG once, on a throwaway Airflow against a fake Airbyte.
`python tests/demo.py --ui` starts that Airflow with its web UI, where you trigger the DAG yourself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from sandbox.fake_airbyte import CONNECTIONS, FakeAirbyte, Request

try:
    from sandbox import throwaway_airflow
    from sandbox.deployment import Deployment, kill_processes_in
except PackageNotFoundError:
    sys.exit("Airflow is not installed here. Install it first: pip install -r requirements.txt")

BEGIN = time.monotonic()
SYNC_SECONDS = 7
LISTENING = "A fake Airbyte is listening at {}. Only programs on this machine can reach it."
NEXT = """
To run it in your own Airflow, copy dags/airbyte_api_sync_demo.py into its dags folder and see "Set it up" in README.md.
To click through it here first: {python} {script} --ui"""


def say(text: str) -> None:
    """Print a line, with the seconds that have passed."""
    print(f"{time.monotonic() - BEGIN:5.1f} s  {text}", flush=True)


def show(request: Request) -> None:
    """Print a request and its answer."""
    said = {
        "create_token": "a token for 15 minutes",
        "list_jobs": "the connection's last jobs",
        "get_connection": "the connection {name}",
    }
    answer = request.answer
    if request.status == 200:
        answer = said.get(request.operation, "job {jobId} is {status}").format(**json.loads(answer))
    say(f"{request.method:4} {request.path:23} {request.status}  {answer}")


def run_once(home: Path, log: Path) -> int:
    """Run the DAG once with `dag.test()`. Return 0 if the run has succeeded, else 1."""
    with FakeAirbyte(job_seconds=SYNC_SECONDS, log=show) as airbyte, log.open("w") as out:
        say(LISTENING.format(airbyte.url))
        say(f"Creating an Airflow in {home}, which takes up to a minute and logs to {log}")
        environ = {
            **throwaway_airflow.environment(home),
            **throwaway_airflow.dag_settings(airbyte.url),
            "PYTHONPATH": str(Path(__file__).resolve().parent),
            "TASK_POLICY": json.dumps({throwaway_airflow.WAIT: {"poke_interval": 2, "retry_delay": 1}}),
        }
        streams = {"stdout": out, "stderr": subprocess.STDOUT}
        throwaway_airflow.create(home, environ, **streams)
        say(f"Loading Airflow to run the DAG {throwaway_airflow.DAG_ID}, which checks the job every 2 seconds here")
        # In a process of its own, so that Airflow's log goes to the file.
        ended = subprocess.run([sys.executable, "-m", "sandbox.throwaway_airflow"], env=environ, cwd=home, **streams)
    if ended.returncode != 0:
        say(f"The run failed. See {log}")
        return 1
    log.unlink()
    (job,) = airbyte.jobs
    synced = airbyte.job_response(job, with_stats=True)
    say(f"The sync has succeeded: {synced['rowsSynced']:,} rows, {synced['bytesSynced']:,} bytes, in {SYNC_SECONDS} s")
    print(NEXT.format(python=os.path.relpath(sys.executable), script=os.path.relpath(__file__)))
    return 0


@contextmanager
def ui(home: Path, log: Path, port: int = 8080):
    """Run an Airflow with its web UI, set up for the DAG. Yield it as a `Deployment`."""
    with FakeAirbyte(statuses=CONNECTIONS, job_seconds=30, log=show) as airbyte, log.open("w") as out:
        say(LISTENING.format(airbyte.url))
        say(f"Starting an Airflow in {home}, which takes up to a minute and logs to {log}")
        environ = {
            "TASK_POLICY": json.dumps({throwaway_airflow.WAIT: {"poke_interval": 15, "retry_delay": 5}}),
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",  # A new file appears at once, not after five minutes.
        }
        with Deployment(home / "airflow", environ, out, port) as deployment:
            deployment.configure(airbyte.url)
            for name, process in deployment.processes.items():
                if process.poll() is not None:
                    raise subprocess.CalledProcessError(process.returncode, name)
            variables, second, third, failing = CONNECTIONS
            say(f"""Airflow is ready. You need no login. Open

    {deployment.url}/dags/{throwaway_airflow.DAG_ID}

and press Trigger. Leave connection_id empty, or enter one of these:

    {variables}  the one in the Variable (the same as leaving it empty)
    {second}  a second connection
    {third}  a third connection
    {failing}  one whose syncs fail

To try "Several connections in one DAG" (dags/README.md) with these, put your file into
{deployment.airflow_home / "dags"}

Press Ctrl-C to stop.
""")
            yield deployment


def main() -> int:
    """Run the demo that the command line asks for, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ui", action="store_true", help="start Airflow's web UI, where you trigger the DAG yourself")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="airflow-home-"))
    log = home.with_name(f"{home.name}.log")
    try:
        if not arguments.ui:
            return run_once(home, log)
        with ui(home, log):
            threading.Event().wait()
    except (subprocess.CalledProcessError, TimeoutError):
        say(f"Airflow could not be set up. See {log}")
        return 1
    except SystemExit:
        log.unlink(missing_ok=True)
        raise
    finally:
        kill_processes_in(home)
        shutil.rmtree(home, ignore_errors=True)


def stop(number: int, frame) -> None:
    """Exit on Ctrl-C or SIGTERM. A second one must not interrupt the clean-up."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    print("\nStopping…", file=sys.stderr, flush=True)  # It takes seconds. stdout may be in the middle of a line.
    sys.exit(128 + number)


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    sys.exit(main())
