"""An Airflow home of its own for the tests and the demo, so that nobody's own Airflow is read or written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import airbyte_api

DAGS = Path(__file__).resolve().parent.parent / "dags"


def environment(home: Path, dags: Path = DAGS) -> dict[str, str]:
    """
    Return an environment for an Airflow in the folder `home`, on SQLite.

    It is the present one less every Variable, connection and setting of Airflow's in it, and less what could
    lead a request elsewhere (proxies, .netrc) or take it for another Airflow's.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(("AIRFLOW", "_AIRFLOW", "AIRBYTE"))
        and not name.upper().endswith("_PROXY")
        and name != "CLOUD_API_TOKEN"
    }
    return {
        **kept,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "NETRC": os.devnull,
        "NO_PROXY": "127.0.0.1,localhost",
        # Where Airflow's commands are: it starts some by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def settings(airbyte: airbyte_api.AirbyteApi) -> dict[str, str]:
    """Return the Variables and the HTTP connection that the DAG needs for a stand-in, as environment variables."""
    return {
        "AIRFLOW_CONN_AIRBYTE-API-CLOUD-CONNECTION": json.dumps({"conn_type": "http", "host": airbyte.url}),
        "AIRFLOW_VAR_AIRBYTE_CLIENT_ID": airbyte_api.CLIENT_ID,
        "AIRFLOW_VAR_AIRBYTE_CLIENT_SECRET": airbyte_api.CLIENT_SECRET,
        "AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID": airbyte_api.CONNECTION_ID,
    }
