"""
### Start an Airbyte sync and wait for it

`start_airbyte_sync` starts a sync, or joins the one that is already running. `wait_for_airbyte_sync` asks every
30 seconds how it is, holds no worker in between, and ends as the sync ends. Before the first run, set in *Admin*:

| | |
|---|---|
| Connection `airbyte-api-cloud-connection` | type HTTP, host `https://api.airbyte.com`, no login (self-managed: host `https://<your host>/api/public`) |
| Variable `MY_EXAMPLE_CONNECTION_ID` | the Airbyte connection to sync; a run triggered with `connection_id` syncs that one |
| Variables `AIRBYTE_CLIENT_ID`, `AIRBYTE_CLIENT_SECRET` | of an application: in Airbyte, *Settings → Account → Applications* |
| Variable `CLOUD_API_TOKEN` | in place of these two, if you have a token that outlives the sync |

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

HTTP_CONNECTION = "airbyte-api-cloud-connection"
HEADERS = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": "airbyte_api_sync_demo (Apache Airflow)",  # Airbyte Cloud turns clients without a name away.
}
# The functions below judge every answer. A redirect is one too: followed, it would turn the POST into a GET.
HTTP_OPTIONS = {"check_response": False, "allow_redirects": False, "timeout": 60}
ENDED = ("succeeded", "failed", "cancelled")  # In any other status, even one unknown today, a job goes on.
ADVICE = f"Check the token, the connection id, and that {HTTP_CONNECTION} has the right host and no login."


def answer(response, key: str, advice: str = ADVICE, again: tuple = (408, 429)) -> dict:
    """
    Return the JSON object that Airbyte answered with; it has the key.

    :raise AirflowFailException: refused for good (any other 3xx or 4xx), with Airbyte's words and the advice
    :raise RuntimeError: worth asking again: a 5xx, a status in `again`, or a 2xx without such an object
    """
    request, status = response.request, response.status_code
    words = f"Airbyte answered {request.method} {request.path_url} with {status}: {response.text[:1000]}"
    if status in again or status >= 500:
        raise RuntimeError(words)
    if status >= 300:
        raise AirflowFailException(f"{words} {advice}")
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or body.get(key) is None:  # It may hold a token: not a word of it in the log.
        raise RuntimeError(f"Airbyte answered {request.path_url} with {status}, but no JSON with {key}. {ADVICE}")
    return body


def airbyte_token(variables) -> str:
    """
    Return the token that Airflow's Variables (`var.value`) hold, or else buy: Airbyte's live for 15 minutes.

    :raise AirflowFailException: the Variables or the HTTP connection are missing, or Airbyte refuses them
    :raise RuntimeError: Airbyte cannot give a token now
    """
    try:
        HttpHook.get_connection(HTTP_CONNECTION)
    except AirflowNotFoundException:
        raise AirflowFailException(f"Create the Airflow connection {HTTP_CONNECTION} (type HTTP).") from None
    token = "".join(variables.get("CLOUD_API_TOKEN", "").split())
    if token:
        return token
    client = {
        "client_id": variables.get("AIRBYTE_CLIENT_ID", "").strip(),
        "client_secret": variables.get("AIRBYTE_CLIENT_SECRET", "").strip(),
        "grant-type": "client_credentials",
    }
    advice = "Set the Airflow Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET, or CLOUD_API_TOKEN."
    if not all(client.values()):
        raise AirflowFailException(advice)
    hook = HttpHook("POST", HTTP_CONNECTION)
    response = hook.run("v1/applications/token", json.dumps(client), HEADERS, HTTP_OPTIONS)
    return answer(response, "access_token", advice)["access_token"]


def airbyte_connection_id(variables, params) -> str:
    """Return the run's `connection_id`, else the Variable's. Raise AirflowFailException if both are blank."""
    name = "MY_EXAMPLE_CONNECTION_ID"
    connection_id = (params["connection_id"] or "").strip() or variables.get(name, "").strip()
    if not connection_id:
        raise AirflowFailException(f"Set the Airflow Variable {name}, or trigger the DAG with a connection_id.")
    return connection_id


def newest_sync(task, variables) -> dict | None:
    """Return the newest sync job of the task's Airbyte connection, None if there is none. Raise as `answer`."""
    query = {"jobType": "sync", "orderBy": "createdAt|DESC", "limit": 1}
    query["connectionId"] = json.loads(task.data)["connectionId"]
    headers = {**HEADERS, "Authorization": f"Bearer {airbyte_token(variables)}"}
    response = HttpHook("GET", HTTP_CONNECTION).run("v1/jobs", query, headers, HTTP_OPTIONS)
    return next(iter(answer(response, "data")["data"]), None)


def follow_earlier_try(context) -> None:
    """
    On a retry, make the POST a GET of the sync that an earlier try started without learning of it.

    A second POST would join that sync while it runs (409), but start another one once it has ended.
    """
    ti, task = context["ti"], context["task"]
    if ti.try_number > ti.max_tries - task.retries + 1:  # neither the first try nor the first after a clear
        job = newest_sync(task, context["var"]["value"])
        # Airbyte's startTime is the job's creation, in whole seconds.
        if job and pendulum.parse(job["startTime"]) >= context["dag_run"].start_date.replace(microsecond=0):
            task.method, task.endpoint, task.data = "GET", f"v1/jobs/{job['jobId']}", None


def job_id(response, task, var) -> int:
    """Return the id of the job that was started, or that runs already (a 409). Raise as `answer`."""
    if response.status_code == 409:
        job = newest_sync(task, var["value"])
        if job and job["status"] not in ENDED:
            task.log.info("A sync is already running: waiting for its job %s.", job["jobId"])
            return job["jobId"]
    job = answer(response, "jobId", again=(408, 409, 429))
    task.log.info("Airbyte job: %s", json.dumps(job))
    return job["jobId"]


def sync_succeeded(response, task, ti) -> bool:
    """
    Return whether the job has succeeded; if so, put it (rows, bytes, duration) into the XCom `job`.

    Raise as `answer`, and AirflowFailException if the job failed or was cancelled.
    """
    job = answer(response, "status")
    task.log.info("Airbyte job: %s", json.dumps(job))
    if job["status"] not in ENDED:
        return False
    if job["status"] != "succeeded":
        raise AirflowFailException(f"Airbyte job {job['jobId']} {job['status']}. Airbyte's job history says why.")
    ti.xcom_push(key="job", value=job)
    return True


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
            description="Empty: that of the Variable MY_EXAMPLE_CONNECTION_ID.",
        )
    },
    user_defined_macros={"airbyte_token": airbyte_token, "airbyte_connection_id": airbyte_connection_id},
    default_args={
        "http_conn_id": HTTP_CONNECTION,
        # Rendered at every start of a task, and a rescheduled sensor starts at every poke: each has a new token.
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
        retries=7,  # 20 minutes at least: 30 s, 1, 2, 4, and then every 5 minutes.
    )

    wait_for_sync_to_complete = HttpSensor(
        task_id="wait_for_airbyte_sync",
        endpoint=f"v1/jobs/{trigger_sync.output}",
        response_check=sync_succeeded,
        extra_options=HTTP_OPTIONS,
        mode="reschedule",  # Between pokes it holds no worker slot.
        poke_interval=30,
        timeout=24 * 60 * 60,
        silent_fail=True,  # A poke that Airbyte cannot answer is logged, and made again.
        retries=288,  # Every 5 minutes for 24 hours: what silent_fail does not see (a token, a worker).
    )

    trigger_sync >> wait_for_sync_to_complete

if __name__ == "__main__":
    dag.test()
