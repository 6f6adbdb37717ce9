"""Airflow's cluster policies in the sandbox: as an administrator may, they change the DAG that syncs, and no other."""

import json
import os
from datetime import timedelta


def is_airbytes(task) -> bool:
    """Return whether a task is one of the two that start a sync and wait for it."""
    return getattr(task, "http_conn_id", None) == "airbyte-api-cloud-connection"


def dag_policy(dag) -> None:
    """Let no connection id be the default of the DAG's parameter: only the Variable's exists in the sandbox."""
    if "connection_id" in dag.params and any(is_airbytes(task) for task in dag.tasks):
        dag.params["connection_id"] = ""


def task_policy(task) -> None:
    """Set attributes of these two tasks as the variable TASK_POLICY says: {"start": {name: value}, "wait": {…}}."""
    if not is_airbytes(task):
        return
    role = "wait" if hasattr(task, "poke_interval") else "start"
    for name, value in json.loads(os.environ.get("TASK_POLICY", "{}")).get(role, {}).items():
        if name.endswith(("_delay", "execution_timeout")):
            value = timedelta(seconds=value)
        if isinstance(value, dict):  # extra_options
            getattr(task, name).update(value)
        else:
            setattr(task, name, value)
