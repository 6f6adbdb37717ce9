"""**Start an Airbyte sync and wait for it.**

`start_airbyte_sync` starts a sync, or joins the one that is running. `wait_for_airbyte_sync` checks the job until
it ends, and holds no worker slot between two checks. Under *Admin*, set:

- Connection `airbyte-api-cloud-connection`: HTTP, no login, host `https://api.airbyte.com` or `https://<host>/api/public`
- Variable `MY_EXAMPLE_CONNECTION_ID`: the id of the Airbyte connection, unless the run has a `connection_id`
- Variables `AIRBYTE_CLIENT_ID` and `AIRBYTE_CLIENT_SECRET` (*User settings → Applications*), or `CLOUD_API_TOKEN`

If something is wrong, the task's log says what to check. If it looks empty (Airflow 3), open its group *Pre Execute*.
Put it right in time, and the run goes on by itself. Stopping a run does not stop the sync: cancel it in Airbyte.
Clear `wait_for_airbyte_sync` to wait for the same job again. To sync anew, clear `start_airbyte_sync` of a run that
has ended. (In a running one, it may follow the earlier sync.)
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
    from airflow.sdk.exceptions import AirflowFailException
except ImportError:  # Airflow before 3.2
    from airflow.exceptions import AirflowFailException

HTTP_CONNECTION = "airbyte-api-cloud-connection"  # its API: https://reference.airbyte.com
HEADERS = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "airbyte_api_sync_demo"}
HEADERS_WITH_TOKEN = {**HEADERS, "Authorization": "Bearer {{ get_airbyte_token(ti) }}"}  # rendered anew at every poke
SYNCS = ("sync", "refresh")  # the job types that read and write the data; reset and clear only delete it
ENDED = ("succeeded", "failed", "cancelled")  # In any other status, even a new one, the job has not ended.
CHECK_HOST = f"Check {HTTP_CONNECTION}: https://api.airbyte.com or https://<your host>/api/public, without /v1."


def get_airbyte_token(ti) -> str:
    """Return CLOUD_API_TOKEN, or else a new token. Jinja puts it into the headers of both tasks."""
    if token := "".join(Variable.get("CLOUD_API_TOKEN", "").split()):  # With a line break, an error would quote it.
        return token
    client_id = Variable.get("AIRBYTE_CLIENT_ID", "").strip()
    client_secret = Variable.get("AIRBYTE_CLIENT_SECRET", "").strip()
    if not (client_id and client_secret):  # or unread: Airflow hides the errors of a secrets backend
        raise RuntimeError("Set the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET, or CLOUD_API_TOKEN.")
    client = {"client_id": client_id, "client_secret": client_secret, "grant-type": "client_credentials"}
    response = call_airbyte(ti, "v1/applications/token", json.dumps(client), "POST", HEADERS)
    return read_answer(response, "access_token")["access_token"]


def get_connection_id(params, dag, dag_run) -> str:
    """Return the run's connection id, or else the Variable's. Jinja puts it into the request for a sync."""
    if unknown := set(dag_run.conf or {}) - set(dag.params):
        raise AirflowFailException(f"No such parameter: {', '.join(unknown)}. There is: {', '.join(dag.params)}.")
    name, value = "parameter connection_id", (params["connection_id"] or "").strip()
    if not value:
        name, value = "Variable MY_EXAMPLE_CONNECTION_ID", Variable.get("MY_EXAMPLE_CONNECTION_ID", "").strip()
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value):
        error = AirflowFailException if value else RuntimeError  # Empty may mean unread, as above.
        raise error(f"Set the {name} to the UUID in the connection's URL: /connections/<UUID>/")
    return value


def follow_earlier_try(context) -> None:
    """On a retry, instead of the POST, GET the newest sync if it began during this run: an earlier try may own it."""
    ti, task = context["ti"], context["ti"].task  # On Airflow 3.0, context["task"] is not the one that runs.
    first_try = ti.max_tries - task.retries + 1  # since the task was last cleared; 0 in `airflow tasks test`
    if ti.try_number not in (0, first_try):
        run_start = pendulum.instance(context["dag_run"].start_date).subtract(seconds=5)  # Clocks differ.
        syncs = [job for job in list_jobs(ti, json.loads(task.data)) if job["jobType"] in SYNCS]
        if syncs and pendulum.parse(syncs[0]["startTime"]) >= run_start:
            task.log.info("No second sync: following job %s, which began during this run.", syncs[0]["jobId"])
            task.method, task.endpoint, task.data = "GET", f"v1/jobs/{syncs[0]['jobId']}", None


def read_job_id(response, ti) -> int:
    """Return the id of the job that was started, followed or (on a 409) found running, if it is a sync."""
    if response.status_code == 409 and ti.task.method == "POST":
        jobs = list_jobs(ti, json.loads(ti.task.data))
        job = next((job for job in jobs if job["status"] not in ENDED), None)
        if not job:
            raise RuntimeError(f"409, but no job runs. Is the connection active in Airbyte? {response.text[:1000]}")
        ti.task.log.info("Airbyte job %s is already running.", job["jobId"])
    else:
        job = read_answer(response, "jobId")
    ti.task.log.info("Airbyte job: %s", json.dumps(job))
    if job["jobType"] not in SYNCS:
        raise RuntimeError(f"Airbyte job {job['jobId']} is a {job['jobType']}, not a sync. It must end first.")
    return job["jobId"]


def has_succeeded(response, ti) -> bool:
    """Return whether the job has succeeded, and then push it as XCom `job`. Fail if it ended otherwise."""
    job, task = read_job(response, ti), ti.task
    task.log.info("Airbyte job: %s", json.dumps(job))
    if job["status"] == "succeeded":
        ti.xcom_push(key="job", value=job)
        return True
    if job["status"] in ENDED:
        raise AirflowFailException(f"Airbyte job {job['jobId']} {job['status']}: {find_page(ti, job, response.url)}")
    try:
        task.poke_interval = seconds_to_next_poke(job, list_jobs(ti, job), task.poke_interval, pendulum.now("UTC"))
    except Exception as error:
        task.log.warning("Earlier syncs are not known, so checking again in %s s: %s", task.poke_interval, error)
    return False


def read_job(response, ti, times_left: int = 10) -> dict:
    """Return the job. If refused, which may be a hiccup, ask up to `times_left` times more, and then fail."""
    try:
        return read_answer(response, "status")
    except PermissionError as refusal:
        if not times_left:
            raise AirflowFailException(str(refusal)) from None
        ti.task.log.warning("%s Asking again in %s.", refusal, ti.task.retry_delay)
    time.sleep(ti.task.retry_delay.total_seconds())
    ti.task.headers["Authorization"] = f"Bearer {get_airbyte_token(ti)}"
    return read_job(call_airbyte(ti, ti.task.endpoint), ti, times_left - 1)


def seconds_to_next_poke(job: dict, jobs: list, shortest: float, now) -> float:
    """Return the seconds until the third quickest other sync would have ended, or else a 30th of the job's age."""
    age = (now - pendulum.parse(job["startTime"])).total_seconds()
    others = [other for other in jobs if other["jobType"] in SYNCS and other["jobId"] != job["jobId"]]
    durations = sorted(pendulum.parse(other["duration"]) for other in others if other["status"] == "succeeded")
    left = durations[:3][-1].total_seconds() - age if durations else 0
    return max(shortest, min(left if left > 0 else age // 30, 5 * 60))


def find_page(ti, job: dict, url: str) -> str:
    """Return the address of the job's page in Airbyte's UI, or where to look if that is not known."""
    try:
        workspace = call_airbyte(ti, f"v1/connections/{job['connectionId']}").json()["workspaceId"]
    except Exception:  # Whatever happens here, the user must learn that the job failed.
        return "the connection's timeline in Airbyte."
    ui = url.partition("/v1/")[0].replace("/api/public", "").replace("//api.airbyte.com", "//cloud.airbyte.com")
    return f"{ui}/workspaces/{workspace}/connections/{job['connectionId']}/timeline?openLogs=true&jobId={job['jobId']}"


def list_jobs(ti, sync: dict) -> list:
    """Return the last 20 jobs, of any type and newest first, of this sync's connection."""
    query = {"connectionId": sync["connectionId"], "orderBy": "createdAt|DESC"}
    return read_answer(call_airbyte(ti, "v1/jobs", query), "data")["data"]


def call_airbyte(ti, endpoint: str, data=None, method: str = "GET", headers=None):
    """Send a request, by default with the headers of the task's own, and return the response."""
    try:
        return HttpHook(method, HTTP_CONNECTION).run(endpoint, data, headers or ti.task.headers, ti.task.extra_options)
    except OSError as error:  # Every error of requests is one.
        raise RuntimeError(f"No answer. {CHECK_HOST} {error}") from None


def read_answer(response, key: str) -> dict:
    """Return the answer, a JSON object with this key. Raise PermissionError if Airbyte refuses, else RuntimeError."""
    request, status, text = response.request, response.status_code, response.text
    if status < 300 and text.startswith("{") and key in response.json():
        return response.json()
    error, advice = judge(status, text, of_token=key == "access_token")
    quote = text[:1000] if status >= 300 else f"It has no {key}."  # A 2xx may hold a token.
    raise error(f"Airbyte answered {request.method} {request.path_url} with {status}. {advice} {quote}")


def judge(status: int, text: str, of_token: bool) -> tuple:
    """Return the error that this status and text are, and what the user should check."""
    if status in (408, 429) or status >= 500 or "internal error" in text:
        return RuntimeError, "It is busy or in trouble."
    if status not in (400, 401, 403, 404, 409, 422) or not text.startswith("{") or (of_token and status == 404):
        return RuntimeError, CHECK_HOST
    if of_token:
        return PermissionError, "Check the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET."
    return PermissionError, f"Check connection id, CLOUD_API_TOKEN if set, and {HTTP_CONNECTION}: right host, no login."


with DAG(
    dag_id="airbyte_api_sync_demo",
    doc_md=__doc__,
    schedule=None,
    start_date=pendulum.datetime(2023, 3, 1, tz="UTC"),
    catchup=False,
    max_active_runs=256,  # Waiting runs count, and Airflow's default is 16. Two cores carry 256 syncs of an hour.
    tags=["airbyte"],
    params={"connection_id": Param("", type=["null", "string"], description="Else Variable MY_EXAMPLE_CONNECTION_ID")},
    user_defined_macros={"get_airbyte_token": get_airbyte_token, "get_connection_id": get_connection_id},
    # Deferred, a task would keep an old token. No headers here: a task for another server must not get Airbyte's token.
    default_args={"deferrable": False, "retry_delay": 30, "retry_exponential_backoff": True, "max_retry_delay": 300},
) as dag:
    trigger_sync = SimpleHttpOperator(
        task_id="start_airbyte_sync",
        http_conn_id=HTTP_CONNECTION,
        endpoint="v1/jobs",
        headers=HEADERS_WITH_TOKEN,
        data='{"connectionId": "{{ get_connection_id(params, dag, dag_run) }}", "jobType": "sync"}',
        extra_options={"check_response": False, "allow_redirects": False, "timeout": 180},  # A start may take 130 s.
        pre_execute=follow_earlier_try,
        response_filter=read_job_id,
        retries=7,  # for at least 20 minutes
    )

    wait_for_sync_to_complete = HttpSensor(
        task_id="wait_for_airbyte_sync",
        http_conn_id=HTTP_CONNECTION,
        endpoint=f"v1/jobs/{trigger_sync.output}",
        headers=HEADERS_WITH_TOKEN,
        response_check=has_succeeded,
        extra_options={"check_response": False, "allow_redirects": False, "timeout": 60},  # See `read_answer`.
        mode="reschedule",  # Between two pokes it holds no worker slot.
        poke_interval=15,  # the shortest: see `seconds_to_next_poke`
        timeout=24 * 60 * 60,
        silent_fail=True,  # In a poke, only an AirflowFailException is final. Any other error is logged.
        retries=288,  # every 5 minutes for 24 hours, for failures outside a poke: no token, a lost worker
    )

    trigger_sync >> wait_for_sync_to_complete

if __name__ == "__main__":
    trigger_sync.retries = 0  # Say at once what is wrong.
    raise SystemExit(None if dag.test().state == "success" else "The run failed: the last traceback above says why.")
