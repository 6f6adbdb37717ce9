"""What users copy out of the two pages works, the recipes included, and what Astro reads is consistent with them."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from sandbox.fake_airbyte import (
    CLIENT_ID,
    CLIENT_SECRET,
    CONNECTION_ID,
    CONNECTIONS,
    FAILING_CONNECTION_ID,
    FakeAirbyte,
    Fault,
)
from sandbox.fixtures import RUNNING, needs_try_count
from sandbox.throwaway_airflow import AIRFLOW_VERSION, DAG_FILE, HTTP_CONNECTION, START, WAIT, dag_settings

ROOT = Path(__file__).resolve().parent.parent
README, ADAPT = ((ROOT / page).read_text() for page in ("README.md", "dags/README.md"))
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


# The recipes, applied to the DAG file as a reader applies them.

IDS = [connection_id for connection_id in CONNECTIONS if connection_id != FAILING_CONNECTION_ID]
ROLES = {START: "start_airbyte_sync", WAIT: "wait_for_airbyte_sync"}
TASKS = [f"{group}.{task}" for group in ("orders", "customers", "stock") for task in ROLES.values()]
SUCCESS = dict.fromkeys([*TASKS, "transform"], "success")
LOST = Fault(no_answer="closed", carried_out=True)
DAG_PART = r"(?ms)^(# You may change the arguments below.*?>> wait_for_sync_to_complete\n)"
HEAD, DAG_BLOCK, END = re.split(DAG_PART, DAG_FILE.read_text())


def recipe(words: str) -> str:
    """Return the page's Python block that has these words."""
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", ADAPT, re.M | re.S)
    return textwrap.dedent(next(block for block in blocks if words in block))


def several_connections(*connection_ids: str) -> str:
    """Return the DAG file, changed as the recipe says, with these ids."""
    imports = recipe("sdk import TaskGroup" if AIRFLOW_VERSION >= (3, 0) else "utils.task_group import TaskGroup")
    text = recipe("CONNECTIONS = {")
    for example, connection_id in zip(("connection", "another connection", "a third connection"), connection_ids):
        text = text.replace(f"<{example} id>", connection_id)
    head = HEAD
    for pattern, replacement in (
        (r"(import HttpSensor\n)", rf"\1{imports}"),
        (r"(import DAG), Param", r"\1"),
        (r"def get_connection_id.*?\n\n\n(?=def)", ""),
        (r"- Variable `MY_EXAMPLE_CONNECTION_ID`.*?\n", ""),
    ):
        head, number = re.subn(pattern, replacement, head, flags=re.S)
        assert number, pattern
    return head + text


def with_alerts() -> str:
    """Return the DAG file with the page's alerts."""
    dag_block = DAG_BLOCK.replace('        "deferrable"', '        **ALERTS,\n        "deferrable"')
    return f"{HEAD}{recipe('def alert')}\n\n{dag_block}{END}"


def with_a_task_after_the_sync() -> str:
    """Return the DAG file with the page's task that prints the number of rows."""
    imports = re.search(r"`(from airflow.operators.bash.*?)`", ADAPT)[1] + "\n"
    if AIRFLOW_VERSION >= (3, 0):
        imports = recipe("import BashOperator")
    head = HEAD.replace("import HttpSensor\n", f"import HttpSensor\n{imports}")
    return f"{head}{DAG_BLOCK}{textwrap.indent(recipe('rowsSynced'), '    ')}{END}"


def run(folder: Path, file: str, airbyte: FakeAirbyte, dag_id: str = "sync_shop") -> tuple:
    """Run a DAG file, in this folder, against an Airbyte. Return the tasks' states and all that was logged."""
    (folder / DAG_FILE.name).write_text(file)
    fast = {"retry_delay": 0, "max_retry_delay": 1e-6}
    policy = json.dumps({START: fast, WAIT: {**fast, "poke_interval": 0}})
    environ = {"AIRFLOW__CORE__DAGS_FOLDER": str(folder), "TASK_POLICY": policy, **dag_settings(airbyte.url)}
    code = f"""import json; from sandbox import throwaway_airflow as sandbox; sandbox.DAG_ID = "{dag_id}"
instances = sandbox.load_dag().test().get_task_instances()
print("\\n" + json.dumps({{ti.task_id: str(ti.state) for ti in instances}}))"""
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environ}, text=True, capture_output=True)
    states = {} if ended.returncode else json.loads(ended.stdout.splitlines()[-1])
    return states, ended.stdout + ended.stderr


def test_the_files_of_the_recipes_pass_the_repositorys_checks(tmp_path):
    pytest.importorskip("ruff")
    for number, text in enumerate([several_connections(*IDS), with_alerts(), with_a_task_after_the_sync()]):
        file = tmp_path / f"sync_{number}.py"
        file.write_text(text)
        for command in (["check"], ["format", "--check"]):
            subprocess.run([sys.executable, "-m", "ruff", *command, "--config", ROOT / ".ruff.toml", file], check=True)


def test_the_recipe_has_the_arguments_of_the_dag_file():
    arguments = []
    for source in (DAG_BLOCK, recipe("CONNECTIONS = {")):
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        names = ("DAG", "SimpleHttpOperator", "HttpSensor")
        of_ours = {ast.unparse(call.func): call.keywords for call in calls if ast.unparse(call.func) in names}
        kept = {(name, each.arg, ast.unparse(each.value)) for name in names for each in of_ours[name]}
        arguments.append(kept)
    differ = {argument for _, argument, _ in arguments[0] ^ arguments[1]}
    assert differ == {"dag_id", "params", "user_defined_macros", "data"}


@pytest.mark.parametrize(
    "faults, runs_already, fails, says",
    [
        pytest.param([], [], {}, "dbt run", id="three at once"),
        pytest.param([None, LOST], [], {}, "following job", id="an answer is lost", marks=needs_try_count),
        pytest.param([], [RUNNING], {}, "is already running", id="one runs already"),
        pytest.param([], [], {TASKS[5]: "failed", "transform": "upstream_failed"}, "failed: http", id="one fails"),
    ],
)
def test_several_connections_side_by_side_and_then_a_task_after_them(tmp_path, faults, runs_already, fails, says):
    ids = [*IDS[:2], FAILING_CONNECTION_ID] if fails else IDS
    with FakeAirbyte({"create_job": faults}, CONNECTIONS) as airbyte:
        for job in runs_already:
            airbyte.add_job(**job)
        states, log = run(tmp_path, several_connections(*ids), airbyte)
    assert states == {**SUCCESS, **fails}, log
    assert says in log
    assert sorted(job.connection_id for job in airbyte.jobs) == sorted(ids), "one sync each"
    operations = [each.operation for each in airbyte.requests if each.operation in ("create_job", "get_job")]
    assert operations[:3] == ["create_job"] * 3, "side by side"


@pytest.mark.parametrize(
    "third, says",
    [
        (IDS[0], "These have the same connection id: orders, stock"),
        ("<id>", "the UUID in the URL of their Airbyte connection: stock"),
    ],
)
def test_a_wrong_list_of_connections_is_an_import_error(tmp_path, third, says):
    with FakeAirbyte(statuses=CONNECTIONS) as airbyte:
        states, log = run(tmp_path, several_connections(*IDS[:2], third), airbyte)
    assert (states, airbyte.requests) == ({}, [])
    assert says in log


def test_a_task_after_the_sync_gets_its_job(tmp_path):
    with FakeAirbyte() as airbyte:
        states, log = run(tmp_path, with_a_task_after_the_sync(), airbyte, "airbyte_api_sync_demo")
    assert states == dict.fromkeys([*ROLES.values(), "report"], "success"), log
    assert re.search(r"\d+ rows\b", log)


@needs_try_count
def test_an_alert_comes_at_each_refusal(tmp_path):
    with FakeAirbyte({"create_job": [Fault(403)] * 9}) as airbyte:
        states, log = run(tmp_path, with_alerts(), airbyte, "airbyte_api_sync_demo")
    assert states == {ROLES[START]: "failed", ROLES[WAIT]: "upstream_failed"}, log
    assert log.count("start_airbyte_sync Airbyte answered POST") == 8, log
