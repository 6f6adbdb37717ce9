"""A sync that goes well: what is sent to Airbyte, and what the run leaves for tasks after it."""

from __future__ import annotations

import json

import pytest
from airbyte_api import CONNECTION_ID, AirbyteApi
from airflow_home import START, WAIT

OTHER_CONNECTION_ID = "0b9f6f2e-1111-4c4c-8d8d-5f2f3c4d5e6f"


def test_starts_the_sync_and_waits_until_it_has_succeeded(run):
    statuses = ("pending", "queued", "running", "incomplete", "running", "in_a_state_unknown_today", "succeeded")
    with AirbyteApi(statuses={CONNECTION_ID: statuses}) as airbyte:
        result = run(airbyte.url)
    assert result.state == "success"
    assert result.tasks == {START: "success", WAIT: "success"}
    assert len(airbyte.jobs) == 1
    assert len(airbyte.calls("poll")) == len(statuses)


def test_leaves_the_job_for_the_tasks_after_it(run):
    with AirbyteApi() as airbyte:
        result = run(airbyte.url)
    assert result.job_id == airbyte.jobs[0]["id"]
    assert result.job == airbyte.job_response(airbyte.jobs[0])
    assert (result.job["rowsSynced"], result.job["bytesSynced"]) == (125_000, 48_211_904)
    assert json.dumps(result.job) in result.log
    assert '"status": "pending"' in result.log, "the answer to the start"


def test_sends_what_airbyte_asks_for_and_nothing_else(run):
    with AirbyteApi() as airbyte:
        run(airbyte.url)
    assert airbyte.calls("start")[0]["body"] == {"connectionId": CONNECTION_ID, "jobType": "sync"}
    for request in airbyte.requests:
        assert request["headers"]["accept"] == "application/json"
        assert request["headers"]["content-type"] == "application/json"
        assert "airbyte_api_sync_demo" in request["headers"]["user-agent"]
        assert request["query"] == {}


def test_gets_a_new_token_for_every_task_start_and_every_poke(run):
    with AirbyteApi() as airbyte:
        run(airbyte.url)
    used = [request["headers"]["authorization"] for request in airbyte.requests if request["call"] != "token"]
    assert len(used) == len(set(used)) == len(airbyte.tokens) == 4


@pytest.mark.parametrize("blank", ["", "  \n"])
def test_a_token_in_the_variable_goes_before_the_client(run, blank):
    with AirbyteApi() as airbyte:
        airbyte.tokens["a-token"] = float("inf")
        result = run(airbyte.url, variables={"AIRFLOW_VAR_CLOUD_API_TOKEN": f"{blank}a-token{blank}"})
        assert result.state == "success"
        assert airbyte.calls("token") == []
        result = run(airbyte.url, variables={"AIRFLOW_VAR_CLOUD_API_TOKEN": blank})
        assert result.state == "success"
        assert airbyte.calls("token")


@pytest.mark.parametrize(
    "conf, synced",
    [
        (None, 0),
        ({}, 0),
        ({"connection_id": ""}, 0),
        ({"connection_id": None}, 0),
        ({"connection_id": f" {OTHER_CONNECTION_ID} "}, 1),
    ],
)
def test_syncs_the_connection_that_the_run_names_or_else_the_variables(run, conf, synced):
    ids = [CONNECTION_ID, OTHER_CONNECTION_ID]
    with AirbyteApi(statuses={connection_id: ("running", "succeeded") for connection_id in ids}) as airbyte:
        result = run(airbyte.url, conf=conf)
    assert result.state == "success"
    assert [job["connection"] for job in airbyte.jobs] == [ids[synced]]


def test_needs_no_variable_where_the_run_names_the_connection(run):
    with AirbyteApi() as airbyte:
        result = run(
            airbyte.url,
            conf={"connection_id": CONNECTION_ID},
            variables={"AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID": None},
        )
    assert result.state == "success"


@pytest.mark.parametrize("base_path, slash", [("", ""), ("", "/"), ("/api/public", ""), ("/api/public", "/")])
def test_the_host_of_the_connection_may_have_a_path_and_a_slash(run, base_path, slash):
    with AirbyteApi(base_path=base_path) as airbyte:
        result = run(airbyte.url + slash)
    assert result.state == "success"
    assert {request["answer"] for request in airbyte.requests} == {200}
