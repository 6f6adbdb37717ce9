"""Airflow's cluster policy in the sandbox: it changes tasks as an administrator may; the DAG file stays as it is."""

import json
import os
from datetime import timedelta


def task_policy(task) -> None:
    """Set the attributes that the environment variable TASK_POLICY, a JSON object by task id, gives for this task."""
    for name, value in json.loads(os.environ.get("TASK_POLICY", "{}")).get(task.task_id, {}).items():
        if name.endswith("_delay"):
            value = timedelta(seconds=value)
        elif name == "extra_options":
            value = {**task.extra_options, **value}
        setattr(task, name, value)
