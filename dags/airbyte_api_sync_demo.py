"""
### Start an Airbyte sync and wait for it

`start_airbyte_sync` starts a sync, or joins the one that is running already. `wait_for_airbyte_sync` asks every
30 seconds how it is, holds no worker in between, and ends as the sync ends. Before you trigger it, set in *Admin*:

- the connection `airbyte-api-cloud-connection`: type HTTP, no login, host `https://api.airbyte.com`
  (self-managed Airbyte: `https://<your host>/api/public`);
- the Variable `MY_EXAMPLE_CONNECTION_ID`: the Airbyte connection to sync, unless a run is given a `connection_id`;
- the Variables `AIRBYTE_CLIENT_ID` and `AIRBYTE_CLIENT_SECRET`, of an application (in Airbyte: *Settings → Account →
  Applications*); or `CLOUD_API_TOKEN`, if you have a token that outlives the sync.

Stopping a run does not stop the sync: Airbyte cancels by connection, so a late cancel could hit a newer one.
To wait for the same sync again, clear `wait_for_airbyte_sync`; for a new sync, clear `start_airbyte_sync`.
"""

from __future__ import annotations

import json
from datetime import timedelta

import pendulum
from airflow.providers.http.hooks.http import HttpHook
from airflow.providers.http.sensors.http import HttpSensor

try:
    from airflow.sdk import DAG, Param
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.models.param import Param
try:
    from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException
except ImportError:  # Airflow before 3.2
    from airflow.exceptions import AirflowFailException, AirflowNotFoundException
try:
    from airflow.providers.http.operators.http import HttpOperator as SimpleHttpOperator
except ImportError:  # HTTP provider before 4.7
    from airflow.providers.http.operators.http import SimpleHttpOperator

# The API is documented at https://reference.airbyte.com
HTTP_CONNECTION = "airbyte-api-cloud-connection"
# Airbyte Cloud turns away a request without a User-Agent of its own.
HEADERS = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "airbyte_api_sync_demo"}
# Every answer goes to the functions below. A redirect is one: followed, it would turn the POST into a GET.
HTTP_OPTIONS = {"check_response": False, "allow_redirects": False, "timeout": 60}
ADVICE = f"Check the token, the connection id, and the Airflow connection {HTTP_CONNECTION}: its host, and no login."
ENDED = ("succeeded", "failed", "cancelled")  # In any other status, even one unknown today, a job goes on.


def answer(response, key: str, advice: str = ADVICE, again: tuple = (408, 429)) -> dict:
    """
    Return the JSON object, with this key in it, that Airbyte answered with.

    :raise AirflowFailException: Airbyte refused (3xx, 4xx), and would again; it carries its words and the advice
    :raise RuntimeError: another time may do: 5xx, a status in `again`, or something else than the object
    """
    request, status, words = response.request, response.status_code, response.text[:1000]
    if status < 300:
        try:
            body = response.json()
        except ValueError:
            body = None
        if isinstance(body, dict) and body.get(key) is not None:
            return body
        words = f"no JSON object with {key}."  # and not a word of it: there may be a token in it
    error = AirflowFailException if 300 <= status < 500 and status not in again else RuntimeError
    raise error(f"Airbyte answered {request.method} {request.path_url} with {status}: {words} {advice}")


def airbyte_token(variables) -> str:
    """
    Return the token of the Variables (`var.value`), or a new one for their client: it lives for 15 minutes.

    :raise AirflowFailException: a Variable or the HTTP connection is missing, or Airbyte refuses the client
    :raise RuntimeError: Airbyte has no token to give now
    """
    try:
        HttpHook.get_connection(HTTP_CONNECTION)
    except AirflowNotFoundException:
        raise AirflowFailException(f"Create the Airflow connection {HTTP_CONNECTION}, of type HTTP.") from None
    if token := "".join(variables.get("CLOUD_API_TOKEN", "").split()):
        return token
    client_id = variables.get("AIRBYTE_CLIENT_ID", "").strip()
    client_secret = variables.get("AIRBYTE_CLIENT_SECRET", "").strip()
    if not (client_id and client_secret):
        raise AirflowFailException("Set the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET, or CLOUD_API_TOKEN.")
    advice = f"Check AIRBYTE_CLIENT_ID, AIRBYTE_CLIENT_SECRET, and the host of {HTTP_CONNECTION}."
    client = json.dumps({"client_id": client_id, "client_secret": client_secret, "grant-type": "client_credentials"})
    response = HttpHook("POST", HTTP_CONNECTION).run("v1/applications/token", client, HEADERS, HTTP_OPTIONS)
    return answer(response, "access_token", advice)["access_token"]


def airbyte_connection_id(variables, params) -> str:
    """Return the run's `connection_id`, else the Variable's. Raise AirflowFailException where both are blank."""
    connection_id = (params["connection_id"] or "").strip() or variables.get("MY_EXAMPLE_CONNECTION_ID", "").strip()
    if not connection_id:
        raise AirflowFailException("Set the Variable MY_EXAMPLE_CONNECTION_ID, or trigger with a connection_id.")
    return connection_id


def newest_sync(task, variables) -> dict | None:
    """Return the newest sync job of the Airbyte connection that the task syncs, if any. Raise as `answer` does."""
    query = {**json.loads(task.data), "orderBy": "createdAt|DESC", "limit": 1}  # data: its connectionId and jobType
    headers = {**HEADERS, "Authorization": f"Bearer {airbyte_token(variables)}"}
    response = HttpHook("GET", HTTP_CONNECTION).run("v1/jobs", query, headers, HTTP_OPTIONS)
    return next(iter(answer(response, "data")["data"]), None)


def follow_earlier_try(context) -> None:
    """
    On a retry, make the POST a GET of the sync that an earlier try has started, should there be one.

    Its answer may be lost, or its worker. Posting again would join the sync while it runs, but then start another.
    """
    ti, task = context["ti"], context["ti"].task  # On Airflow 3.0, context["task"] is not the rendered one.
    if ti.try_number > ti.max_tries - task.retries + 1:  # neither the first try, nor the first after a clear
        job = newest_sync(task, context["var"]["value"])
        # startTime is the time of the job's creation, in whole seconds.
        if job and pendulum.parse(job["startTime"]) >= context["dag_run"].start_date.replace(microsecond=0):
            task.log.info("An earlier try has started the sync: following its job %s.", job["jobId"])
            task.method, task.endpoint, task.data = "GET", f"v1/jobs/{job['jobId']}", None


def job_id(response, ti, var) -> int:
    """Return the id of the job that was started, or that a 409 says is running. Raise as `answer` does."""
    if response.status_code == 409:
        job = newest_sync(ti.task, var["value"])
        if job and job["status"] not in ENDED:
            ti.task.log.info("A sync is already running: waiting for its job %s.", job["jobId"])
            return job["jobId"]
    job = answer(response, "jobId", again=(408, 409, 429))
    ti.task.log.info("Airbyte job: %s", json.dumps(job))
    return job["jobId"]


def sync_succeeded(response, ti) -> bool:
    """Return whether the job has succeeded, and leave it in the XCom `job`. Raise also if it failed or was cancelled."""
    job = answer(response, "status")
    ti.task.log.info("Airbyte job: %s", json.dumps(job))
    if job["status"] in ("failed", "cancelled"):
        raise AirflowFailException(f"Airbyte job {job.get('jobId')} {job['status']}: its log in Airbyte says why.")
    if job["status"] == "succeeded":
        ti.xcom_push(key="job", value=job)
    return job["status"] == "succeeded"


with DAG(
    dag_id="airbyte_api_sync_demo",
    description="Start an Airbyte sync and wait for it",
    doc_md=__doc__,
    schedule=None,
    start_date=pendulum.datetime(2023, 3, 1, tz="UTC"),
    catchup=False,
    tags=["airbyte"],
    params={
        "connection_id": Param(
            "",
            type=["null", "string"],
            title="Airbyte connection id",
            description="The connection to sync. Empty: that of the Variable MY_EXAMPLE_CONNECTION_ID.",
        )
    },
    user_defined_macros={"airbyte_token": airbyte_token, "airbyte_connection_id": airbyte_connection_id},
    default_args={
        "http_conn_id": HTTP_CONNECTION,
        # Rendered when a task starts, and a rescheduled sensor starts at every poke: no token grows old.
        "headers": {**HEADERS, "Authorization": "Bearer {{ airbyte_token(var.value) }}"},
        "retry_delay": timedelta(seconds=30),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=5),
    },
) as dag:
    trigger_sync = SimpleHttpOperator(
        task_id="start_airbyte_sync",
        endpoint="v1/jobs",
        data='{"connectionId": {{ airbyte_connection_id(var.value, params) | tojson }}, "jobType": "sync"}',
        extra_options={**HTTP_OPTIONS, "timeout": 180},  # Airbyte may take two minutes to start a sync.
        pre_execute=follow_earlier_try,
        response_filter=job_id,
        deferrable=False,  # A triggerer that restarts would post again.
        retries=7,  # 20 minutes at least: 30 s, 1, 2, 4, then every 5 minutes
    )

    wait_for_sync_to_complete = HttpSensor(
        task_id="wait_for_airbyte_sync",
        endpoint=f"v1/jobs/{trigger_sync.output}",
        response_check=sync_succeeded,
        extra_options=HTTP_OPTIONS,
        mode="reschedule",  # Between two pokes it holds no worker slot.
        poke_interval=30,  # A poke costs a CPU second: 3 % of a core a sync, and the run ends 15 s late on average.
        timeout=24 * 60 * 60,
        silent_fail=True,  # A poke that Airbyte cannot answer is logged, and made again.
        retries=288,  # every 5 minutes for 24 hours: what breaks before a poke (no token, a lost worker) ends no wait
    )

    trigger_sync >> wait_for_sync_to_complete

if __name__ == "__main__":
    dag.test()
