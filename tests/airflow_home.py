"""An Airflow of its own for the tests and the demo, so that nobody's own Airflow is read or written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import airbyte_api

DAGS = Path(__file__).resolve().parent.parent / "dags"
DAG_ID = "airbyte_api_sync_demo"
AIRFLOW_VERSION = tuple(int(part) for part in version("apache-airflow").split(".")[:2])
START, WAIT = "start_airbyte_sync", "wait_for_airbyte_sync"

# A cluster policy, as an administrator would set one: the DAG file stays as it is, and nobody waits 30 seconds.
POLICY = """\
import json, os
from datetime import timedelta

def task_policy(task):
    for name, value in json.loads(os.environ.get("TASK_POLICY", "{}")).get(task.task_id, {}).items():
        if name.endswith("_delay"):
            value = timedelta(seconds=value)
        if isinstance(value, dict):
            getattr(task, name).update(value)
        else:
            setattr(task, name, value)
"""


def environment(home: Path, dags: Path = DAGS) -> dict[str, str]:
    """
    Return the environment of an Airflow in the folder `home`, with SQLite.

    It is the present one, less all that belongs to another Airflow, less credentials for Airbyte, and less what
    leads requests elsewhere (proxies, .netrc).
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


def settings(host: str, **login: str) -> dict[str, str]:
    """
    Return what the DAG needs, as environment variables: the HTTP connection to this host, and the Variables.

    :param login: `login` and `password` of the HTTP connection, which should have none
    """
    return {
        "AIRFLOW_CONN_AIRBYTE-API-CLOUD-CONNECTION": json.dumps({"conn_type": "http", "host": host, **login}),
        "AIRFLOW_VAR_AIRBYTE_CLIENT_ID": airbyte_api.CLIENT_ID,
        "AIRFLOW_VAR_AIRBYTE_CLIENT_SECRET": airbyte_api.CLIENT_SECRET,
        "AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID": airbyte_api.CONNECTION_ID,
    }


def create(home: Path, environ: dict[str, str], **streams) -> None:
    """Make the Airflow in `home`: its database, and the policy. Raise CalledProcessError if Airflow cannot."""
    (home / "config").mkdir()
    (home / "config" / "airflow_local_settings.py").write_text(POLICY)
    subprocess.run(["airflow", "db", "migrate"], env=environ, cwd=home, check=True, **streams)


def files(home: Path) -> dict[str, bytes]:
    """Return all that the Airflow in `home` has kept, by file: logs, database, and the rest."""
    return {str(path): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def leaks(kept: dict[str, bytes], secrets: list[str]) -> set[tuple[str, str]]:
    """Return which secret is where in what was kept."""
    return {(name, secret) for name, content in kept.items() for secret in secrets if secret.encode() in content}


def load_dag():
    """Return the DAG as Airflow loads it from its dags folder. Raise ImportError with what Airflow says of the file."""
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow before 3.2
        from airflow.models.dagbag import DagBag

    bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    if bag.import_errors:
        raise ImportError(str(bag.import_errors))
    return bag.dags[DAG_ID]
