"""
The other ways to run a sync that `benchmark.py` compares with this repository's DAG.

It copies this file into the dags folder of its Airflow. Each run is given the Airbyte connection id.
"""

import json

import pendulum
from airflow.providers.airbyte.operators.airbyte import AirbyteTriggerSyncOperator
from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor
from airflow.sdk import DAG

CONNECTION_ID = "{{ params.connection_id }}"
DAG_OPTIONS = {
    "start_date": pendulum.datetime(2023, 3, 1, tz="UTC"),
    "max_active_runs": 1000,
    "params": {"connection_id": ""},
}

with DAG("article", schedule=None, **DAG_OPTIONS):  # as people wrote it in 2023, with a token that lives for ever
    http = {
        "http_conn_id": "airbyte-api-cloud-connection",
        "headers": {
            "Content-Type": "application/json",
            "User-Agent": "fake-useragent",
            "Accept": "application/json",
            "Authorization": "Bearer {{ var.value.ARTICLE_TOKEN }}",
        },
    }
    start_airbyte_sync = HttpOperator(
        task_id="start_airbyte_sync",
        method="POST",
        endpoint="/v1/jobs",
        data=json.dumps({"connectionId": CONNECTION_ID, "jobType": "sync"}),
        response_filter=lambda response: response.json()["jobId"],
        log_response=True,
        **http,
    )
    wait_for_airbyte_sync = HttpSensor(
        task_id="wait_for_airbyte_sync",
        method="GET",
        endpoint=f"/v1/jobs/{start_airbyte_sync.output}",
        response_check=lambda response: response.json()["status"] == "succeeded",
        mode="poke",
        poke_interval=5,
        **http,
    )
    start_airbyte_sync >> wait_for_airbyte_sync

with DAG("operator", schedule=None, **DAG_OPTIONS):
    AirbyteTriggerSyncOperator(task_id="sync", connection_id=CONNECTION_ID)

with DAG("operator_deferrable", schedule=None, **DAG_OPTIONS):
    AirbyteTriggerSyncOperator(task_id="sync", connection_id=CONNECTION_ID, deferrable=True)
