"""
### Start an Airbyte sync and wait for it

`start_airbyte_sync` starts a sync, or joins the one that is already running. `wait_for_airbyte_sync` polls the job
until it ends, and holds no worker slot in between. Under *Admin*, set:

- Connection `airbyte-api-cloud-connection`: type HTTP, no login, host `https://api.airbyte.com`
  (self-managed Airbyte: `https://<your host>/api/public`)
- Variable `MY_EXAMPLE_CONNECTION_ID`: the id of the Airbyte connection, unless the run has a `connection_id`
- Variables `AIRBYTE_CLIENT_ID`, `AIRBYTE_CLIENT_SECRET` (Airbyte: *User settings → Applications*), or `CLOUD_API_TOKEN`

Stopping a run does not stop the sync: Airbyte's API cancels by connection, so a late cancel could hit a newer sync.
Clear `wait_for_airbyte_sync` to wait for the same job again, or `start_airbyte_sync` and downstream to sync anew.
"""

import json
import re
import time

import pendulum
from airflow.providers.http.hooks.http import HttpHook
from airflow.providers.http.sensors.http import HttpSensor

try:
    from airflow.providers.http.operators.http import HttpOperator as SimpleHttpOperator
except ImportError:  # HTTP provider before 4.7
    from airflow.providers.http.operators.http import SimpleHttpOperator
try:
    from airflow.sdk import DAG, Param, Variable
except ImportError:  # Airflow 2
    from airflow.models import DAG, Param, Variable
try:
    from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException
except ImportError:  # Airflow before 3.2
    from airflow.exceptions import AirflowFailException, AirflowNotFoundException

HTTP_CONNECTION = "airbyte-api-cloud-connection"  # its API: https://reference.airbyte.com
HEADERS = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "airbyte_api_sync_demo"}
HTTP_OPTIONS = {"check_response": False, "allow_redirects": False, "timeout": 60}  # `answer` judges every status.
ADVICE = f"Check the token, connection id and Airflow connection {HTTP_CONNECTION}: its host. It must have no login."
SYNCS = ("sync", "refresh")  # the job types that read and write the data; reset and clear only delete it
ENDED = ("succeeded", "failed", "cancelled")  # In any other status, even a new one, the job has not ended.


def answer(response, key: str, advice: str = ADVICE, refusal: type = AirflowFailException) -> dict:
    """Return the answer, a JSON object with this key. Raise `refusal` on a refusal, RuntimeError on any other fault."""
    request, status, text = response.request, response.status_code, response.text[:1000]
    said = f"Airbyte answered {request.method} {request.path_url} with {status}:"
    if status >= 300:
        busy = status in (408, 429) or status >= 500
        raise RuntimeError(f"{said} {text}") if busy else refusal(f"{said} {text} {advice}")
    if f'"{key}"' not in response.text:
        raise RuntimeError(f"{said} no JSON object with {key}. {advice}")  # The text may hold a token: do not quote it.
    return response.json()


def airbyte_token(ti) -> str:
    """Return CLOUD_API_TOKEN, or else a new token for the client. Called by Jinja (the headers) and `get`."""
    try:
        HttpHook.get_connection(HTTP_CONNECTION)
    except AirflowNotFoundException:
        raise AirflowFailException(f"Create the Airflow connection {HTTP_CONNECTION}, of type HTTP.") from None
    if token := "".join(Variable.get("CLOUD_API_TOKEN", "").split()):  # A line break would put the token in an error.
        return token
    client_id = Variable.get("AIRBYTE_CLIENT_ID", "").strip()
    client_secret = Variable.get("AIRBYTE_CLIENT_SECRET", "").strip()
    if not (client_id and client_secret):
        raise AirflowFailException("Set the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET, or CLOUD_API_TOKEN.")
    body = json.dumps({"client_id": client_id, "client_secret": client_secret, "grant-type": "client_credentials"})
    response = HttpHook("POST", HTTP_CONNECTION).run("v1/applications/token", body, HEADERS, ti.task.extra_options)
    advice = f"Check AIRBYTE_CLIENT_ID, AIRBYTE_CLIENT_SECRET, and the host of {HTTP_CONNECTION}."
    return answer(response, "access_token", advice)["access_token"]


def airbyte_connection_id(params) -> str:
    """Return the run's connection id, or else the Variable's. Called by Jinja (the POST) and `newest_jobs`."""
    name, value = "parameter connection_id", (params["connection_id"] or "").strip()
    if not value:
        name, value = "Variable MY_EXAMPLE_CONNECTION_ID", Variable.get("MY_EXAMPLE_CONNECTION_ID", "").strip()
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value):
        raise AirflowFailException(f"Set the {name} to the UUID in the connection's URL: /connections/<UUID>/")
    return value


def get(ti, endpoint: str, query=None):
    """Send a GET with a token, and return Airbyte's response."""
    headers = {**HEADERS, "Authorization": f"Bearer {airbyte_token(ti)}"}
    return HttpHook("GET", HTTP_CONNECTION).run(endpoint, query, headers, ti.task.extra_options)


def newest_jobs(ti, params) -> list:
    """Return the connection's last 20 jobs of any type, newest first. A refusal only fails the try: a sync may run."""
    query = {"connectionId": airbyte_connection_id(params), "orderBy": "createdAt|DESC"}
    return answer(get(ti, "v1/jobs", query), "data", refusal=RuntimeError)["data"]


def follow_earlier_try(context) -> None:
    """On a retry, replace the POST with a GET of any sync begun during this run: an earlier try may have started it."""
    ti, task = context["ti"], context["ti"].task  # On Airflow 3.0, context["task"] is not the one that runs.
    if ti.try_number == ti.max_tries - task.retries + 1:  # the first try, or the first since the task was cleared
        return
    run_start = context["dag_run"].start_date.replace(microsecond=0)  # Airbyte's times are in whole seconds.
    for job in newest_jobs(ti, context["params"]):
        if job["jobType"] in SYNCS and pendulum.parse(job["startTime"]) >= run_start:
            task.log.info("No second sync: following job %s, which began during this run.", job["jobId"])
            task.method, task.endpoint, task.data = "GET", f"v1/jobs/{job['jobId']}", None
            return


def job_id(response, ti, params) -> int:
    """Return the id of the job that was started, followed or (on a 409) found running. The operator calls this last."""
    if response.status_code == 409:
        running = [job for job in newest_jobs(ti, params) if job["status"] not in ENDED]
        job = running[0] if running else answer(response, "jobId", "Is the connection active in Airbyte?", RuntimeError)
        ti.task.log.info("Airbyte job %s is already running.", job["jobId"])
    else:
        job = answer(response, "jobId", refusal=AirflowFailException if ti.task.method == "POST" else RuntimeError)
    ti.task.log.info("Airbyte job: %s", json.dumps(job))
    if job["jobType"] not in SYNCS:
        raise RuntimeError(f"Airbyte job {job['jobId']} is a {job['jobType']}, not a sync. It must end first.")
    return job["jobId"]


def sync_succeeded(response, ti) -> bool:
    """Push a succeeded job as XCom `job` and return True; fail if it failed or was cancelled. Called at every poke."""
    try:
        job = answer(response, "status")
    except AirflowFailException as refusal:  # perhaps only a hiccup: Airbyte answers 403 when its own database fails
        ti.task.log.warning("%s Asking again in %s.", refusal, ti.task.retry_delay)
        time.sleep(ti.task.retry_delay.total_seconds())
        job = answer(get(ti, ti.task.endpoint), "status")
    ti.task.log.info("Airbyte job: %s", json.dumps(job))
    if job["status"] == "succeeded":
        ti.xcom_push(key="job", value=job)
        return True
    if job["status"] in ENDED:
        queue = " Airbyte also cancels a job that waits too long in its queue." if job["status"] == "cancelled" else ""
        said = f"Airbyte job {job['jobId']} {job['status']}: its log in Airbyte says why.{queue}"
        raise AirflowFailException(f"{said} {job_page(ti, job, response.url)}")
    age = pendulum.now("UTC") - pendulum.parse(job["startTime"])  # Poke again after 1/20 of it, 5 minutes at most.
    ti.task.poke_interval = max(ti.task.poke_interval, min(age.total_seconds() // 20, 5 * 60))
    return False


def job_page(ti, job: dict, url: str) -> str:
    """Return the address of the job's page in Airbyte's UI, or an empty string if its workspace cannot be read."""
    try:
        workspace = get(ti, f"v1/connections/{job['connectionId']}").json()["workspaceId"]
    except Exception:  # Whatever happens here, the user must learn that the job failed.
        return ""
    ui = url.partition("/v1/")[0].replace("/api/public", "").replace("//api.airbyte.com", "//cloud.airbyte.com")
    return f"{ui}/workspaces/{workspace}/connections/{job['connectionId']}/timeline?openLogs=true&jobId={job['jobId']}"


with DAG(
    dag_id="airbyte_api_sync_demo",
    description="Start an Airbyte sync and wait for it",
    doc_md=__doc__,
    schedule=None,
    start_date=pendulum.datetime(2023, 3, 1, tz="UTC"),
    catchup=False,
    max_active_runs=256,  # Waiting runs count, and Airflow's default is 16. Four cores poke 256 every 30 s.
    tags=["airbyte"],
    params={"connection_id": Param("", type=["null", "string"], description="Default: MY_EXAMPLE_CONNECTION_ID")},
    user_defined_macros={"airbyte_token": airbyte_token, "airbyte_connection_id": airbyte_connection_id},
    default_args={
        "http_conn_id": HTTP_CONNECTION,
        "headers": {**HEADERS, "Authorization": "Bearer {{ airbyte_token(ti) }}"},  # rendered anew at every poke
        "extra_options": HTTP_OPTIONS,
        "deferrable": False,  # The triggerer would keep an old token, and would not call the functions above.
        "retry_delay": 30,
        "retry_exponential_backoff": True,
        "max_retry_delay": 5 * 60,
    },
) as dag:
    trigger_sync = SimpleHttpOperator(
        task_id="start_airbyte_sync",
        endpoint="v1/jobs",
        data='{"connectionId": "{{ airbyte_connection_id(params) }}", "jobType": "sync"}',
        extra_options={**HTTP_OPTIONS, "timeout": 180},  # Airbyte may take two minutes to start a sync.
        pre_execute=follow_earlier_try,
        response_filter=job_id,
        retries=7,  # 30 s, 1, 2 and 4 minutes apart, then 5: for at least 20 minutes
    )

    wait_for_sync_to_complete = HttpSensor(
        task_id="wait_for_airbyte_sync",
        endpoint=f"v1/jobs/{trigger_sync.output}",
        response_check=sync_succeeded,
        mode="reschedule",  # Between two pokes it holds no worker slot.
        poke_interval=30,  # the shortest: see `sync_succeeded`
        timeout=24 * 60 * 60,
        silent_fail=True,  # In a poke, only an AirflowFailException is final. Any other error is logged.
        retries=288,  # every 5 minutes for 24 hours, for failures outside a poke: no token, a lost worker
    )

    trigger_sync >> wait_for_sync_to_complete

if __name__ == "__main__":
    raise SystemExit(None if dag.test().state == "success" else "The run failed: the last traceback above says why.")
