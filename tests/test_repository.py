"""What users copy out of this repository works, and what Astro reads is consistent with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sandbox.fake_airbyte import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, FakeAirbyte
from sandbox.throwaway_airflow import HTTP_CONNECTION

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534
TESTS_IN_THE_IMAGE = ("tests/test_dag.py", "tests/test_sync.py", "-k", "not old_job and not start_time")
VARIABLES = {"MY_EXAMPLE_CONNECTION_ID", "AIRBYTE_CLIENT_ID", "AIRBYTE_CLIENT_SECRET", "CLOUD_API_TOKEN"}


def read(name: str) -> str:
    """Return a file's text, or skip: the Astro CLI leaves some files out of its image."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    return path.read_text()


def test_the_env_file_of_the_readme_is_all_that_the_dag_needs(run):
    block = re.search(r"```dotenv\n(.*?)```", read("README.md"), re.DOTALL)[1]
    with FakeAirbyte() as airbyte:
        for example, value in {
            "https://api.airbyte.com": airbyte.url,
            "<connection id>": CONNECTION_ID,
            "<client id>": CLIENT_ID,
            "<client secret>": CLIENT_SECRET,
        }.items():
            assert example in block
            block = block.replace(example, value)
        variables = dict(line.strip().split("=", 1) for line in block.splitlines() if line.strip())
        result = run("http://127.0.0.1:1", variables=variables)
    assert result.state == "success"
    assert len(variables) == 4


def test_the_image_the_requirements_and_the_readme_name_the_same_airflow():
    image = re.search(r"runtime:(\d+\.\d+)-\d+-base$", read("Dockerfile"), re.MULTILINE)
    assert f"apache-airflow-core~={image[1]}.0" in read("requirements.txt")
    assert f"2.7 to {image[1]}" in read("README.md")


def test_airflow_settings_are_what_the_astro_cli_reads():
    settings = yaml.safe_load(read("airflow_settings.yaml"))["airflow"]
    assert settings["connections"] == [
        {"conn_id": HTTP_CONNECTION, "conn_type": "http", "conn_host": "https://api.airbyte.com"}
    ]
    # The CLI takes strings only and skips empty ones. This file is no place for secrets.
    assert settings["variables"] == [
        {"variable_name": variable["variable_name"], "variable_value": ""} for variable in settings["variables"]
    ]
    assert {variable["variable_name"] for variable in settings["variables"]} == VARIABLES


@pytest.mark.deployment
def test_passes_where_astro_dev_pytest_runs_it(tmp_path):
    """The image's folder: another user's, AIRFLOW_HOME itself, `.env` around it, no database, no ignored files."""
    project = tmp_path / "airflow"
    # pytest-of-*: this copy itself, if TMPDIR lies in the checkout
    ignored = shutil.ignore_patterns(
        "pytest-of-*", *(line.replace("**/", "") for line in read(".dockerignore").splitlines())
    )
    shutil.copytree(ROOT, project, ignore=ignored)
    environ = {
        **os.environ,
        "AIRFLOW_HOME": str(project),
        "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
        "AIRFLOW_VAR_CLOUD_API_TOKEN": "from-dot-env",
        "AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID": "from-dot-env",
        "AIRFLOW_CONN_AIRBYTE-API-CLOUD-CONNECTION": '{"conn_type": "http", "host": "https://api.airbyte.com"}',
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS_IN_THE_IMAGE]
    options = {}
    if os.geteuid() == 0 and sys.version_info >= (3, 9):
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        for parent in tmp_path.parents[:2]:  # which pytest made for its own user alone
            parent.chmod(0o755)
        options = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        try:
            subprocess.run([sys.executable, "-c", ""], check=True, env=environ, **options)
        except (OSError, subprocess.CalledProcessError):
            options = {}  # this Python lies where nobody else may read
    before = {path.name for path in project.iterdir()}
    tests = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, **options)
    assert tests.returncode == 0, tests.stdout[-3000:]
    assert " passed" in tests.stdout
    assert {path.name for path in project.iterdir()} == before
