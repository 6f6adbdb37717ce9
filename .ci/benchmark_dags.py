"""The other DAGs of `benchmark.py`: the Airbyte provider's operator, and one that only wants a worker slot."""

from airflow.providers.airbyte.operators.airbyte import AirbyteTriggerSyncOperator
from airflow.sdk import DAG, task

OPTIONS = {"max_active_runs": 1000, "params": {"connection_id": ""}}

for dag_id, deferrable in (("operator", False), ("operator_deferrable", True)):
    with DAG(dag_id, schedule=None, **OPTIONS):
        AirbyteTriggerSyncOperator(task_id="sync", connection_id="{{ params.connection_id }}", deferrable=deferrable)

with DAG("bystander", schedule=None, **OPTIONS):
    task(task_id="do_nothing")(lambda: None)()
