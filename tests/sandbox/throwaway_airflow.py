"""A throwaway Airflow, so that no existing installation is touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from sandbox.fake_airbyte import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID

SANDBOX = Path(__file__).resolve().parent
DAGS = SANDBOX.parent.parent / "dags"
DAG_ID = "airbyte_api_sync_demo"  # Change it with the DAG's. Files and tasks may have any name.
DAG_FILES = [file for file in DAGS.rglob("*.py") if re.search(rf'(dag_id=|DAG\(\s*)"{DAG_ID}"', file.read_text())]
if not DAG_FILES:
    raise LookupError(f"No file in {DAGS} has a DAG {DAG_ID}: set DAG_ID in {__file__} to yours.")
DAG_FILE = DAG_FILES[0]
START, WAIT = "start", "wait"  # the two tasks' names in the sandbox
HTTP_CONNECTION = "airbyte-api-cloud-connection"
CONNECTION_VARIABLE = "AIRFLOW_CONN_AIRBYTE-API-CLOUD-CONNECTION"
VARIABLES = {
    "MY_EXAMPLE_CONNECTION_ID": CONNECTION_ID,
    "AIRBYTE_CLIENT_ID": CLIENT_ID,
    "AIRBYTE_CLIENT_SECRET": CLIENT_SECRET,
}
AIRFLOW_VERSION = tuple(int(part) for part in version("apache-airflow").split(".")[:2])


def environment(home: Path, dags: Path = DAGS) -> dict[str, str]:
    """
    Return the environment variables of an Airflow in the folder `home`, with SQLite: the current ones without any
    other Airflow's settings, credentials for Airbyte, and whatever redirects requests (proxies, .netrc).
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(("AIRFLOW", "_AIRFLOW", "AIRBYTE", "CLOUD_API_TOKEN", "MY_EXAMPLE_"))
        and not name.upper().endswith("_PROXY")
    }
    return {
        **kept,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "NETRC": os.devnull,
        "NO_PROXY": "*",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONWARNINGS": "ignore",
    }


def dag_settings(host: str, **login: str) -> dict[str, str]:
    """
    Return what the DAG needs, as environment variables: the HTTP connection to this host, and the Variables.

    :param login: the `login` and `password` of the HTTP connection, which should have none
    """
    return {
        CONNECTION_VARIABLE: json.dumps({"conn_type": "http", "host": host, **login}),
        **{f"AIRFLOW_VAR_{name}": value for name, value in VARIABLES.items()},
    }


def create(home: Path, environ: dict[str, str], **streams) -> None:
    """Create the Airflow in `home`: its database and its policy. Raise CalledProcessError if Airflow cannot."""
    (home / "config").mkdir()
    shutil.copy(SANDBOX / "airflow_local_settings.py", home / "config")
    subprocess.run(["airflow", "db", "migrate"], env=environ, cwd=home, check=True, **streams)


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder and below it, by name: logs, the database and the rest."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leaks(files: dict[str, bytes], secrets: list[str]) -> set[tuple[str, str]]:
    """Return the secrets that were found, each with the name of its file."""
    return {(name, secret) for name, content in files.items() for secret in secrets if secret.encode() in content}


def load_dag():
    """Return the DAG as Airflow loads it from its file. Raise ImportError with what Airflow says of the file."""
    from airflow.models import DagBag

    folder = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    bag = DagBag(str(folder / DAG_FILE.relative_to(DAGS)))
    if bag.import_errors:
        raise ImportError(str(bag.import_errors))
    return bag.dags[DAG_ID]


def airbyte_tasks(dag) -> dict:
    """Return the task that starts a sync and the one that waits for it. Of several such pairs, return the first."""
    tasks = [task for task in dag.topological_sort() if getattr(task, "http_conn_id", None) == HTTP_CONNECTION]
    start = next(task for task in tasks if not hasattr(task, "poke_interval"))
    wait = next(task for task in tasks if hasattr(task, "poke_interval") and start.task_id in task.upstream_task_ids)
    return {START: start, WAIT: wait}


def run_airbyte_tasks(dag, **options):
    """Run these two tasks with `dag.test()`, and nothing that stands before or after them. Return the DagRun."""
    task_ids = [task.task_id for task in airbyte_tasks(dag).values()]
    return dag.partial_subset(task_ids, include_upstream=False, include_downstream=False).test(**options)


if __name__ == "__main__":
    sys.exit(0 if run_airbyte_tasks(load_dag()).state == "success" else 1)
