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
from contextlib import contextmanager
from pathlib import Path

from sandbox.deployment import end_group, free_port, kill_processes_in


def program(name: str) -> str | None:
    """Return where a program is: on the PATH, or where Debian keeps those of PostgreSQL."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(debian[-1]) if debian else None)


def available() -> bool:
    """Return whether this machine has both servers."""
    return all(program(name) for name in ("postgres", "initdb", "redis-server"))


class Server:
    """
    A server in a folder of its own, which can be stopped and started again.

    :param command: starts it
    :param folder: its data
    :param port: where it listens
    :param out: the file for what it prints
    :param user: the user that it runs as
    """

    def __init__(self, command: list[str], folder: Path, port: int, out, user: str | None = None) -> None:
        self.command, self.folder, self.port, self.out, self.user = command, folder, port, out, user
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the server, and wait until it listens. Raise TimeoutError after 30 seconds."""
        options = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
        self.process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=self.out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"{self.command[0]} does not listen on {self.port}")

    def end(self, *signals: signal.Signals) -> None:
        """Stop the server, with these signals if given."""
        end_group(self.process, *signals)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Start a server. When the block ends, stop it and delete its data."""
    try:
        server.start()
        yield server
    finally:
        if server.process:
            server.end()
        kill_processes_in(server.folder)
        shutil.rmtree(server.folder, ignore_errors=True)


@contextmanager
def redis(out) -> Iterator[Server]:
    """Run a Redis that keeps every command on disk, so that a kill loses nothing."""
    folder, port = Path(tempfile.mkdtemp(prefix="redis-")), free_port()
    command = [program("redis-server"), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    with running(Server([*command, "--appendonly", "yes", "--appendfsync", "always"], folder, port, out)) as server:
        yield server


@contextmanager
def postgres(out) -> Iterator[Server]:
    """Run a PostgreSQL with the user `airflow`, who needs no password, and the database `postgres`."""
    # PostgreSQL refuses to run as root, and another user may only reach folders that everybody may pass.
    user, parent = ("postgres", "/tmp") if os.geteuid() == 0 else (None, None)
    folder, port = Path(tempfile.mkdtemp(prefix="postgres-", dir=parent)), free_port()
    options = {"user": user, "group": user, "extra_groups": []} if user else {}
    if user:
        shutil.chown(folder, user, user)
    initdb = [program("initdb"), "--pgdata", str(folder / "data"), "--username", "airflow", "--auth", "trust"]
    subprocess.run([*initdb, "--encoding", "UTF8"], cwd=folder, check=True, stdout=out, stderr=out, **options)
    command = [program("postgres"), "-D", str(folder / "data"), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)]
    with running(Server([*command, "-c", "max_connections=300"], folder, port, out, user)) as server:
        yield server


def sqlalchemy_url(database: Server) -> str:
    """Return the address of a PostgreSQL for Airflow."""
    return f"postgresql+psycopg2://airflow@127.0.0.1:{database.port}/postgres"
