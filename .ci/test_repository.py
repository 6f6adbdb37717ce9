"""What users copy out of this repository works, and what Astro reads is consistent with it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from sandbox.fake_airbyte import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, FakeAirbyte
from sandbox.throwaway_airflow import HTTP_CONNECTION

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
VARIABLES = ["MY_EXAMPLE_CONNECTION_ID", "AIRBYTE_CLIENT_ID", "AIRBYTE_CLIENT_SECRET", "CLOUD_API_TOKEN"]


def fill_in(text: str, host: str) -> str:
    """Return a text of the README with values in place of its examples."""
    examples = {"<connection id>": CONNECTION_ID, "<client id>": CLIENT_ID, "<client secret>": CLIENT_SECRET}
    for example, value in {"https://api.airbyte.com": host, **examples}.items():
        text = text.replace(example, value)
    return text


def test_the_env_file_of_the_readme_is_all_that_the_dag_needs(run_dag):
    block = re.search(r"```dotenv\n(.*?)```", README, re.DOTALL)[1]
    with FakeAirbyte() as airbyte:
        lines = fill_in(block, airbyte.url).splitlines()
        variables = dict(line.strip().split("=", 1) for line in lines if line.strip())
        result = run_dag("http://127.0.0.1:1", variables=variables)
    assert result.state == "success"
    assert len(variables) == 4


def test_the_image_the_requirements_and_the_readme_name_the_same_airflow():
    image = re.search(r"runtime:(\d+\.\d+)-\d+-base$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert f"apache-airflow-core~={image[1]}.0" in (ROOT / "requirements.txt").read_text()
    assert f"2.7 to {image[1]}" in README


def test_airflow_settings_are_what_the_astro_cli_reads():
    settings = yaml.safe_load((ROOT / "airflow_settings.yaml").read_text())["airflow"]
    connection = {"conn_id": HTTP_CONNECTION, "conn_type": "http", "conn_host": "https://api.airbyte.com"}
    assert settings["connections"] == [connection]
    # The CLI takes strings only and skips empty ones. This file is no place for secrets.
    assert settings["variables"] == [{"variable_name": name, "variable_value": ""} for name in VARIABLES]


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_curl_shows_whether_host_client_and_connection_id_are_right():
    """The README's check before Airflow comes in."""
    with FakeAirbyte() as airbyte:
        answers = []
        for command in re.findall(r"curl -sS .*", README):
            token = re.search(r'"access_token": "([^"]+)', answers[0])[1] if answers else ""
            command = fill_in(command, airbyte.url).replace("<access_token>", token)
            answers.append(subprocess.run(command, shell=True, check=True, text=True, stdout=subprocess.PIPE).stdout)
    assert len(answers) == 2
    assert '"status": "active"' in answers[1]
