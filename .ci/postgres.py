"""A PostgreSQL on loopback, for an Airflow that does more than SQLite can. It needs Debian's package postgresql."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from sandbox.deployment import free_port

PG_CTL = max(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), default=None)
# It refuses to run as root.
USER = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


class Postgres:
    """The server, in its `with` block. `url` is its address for Airflow, without a password."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))  # where any user may go
        self.port = free_port()
        self.url = f"postgresql+psycopg2://airflow@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Postgres:
        shutil.chown(self.folder, USER.get("user", os.geteuid()))
        self.control("init", "--options=--username=airflow --auth=trust --encoding=UTF8")
        self.control("start", f"--options=-h 127.0.0.1 -p {self.port} -k {self.folder} -c max_connections=300")
        return self

    def __exit__(self, *exc_info) -> None:
        self.control("stop", "--mode=immediate")
        shutil.rmtree(self.folder)

    def control(self, *arguments: str) -> None:
        """Let `pg_ctl` start, stop or restart the server, and wait until it has."""
        command = [PG_CTL, *arguments, f"--pgdata={self.folder}/data", f"--log={self.folder}/log"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **USER)
