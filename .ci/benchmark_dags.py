"""The other DAGs of `benchmark.py`: other ways to run a sync, and one that only wants a worker slot."""

import json

from airflow.providers.airbyte.operators.airbyte import AirbyteTriggerSyncOperator
from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor
from airflow.sdk import DAG, task

CONNECTION_ID = "{{ params.connection_id }}"
DAG_OPTIONS = {"max_active_runs": 1000, "params": {"connection_id": ""}}
HTTP = {  # with a token that lives for ever
    "http_conn_id": "airbyte-api-cloud-connection",
    "headers": {"Content-Type": "application/json", "Authorization": "Bearer {{ var.value.ARTICLE_TOKEN }}"},
}

with DAG("article", schedule=None, default_args=HTTP, **DAG_OPTIONS):  # as people wrote it in 2023
    start_airbyte_sync = HttpOperator(
        task_id="start_airbyte_sync",
        endpoint="/v1/jobs",
        data=json.dumps({"connectionId": CONNECTION_ID, "jobType": "sync"}),
        response_filter=lambda response: response.json()["jobId"],
    )
    wait_for_airbyte_sync = HttpSensor(
        task_id="wait_for_airbyte_sync",
        endpoint=f"/v1/jobs/{start_airbyte_sync.output}",
        response_check=lambda response: response.json()["status"] == "succeeded",
        poke_interval=5,
    )
    start_airbyte_sync >> wait_for_airbyte_sync

for dag_id, deferrable in (("operator", False), ("operator_deferrable", True)):
    with DAG(dag_id, schedule=None, **DAG_OPTIONS):
        AirbyteTriggerSyncOperator(task_id="sync", connection_id=CONNECTION_ID, deferrable=deferrable)

with DAG("bystander", schedule=None, **DAG_OPTIONS):
    task(task_id="do_nothing")(lambda: None)()
