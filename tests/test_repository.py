"""What would drift apart unseen: the files around the DAG, and what the README says of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from airbyte_api import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, AirbyteApi

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DAG = (ROOT / "dags" / "airbyte_api_sync_demo.py").read_text()
REQUIREMENTS = (ROOT / "requirements.txt").read_text()
NOBODY = 65534
TESTS_IN_THE_IMAGE = ("tests/test_dag.py", "tests/test_sync.py", "tests/test_secrets.py")
VARIABLES = {"MY_EXAMPLE_CONNECTION_ID", "AIRBYTE_CLIENT_ID", "AIRBYTE_CLIENT_SECRET", "CLOUD_API_TOKEN"}


def read(name: str) -> str:
    """Return a file that the Astro CLI leaves out of its image, or skip."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    return path.read_text()


def test_the_top_level_is_what_it_was_meant_to_be():
    if not shutil.which("git"):
        pytest.skip("git is not here")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    top = {path.partition("/")[0] for path in listed.stdout.splitlines()}
    visible = {"dags", "tests", "airflow_settings.yaml", "requirements.txt", "Dockerfile", "README.md"}
    assert {name for name in top if not name.startswith(".")} == visible


def test_airflow_settings_are_what_the_astro_cli_reads_and_what_the_dag_uses():
    settings = yaml.safe_load((ROOT / "airflow_settings.yaml").read_text())
    assert set(settings) == {"airflow"}
    assert set(settings["airflow"]) <= {"connections", "pools", "variables"}
    (connection,) = settings["airflow"]["connections"]
    assert connection == {
        "conn_id": "airbyte-api-cloud-connection",
        "conn_type": "http",
        "conn_host": "https://api.airbyte.com",
    }
    variables = settings["airflow"]["variables"]
    assert all(set(variable) == {"variable_name", "variable_value"} for variable in variables)
    assert {variable["variable_name"] for variable in variables} == VARIABLES
    assert VARIABLES == set(re.findall(r'variables\.get\("(\w+)"', DAG))
    # The CLI takes strings only, skips the empty ones, and this file is no place for secrets.
    assert {variable["variable_value"] for variable in variables} == {""}


def test_the_image_the_requirements_and_the_readme_name_one_airflow():
    image = re.search(
        r"^FROM astrocrpublic\.azurecr\.io/runtime:(\d+\.\d+)-\d+-base$", read("Dockerfile"), re.MULTILINE
    )
    assert f"apache-airflow-core~={image[1]}.0" in REQUIREMENTS
    assert f"2.7 to {image[1]}" in README
    assert not re.search(r"^apache-airflow==", REQUIREMENTS, re.MULTILINE), "Astro Runtime refuses it"
    assert not re.search(r"^apache-airflow-providers\S*==", REQUIREMENTS, re.MULTILINE), (
        "Runtime has constraints of its own"
    )


def test_the_gate_and_the_workflow_run_the_same_airflows():
    gate = set(re.findall(r"^ *suite (\d\S*) (\S+)", read(".ci/run"), re.MULTILINE))
    workflow = yaml.safe_load(read(".github/workflows/tests.yml"))
    matrix = workflow["jobs"]["matrix"]["strategy"]["matrix"]["include"]
    assert {(entry["airflow"], entry["http"]) for entry in matrix} == gate
    for version, _ in gate:
        assert version.rpartition(".")[0] in README


def test_every_file_that_the_readme_names_exists():
    paths = set(re.findall(r"\]\((?!https?:|#)([^)]+)\)", README))
    paths |= set(re.findall(r"`((?:dags|tests|\.\w+)/[\w./-]+)`", README))
    paths |= set(re.findall(r"\b(tests/\w+\.py)\b", README))
    assert len(paths) > 8
    if (ROOT / ".github").exists():
        assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_name_that_the_readme_sets_is_one_that_the_dag_reads():
    named = set(re.findall(r"\b(?:AIRFLOW_VAR_)?((?:MY_EXAMPLE|AIRBYTE|CLOUD_API)_\w+)", README))
    assert named == VARIABLES
    for name in (
        "airbyte-api-cloud-connection",
        "airbyte_api_sync_demo",
        "start_airbyte_sync",
        "wait_for_airbyte_sync",
    ):
        assert name in README
        assert name in DAG


def test_an_env_file_as_the_readme_writes_it_is_all_that_the_dag_needs(run):
    block = re.search(r"```dotenv\n(.*?)```", README, re.DOTALL)[1]
    with AirbyteApi() as airbyte:
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


def test_the_environment_is_not_taken_into_the_image():
    ignored = read(".dockerignore").splitlines()
    for name in (".git", ".env", ".venv", "logs", "airflow.db"):
        assert name in ignored
    assert "airflow_settings.yaml" not in read(".gitignore")
    for name in (".env", "plugins/", "include/", "airflow.db", "logs/"):
        assert name in read(".gitignore").splitlines()


@pytest.mark.deployment
def test_passes_where_astro_dev_pytest_runs_it(tmp_path):
    """The image's folder: another user's, AIRFLOW_HOME itself, `.env` around it, no database, no ignored files."""
    project = tmp_path / "airflow"
    ignored = shutil.ignore_patterns(*(line.replace("**/", "") for line in read(".dockerignore").splitlines()))
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
