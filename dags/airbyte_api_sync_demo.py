"""**Start an Airbyte sync and wait until it ends.**

`start_airbyte_sync` starts a sync, or joins the one that is already running. `wait_for_airbyte_sync` checks the job
until it ends, for up to 24 hours. Between two checks it holds no worker slot.

**Before the first run**, set under *Admin*:

- Connection `airbyte-api-cloud-connection`: type HTTP, no login, host `https://api.airbyte.com` (self-managed Airbyte:
  `https://<your host>/api/public`)
- Variable `MY_EXAMPLE_CONNECTION_ID`: the id of the Airbyte connection to sync, unless a run has a `connection_id`
- Variables `AIRBYTE_CLIENT_ID` and `AIRBYTE_CLIENT_SECRET`: of an application that you create in Airbyte under
  *User settings → Applications*. Or `CLOUD_API_TOKEN`, used first if it is set: a token that lives longer than the sync

**If a task goes wrong**, its log says what to check. (If the log looks empty on Airflow 3, expand its group *Pre
Execute*.) Most errors are retried, seven times in 21 minutes: put them right by then, and the run goes on by itself.
Later, clear the failed task, with *Downstream*: the start to sync again, the wait to go on waiting for the same job.
While Airbyte does not answer, the wait goes on without using up its retries.

Stopping a run does not stop the sync. To stop it, cancel it in Airbyte.
"""

import json
import random
import re

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
    from airflow.sdk.log import mask_secret
except ImportError:  # Airflow 2
    from airflow.utils.log.secrets_masker import mask_secret
try:
    from airflow.sdk.exceptions import AirflowFailException, AirflowRescheduleException
except ImportError:  # Airflow before 3.2
    from airflow.exceptions import AirflowFailException, AirflowRescheduleException

# ruff: noqa: AIR001 (the tutorial's names)

# Settings

AIRFLOW_CONNECTION = "airbyte-api-cloud-connection"  # to Airbyte's API, documented at https://reference.airbyte.com
HEADERS = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "airbyte_api_sync_demo"}
UUID_PATTERN = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"  # the form of a connection id
REQUEST_TIMEOUT = (5, 15)  # seconds to connect, and to wait for an answer: short, because both hold a worker slot
# Airflow's hook shall hand over every answer, whatever its status: `parse_or_raise` judges it.
REQUEST_OPTIONS = {"check_response": False, "allow_redirects": False, "timeout": REQUEST_TIMEOUT}

HOST_ADVICE = "Check the host of the Airflow connection: https://api.airbyte.com or https://<your host>/api/public."
CLIENT_ADVICE = f"Check the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET. {HOST_ADVICE}"
TOKEN_ADVICE = f"Check CLOUD_API_TOKEN, if it is set, and that the Airflow connection has no login. {HOST_ADVICE}"
ID_ADVICE = "Check the id of the Airbyte connection, and that your Airbyte user has the role Runner or higher."
STATE_ADVICE = "Check in Airbyte whether the connection is active, and whether it has this job."
REFUSAL_ADVICE = {401: TOKEN_ADVICE, 403: ID_ADVICE, 404: f"{ID_ADVICE} {HOST_ADVICE}", 409: STATE_ADVICE}  # by status


# What can go wrong, and what it costs the two tasks. The retries are Airflow's own: see `default_args`.
#
#                                                              the start        the wait
# Airbyte does not answer (NoAnswerError, or requests' own)    a retry          nothing: it checks again later
# it gives no token, and the run is older than `timeout`       (as above)       a retry
# Airbyte refuses, or a setting is missing (any other error)   a retry          a retry
# the worker dies, or `execution_timeout` is over              a retry          a retry
# a malformed id, a misspelt parameter (AirflowFailException)  fails at once    -
# a job that failed, or no job id (AirflowFailException)       -                fails at once
# the job takes longer than `timeout`                          -                fails at once


class NoAnswerError(Exception):
    """Airbyte is out of reach or in trouble, or something else answers in its place."""


# The token. Every try and every poke requests a new one (unless CLOUD_API_TOKEN is set), so it never grows old. That is
# done in `pre_execute`, after Airflow has rendered and stored the templates, so it is never stored.


def get_auth_headers() -> dict:
    """Return the headers of a request, with a token.

    Raise RuntimeError if a setting is missing or wrong, and NoAnswerError if Airbyte gives no token.
    """
    check_airflow_connection()
    token = Variable.get("CLOUD_API_TOKEN", "").strip() or request_token()
    token = re.sub("^Bearer ", "", token)
    token = re.sub("[^A-Za-z0-9._~+/=-]", "", token)  # Only these occur in a token (RFC 6750). Others were pasted.
    mask_secret(token)
    return {**HEADERS, "Authorization": f"Bearer {token}"}


def check_airflow_connection() -> None:
    """Raise RuntimeError if the Airflow connection is missing, or if using it would show a secret."""
    try:
        connection = HttpHook.get_connection(AIRFLOW_CONNECTION)
    except Exception:  # noqa: BLE001 It is missing or malformed. The error is not shown: it may quote a password.
        raise RuntimeError(f"Create or correct the Airflow connection {AIRFLOW_CONNECTION}, of type HTTP.") from None
    host = connection.host or ""
    if connection.conn_type != "http":
        raise RuntimeError(f"Set the type of the Airflow connection {AIRFLOW_CONNECTION} to HTTP, even for https.")
    if "@" in host:  # The login would show in messages.
        raise RuntimeError(f"Remove the login from the host of the Airflow connection {AIRFLOW_CONNECTION}.")
    if "://" not in host and not connection.schema:  # The hook would send the secrets by http.
        raise RuntimeError(f"Begin the host with https:// (or http://, if Airbyte has no TLS). {HOST_ADVICE}")


def request_token() -> str:
    """Return a new token of the client that the Variables name. Airbyte lets it live for 15 minutes."""
    client_id = Variable.get("AIRBYTE_CLIENT_ID", "").strip()
    client_secret = Variable.get("AIRBYTE_CLIENT_SECRET", "").strip()
    if not (client_id and client_secret):  # They may be set, but Airflow hides the errors of a secrets backend.
        raise RuntimeError("Set the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET, or CLOUD_API_TOKEN.")
    # Airbyte writes "grant-type" with a hyphen.
    credentials = {"client_id": client_id, "client_secret": client_secret, "grant-type": "client_credentials"}
    response = call_airbyte(HEADERS, "v1/applications/token", json.dumps(credentials), method="POST")
    return parse_or_raise(response, "access_token", CLIENT_ADVICE)["access_token"]


# The start. For each try and each poke, Airflow makes a copy of the task, which is `ti.task`. So these functions may
# set its attributes: the next try or poke finds them as the DAG has them.


def get_connection_id(dag, dag_run) -> str:
    """Return the connection id of the run, or else of the DAG, or else of the Variable. A template puts it into `data`.

    Raise AirflowFailException if it is malformed, or if the run has a parameter that looks like a misspelt one.
    """
    conf = dag_run.conf or {}
    # With connectionId or conection_id, the run would sync another connection than its author wants.
    misspelt = [key for key in conf if re.search("con+ect[io]+n", key.lower()) and key not in dag.params]
    if misspelt:
        raise AirflowFailException(f"No such parameter: {', '.join(misspelt)}. This DAG has: {', '.join(dag.params)}")
    # Not from `params`: `dag_run_conf_overrides_params` may be off, and then they lack what the run was given.
    value = (conf.get("connection_id") or dag.params.get("connection_id") or "").strip()
    source = "parameter connection_id" if value else "Variable MY_EXAMPLE_CONNECTION_ID"
    value = value or Variable.get("MY_EXAMPLE_CONNECTION_ID", "").strip()
    if re.fullmatch(UUID_PATTERN, value):
        return value
    advice = f"Set the {source} to the UUID in the URL of the Airbyte connection."
    if not value:  # It may be set, but Airflow hides the errors of a secrets backend.
        raise RuntimeError(f"{advice} It has no value.")
    # Do not show all of it: it may be a secret that was pasted into the wrong field.
    raise AirflowFailException(f"{advice} It begins with {value[:4]!r} and has {len(value)} characters.")


def prepare_start(context) -> None:
    """Get a token. On a retry, follow the newest sync of this run: an earlier try may have started it."""
    ti, task = context["ti"], context["ti"].task
    task.headers = get_auth_headers()
    if not isinstance(task.data, str):  # The DAG has render_template_as_native_obj=True.
        task.data = json.dumps(task.data)
    # The first try since somebody cleared the task starts a sync. It is found as Airflow's sensors find it: of a task
    # with 7 retries that was cleared after its try 3, `max_tries` is 10, and the first try is 4.
    first_try = ti.max_tries - task.retries + 1
    if ti.try_number > first_try:
        syncs = [job for job in list_jobs(task, json.loads(task.data)["connectionId"]) if is_sync(job)]
        if syncs and syncs[0]["age"] <= get_run_age(context["dag_run"]) + 5:  # Airbyte's times are rounded.
            job_id = syncs[0]["jobId"]
            task.log.info("Not starting a second sync: following job %s, which began during this run.", job_id)
            task.method, task.endpoint, task.data = "GET", f"v1/jobs/{job_id}", None
            task.extra_options = REQUEST_OPTIONS  # A GET needs no 180 seconds.


def get_job_id(response, ti) -> int:
    """Return the id of the job that was started, followed or found running. Raise RuntimeError if it is no sync."""
    # Airbyte runs one job of a connection at a time. This 409 says that one is running (its ConfigClientErrorHandler).
    if response.status_code == 409 and "try-again-later" in response.text:
        job = find_running_job(ti.task)
        ti.task.log.info("Airbyte job %s is already running: no new one was started.", job["jobId"])
    else:
        job = parse_or_raise(response, "jobId")
    ti.task.log.info("Airbyte job: %s", json.dumps(job))
    if not is_sync(job):
        raise RuntimeError(f"Airbyte job {job['jobId']} is a {job['jobType']}, not a sync. A sync can start after it.")
    return job["jobId"]


# The wait. A poke gets a token (`prepare_poke`), asks for the job (the sensor itself) and judges the answer
# (`check_job`). If Airbyte does not answer, each of the three has its own way to check again later without using a
# retry: `prepare_poke` raises AirflowRescheduleException, the sensor has `silent_fail`, `check_job` returns False.


def prepare_poke(context) -> None:
    """Get a token. Raise AirflowRescheduleException if Airbyte does not answer."""
    task = context["ti"].task
    if not task.endpoint.rpartition("/")[2].isdigit():
        raise AirflowFailException(f"No job id in {task.endpoint}. If the start was marked as a success, clear it.")
    run_is_old = get_run_age(context["dag_run"]) > task.timeout
    if run_is_old:
        task.log.warning("The run is older than `timeout`. If this task fails, clear it to go on waiting for the sync.")
    task.shortest_poke_interval = task.poke_interval  # `check_job` needs it as the DAG has it.
    # If Airbyte does not answer, ask less often (every 2 to 4 minutes), and not in all runs at once: each request may
    # hold a worker slot for REQUEST_TIMEOUT.
    slow_interval = min(16 * task.poke_interval, 4 * 60) * random.uniform(0.5, 1)
    task.poke_interval = max(task.poke_interval, slow_interval)
    try:
        task.headers = get_auth_headers()
    except NoAnswerError as error:
        if run_is_old:  # Airflow looks at the timeout only after a poke, and this one ends here.
            raise
        task.log.warning("Next check in %.0f s. %s", task.poke_interval, error)
        raise AirflowRescheduleException(pendulum.now("UTC").add(seconds=task.poke_interval)) from None
    task.log.info("Checking. (Without an answer in REQUEST_TIMEOUT: next check in %.0f s.)", task.poke_interval)


def check_job(response, ti) -> bool:
    """Return whether the job has succeeded, and then leave it as XCom `job`. Set the time of the next poke.

    Raise AirflowFailException if the job has ended otherwise, and RuntimeError if Airbyte refuses to tell.
    """
    task = ti.task
    task.silent_fail = False  # There is an answer. From here on, an error uses a retry.
    try:
        job = parse_or_raise(response, "status")
    except NoAnswerError as error:
        task.log.warning("Next check in %.0f s. %s", task.poke_interval, error)
        return False
    task.log.info("Airbyte job: %s", json.dumps(job))
    if job["status"] == "succeeded":
        ti.xcom_push(key="job", value=job)
        return True
    if has_ended(job):
        raise AirflowFailException(f"Airbyte job {job['jobId']} {job['status']}: {get_job_link(task, job, response)}")
    try:
        jobs = list_jobs(task, job["connectionId"])
        quick_duration = get_quick_duration(jobs)
        task.poke_interval = seconds_to_next_poke(task.shortest_poke_interval, get_age(job, response), quick_duration)
    except Exception as error:  # noqa: BLE001 Nothing but the time of the next poke depends on it.
        task.log.warning("Earlier syncs not known, which is harmless: %s", error)
    task.log.info("Next check in %.0f s.", task.poke_interval)
    return False


def seconds_to_next_poke(shortest: float, age: float, quick_duration: float) -> float:
    """Return the seconds until a job of this age has taken as long as a quick sync. If it has, a thirtieth of its age.

    The result is at least `shortest`, and else at most five minutes. All arguments are in seconds.
    """
    if age < quick_duration:
        seconds = quick_duration - age
    else:  # a thirtieth, more or less: runs that began together shall not check together for good
        seconds = age / random.uniform(25, 35)
    return max(shortest, min(seconds, 5 * 60))


def get_quick_duration(jobs: list) -> float:
    """Return the seconds that the third quickest of these syncs took (of fewer, the slowest), or 0 without any.

    The two quickest may have been exceptions.
    """
    succeeded = [job for job in jobs if is_sync(job) and job["status"] == "succeeded"]
    durations = [seconds_between(job["startTime"], job["lastUpdatedAt"]) for job in succeeded]
    quickest = sorted(durations)[:3]
    return max(quickest, default=0)


# Airbyte's jobs


def is_sync(job: dict) -> bool:
    """Return whether a job moves data. A reset or clear only deletes it; any other type, even a new one, moves it."""
    return job["jobType"] not in ("reset", "clear")


def has_ended(job: dict) -> bool:
    """Return whether a job has ended. In any other status, even a new one, it has not."""
    return job["status"] in ("succeeded", "failed", "cancelled")


def get_age(job: dict, response) -> float:
    """Return the seconds since a job began, by the clock of Airbyte's answer if it has one."""
    return seconds_between(job["startTime"], response.headers.get("Date") or str(pendulum.now("UTC")))


def list_jobs(task, connection_id: str, job_type=None) -> list:
    """Return the newest jobs of a connection (Airbyte gives 20), the newest first, each with its `age`."""
    query = {"connectionId": connection_id, "orderBy": "createdAt|DESC", "jobType": job_type}  # None is not sent.
    response = call_airbyte(task.headers, "v1/jobs", query)
    jobs = parse_or_raise(response, "data")["data"]
    return [{**job, "age": get_age(job, response)} for job in jobs]


def find_running_job(task) -> dict:
    """Return the job of the task's Airbyte connection that has not ended. Raise RuntimeError if there is none."""
    for job_type in (None, "refresh", "clear"):  # Before February 2026, None gives syncs and resets alone.
        for job in list_jobs(task, json.loads(task.data)["connectionId"], job_type):
            if not has_ended(job):
                return job
    raise RuntimeError("Airbyte says that a job of this connection is running, but lists none.")


def get_job_link(task, job: dict, response) -> str:
    """Return the address of a job's page in Airbyte's UI, or where to look if that is not known."""
    try:
        connection_path = f"connections/{job['connectionId']}"
        workspace_id = call_airbyte(task.headers, f"v1/{connection_path}").json()["workspaceId"]
    except Exception:  # noqa: BLE001 Whatever happens here, the user must learn how the job has ended.
        return "see the connection's timeline in Airbyte."
    # https://api.airbyte.com/v1/… becomes https://cloud.airbyte.com. Self-managed, /api/public/v1/… is removed.
    ui = response.url.partition("/v1/")[0].replace("/api/public", "").replace("//api.airbyte", "//cloud.airbyte")
    ui = ui.replace("//host.docker.internal", "//localhost")
    return f"{ui}/workspaces/{workspace_id}/{connection_path}/timeline?openLogs=true&jobId={job['jobId']}"


# Airbyte's API


def call_airbyte(headers: dict, endpoint: str, data=None, method: str = "GET"):
    """Send a request, and return the response. Raise NoAnswerError if there is none."""
    hook = HttpHook(method, AIRFLOW_CONNECTION)
    try:
        return hook.run(endpoint, data, headers, REQUEST_OPTIONS)
    except (OSError, ValueError) as error:  # Every error of requests is an OSError. The hook refuses some hosts itself.
        advice = HOST_ADVICE
        if "Read timed out" in str(error):
            advice = "Airbyte is slow. If it always is, raise REQUEST_TIMEOUT in the DAG file."
        elif "WRONG_VERSION_NUMBER" in str(error):
            advice = "Airbyte does not use TLS there: begin the host with http://."
        elif "CERTIFICATE" in str(error):
            advice = "Set REQUESTS_CA_BUNDLE to a file with your CA's certificate and the public ones."
        raise NoAnswerError(f"No answer from {hook.base_url}. {advice} {error}") from None


def parse_or_raise(response, required_key: str, advice: str = "") -> dict:
    """Return Airbyte's answer, a JSON object that has this key.

    Raise RuntimeError, with this advice or the usual one, if Airbyte refuses the request. Raise NoAnswerError if it is
    in trouble, or if something else answers, such as a gateway or a login page.
    """
    status, request = response.status_code, response.request
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if status < 300 and isinstance(answer, dict) and answer.get(required_key) is not None:
        return answer
    message = f"Airbyte answered {request.method} {request.url} with {status}."
    # An answer below 300 may hold a token: do not quote it.
    said = f"The answer: {redact(response)}" if status >= 300 else f"The answer has no {required_key}."
    # While its own database is down, Airbyte refuses with "internal error" (SecurityAwareCurrentUserService).
    if status in (408, 429) or status >= 500 or "internal error" in response.text:
        raise NoAnswerError(f"{message} It is busy or in trouble. {said}")
    # Airbyte refuses with a JSON object, and its gateway with any 401. Whatever else answers is neither.
    if status < 400 or (status != 401 and not isinstance(answer, dict)):
        raise NoAnswerError(f"{message} {HOST_ADVICE} {said}")
    raise RuntimeError(f"{message} {advice or REFUSAL_ADVICE.get(status, 'Airbyte gives the reason.')} {said}")


def redact(response) -> str:
    """Return what an answer says, and where a redirect points, without the credentials that it may repeat."""
    said = f"{response.headers.get('Location', '')} {response.text}".strip()
    sent = json.loads(response.request.body or "{}")
    token = response.request.headers.get("Authorization", "").rpartition(" ")[2]
    for secret in filter(None, (token, sent.get("client_id"), sent.get("client_secret"))):
        said = said.replace(secret, "***")
    return said[:1000]


# Times


def get_run_age(dag_run) -> float:
    """Return the seconds since a run began, or 0 if it has no start, as with `airflow tasks test` on Airflow 2."""
    if not dag_run.start_date:
        return 0
    return (pendulum.now("UTC") - pendulum.instance(dag_run.start_date)).total_seconds()


def seconds_between(start: str, end: str) -> float:
    """Return the seconds between two times of Airbyte's: both in ISO 8601, or the end as in the header `Date`."""
    return (pendulum.parse(end, strict=False) - pendulum.parse(start)).total_seconds()


# You may change the arguments below without changing the code above. (The docstring repeats some numbers.)
# Leave as they are: `deferrable`, `mode`, `silent_fail`, `extra_options` (but for the start's `timeout` in it),
# `execution_timeout` and the functions.
# You may add tasks, and further pairs of these two, if each start has its own connection id:
#     data=json.dumps({"connectionId": "<connection id>", "jobType": "sync"})
# A retry of the start follows any sync that began during the run. If a task runs before the start, that sync may have
# begun before this task ended. If the start was cleared in a running run, it may be the sync from before the clear.
with DAG(
    dag_id="airbyte_api_sync_demo",
    doc_md=__doc__,
    schedule=None,
    start_date=pendulum.datetime(2023, 3, 1, tz="UTC"),
    catchup=False,
    max_active_runs=256,  # Runs that wait count, and Airflow's default is 16. Two CPU cores carry 256 one-hour syncs.
    tags=["airbyte"],
    params={"connection_id": Param("", type=["null", "string"], description="If empty: MY_EXAMPLE_CONNECTION_ID")},  # noqa: AIR311
    user_defined_macros={"get_connection_id": get_connection_id},
    default_args={  # of tasks that you add, too
        "deferrable": False,  # A deferred task would keep an old token. Here, since old sensors do not know it.
        "retries": 7,  # over 21 minutes. If you lower it while a run is retrying, a retry may count as a first try.
        "retry_delay": pendulum.duration(minutes=3),
    },
) as dag:
    trigger_sync = SimpleHttpOperator(
        task_id="start_airbyte_sync",
        http_conn_id=AIRFLOW_CONNECTION,
        endpoint="v1/jobs",
        data='{"connectionId": "{{ get_connection_id(dag, dag_run) }}", "jobType": "sync"}',
        extra_options={**REQUEST_OPTIONS, "timeout": 180},  # Airbyte can take more than two minutes to answer.
        pre_execute=prepare_start,
        response_filter=get_job_id,
        execution_timeout=pendulum.duration(minutes=10),  # Ends the request if it hangs, which uses a retry.
    )

    wait_for_sync_to_complete = HttpSensor(
        task_id="wait_for_airbyte_sync",
        http_conn_id=AIRFLOW_CONNECTION,
        endpoint=f"v1/jobs/{trigger_sync.output}",
        extra_options=REQUEST_OPTIONS,
        pre_execute=prepare_poke,
        response_check=check_job,
        execution_timeout=pendulum.duration(minutes=5),
        mode="reschedule",  # Required: between two pokes it holds no worker slot, and each poke has a new token.
        poke_interval=15,  # the shortest: see `seconds_to_next_poke`
        timeout=24 * 60 * 60,
        silent_fail=True,  # If a request gets no answer, log it and poke again. `check_job` turns this off.
    )

    # The f-string in `endpoint` sets no dependency.
    trigger_sync >> wait_for_sync_to_complete

if __name__ == "__main__":
    trigger_sync.retries = 0  # By hand, say at once if a sync cannot start.
    raise SystemExit(0 if dag.test().state == "success" else 1)
