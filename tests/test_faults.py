"""
What can go wrong, and how the run copes with it.

A run ends in one of two ways: it follows the sync to its true end, or a task fails with a message that says what to
do. It never starts a second sync while the first one may be running.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from sandbox.airflow_home import AIRFLOW_VERSION, HTTP_CONNECTION_VARIABLE, START, WAIT, dag_settings
from sandbox.fake_airbyte import (
    CLIENT_ID,
    CLIENT_SECRET,
    CONNECTION_ID,
    ENDED,
    WORKSPACE_ID,
    FakeAirbyte,
    Fault,
    Job,
)

SUCCESS = {START: "success", WAIT: "success"}
START_FAILS = {START: "failed", WAIT: "upstream_failed"}
WAIT_FAILS = {START: "success", WAIT: "failed"}

SYNCS = ("sync", "refresh")
BUSY = (408, 429, 500, 502, 503, 504)
REFUSALS = (400, 401, 403, 404, 422)
NO_JOB = {"html": "<!doctype html><html><body>Sign in</body></html>", "list": "[]", "empty": "", "keyless": "{}"}
CLOSED = Fault(no_answer="closed")
SILENCE = Fault(no_answer="silent")
CLOSED_BUT_CARRIED_OUT = Fault(no_answer="closed", carried_out=True)
JOBS_END = Fault(before=FakeAirbyte.end_jobs)
TOKENS_EXPIRE = Fault(before=FakeAirbyte.expire_tokens)
FOR_EVER = 99

RUNNING = {
    "age": 4,
    "statuses": ("running", "running", "succeeded"),
}  # older than the run, and young enough to be asked again soon
DAG_TEST_COUNTS_TRIES = AIRFLOW_VERSION >= (2, 10)  # Before, a retry in dag.test() does not know that it is one.
DAG_TEST_FAILS_POKES = AIRFLOW_VERSION == (3, 0)  # every other poke of a rescheduled sensor, whatever it is


@dataclass
class Outcome:
    """What a scenario left: the run of the DAG, and the fake Airbyte."""

    run: object
    airbyte: FakeAirbyte
    new_jobs: list[Job]


@pytest.fixture
def scenario(run):
    """A function that plays a scenario and checks how it ends."""

    def scenario(
        *,
        ends: dict[str, str] = SUCCESS,
        log_contains: str = "",
        post_count: int | None = 1,
        new_jobs: int = 1,
        faults: dict[str, list[Fault | None]] | None = None,
        statuses: tuple[str, ...] = ("running", "succeeded"),
        existing_jobs: tuple[dict, ...] = (),
        pending: tuple[str, ...] = (),
        lists: tuple[str, ...] = ("sync", "reset", "refresh", "clear"),
        base_path: str = "",
        host: str = "{url}",
        login: dict[str, str] | None = None,
        conf: dict | None = None,
        variables: dict[str, str | None] | None = None,
        request_timeout: float | None = None,
        wait_timeout: float = 120,
        wait_retries: int = 0,
    ) -> Outcome:
        """
        :param ends: the tasks' states
        :param log_contains: a part of the message to the user
        :param post_count: how many requests to create a job are sent; None: any number
        :param new_jobs: how many jobs the scenario adds
        :param faults, statuses, pending, lists, base_path: of the FakeAirbyte
        :param existing_jobs: the arguments of FakeAirbyte.add_job
        :param host, login: of the HTTP connection; {url} is Airbyte's, {root} that without its path
        :param conf, variables: of the run
        :param request_timeout: of the tasks' requests, in seconds, if not the DAG's own
        :param wait_timeout, wait_retries: of the sensor; a poke that goes wrong must not cost a retry
        """
        options = {"extra_options": {"timeout": request_timeout}} if request_timeout else {}
        start_retries = 3
        if ends == START_FAILS:
            start_retries = 1 if DAG_TEST_COUNTS_TRIES else 0  # Before 2.10 it would retry for ever.
        policy = {
            START: {"retries": start_retries, **options},
            WAIT: {"retries": FOR_EVER if DAG_TEST_FAILS_POKES else wait_retries, "timeout": wait_timeout, **options},
        }
        with FakeAirbyte(
            faults, {CONNECTION_ID: statuses}, base_path=base_path, pending=pending, lists=lists
        ) as airbyte:
            for job in existing_jobs:
                airbyte.add_job(**job)
            root = airbyte.url[: -len(base_path)] if base_path else airbyte.url
            settings = dag_settings(host.format(url=airbyte.url, root=root), **(login or {}))
            result = run(airbyte.url, conf=conf, variables={**settings, **(variables or {})}, policy=policy)

        assert result.tasks == ends, result.log[-3000:]
        assert log_contains in result.log
        created = airbyte.jobs[len(existing_jobs) :]
        assert len(created) == new_jobs
        assert post_count in (None, len(airbyte.requests_of("create_job")))
        if ends == SUCCESS:
            assert result.job["status"] == "succeeded"
            assert result.job["jobId"] == result.job_id == [job.id for job in airbyte.jobs if job.type in SYNCS][-1]
        assert_nothing_is_asked_after_the_end(airbyte)
        return Outcome(result, airbyte, created)

    return scenario


def assert_nothing_is_asked_after_the_end(airbyte: FakeAirbyte) -> None:
    """After the poll that says how the job ended, at most its page is asked for."""
    asked = [request for request in airbyte.requests if request.operation not in ("create_token", "get_connection")]
    ends = [number for number, request in enumerate(asked) if request.job_status in ENDED and request.status == 200]
    assert ends in ([], [len(asked) - 1]) or asked[ends[0] - 1].operation == "list_jobs", "a retry may see it earlier"


def answering(body: str) -> Fault:
    """Return the fault of something that answers in Airbyte's place."""
    return Fault(body=body)


def case(name: str, **scenario):
    """Return the arguments of a scenario as a parameter with a name."""
    return pytest.param(scenario, id=name)


needs_try_count = pytest.mark.skipif(not DAG_TEST_COUNTS_TRIES, reason="dag.test() does not count tries here")


# Every status on every request.


@pytest.mark.parametrize("status", BUSY)
def test_tries_again_if_airbyte_has_no_token_now(scenario, status):
    scenario(faults={"create_token": [Fault(status)]}, log_contains=f"v1/applications/token with {status}")


@pytest.mark.parametrize("status", (*REFUSALS, 409))
def test_fails_at_once_if_airbyte_refuses_the_client(scenario, status):
    outcome = scenario(
        faults={"create_token": [Fault(status)]},
        ends=START_FAILS,
        log_contains=f"v1/applications/token with {status}: ",
        post_count=0,
        new_jobs=0,
    )
    assert "AIRBYTE_CLIENT_ID" in outcome.run.log


@pytest.mark.parametrize("status", BUSY)
def test_tries_to_start_again_if_airbyte_is_busy(scenario, status):
    outcome = scenario(faults={"create_job": [Fault(status)]}, log_contains=f"with {status}", post_count=2)
    assert "no login" not in outcome.run.log, "advice that cannot help"


@pytest.mark.parametrize("status", BUSY)
def test_follows_the_sync_that_airbyte_started_although_it_was_busy(scenario, status):
    scenario(faults={"create_job": [Fault(status, carried_out=True)]}, post_count=None)


@pytest.mark.parametrize("status", (302, *REFUSALS))
def test_fails_at_once_if_airbyte_refuses_to_start(scenario, status):
    outcome = scenario(
        faults={"create_job": [Fault(status)]},
        ends=START_FAILS,
        log_contains=f"Airbyte answered POST /v1/jobs with {status}: ",
        new_jobs=0,
    )
    assert "no login" in outcome.run.log


@pytest.mark.parametrize("status", BUSY)
def test_pokes_again_if_airbyte_is_busy(scenario, status):
    scenario(faults={"get_job": [Fault(status)]}, log_contains=f"with {status}")


@pytest.mark.parametrize("status", (302, *REFUSALS, 409))
def test_goes_on_if_airbyte_refuses_one_poke(scenario, status):
    scenario(
        faults={"get_job": [None, Fault(status)]},
        statuses=("pending", "running", "running", "succeeded"),
        log_contains=f"Airbyte answered GET /v1/jobs/1001 with {status}: ",
    )


@pytest.mark.parametrize("status", (302, *REFUSALS, 409))
def test_fails_if_airbyte_keeps_refusing_pokes(scenario, status):
    outcome = scenario(
        faults={"get_job": [None] + [Fault(status)] * FOR_EVER},
        statuses=("running",) * FOR_EVER,
        ends=WAIT_FAILS,
        log_contains=f"Airbyte answered GET /v1/jobs/1001 with {status}: ",
        wait_retries=2,
    )
    assert len(outcome.airbyte.requests_of("get_job")) == 3, "the refusal is final after the second one"


def test_a_refusal_during_other_faults_does_not_end_the_wait(scenario):
    faults = [Fault(403), Fault(503), Fault(403), CLOSED, Fault(403), None, Fault(403)]
    scenario(faults={"get_job": faults}, statuses=("running", "running", "succeeded"))


# A 409, and what the look-up finds then.


@pytest.mark.parametrize(
    "case",
    [
        case("a sync is running", existing_jobs=(RUNNING,), log_contains="1001 is already running", new_jobs=0),
        case(
            "a sync is running, after others",
            existing_jobs=({"age": 60, "statuses": ("failed",)}, RUNNING),
            log_contains="1002 is already running",
            new_jobs=0,
        ),
        case(
            "a sync is running, after more than a page of others",
            existing_jobs=(*({"age": 60, "statuses": ("succeeded",)},) * 25, RUNNING),
            log_contains="1026 is already running",
            new_jobs=0,
        ),
        case(
            "a sync is running, and it fails",
            existing_jobs=({"age": 9, "statuses": ("running", "running", "failed")},),
            log_contains="Airbyte job 1001 failed",
            ends=WAIT_FAILS,
            new_jobs=0,
        ),
        case(
            "a refresh is running",
            existing_jobs=({**RUNNING, "type": "refresh"},),
            log_contains="1001 is already running",
            new_jobs=0,
        ),
        case(
            "a server before February 2026 does not list the refresh",
            existing_jobs=({**RUNNING, "type": "refresh"},),
            lists=("sync", "reset"),
            faults={"create_job": [None, JOBS_END]},
            post_count=2,
        ),
        case(
            "a sync is pending that Airbyte has not begun",
            existing_jobs=({"statuses": ("pending", "running", "succeeded")},),
            new_jobs=0,
        ),
        case("409, but the job was created", faults={"create_job": [Fault(409, carried_out=True)]}),
        case(
            "409, and the sync ends before the look-up",
            existing_jobs=(RUNNING,),
            faults={"list_jobs": [JOBS_END]},
            post_count=2,
        ),
        case(
            "409, and the token expires before the look-up",
            existing_jobs=(RUNNING,),
            faults={"create_job": [Fault(after=FakeAirbyte.expire_tokens)]},
            new_jobs=0,
        ),
        case(
            "409, and the connection was never synced",
            faults={"create_job": [Fault(409)]},
            log_contains="Is the connection active in Airbyte?",
            post_count=2,
        ),
    ],
)
def test_joins_what_is_running(scenario, case):
    scenario(**case)


def test_asks_whether_the_connection_is_active(scenario):
    outcome = scenario(
        faults={"create_job": [Fault(409)] * FOR_EVER},
        ends=START_FAILS,
        log_contains="Could not fulfill request",
        post_count=None,
        new_jobs=0,
    )
    assert "Is the connection active in Airbyte?" in outcome.run.log
    assert "no login" not in outcome.run.log


@pytest.mark.parametrize("fault", [*map(Fault, (*BUSY, *REFUSALS)), CLOSED, *map(answering, NO_JOB.values())], ids=str)
def test_tries_again_if_the_look_up_goes_wrong(scenario, fault):
    scenario(
        existing_jobs=(RUNNING,),
        faults={"list_jobs": [fault]},
        log_contains="is already running",
        post_count=2,
        new_jobs=0,
    )


def test_says_why_if_the_look_up_keeps_being_refused(scenario):
    scenario(
        existing_jobs=(RUNNING,),
        faults={"list_jobs": [Fault(403)] * FOR_EVER},
        ends=START_FAILS,
        log_contains="with 403: ",
        post_count=None,
        new_jobs=0,
    )


# Jobs of other types.


@pytest.mark.parametrize("job_type", ["reset", "clear"])
@pytest.mark.parametrize(
    "case",
    [
        case("running", running=True, log_contains="Airbyte job 1001 is a {type}, not a sync", post_count=3),
        case(
            "pending",
            running=False,
            log_contains="Airbyte job 1001 is a {type}, not a sync",
            post_count=None,
            new_jobs=2,
        ),
    ],
)
def test_waits_until_a_reset_has_ended(scenario, job_type, case):
    case = dict(case)
    if case.pop("running"):
        case["existing_jobs"] = ({"age": 4, "type": job_type, "statuses": ("running", "running", "succeeded")},)
    else:
        case["pending"] = (job_type,)
    scenario(**{**case, "log_contains": case["log_contains"].format(type=job_type)})


def test_never_reports_a_reset_as_a_sync(scenario):
    scenario(
        existing_jobs=({"age": 60, "statuses": ("succeeded",)}, {"type": "reset", "statuses": ("running",)}),
        ends=START_FAILS,
        log_contains="Airbyte job 1002 is a reset, not a sync",
        post_count=None,
        new_jobs=0,
    )


def test_follows_the_refresh_that_the_start_created(scenario):
    outcome = scenario(pending=("refresh",))
    assert outcome.run.job["jobType"] == "refresh"


@needs_try_count
@pytest.mark.parametrize("ended", [False, True])
def test_follows_the_refresh_whose_answer_was_lost(scenario, ended):
    scenario(
        pending=("refresh",),
        faults={"create_job": [CLOSED_BUT_CARRIED_OUT], "list_jobs": [JOBS_END if ended else None]},
        log_contains="following job 1001",
    )


def sync_ends_and_a_reset_follows(airbyte: FakeAirbyte) -> None:
    """Let somebody reset the connection after its sync has ended."""
    airbyte.end_jobs()
    airbyte.add_job(type="reset", statuses=("running",))


@needs_try_count
def test_follows_its_sync_although_a_reset_came_after_it(scenario):
    scenario(
        faults={
            "create_job": [CLOSED_BUT_CARRIED_OUT],
            "list_jobs": [Fault(before=sync_ends_and_a_reset_follows)],
        },
        log_contains="following job 1001",
        new_jobs=2,
    )


# Answers that are lost.


@pytest.mark.parametrize(
    "case",
    [
        case("start closed", faults={"create_job": [CLOSED]}, log_contains="Connection reset", post_count=2),
        case("start closed, but the job was created", faults={"create_job": [CLOSED_BUT_CARRIED_OUT]}, post_count=None),
        case(
            "start silent",
            faults={"create_job": [SILENCE]},
            request_timeout=0.5,
            log_contains="Read timed out",
            post_count=2,
        ),
        case(
            "start silent, but the job was created",
            faults={"create_job": [Fault(no_answer="silent", carried_out=True)]},
            request_timeout=0.5,
            post_count=None,
        ),
        case("poll closed", faults={"get_job": [CLOSED, None, CLOSED]}, log_contains="Connection reset"),
        case("poll silent", faults={"get_job": [SILENCE]}, request_timeout=0.5, log_contains="Read timed out"),
        case("token closed", faults={"create_token": [CLOSED]}, log_contains="Connection reset"),
        case("token silent", faults={"create_token": [SILENCE]}, request_timeout=0.5, log_contains="Read timed out"),
    ],
)
def test_survives_a_lost_answer(scenario, case):
    scenario(**case)


@needs_try_count
@pytest.mark.parametrize(
    "case",
    [
        *(
            case(f"{name}, and the job ends before the retry", faults={"create_job": [fault], "list_jobs": [JOBS_END]})
            for name, fault in (
                ("closed", CLOSED_BUT_CARRIED_OUT),
                ("silent", Fault(no_answer="silent", carried_out=True)),
                ("503", Fault(503, carried_out=True)),
                ("html", Fault(body=NO_JOB["html"], carried_out=True)),
            )
        ),
        case(
            "closed, and the job fails before the retry",
            faults={"create_job": [CLOSED_BUT_CARRIED_OUT], "list_jobs": [JOBS_END]},
            statuses=("running", "failed"),
            ends=WAIT_FAILS,
            log_contains="Airbyte job 1001 failed",
        ),
        case(
            "closed, and so is the look-up of the retry",
            faults={"create_job": [CLOSED_BUT_CARRIED_OUT], "list_jobs": [CLOSED, Fault(403), JOBS_END]},
        ),
        case(
            "closed, and the job that the retry follows is refused at first",
            faults={"create_job": [CLOSED_BUT_CARRIED_OUT], "get_job": [Fault(403)]},
        ),
        case(
            "closed, and an older sync has ended",
            faults={"create_job": [CLOSED]},
            existing_jobs=({"age": 60, "statuses": ("succeeded",)},),
            log_contains="",
            post_count=2,
        ),
    ],
)
def test_a_retry_follows_the_job_of_the_try_before(scenario, case):
    scenario(**{"log_contains": "following job 1001", "request_timeout": 0.5, **case})


# Answers that do not come from Airbyte.


@pytest.mark.parametrize("body", NO_JOB.values(), ids=NO_JOB)
@pytest.mark.parametrize(
    "operation, key, post_count",
    [("create_token", "access_token", 1), ("create_job", "jobId", 2), ("get_job", "status", 1)],
)
def test_tries_again_if_something_else_answers(scenario, operation, key, post_count, body):
    scenario(faults={operation: [Fault(body=body)]}, log_contains=f"no JSON object with {key}", post_count=post_count)


def test_does_not_quote_an_answer_that_may_hold_a_token(scenario):
    answer = Fault(body='{"token": "a-token-under-another-name"}')
    outcome = scenario(faults={"create_token": [answer], "get_job": [answer]}, log_contains="no JSON object with")
    assert "a-token-under-another-name" not in outcome.run.log


@pytest.mark.parametrize(
    "fault, log_contains",
    [
        pytest.param(
            Fault(body=NO_JOB["html"]), "Airflow connection airbyte-api-cloud-connection: its host", id="html"
        ),
        pytest.param(Fault(503), "with 503", id="503"),
    ],
)
def test_fails_in_the_end_if_the_start_never_succeeds(scenario, fault, log_contains):
    scenario(
        faults={"create_job": [fault] * FOR_EVER},
        ends=START_FAILS,
        log_contains=log_contains,
        post_count=None,
        new_jobs=0,
    )


# The statuses of a job.


@pytest.mark.parametrize(
    "statuses",
    [
        ("running", "pending", "running", "succeeded"),
        ("running", "incomplete", "running", "succeeded"),
        ("queued", "in_a_status_unknown_today", "succeeded"),
    ],
    ids=lambda statuses: statuses[1],
)
def test_keeps_waiting_in_any_other_status(scenario, statuses):
    scenario(statuses=statuses)


@pytest.mark.parametrize("base_path", ["", "/api/public"])
@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_fails_with_a_link_if_the_job_has_failed(scenario, status, base_path):
    outcome = scenario(
        statuses=("running", "incomplete", status),
        base_path=base_path,
        ends=WAIT_FAILS,
        log_contains=f"Airbyte job 1001 {status}: its log in Airbyte says why.",
    )
    ui = outcome.airbyte.url[: -len(base_path)] if base_path else outcome.airbyte.url
    page = f"{ui}/workspaces/{WORKSPACE_ID}/connections/{CONNECTION_ID}/timeline?openLogs=true&jobId=1001"
    assert page in outcome.run.log
    assert ("waits too long in its queue" in outcome.run.log) == (status == "cancelled")


def test_links_to_the_ui_of_airbyte_cloud(run):
    with FakeAirbyte(statuses={CONNECTION_ID: ("failed",)}) as airbyte:
        proxy = {"HTTP_PROXY": airbyte.url, "NO_PROXY": None}  # so that the fake Airbyte answers for api.airbyte.com
        result = run("http://api.airbyte.com", variables=proxy)
    assert result.tasks == WAIT_FAILS
    assert f"http://cloud.airbyte.com/workspaces/{WORKSPACE_ID}/connections/{CONNECTION_ID}/timeline" in result.log


@pytest.mark.parametrize("fault", [Fault(403), Fault(503), CLOSED, *map(answering, NO_JOB.values())], ids=str)
def test_says_that_the_job_has_failed_even_without_a_link(scenario, fault):
    outcome = scenario(
        statuses=("running", "failed"),
        faults={"get_connection": [fault]},
        ends=WAIT_FAILS,
        log_contains="Airbyte job 1001 failed: its log in Airbyte says why.",
    )
    assert "openLogs" not in outcome.run.log


def test_times_out_if_the_job_never_ends(scenario):
    scenario(statuses=("running",), wait_timeout=0, ends=WAIT_FAILS, log_contains="timed out")


# Tokens.


@pytest.mark.parametrize(
    "case",
    [
        case(
            "each token expires before the next task start",
            faults={"create_token": [None] + [TOKENS_EXPIRE] * FOR_EVER},
            statuses=("pending", "running", "incomplete", "running", "succeeded"),
        ),
        case(
            "no token for a while during the wait",
            faults={
                "create_token": [None, None, Fault(503), Fault(429), CLOSED, Fault(body="<html>"), None, Fault(500)]
            },
            statuses=("running",) * 4 + ("succeeded",),
            log_contains="v1/applications/token with 503",
            wait_retries=FOR_EVER,
        ),
        case(
            "the client is refused during the wait",
            faults={"create_token": [None, None, Fault(401)]},
            statuses=("running",) * 4 + ("succeeded",),
            ends=WAIT_FAILS,
            log_contains="AIRBYTE_CLIENT_ID",
            wait_retries=2,
        ),
        case(
            "no token for ever",
            faults={"create_token": [Fault(503)] * FOR_EVER},
            ends=START_FAILS,
            log_contains="v1/applications/token with 503",
            post_count=0,
            new_jobs=0,
        ),
        case(
            "a token in the Variable has expired",
            variables={"AIRFLOW_VAR_CLOUD_API_TOKEN": "expired"},
            ends=START_FAILS,
            log_contains="with 401",
            new_jobs=0,
        ),
        case(
            "a wrong client secret on self-managed Airbyte",
            variables={"AIRFLOW_VAR_AIRBYTE_CLIENT_SECRET": "wrong"},
            base_path="/api/public",
            ends=START_FAILS,
            log_contains="Invalid client id or token",
            post_count=0,
            new_jobs=0,
        ),
        case(
            "a wrong client secret on Airbyte Cloud",
            variables={"AIRFLOW_VAR_AIRBYTE_CLIENT_SECRET": "wrong"},
            ends=START_FAILS,
            log_contains="Check AIRBYTE_CLIENT_ID, AIRBYTE_CLIENT_SECRET",
            post_count=0,
            new_jobs=0,
        ),
    ],
)
def test_tokens(scenario, case):
    scenario(**case)


# Settings that are missing or wrong.


@pytest.mark.parametrize("blank", [None, " \n"], ids=["missing", "blank"])
@pytest.mark.parametrize("name", ["AIRBYTE_CLIENT_ID", "AIRBYTE_CLIENT_SECRET"])
def test_names_the_variables_of_the_client_if_one_is_not_set(scenario, name, blank):
    scenario(
        variables={f"AIRFLOW_VAR_{name}": blank},
        ends=START_FAILS,
        log_contains="Set the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET, or CLOUD_API_TOKEN",
        post_count=0,
        new_jobs=0,
    )


NOT_A_CONNECTION_ID = [
    "1234",
    "my connection",
    f"https://cloud.airbyte.com/workspaces/{WORKSPACE_ID}/connections/{CONNECTION_ID}/status",
    CONNECTION_ID.replace("-", " "),
    CONNECTION_ID.replace("-", ""),
    f"{CONNECTION_ID[:-1]}\n1",
    f"{CONNECTION_ID}/status",
    f"{{{CONNECTION_ID}}}",
    'it\'s "quoted" \\',
    "{{ 1 / 0 }}",
    "{% raw %}",
]


@pytest.mark.parametrize("value", NOT_A_CONNECTION_ID)
def test_names_the_parameter_if_it_is_no_connection_id(scenario, value):
    outcome = scenario(
        conf={"connection_id": value},
        ends=START_FAILS,
        log_contains="Set the parameter connection_id to the UUID",
        post_count=0,
        new_jobs=0,
    )
    assert {request.operation for request in outcome.airbyte.requests} <= {"create_token"}


@pytest.mark.parametrize("value", [None, "", " \n", *NOT_A_CONNECTION_ID[:4]])
def test_names_the_variable_if_it_is_no_connection_id(scenario, value):
    scenario(
        variables={"AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID": value},
        ends=START_FAILS,
        log_contains="Set the Variable MY_EXAMPLE_CONNECTION_ID to the UUID",
        post_count=0,
        new_jobs=0,
    )


@pytest.mark.parametrize(
    "case",
    [
        case(
            "a connection that Airbyte does not know",
            conf={"connection_id": "00000000-0000-4000-8000-000000000000"},
            log_contains="Caller does not have the required permissions",
            post_count=1,
        ),
        case(
            "a login on the HTTP connection",
            login={"login": CLIENT_ID, "password": CLIENT_SECRET},
            log_contains="no login",
            post_count=1,
        ),
        case(
            "no HTTP connection",
            variables={HTTP_CONNECTION_VARIABLE: None},
            log_contains="Create the Airflow connection airbyte-api-cloud-connection",
        ),
        case("a host where nobody listens", host="http://127.0.0.1:1", log_contains="Connection refused"),
        case(
            "a host without its path",
            base_path="/api/public",
            host="{root}",
            log_contains="the host of airbyte-api-cloud-connection",
        ),
        case("a host with /v1", host="{url}/v1", log_contains="/v1/v1/applications/token with 404"),
    ],
)
def test_says_what_is_wrong_with_the_set_up(scenario, case):
    scenario(**{"ends": START_FAILS, "post_count": 0, "new_jobs": 0, **case})


# Faults at random.


def draw(random: Random) -> dict:
    """Return a FakeAirbyte's arguments with faults drawn at random, and the arguments of the jobs that exist before."""
    garbage = [Fault(body=body) for body in NO_JOB.values()]
    menu = [Fault(status) for status in BUSY] + garbage + [CLOSED, SILENCE]
    menu += [Fault(fault.status, fault.body, fault.no_answer, carried_out=True) for fault in menu]
    operations = ("create_token", "create_job", "get_job", "list_jobs", "get_connection")
    faults = {
        operation: [random.choice(menu) if random.random() < 0.5 else None for _ in range(random.randrange(10))]
        for operation in operations
    }
    faults["create_token"] += [TOKENS_EXPIRE] * random.randrange(3)
    if DAG_TEST_COUNTS_TRIES:  # else no job may end before a retry
        faults["list_jobs"] += [JOBS_END] * random.randrange(3)
    if random.random() < 0.3:
        refused = random.choice(operations)
        faults[refused] += [Fault(random.choice(REFUSALS))] * random.choice([1, 1, 2])
    for schedule in faults.values():
        random.shuffle(schedule)
    last = random.choice(ENDED)
    going_on = ("pending", "queued", "running", "incomplete", "unheard_of")
    statuses = random.choices(going_on, k=random.randrange(0 if DAG_TEST_COUNTS_TRIES else 1, 5))
    existing_jobs = [
        (),
        (RUNNING,),
        ({"age": 60, "statuses": (last,)},),
        *(({**RUNNING, "type": job_type},) for job_type in ("refresh", "reset", "clear")),
    ]
    return {
        "faults": faults,
        "statuses": {CONNECTION_ID: (*statuses, last)},
        "pending": random.choice([(), (), ("reset",), ("clear",), ("refresh",), ("reset", "refresh")]),
        "existing_jobs": random.choice(existing_jobs),
    }


def test_faults_at_random(run, seed):
    arguments = draw(Random(seed))
    existing_jobs = arguments.pop("existing_jobs")
    request_timeout = {"extra_options": {"timeout": 0.5}}
    policy = {START: {"retries": FOR_EVER, **request_timeout}, WAIT: {"retries": FOR_EVER, **request_timeout}}
    with FakeAirbyte(**arguments) as airbyte:
        for job in existing_jobs:
            airbyte.add_job(**job)
        result = run(airbyte.url, policy=policy)

    new_syncs = [job for job in airbyte.jobs[len(existing_jobs) :] if job.type in SYNCS]
    assert len(new_syncs) <= 1, "a sync was started twice"
    followed = next((job for job in airbyte.jobs if job.id == result.job_id), None)
    says_how_it_ended = [f"Airbyte job {result.job_id} {status}: " in result.log for status in ("failed", "cancelled")]
    if result.state == "success" or any(says_how_it_ended):
        assert followed.type in SYNCS
        assert result.tasks == (SUCCESS if followed.statuses[-1] == "succeeded" else WAIT_FAILS)
    else:
        last = [request for request in airbyte.requests if request.operation != "get_connection"][-1]
        assert last.status in REFUSALS, "nothing else ends a run"
        assert f"with {last.status}: " in result.log
