"""PostgreSQL and Redis on loopback, for a distributed Airflow. Debian has them as `postgresql` and `redis-server`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sandbox.deployment import end_group, free_port, kill_processes_in, start_group


def program(name: str) -> str | None:
    """Return where a program is: on the PATH, or where Debian keeps those of PostgreSQL."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(debian[-1]) if debian else None)


class Server:
    """
    A server in a folder of its own, which can be ended and started again.

    :param command: starts it
    :param folder: its data
    :param port: where it listens
    :param out: the file for what it prints
    :param options: further ones of `subprocess.Popen`
    """

    def __init__(self, command: list[str], folder: Path, port: int, out, **options) -> None:
        self.command, self.folder, self.port, self.out, self.options = command, folder, port, out, options
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the server, and wait until it listens. Raise TimeoutError after 30 seconds."""
        self.process = start_group(self.command, self.out, cwd=self.folder, **self.options)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"{self.command[0]} does not listen on {self.port}")

    def end(self, *signals: signal.Signals) -> None:
        """End the server, with these signals if given."""
        end_group(self.process, *signals)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Start a server. When the block ends, end it and delete its data."""
    try:
        server.start()
        yield server
    finally:
        if server.process and server.process.poll() is None:  # Else its id may be another's by now.
            server.end()
        kill_processes_in(server.folder)
        shutil.rmtree(server.folder, ignore_errors=True)


def redis(out) -> AbstractContextManager[Server]:
    """Return a Redis for a `with` block. It keeps every command on disk, so that a kill loses nothing."""
    folder, port = Path(tempfile.mkdtemp(prefix="redis-")), free_port()
    command = [program("redis-server"), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    return running(Server([*command, "--appendonly", "yes", "--appendfsync", "always"], folder, port, out))


def postgres(out) -> AbstractContextManager[Server]:
    """Return a PostgreSQL for a `with` block. Its user `airflow` needs no password, its database is `postgres`."""
    # PostgreSQL refuses to run as root, and another user may only reach folders that everybody may pass.
    root = os.geteuid() == 0
    folder, port = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp" if root else None)), free_port()
    options = {"user": "postgres", "group": "postgres", "extra_groups": []} if root else {}
    if root:
        shutil.chown(folder, "postgres", "postgres")
    initdb = [program("initdb"), "--pgdata", str(folder / "data"), "--username", "airflow", "--auth", "trust"]
    subprocess.run([*initdb, "--encoding", "UTF8"], cwd=folder, check=True, stdout=out, stderr=out, **options)
    command = [program("postgres"), "-D", str(folder / "data"), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)]
    return running(Server([*command, "-c", "max_connections=300"], folder, port, out, **options))


def sqlalchemy_url(database: Server) -> str:
    """Return the address of a PostgreSQL for Airflow."""
    return f"postgresql+psycopg2://airflow@127.0.0.1:{database.port}/postgres"
