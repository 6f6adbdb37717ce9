"""Airflow's cluster policy in the sandbox: it changes tasks as an administrator may; the DAG file stays as it is."""

import json
import os
from datetime import timedelta


def task_policy(task) -> None:
    """
    Set attributes of the tasks that start a sync and wait for it, wherever these stand, and of no other task.

    The environment variable TASK_POLICY gives them, as a JSON object: {"start": {name: value}, "wait": {…}}.
    """
    if getattr(task, "http_conn_id", None) != "airbyte-api-cloud-connection":
        return
    role = "wait" if hasattr(task, "poke_interval") else "start"
    for name, value in json.loads(os.environ.get("TASK_POLICY", "{}")).get(role, {}).items():
        if name.endswith(("_delay", "execution_timeout")):
            value = timedelta(seconds=value)
        if isinstance(value, dict):  # extra_options, params
            getattr(task, name).update(value)
        else:
            setattr(task, name, value)
