"""The demo, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests
from sandbox.deployment import processes_in
from sandbox.throwaway_airflow import SANDBOX

TESTS = SANDBOX.parent


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the demo in a foreign folder, with another Airflow's settings around it."""
    (tmp_path / "somebodys_airflow").mkdir()
    environ = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path / "somebodys_airflow"),
        "AIRFLOW_VAR_CLOUD_API_TOKEN": "somebody's",
        "AIRBYTE_CLIENT_SECRET": "somebody's",
        "AIRFLOW__CORE__DAGS_FOLDER": "/nowhere",
        "TMPDIR": str(tmp_path),
    }

    def start(*arguments: str, tests: Path = TESTS) -> subprocess.Popen:
        command = [sys.executable, str(tests / "demo.py"), *arguments]
        demo = subprocess.Popen(command, cwd=tmp_path, env=environ, text=True, stdout=subprocess.PIPE)
        guard = threading.Timer(180, demo.kill)  # Whoever reads what it prints then reads its end.
        guard.daemon = True
        guard.start()
        return demo

    yield start
    assert list((tmp_path / "somebodys_airflow").iterdir()) == []
    assert list(tmp_path.glob("airflow-home-*")) == []
    assert processes_in(tmp_path) == []


def test_shows_a_sync_from_start_to_end(start, tmp_path):
    demo = start()
    shown = demo.communicate()[0]
    assert demo.returncode == 0, shown
    assert re.search(r"POST /v1/jobs +200  job \d+ is pending", shown)
    assert re.search(r"GET  /v1/jobs/\d+ +200  job \d+ is running", shown)
    assert "The sync has succeeded: 125,000 rows, 48,211,904 bytes, in 7 s" in shown
    command = [os.path.relpath(path, tmp_path) for path in (sys.executable, TESTS / "demo.py")]
    assert shown.endswith(f"{' '.join(command)} --ui\n"), "as one would type it in that shell"
    assert 'see "Set it up" in README.md' in shown
    assert "somebody's" not in shown


def test_ends_with_1_if_the_run_does_not_succeed(start, tmp_path):
    for folder in ("tests", "dags"):
        shutil.copytree(TESTS.parent / folder, tmp_path / "copy" / folder)
    with (tmp_path / "copy" / "dags" / "airbyte_api_sync_demo.py").open("a") as dag:
        dag.write("\nraise RuntimeError('broken')\n")
    demo = start(tests=tmp_path / "copy" / "tests")
    shown = demo.communicate()[0]
    assert demo.returncode == 1, shown
    (log,) = tmp_path.glob("airflow-home-*.log")
    assert f"See {log}" in shown.splitlines()[-1]
    assert "broken" in log.read_text()
    log.unlink()


@pytest.mark.parametrize("moment", ["Creating an Airflow", "Loading Airflow", "POST /v1/jobs"])
def test_ctrl_c_ends_everything_at_any_moment(start, moment):
    demo = start()
    next(line for line in demo.stdout if moment in line)
    demo.send_signal(signal.SIGINT)
    demo.send_signal(signal.SIGINT)  # An impatient user presses it twice.
    demo.communicate()
    assert demo.returncode == 130


@pytest.mark.deployment
def test_the_ui_is_there_until_ctrl_c(start):
    demo = start("--ui")
    url = next(line.strip() for line in demo.stdout if re.search(r"^ +http://127.0.0.1:\d+/dags/", line))
    assert requests.get(url, timeout=30).status_code == 200
    demo.send_signal(signal.SIGINT)
    demo.communicate()
    assert demo.returncode == 130
