"""**Start an Airbyte sync and wait for it.**

`start_airbyte_sync` starts a sync, or joins the one that is running. `wait_for_airbyte_sync` checks the job until
it ends, and holds no worker slot between two checks. Under *Admin*, set:

- Connection `airbyte-api-cloud-connection`: HTTP, no login, host `https://api.airbyte.com` or `https://<host>/api/public`
- Variable `MY_EXAMPLE_CONNECTION_ID`: the id of the Airbyte connection, unless the run has a `connection_id`
- Variables `AIRBYTE_CLIENT_ID` and `AIRBYTE_CLIENT_SECRET` (*User settings → Applications*), or `CLOUD_API_TOKEN`

If something is wrong, the task's log says what to check. If it looks empty (Airflow 3), open its group *Pre Execute*.
Put it right within ten minutes, and the run goes on by itself. Later, clear the task that has failed.
Stopping a run does not stop the sync: cancel it in Airbyte. Clear `wait_for_airbyte_sync` to wait for the same job
again. To sync anew, clear `start_airbyte_sync` of a run that has ended. (In a running one, it may follow its sync.)
"""

import json
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
    from airflow.sdk.log import mask_secret
except ImportError:  # Airflow 2
    from airflow.models import DAG, Param, Variable
    from airflow.utils.log.secrets_masker import mask_secret
try:
    from airflow.sdk.exceptions import AirflowFailException
except ImportError:  # Airflow before 3.2
    from airflow.exceptions import AirflowFailException

# ruff: noqa: AIR001, AIR311 (the tutorial's names, and the imports of Airflow 2)
HTTP_CONNECTION = "airbyte-api-cloud-connection"  # its API: https://reference.airbyte.com
HEADERS = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "airbyte_api_sync_demo"}
TIMEOUT = (5, 10)  # seconds until connected, and until answered: who waits for an answer holds a worker slot
NO_SYNCS = ("reset", "clear")  # They only delete data. Jobs of any other type, even a new one, move it.
ENDED = ("succeeded", "failed", "cancelled")  # In any other status, even a new one, the job has not ended.
CHECK_HOST = f"Check the host of {HTTP_CONNECTION}: https://api.airbyte.com or https://<your host>/api/public, no /v1."
ADVICE = {  # if Airbyte refuses a token, or anything else with one of these statuses
    ("access_token", 404): CHECK_HOST,
    "access_token": f"Check the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET. {CHECK_HOST}",
    401: f"Check CLOUD_API_TOKEN if set, and that {HTTP_CONNECTION} has no login. {CHECK_HOST}",
    403: "Check the connection id, and that your Airbyte user has the role Runner.",
    404: f"Check the connection id, and that your Airbyte user has the role Runner. {CHECK_HOST}",
    **dict.fromkeys((400, 402, 422), "It says why:"),
    409: "Check in Airbyte whether the connection is active, and has this job.",
}


class RefusedError(Exception):
    """What a person must put right: Airbyte refuses a request, or a setting is missing."""


def refusal(ti, message: str) -> Exception:
    """Return a RefusedError, which costs a try, or a final error if five have failed since the task was last cleared."""
    ti.task.silent_fail = False  # Else a poke would only log it.
    return AirflowFailException(message) if count_failed_tries(ti) >= 5 else RefusedError(message)


def count_failed_tries(ti) -> int:
    """Return how many tries of the task have failed since it was last cleared."""
    return max(0, ti.try_number - (ti.max_tries - ti.task.retries + 1))  # `airflow tasks test` has try number 0.


def authorize(context) -> None:
    """Put a token into the task's headers, at every try and poke: it is never old, and no template field holds it."""
    ti = context["ti"]  # On Airflow 3.0, context["task"] is not the task that runs. ti.task is.
    try:
        kind = HttpHook.get_connection(HTTP_CONNECTION).conn_type
    except Exception as error:  # noqa: BLE001 It is missing or unread, or its URI is malformed.
        raise refusal(ti, f"Create {HTTP_CONNECTION}, of type HTTP: {without_login(error)}. {CHECK_HOST}") from None
    if kind != "http":  # With https, the hook would call http://.
        raise refusal(ti, f"Set the type of {HTTP_CONNECTION} to HTTP, for https, too. It is of type {kind}.")
    token = Variable.get("CLOUD_API_TOKEN", "").strip() or get_new_token(ti)
    token = "".join(token.split())  # A line break is no part of a header.
    mask_secret(token)
    ti.task.headers = {**HEADERS, "Authorization": f"Bearer {token}"}


def get_new_token(ti) -> str:
    """Return a token for the client that the Variables name."""
    client = {name: Variable.get(f"AIRBYTE_{name.upper()}", "").strip() for name in ("client_id", "client_secret")}
    if not all(client.values()):  # or unread: Airflow hides the errors of a secrets backend
        raise refusal(ti, "Set the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET, or CLOUD_API_TOKEN.")
    body = json.dumps({**client, "grant-type": "client_credentials"})
    response = call_airbyte(ti, "v1/applications/token", body, "POST", HEADERS)
    return read_answer(response, "access_token", ti)["access_token"]


def get_connection_id(ti, dag, dag_run) -> str:
    """Return the connection id of the run, or else of the task, or else the Variable's. Jinja puts it into the POST."""
    conf = dag_run.conf or {}
    if unknown := set(conf) - {*dag.params, "openlineage", "airflow/task_span_detail_level"}:  # Two are Airflow's own.
        raise AirflowFailException(f"No such parameter: {', '.join(unknown)}. There are: {[*dag.params]}")
    value = (conf.get("connection_id") or ti.task.params.get("connection_id") or "").strip()
    name = "parameter connection_id" if value else "Variable MY_EXAMPLE_CONNECTION_ID"
    value = value or Variable.get("MY_EXAMPLE_CONNECTION_ID", "").strip()
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value):
        advice = f"Set the {name} to the UUID in the connection's URL: /connections/<UUID>/ It is: {value[:100]!r}"
        raise AirflowFailException(advice) if value else refusal(ti, advice)  # Blank may mean unread, as above.
    return value


def follow_earlier_try(context) -> None:
    """On a retry, instead of the POST, GET the newest sync if it began during this run: an earlier try may own it."""
    authorize(context)
    ti, task = context["ti"], context["ti"].task
    if count_failed_tries(ti):
        jobs, date = list_jobs(ti, json.loads(task.data))
        run_age = seconds_since(context["dag_run"].start_date) + 5  # Airbyte's times are rounded.
        sync = next((job for job in jobs if job["jobType"] not in NO_SYNCS), None)
        if sync and seconds_since(sync["startTime"], date) <= run_age:
            task.log.info("No second sync: following job %s, which began during this run.", sync["jobId"])
            task.method, task.endpoint, task.data = "GET", f"v1/jobs/{sync['jobId']}", None


def read_job_id(response, ti) -> int:
    """Return the id of the job that was started, followed or (on a 409) found running, if it is a sync."""
    if response.status_code == 409 and "try-again-later" in response.text:  # ConfigClientErrorHandler, in Airbyte
        jobs, _ = list_jobs(ti, json.loads(ti.task.data))
        job = next((job for job in jobs if job["status"] not in ENDED), None)
        if not job:
            raise refusal(ti, f"Airbyte says that a job of this connection runs, but lists none. {quote(response)}")
        ti.task.log.info("Airbyte job %s is already running.", job["jobId"])
    else:
        job = read_answer(response, "jobId", ti)
    ti.task.log.info("Airbyte job: %s", json.dumps(job))
    if job["jobType"] in NO_SYNCS:
        raise RuntimeError(f"Airbyte job {job['jobId']} is a {job['jobType']}, not a sync. It must end first.")
    return job["jobId"]


def prepare_poke(context) -> None:
    """Get a token, and let the next poke come after a thirtieth of the run's age if this one goes wrong."""
    ti, task, age = context["ti"], context["ti"].task, seconds_since(context["dag_run"].start_date)
    if not task.endpoint.rpartition("/")[2].isdigit():
        raise AirflowFailException("There is no job id. If the start was marked as a success, clear it to sync.")
    task.poke_interval = seconds_to_next_poke(age, [], task.poke_interval)
    task.on_kill = lambda: setattr(task, "silent_fail", False)  # In Airflow 2.7 and 2.8, SIGTERM is a mere Exception.
    if age > task.timeout and count_failed_tries(ti):  # On Airflow 3, each try starts the timeout anew.
        task.timeout = 0  # after this poke
    try:
        authorize(context)
    except Exception as error:
        if task.timeout:
            raise
        raise AirflowFailException(f"No end of {task.endpoint} seen. Clear this task to wait longer. {error}") from None


def has_succeeded(response, ti, dag, dag_run) -> bool:
    """Return whether the job has succeeded, and then push it as XCom `job`. Fail if it ended otherwise."""
    job, task, age = read_answer(response, "status", ti), ti.task, 0
    task.log.info("Airbyte job: %s", json.dumps(job))
    if job["status"] == "succeeded":
        ti.xcom_push(key="job", value=job)
        return True
    if job["status"] in ENDED:
        raise AirflowFailException(f"Airbyte job {job['jobId']} {job['status']}: {find_page(ti, job, response.url)}")
    try:
        jobs, date = list_jobs(ti, job)
        age = seconds_since(job["startTime"], date)
        # The DAG's own task has the interval from before `prepare_poke`: ti.task is a copy.
        task.poke_interval = seconds_to_next_poke(age, jobs, dag.get_task(ti.task_id).poke_interval)
    except (RuntimeError, RefusedError, AirflowFailException, LookupError, TypeError, ValueError) as error:
        task.log.warning("Earlier syncs are not known, so checking again in %s s: %s", task.poke_interval, error)
    if min(age, seconds_since(dag_run.start_date)) > task.timeout:  # `airflow dags test` takes its date as the start.
        advice = "has not ended before the timeout, and goes on. Clear this task to wait longer."
        raise AirflowFailException(f"Airbyte job {job['jobId']} {advice} {find_page(ti, job, response.url)}")
    return False


def seconds_to_next_poke(age: float, jobs: list, shortest: float) -> float:
    """Return the seconds until the third quickest earlier sync would have ended, or else a 30th of the job's age."""
    succeeded = [job for job in jobs if job["jobType"] not in NO_SYNCS and job["status"] == "succeeded"]
    known = [job["duration"] for job in succeeded if re.match(r"PT\d", job.get("duration") or "")]  # not "PT-5S"
    durations = sorted(pendulum.parse(duration).total_seconds() for duration in known)
    left = durations[:3][-1] - age if durations else 0
    return max(shortest, min(left if left > 0 else age // 30, 5 * 60))


def seconds_since(start, date=None) -> float:
    """Return the seconds from a start, as Airbyte or Airflow gives it, until now, or until the date of an answer."""
    now = pendulum.parse(date, strict=False) if date else pendulum.now("UTC")
    return (now - pendulum.parse(str(start or now))).total_seconds()


def find_page(ti, job: dict, url: str) -> str:
    """Return the address of the job's page in Airbyte's UI, or where to look if that is not known."""
    try:
        workspace = call_airbyte(ti, f"v1/connections/{job['connectionId']}").json()["workspaceId"]
    except Exception:  # noqa: BLE001 Whatever happens here, the user must learn what happened to the job.
        return "the connection's timeline in Airbyte."
    ui = without_login(url).partition("/v1/")[0].replace("/api/public", "").replace("//api.airbyte", "//cloud.airbyte")
    ui = ui.replace("//host.docker.internal", "//localhost")
    return f"{ui}/workspaces/{workspace}/connections/{job['connectionId']}/timeline?openLogs=true&jobId={job['jobId']}"


def list_jobs(ti, sync: dict) -> tuple:
    """Return the last 20 jobs of this sync's connection, of any type and newest first, and the date at Airbyte."""
    response = call_airbyte(ti, "v1/jobs", {"connectionId": sync["connectionId"], "orderBy": "createdAt|DESC"})
    return read_answer(response, "data", ti)["data"], response.headers.get("Date")


def call_airbyte(ti, endpoint: str, data=None, method: str = "GET", headers=None):
    """Send a request, by default with the headers of the task's own, and return the response."""
    hook, options = HttpHook(method, HTTP_CONNECTION), {**ti.task.extra_options, "timeout": TIMEOUT}
    try:
        return hook.run(endpoint, data, headers or ti.task.headers, options)
    except (OSError, ValueError) as error:  # Every error of requests is an OSError. The hook refuses some hosts itself.
        advice = "Let REQUESTS_CA_BUNDLE name the file of your CA." if "CERTIFICATE" in str(error) else CHECK_HOST
        raise RuntimeError(without_login(f"No answer from {hook.base_url}. {advice} {error}")) from None


def read_answer(response, key: str, ti) -> dict:
    """Return the answer, a JSON object with this key. Raise `refusal` if Airbyte refuses, else RuntimeError."""
    status, text = response.status_code, response.content.decode("utf-8-sig", "replace").strip()
    if status < 300 and text.startswith("{") and (answer := json.loads(text)).get(key) is not None:
        return answer
    message = f"Airbyte answered {response.request.method} {without_login(response.request.url)} with {status}."
    said = quote(response) if status >= 300 else f"It has no {key}."  # A 2xx may hold a token.
    if status in (408, 429) or status >= 500 or "internal error" in text:  # SecurityAwareCurrentUserService
        raise RuntimeError(f"{message} It is busy or in trouble. {said}")
    if status not in ADVICE or not text.startswith("{"):
        raise RuntimeError(f"{message} {CHECK_HOST} {said}")
    advice = ADVICE.get((key, status)) or ADVICE.get(key) or ADVICE[status]
    raise refusal(ti, f"{message} {advice} {said}")


def quote(response) -> str:
    """Return what an answer says and points to, without the credentials that it may repeat."""
    said = f"{response.headers.get('Location', '')} {response.text}".strip()
    sent = f"{response.request.headers.get('Authorization', '')} {response.request.body}"
    for secret in re.findall(r'(?:Bearer |Basic |"client_id": "|"client_secret": ")([^"\s]+)', sent):
        said = said.replace(secret, "***")
    return without_login(said)[:1000]


def without_login(text) -> str:
    """Return a text without the logins of the URLs in it."""
    return re.sub(r"//[^/\s]*@", "//", str(text))


with DAG(
    dag_id="airbyte_api_sync_demo",
    doc_md=__doc__,
    schedule=None,
    start_date=pendulum.datetime(2023, 3, 1, tz="UTC"),
    catchup=False,
    max_active_runs=256,  # Waiting runs count, and Airflow's default is 16. Two cores carry 256 syncs of an hour.
    tags=["airbyte"],
    params={"connection_id": Param("", type=["null", "string"], description="Else Variable MY_EXAMPLE_CONNECTION_ID")},
    user_defined_macros={"get_connection_id": get_connection_id},
    # Deferred, a task would keep an old token. No headers here: a task for another server must not get Airbyte's token.
    default_args={"deferrable": False, "retry_delay": 30, "retry_exponential_backoff": True, "max_retry_delay": 300},
) as dag:
    trigger_sync = SimpleHttpOperator(
        task_id="start_airbyte_sync",
        http_conn_id=HTTP_CONNECTION,
        endpoint="v1/jobs",
        data='{"connectionId": "{{ get_connection_id(ti, dag, dag_run) }}", "jobType": "sync"}',
        extra_options={"check_response": False, "allow_redirects": False, "timeout": 180},  # A start may take 130 s.
        pre_execute=follow_earlier_try,
        response_filter=read_job_id,
        execution_timeout=pendulum.duration(minutes=10),  # It ends a hang, such as a body that drips, and costs a try.
        retries=7,  # for at least 20 minutes, unless refused
    )

    wait_for_sync_to_complete = HttpSensor(
        task_id="wait_for_airbyte_sync",
        http_conn_id=HTTP_CONNECTION,
        endpoint=f"v1/jobs/{trigger_sync.output}",
        extra_options={"check_response": False, "allow_redirects": False, "timeout": TIMEOUT},
        pre_execute=prepare_poke,
        response_check=has_succeeded,
        execution_timeout=pendulum.duration(minutes=5),
        mode="reschedule",  # Between two pokes it holds no worker slot.
        poke_interval=15,  # the shortest: see `seconds_to_next_poke`
        timeout=24 * 60 * 60,
        silent_fail=True,  # What goes wrong in a poke is logged, and the next one comes. But see `refusal`.
        retries=288,  # every 5 minutes for 24 hours, for what goes wrong outside a poke: no token, a lost worker
    )

    trigger_sync >> wait_for_sync_to_complete

if __name__ == "__main__":
    errors = []
    for task in dag.tasks:
        task.on_failure_callback = [lambda context: errors.append(context.get("exception"))]
        task.retries = 0 if isinstance(task, SimpleHttpOperator) else task.retries  # Say at once what is wrong.
    if dag.test().state != "success":
        raise SystemExit(f"The run failed: {next(filter(None, errors), 'see the log above')}")
    print("The sync has succeeded.")
