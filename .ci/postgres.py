"""A PostgreSQL on loopback, for an Airflow that does more than SQLite can. It needs Debian's package postgresql."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

from sandbox.deployment import free_port

# It refuses to run as root.
USER = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


@contextmanager
def run_postgres():
    """Run the server. Yield its address for Airflow, and a function with which `pg_ctl` stops or restarts it."""
    folder, port = tempfile.mkdtemp(prefix="postgres-", dir="/tmp"), free_port()  # where any user may go
    shutil.chown(folder, USER.get("user", os.geteuid()))

    def control(*arguments: str) -> None:
        pg_ctl = max(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
        command = [pg_ctl, *arguments, f"--pgdata={folder}/data", f"--log={folder}/log"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **USER)

    control("init", "--options=--username=airflow --auth=trust --encoding=UTF8")
    control("start", f"--options=-h 127.0.0.1 -p {port} -k {folder} -c max_connections=300")
    try:
        yield f"postgresql+psycopg2://airflow@127.0.0.1:{port}/postgres", control
    finally:
        control("stop", "--mode=immediate")
        shutil.rmtree(folder)
