"""Airflow's cluster policy in the sandbox: as an administrator may, it changes the tasks that sync, and no other."""

import json
import os
from datetime import timedelta


def task_policy(task) -> None:
    """Set attributes of these two tasks as the variable TASK_POLICY says: {"start": {name: value}, "wait": {…}}."""
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
