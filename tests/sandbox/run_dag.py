"""Run the DAG once, and write how it ended to a file: `python -m sandbox.run_dag FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sandbox.airflow_home import WAIT, load_dag

if __name__ == "__main__":
    dag_run = load_dag().test()
    job = dag_run.get_task_instance(WAIT).xcom_pull(task_ids=WAIT, key="job")
    Path(sys.argv[1]).write_text(json.dumps({"state": dag_run.state, "job": job}))
