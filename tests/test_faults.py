"""
What can go wrong, and how the run copes with it.

Nothing is final but the job's own end, and what the user has typed and no retry can change. Anything else costs a
try, whose log says what to check. A second sync is never started while the first one may be running.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from random import Random

import pytest
from conftest import DagRunResult
from sandbox.fake_airbyte import (
    CLIENT_ID,
    CLIENT_SECRET,
    CONNECTION_ID,
    DATABASE_DOWN,
    ENDED,
    NOBODY_THERE,
    WORKSPACE_ID,
    FakeAirbyte,
    Fault,
    Job,
)
from sandbox.throwaway_airflow import (
    AIRFLOW_VERSION,
    HTTP_CONNECTION,
    HTTP_CONNECTION_VARIABLE,
    START,
    WAIT,
    dag_settings,
)

SUCCESS = {START: "success", WAIT: "success"}
START_FAILS = {START: "failed", WAIT: "upstream_failed"}
WAIT_FAILS = {START: "success", WAIT: "failed"}

SYNCS = ("sync", "refresh")
NOT_A_JOB = {"html": "<!doctype html><html><body>Sign in</body></html>", "list": "[]", "empty": "", "keyless": "{}"}
CLOSED = Fault(no_answer="closed")
SILENCE = Fault(no_answer="silent")
BUSY = [Fault(status) for status in (408, 429, 500, 502, 503, 504)]
REFUSALS = [Fault(status) for status in (400, 401, 403, 404, 422)]
SOMEBODY_ELSE = [Fault(302), Fault(405), NOBODY_THERE, *(Fault(body=body) for body in NOT_A_JOB.values())]
ANY_FAULT = [*BUSY, *REFUSALS, *SOMEBODY_ELSE, DATABASE_DOWN, CLOSED, SILENCE]
JOBS_END = Fault(before=FakeAirbyte.end_jobs)
TOKENS_EXPIRE = Fault(before=FakeAirbyte.expire_tokens)
FOR_EVER = 99
IMPATIENT = {"extra_options": {"timeout": 1}}  # for a request that is not answered

RUNNING = {"age": 9, "statuses": ("running", "running", "succeeded")}  # older than the run
DAG_TEST_COUNTS_TRIES = AIRFLOW_VERSION >= (2, 10)  # Before, a retry in dag.test() does not know that it is one.
DAG_TEST_FAILS_POKES = AIRFLOW_VERSION == (3, 0)  # every other poke of a rescheduled sensor, whatever it is
needs_try_count = pytest.mark.skipif(not DAG_TEST_COUNTS_TRIES, reason="dag.test() does not count tries here")


def lost(fault: Fault) -> Fault:
    """Return the fault after which Airbyte has done what was asked, although its answer does not tell."""
    return Fault(fault.status, fault.body, fault.no_answer, carried_out=True)


def then(operation: str, *faults: Fault) -> Fault:
    """Return what lets a request succeed, and the next requests of an operation meet these faults."""
    return Fault(after=lambda airbyte: airbyte.faults.update({operation: list(faults)}))


def case(name: str, **arguments):
    """Return the arguments of a scenario as a parameter with a name."""
    return pytest.param(arguments, id=name)


@dataclass
class Outcome:
    """What a scenario left: the result of the run, and the fake Airbyte."""

    result: DagRunResult
    airbyte: FakeAirbyte
    new_jobs: list[Job]


@pytest.fixture
def scenario(run_dag):
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
        before_syncs: tuple[str, ...] = (),
        listed_types: tuple[str, ...] = ("sync", "reset", "refresh", "clear"),
        base_path: str = "",
        host: str = "{url}",
        login: dict[str, str] | None = None,
        conf: dict | None = None,
        variables: dict[str, str | None] | None = None,
        failing_reads: dict[str, set[int]] | None = None,
        start_retries: int = 3,
        wait_timeout: float = 120,
        wait_retries: int = 0,
    ) -> Outcome:
        """
        :param ends: the tasks' states
        :param log_contains: a part of the message to the user
        :param post_count: how many requests to create a job are sent; None: any number
        :param new_jobs: how many jobs the scenario adds
        :param faults, statuses, before_syncs, listed_types, base_path: of the FakeAirbyte
        :param existing_jobs: the arguments of FakeAirbyte.add_job
        :param host, login: of the HTTP connection; {url} is Airbyte's, {root} that without its path
        :param conf, variables, failing_reads: of the run
        :param start_retries: of the operator, if it does not fail; if it does, one, or none where retries never end
        :param wait_timeout, wait_retries: of the sensor; a poke that goes wrong must not cost a retry
        """
        if ends == START_FAILS:
            start_retries = int(DAG_TEST_COUNTS_TRIES)
        wait_retries = FOR_EVER if DAG_TEST_FAILS_POKES else wait_retries
        policy = {
            START: {"retries": start_retries, **IMPATIENT},
            WAIT: {"retries": wait_retries, "timeout": wait_timeout, **IMPATIENT},
        }
        with FakeAirbyte(faults, {CONNECTION_ID: statuses}, None, base_path, before_syncs, listed_types) as airbyte:
            for job in existing_jobs:
                airbyte.add_job(**job)
            root = airbyte.url[: -len(base_path)] if base_path else airbyte.url
            settings = dag_settings(host.format(url=airbyte.url, root=root), **(login or {}))
            result = run_dag(airbyte.url, conf, {**settings, **(variables or {})}, policy, failing_reads)

        assert result.tasks == ends, result.log[-3000:]
        assert log_contains in result.log
        created = airbyte.jobs[len(existing_jobs) :]
        assert len(created) == new_jobs
        assert post_count in (None, len(airbyte.requests_of("create_job")))
        if ends == SUCCESS:
            assert result.job["status"] == "succeeded"
            assert result.job["jobId"] == result.job_id == [job.id for job in airbyte.jobs if job.type in SYNCS][-1]
        assert_nothing_is_asked_after_the_end(airbyte, result.log)
        return Outcome(result, airbyte, created)

    return scenario


def assert_nothing_is_asked_after_the_end(airbyte: FakeAirbyte, log: str) -> None:
    """After the poke that says how the job ended, at most its page is asked for."""
    asked = [request for request in airbyte.requests if request.operation not in ("create_token", "get_connection")]
    ends = [number for number, request in enumerate(asked) if request.job_status in ENDED and request.status == 200]
    if ends and "following job" in log and asked[ends[0] - 1].operation == "list_jobs":
        ends.pop(0)  # The retry of the start has seen it first.
    assert ends in ([], [len(asked) - 1])


# Any fault, on any request, costs a try at most.


@pytest.mark.airflow_3_0
@pytest.mark.parametrize("fault", ANY_FAULT, ids=str)
def test_tries_again_if_there_is_no_token_for_the_start(scenario, fault):
    scenario(faults={"create_token": [fault]})


@pytest.mark.parametrize("fault", ANY_FAULT, ids=str)
def test_tries_again_if_the_start_goes_wrong(scenario, fault):
    scenario(faults={"create_job": [fault]}, post_count=2)


@pytest.mark.airflow_3_0
@pytest.mark.parametrize("fault", [*ANY_FAULT, Fault(409)], ids=str)
def test_tries_again_if_the_look_up_goes_wrong(scenario, fault):
    scenario(
        existing_jobs=(RUNNING,),
        faults={"list_jobs": [fault]},
        log_contains="is already running",
        post_count=2,
        new_jobs=0,
    )


@pytest.mark.parametrize("fault", ANY_FAULT, ids=str)
def test_tries_again_if_there_is_no_token_for_a_poke(scenario, fault):
    scenario(faults={"create_job": [then("create_token", fault)]}, wait_retries=FOR_EVER)


@pytest.mark.parametrize("fault", [*ANY_FAULT, Fault(409)], ids=str)
def test_goes_on_if_a_poke_goes_wrong(scenario, fault):
    scenario(faults={"get_job": [None, fault]})


@pytest.mark.parametrize("fault", [*ANY_FAULT, Fault(body='{"data": [{}]}'), Fault(body='{"data": 1}')], ids=str)
def test_pokes_at_the_shortest_interval_if_the_earlier_syncs_are_not_known(scenario, fault):
    outcome = scenario(faults={"list_jobs": [fault]}, log_contains="Earlier syncs are not known")
    assert "poke failed" not in outcome.result.log, "a line, and no traceback"


@pytest.mark.parametrize("start_time", ["", '"startTime": "soon", ', '"startTime": null, ', '"startTime": 5, '])
def test_accepts_a_job_without_a_start_time(scenario, start_time):
    job = Fault(body=f'{{{start_time}"jobId": 1001, "status": "running", "jobType": "sync"}}')
    scenario(faults={"get_job": [job, job]}, log_contains="Earlier syncs are not known")


# What a message says, and where it points.


@pytest.mark.parametrize(
    "operation, key", [("create_token", "access_token"), ("create_job", "jobId"), ("get_job", "status")]
)
@pytest.mark.parametrize("body", NOT_A_JOB.values(), ids=NOT_A_JOB)
def test_says_what_is_missing_in_an_answer(scenario, operation, key, body):
    outcome = scenario(faults={operation: [Fault(body=body)]}, log_contains=f"It has no {key}.", post_count=None)
    assert f"Check {HTTP_CONNECTION}: https://api.airbyte.com" in outcome.result.log


def test_does_not_quote_an_answer_that_may_hold_a_token(scenario):
    answer = Fault(body='{"token": "a-token-under-another-name"}')
    outcome = scenario(faults={"create_token": [answer], "get_job": [answer]}, log_contains="It has no access_token")
    assert "a-token-under-another-name" not in outcome.result.log


@pytest.mark.parametrize(
    "operation, fault, says",
    [
        ("create_token", Fault(401), "POST /v1/applications/token with 401. Check the Variables AIRBYTE_CLIENT_ID"),
        ("create_token", NOBODY_THERE, f"applications/token with 404. Check {HTTP_CONNECTION}: https://api"),
        ("create_token", CLOSED, f"No answer. Check {HTTP_CONNECTION}: https://api.airbyte.com"),
        ("create_job", Fault(403), "POST /v1/jobs with 403. Check the connection id, CLOUD_API_TOKEN if set"),
        ("create_job", Fault(403), "Caller does not have the required permissions"),
        ("create_job", Fault(503), "POST /v1/jobs with 503. It is busy or in trouble. <html>"),
        ("create_job", DATABASE_DOWN, "POST /v1/jobs with 401. It is busy or in trouble."),
        ("create_job", Fault(409), "409, but no job runs. Is the connection active in Airbyte?"),
        ("create_job", Fault(409), "Could not fulfill request"),
    ],
)
def test_a_start_that_is_refused_for_long_fails_with_the_message(scenario, operation, fault, says):
    scenario(faults={operation: [fault] * FOR_EVER}, ends=START_FAILS, log_contains=says, post_count=None, new_jobs=0)


# Pokes that are refused.


@pytest.mark.parametrize("fault", [*REFUSALS, Fault(409)], ids=str)
def test_fails_if_airbyte_refuses_a_poke_and_ten_more(scenario, fault):
    outcome = scenario(
        faults={"get_job": [None, *[fault] * FOR_EVER]},
        statuses=("running",) * FOR_EVER,
        ends=WAIT_FAILS,
        log_contains=f"AirflowFailException: Airbyte answered GET /v1/jobs/1001 with {fault.status}. Check the connection",
        wait_retries=2,
    )
    assert len(outcome.airbyte.requests_of("get_job")) == 12


@pytest.mark.airflow_3_0
@pytest.mark.parametrize(
    "faults",
    [
        [Fault(403)] * 10,
        [*[Fault(401)] * 10, Fault(503), *[Fault(403)] * 10],
        [Fault(403), CLOSED, *[Fault(404)] * 5, Fault(302), Fault(403), None, *[Fault(403)] * 10],
    ],
)
def test_goes_on_if_airbyte_stops_refusing(scenario, faults):
    scenario(faults={"get_job": faults}, statuses=("running", "running", "succeeded"))


@pytest.mark.parametrize("fault", [DATABASE_DOWN, NOBODY_THERE, *SOMEBODY_ELSE], ids=str)
def test_no_number_of_other_answers_ends_the_wait(scenario, fault):
    outcome = scenario(faults={"get_job": [fault] * 13})
    assert len(outcome.airbyte.requests_of("get_job")) == 15


def test_asks_again_with_a_new_token(scenario):
    outcome = scenario(faults={"get_job": [Fault(before=FakeAirbyte.expire_tokens)]})
    assert [request.status for request in outcome.airbyte.requests_of("get_job")] == [401, 200, 200]


def test_waits_between_two_refused_pokes(run_dag):
    with FakeAirbyte(faults={"get_job": [Fault(403)] * 2}) as airbyte:
        assert run_dag(airbyte.url, policy={WAIT: {"retry_delay": 0.5}}).state == "success"
    first, second, third = (request.time for request in airbyte.requests_of("get_job")[:3])
    assert min(second - first, third - second) >= 0.5


# A 409, and what the look-up finds then.


@pytest.mark.parametrize(
    "arguments",
    [
        case("a sync", existing_jobs=(RUNNING,)),
        case("a sync, after another", existing_jobs=({"age": 60, "statuses": ("failed",)}, RUNNING)),
        case(
            "a sync, after more than a page of others",
            existing_jobs=(*({"age": 60, "statuses": ("succeeded",)},) * 25, RUNNING),
        ),
        case(
            "a sync that fails",
            existing_jobs=({**RUNNING, "statuses": ("running", "running", "failed")},),
            ends=WAIT_FAILS,
        ),
        case("a refresh", existing_jobs=({**RUNNING, "type": "refresh"},)),
    ],
)
def test_joins_what_is_running(scenario, arguments):
    number = 1000 + len(arguments["existing_jobs"])
    scenario(**arguments, log_contains=f"{number} is already running", new_jobs=0, start_retries=0)


@pytest.mark.parametrize(
    "arguments",
    [
        case(
            "a server before February 2026 does not list the refresh that runs",
            existing_jobs=({**RUNNING, "type": "refresh"},),
            listed_types=("sync", "reset"),
            faults={"create_job": [None, JOBS_END]},
            post_count=2,
        ),
        case("a sync that Airbyte has not begun", existing_jobs=({"statuses": ("pending", "succeeded")},), new_jobs=0),
        case("the job was created", faults={"create_job": [lost(Fault(409))]}),
        case(
            "the sync ends before the look-up", existing_jobs=(RUNNING,), faults={"list_jobs": [JOBS_END]}, post_count=2
        ),
        case(
            "the token expires before the look-up",
            existing_jobs=(RUNNING,),
            faults={"create_job": [Fault(after=FakeAirbyte.expire_tokens)]},
            post_count=2,
            new_jobs=0,
        ),
        case("no job was ever there", faults={"create_job": [Fault(409)]}, post_count=2),
    ],
)
def test_a_409_leads_to_one_sync(scenario, arguments):
    scenario(**arguments)


# Jobs of other types.


@pytest.mark.airflow_3_0
@pytest.mark.parametrize("job_type", ["reset", "clear"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"existing_jobs": ({**RUNNING, "type": "{type}"},), "post_count": 3},
        {"before_syncs": ("{type}",), "post_count": None, "new_jobs": 2},
    ],
    ids=["running", "pending"],
)
def test_waits_until_a_reset_has_ended(scenario, job_type, arguments):
    jobs = tuple({**job, "type": job_type} for job in arguments.get("existing_jobs", ()))
    pending = tuple(job_type for _ in arguments.get("before_syncs", ()))
    says = f"Airbyte job 1001 is a {job_type}, not a sync"
    scenario(**{**arguments, "existing_jobs": jobs, "before_syncs": pending}, log_contains=says)


def test_never_reports_a_reset_as_a_sync(scenario):
    scenario(
        existing_jobs=({"age": 60, "statuses": ("succeeded",)}, {"type": "reset", "statuses": ("running",)}),
        ends=START_FAILS,
        log_contains="Airbyte job 1002 is a reset, not a sync",
        post_count=None,
        new_jobs=0,
    )


def test_follows_the_refresh_that_the_start_created(scenario):
    assert scenario(before_syncs=("refresh",)).result.job["jobType"] == "refresh"


# A sync that an earlier try has started.


def created_before_the_run(seconds: float):
    """Return what dates the newest job back, as if the clock of Airbyte was so late when the run began."""

    def date_back(airbyte: FakeAirbyte) -> None:
        from airflow.configuration import conf

        with closing(sqlite3.connect(conf.get("database", "sql_alchemy_conn").partition("///")[2])) as database:
            (start,) = database.execute("SELECT max(start_date) FROM dag_run").fetchone()
        run_start = datetime.fromisoformat(start).replace(tzinfo=timezone.utc).timestamp()
        airbyte.jobs[-1].created = run_start - seconds
        airbyte.end_jobs()

    return date_back


def sync_ends_and_a_reset_follows(airbyte: FakeAirbyte) -> None:
    """Let somebody reset the connection after its sync has ended."""
    airbyte.end_jobs()
    airbyte.add_job(type="reset", statuses=("running",))


@pytest.mark.parametrize("fault", [*BUSY, CLOSED, SILENCE, NOBODY_THERE, DATABASE_DOWN, *SOMEBODY_ELSE], ids=str)
def test_one_sync_although_its_answer_is_lost(scenario, fault):
    scenario(faults={"create_job": [lost(fault)]}, post_count=None)


@pytest.mark.airflow_3_0
@needs_try_count
@pytest.mark.parametrize(
    "arguments",
    [
        *(
            case(
                f"{fault}, and the job ends before the retry",
                faults={"create_job": [lost(fault)], "list_jobs": [JOBS_END]},
            )
            for fault in (CLOSED, SILENCE, Fault(503), Fault(403), SOMEBODY_ELSE[-1])
        ),
        case(
            "the job fails before the retry",
            faults={"create_job": [lost(CLOSED)], "list_jobs": [JOBS_END]},
            statuses=("running", "failed"),
            ends=WAIT_FAILS,
        ),
        case(
            "the look-up fails too", faults={"create_job": [lost(CLOSED)], "list_jobs": [CLOSED, Fault(403), JOBS_END]}
        ),
        case("the job is refused at first", faults={"create_job": [lost(CLOSED)], "get_job": [Fault(403), Fault(409)]}),
        case(
            "no token for the retry",
            faults={
                "create_job": [
                    Fault(no_answer="closed", carried_out=True, after=then("create_token", NOBODY_THERE).after)
                ]
            },
        ),
        case(
            "it is a refresh",
            before_syncs=("refresh",),
            faults={"create_job": [lost(CLOSED)], "list_jobs": [JOBS_END]},
        ),
        case(
            "a reset came after it",
            faults={"create_job": [lost(CLOSED)], "list_jobs": [Fault(before=sync_ends_and_a_reset_follows)]},
            new_jobs=2,
        ),
        case(
            "Airbyte's clock is four seconds late",
            faults={"create_job": [lost(CLOSED)], "list_jobs": [Fault(before=created_before_the_run(4))]},
        ),
    ],
)
def test_a_retry_follows_the_job_of_the_try_before(scenario, arguments):
    scenario(**arguments, log_contains="following job 1001")


@pytest.mark.parametrize("age", [60, 10])
def test_a_retry_does_not_follow_an_older_sync(scenario, age):
    scenario(faults={"create_job": [CLOSED]}, existing_jobs=({"age": age, "duration": 1},), post_count=2)


# The statuses of a job.


@pytest.mark.parametrize("status", ["pending", "queued", "incomplete", "in_a_status_unknown_today"])
def test_keeps_waiting_in_any_other_status(scenario, status):
    scenario(statuses=("running", status, "running", "succeeded"))


@pytest.mark.parametrize("base_path", ["", "/api/public"])
@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_fails_with_a_link_if_the_job_has_failed(scenario, status, base_path):
    outcome = scenario(statuses=("running", status), base_path=base_path, ends=WAIT_FAILS, wait_retries=2)
    ui = outcome.airbyte.url[: -len(base_path)] if base_path else outcome.airbyte.url
    page = f"{ui}/workspaces/{WORKSPACE_ID}/connections/{CONNECTION_ID}/timeline?openLogs=true&jobId=1001"
    assert f"Airbyte job 1001 {status}: {page}" in outcome.result.log


def test_links_to_the_ui_of_airbyte_cloud(run_dag):
    with FakeAirbyte(statuses={CONNECTION_ID: ("failed",)}) as airbyte:
        proxy = {"HTTP_PROXY": airbyte.url, "NO_PROXY": None}  # so that the fake Airbyte answers for api.airbyte.com
        result = run_dag("http://api.airbyte.com", variables=proxy)
    assert result.tasks == WAIT_FAILS
    assert f"http://cloud.airbyte.com/workspaces/{WORKSPACE_ID}/connections/{CONNECTION_ID}/timeline" in result.log


@pytest.mark.parametrize("fault", ANY_FAULT, ids=str)
def test_says_that_the_job_has_failed_even_without_a_link(scenario, fault):
    scenario(
        statuses=("running", "failed"),
        faults={"get_connection": [fault]},
        ends=WAIT_FAILS,
        log_contains="Airbyte job 1001 failed: the connection's timeline in Airbyte.",
    )


def test_times_out_if_the_job_never_ends(scenario):
    scenario(statuses=("running",), wait_timeout=0, ends=WAIT_FAILS, log_contains="timed out")


# Tokens.


def test_each_token_may_expire_before_the_next_task_start(scenario):
    statuses = ("pending", "running", "incomplete", "running", "succeeded")
    scenario(faults={"create_token": [None] + [TOKENS_EXPIRE] * FOR_EVER}, statuses=statuses)


def test_the_wait_goes_on_when_tokens_come_back(scenario):
    no_tokens = [Fault(401), NOBODY_THERE, Fault(503), CLOSED, Fault(400), Fault(401), Fault(429)]
    scenario(faults={"create_job": [then("create_token", *no_tokens)]}, wait_retries=FOR_EVER)


@pytest.mark.parametrize("base_path, says", [("", "errorId"), ("/api/public", "Invalid client id or token")])
def test_quotes_what_airbyte_says_of_a_wrong_client(scenario, base_path, says):
    wrong = {"AIRFLOW_VAR_AIRBYTE_CLIENT_SECRET": "wrong"}
    outcome = scenario(
        variables=wrong, base_path=base_path, ends=START_FAILS, log_contains=says, post_count=0, new_jobs=0
    )
    assert "Check the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET." in outcome.result.log


# Settings that are missing, unreadable or wrong.

CLIENT_ID_VARIABLE, CLIENT_SECRET_VARIABLE = "AIRFLOW_VAR_AIRBYTE_CLIENT_ID", "AIRFLOW_VAR_AIRBYTE_CLIENT_SECRET"
CONNECTION_ID_VARIABLE, TOKEN_VARIABLE = "AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID", "AIRFLOW_VAR_CLOUD_API_TOKEN"
READ_AT_ALL = {
    CLIENT_ID_VARIABLE: 4,
    CLIENT_SECRET_VARIABLE: 4,
    CONNECTION_ID_VARIABLE: 1,
    HTTP_CONNECTION_VARIABLE: 11,
}


@pytest.mark.airflow_3_0
@pytest.mark.parametrize(
    "name, number", [(name, number) for name, count in READ_AT_ALL.items() for number in range(1, count + 1)]
)
def test_a_hiccup_of_the_secrets_backend_costs_a_try(scenario, name, number):
    from sandbox.flaky_secrets import reads

    scenario(
        statuses=("running", "running", "succeeded"),
        failing_reads={name: {number}},
        wait_retries=FOR_EVER,
        post_count=None,
    )
    assert reads[name] >= number, "it did fail"


def give_token(airbyte: FakeAirbyte) -> None:
    """Let Airbyte accept the token `a-token`."""
    airbyte.tokens["a-token"] = time.time() + 900


@pytest.mark.parametrize(
    "name, variables",
    [(TOKEN_VARIABLE, {TOKEN_VARIABLE: "a-token", CLIENT_ID_VARIABLE: None}), (CLIENT_ID_VARIABLE, {})],
)
def test_hiccups_of_the_secrets_backend_cost_tries(scenario, name, variables):
    scenario(
        variables=variables,
        faults={"list_jobs": [Fault(before=give_token)]},
        failing_reads={name: {1, 2, 4, 5, 6}},
        log_contains="Set the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET, or CLOUD_API_TOKEN",
        wait_retries=FOR_EVER,
    )


@pytest.mark.parametrize("blank", [None, " \n"], ids=["missing", "blank"])
@pytest.mark.parametrize("name", [CLIENT_ID_VARIABLE, CLIENT_SECRET_VARIABLE])
def test_names_the_variables_of_the_client_if_one_is_not_set(scenario, name, blank):
    says = "Set the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET, or CLOUD_API_TOKEN"
    scenario(variables={name: blank}, ends=START_FAILS, log_contains=says, post_count=0, new_jobs=0)


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


@pytest.mark.parametrize(
    "says, arguments",
    [
        *(
            pytest.param("Set the parameter connection_id to the UUID", {"conf": {"connection_id": value}}, id=value)
            for value in NOT_A_CONNECTION_ID
        ),
        *(
            ("Set the Variable MY_EXAMPLE_CONNECTION_ID to the UUID", {"variables": {CONNECTION_ID_VARIABLE: value}})
            for value in NOT_A_CONNECTION_ID[:4]
        ),
        ("No such parameter: connectionId. There is: connection_id.", {"conf": {"connectionId": CONNECTION_ID}}),
        (
            "No such parameter: connectionId. There is: connection_id.",
            {"conf": {"connection_id": CONNECTION_ID, "connectionId": ""}},
        ),
    ],
)
def test_fails_at_once_with_what_was_mistyped(scenario, says, arguments):
    outcome = scenario(**arguments, ends=START_FAILS, log_contains=says, post_count=0, new_jobs=0)
    assert {request.operation for request in outcome.airbyte.requests} <= {"create_token"}
    assert outcome.result.tries[START] == 1 or not DAG_TEST_COUNTS_TRIES


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            case(
                f"the connection id {value!r}",
                variables={CONNECTION_ID_VARIABLE: value},
                says="Set the Variable MY_EXAMPLE",
            )
            for value in (None, "", " \n")
        ),
        case("no HTTP connection", variables={HTTP_CONNECTION_VARIABLE: None}, says=HTTP_CONNECTION),
        case("nobody listens", host="http://127.0.0.1:1", says="No answer. Check {host}"),
        case("an unknown host", host="http://airbyte.invalid", says="No answer. Check {host}"),
        case("a host with a space", host="http://air byte", says="No answer. Check {host}"),
        case("an empty host", host="", says="No answer. Check {host}"),
        case("a host without its path", base_path="/api/public", host="{root}", says="with 404. Check {host}"),
        case("a host with /v1", host="{url}/v1", says="/v1/v1/applications/token with 404. Check {host}"),
        case("a stale token", variables={TOKEN_VARIABLE: "stale"}, says="CLOUD_API_TOKEN if set", post_count=None),
        case("a login", login={"login": CLIENT_ID, "password": CLIENT_SECRET}, says="has no login", post_count=None),
        case(
            "a connection that Airbyte does not know",
            conf={"connection_id": "00000000-0000-4000-8000-000000000000"},
            says="Check the connection id",
            post_count=None,
        ),
    ],
)
def test_says_what_is_wrong_with_the_set_up(scenario, arguments):
    says = arguments.pop("says").format(host=f"{HTTP_CONNECTION}: https://api.airbyte.com or https://<your host>/api")
    outcome = scenario(**{"post_count": 0, **arguments}, ends=START_FAILS, log_contains=says, new_jobs=0)
    assert outcome.result.tries[START] == 2 or not DAG_TEST_COUNTS_TRIES, "it may have been put right"


# Faults at random.


def draw(random: Random) -> dict:
    """Return faults, jobs and hiccups of the secrets backend that are drawn at random."""
    menu = [*ANY_FAULT, *map(lost, ANY_FAULT)]
    operations = ("create_token", "create_job", "get_job", "list_jobs", "get_connection")
    faults = {
        operation: [random.choice(menu) if random.random() < 0.5 else None for _ in range(random.randrange(10))]
        for operation in operations
    }
    faults["create_token"] += [TOKENS_EXPIRE] * random.randrange(3)
    if DAG_TEST_COUNTS_TRIES:  # else no job may end before a retry
        faults["list_jobs"] += [JOBS_END] * random.randrange(3)
    for schedule in faults.values():
        random.shuffle(schedule)
    if random.random() < 0.2:  # a refusal that lasts
        faults["get_job"] += [random.choice(REFUSALS)] * random.choice([9, 12])
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
        "before_syncs": random.choice([(), (), ("reset",), ("clear",), ("refresh",), ("reset", "refresh")]),
        "existing_jobs": random.choice(existing_jobs),
        "failing_reads": {name: set(random.choices(range(1, 13), k=random.randrange(4))) for name in READ_AT_ALL},
    }


@pytest.mark.airflow_3_0
def test_faults_at_random(run_dag, seed):
    drawn = draw(Random(seed))
    schedule = f"--seed {seed} drew {drawn}"
    existing_jobs, failing_reads = drawn.pop("existing_jobs"), drawn.pop("failing_reads")
    retries = {"retries": FOR_EVER, **IMPATIENT}
    with FakeAirbyte(**drawn) as airbyte:
        for job in existing_jobs:
            airbyte.add_job(**job)
        result = run_dag(airbyte.url, policy={START: retries, WAIT: retries}, failing_reads=failing_reads)

    new_syncs = [job for job in airbyte.jobs[len(existing_jobs) :] if job.type in SYNCS]
    assert len(new_syncs) <= 1, f"a sync was started twice: {schedule}"
    (followed,) = [job for job in airbyte.jobs if job.id == result.job_id]
    assert followed.type in SYNCS, schedule
    pokes = [request.status for request in airbyte.requests_of("get_job")]
    if set(pokes[-11:]) <= {fault.status for fault in REFUSALS}:
        assert result.tasks == WAIT_FAILS, schedule
        assert f"AirflowFailException: Airbyte answered GET /v1/jobs/{followed.id} with {pokes[-1]}" in result.log
    else:
        assert result.tasks == (SUCCESS if followed.statuses[-1] == "succeeded" else WAIT_FAILS), schedule
        ended = result.job if result.state == "success" else f"Airbyte job {followed.id} {followed.statuses[-1]}: "
        assert ended == result.job or ended in result.log, schedule
