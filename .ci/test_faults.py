"""
What can go wrong, and how the run copes with it.

Nothing is final but the job's own end, and what the user has typed and no retry can change. Anything else costs a
try, whose log says what to check. A second sync is never started while the first one may be running.
"""

from __future__ import annotations

import time
from dataclasses import replace
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
OF_EACH_KIND = [Fault(403), Fault(503), *SOMEBODY_ELSE, CLOSED]
ANY_FAULT = [*BUSY, *REFUSALS, *SOMEBODY_ELSE, DATABASE_DOWN, CLOSED, SILENCE]
JOBS_END = Fault(before=FakeAirbyte.end_jobs)
TOKENS_EXPIRE = Fault(before=FakeAirbyte.expire_tokens)
FOR_EVER = 99
IMPATIENT = {"extra_options": {"timeout": 2}}  # for a request that is not answered

RUNNING = {"age": 9, "statuses": ("running", "running", "succeeded")}  # older than the run
DAG_TEST_COUNTS_TRIES = AIRFLOW_VERSION >= (2, 10)  # Before, a retry in dag.test() does not know that it is one.
DAG_TEST_FAILS_POKES = AIRFLOW_VERSION == (3, 0)  # every other poke of a rescheduled sensor, whatever it is
needs_try_count = pytest.mark.skipif(not DAG_TEST_COUNTS_TRIES, reason="dag.test() does not count tries here")


def lost(fault: Fault) -> Fault:
    """Return the fault after which Airbyte has done what was asked, although its answer does not tell."""
    return replace(fault, carried_out=True)


def then(operation: str, *faults: Fault, **fault) -> Fault:
    """Return a fault after which the next requests of an operation meet these faults."""
    return Fault(after=lambda airbyte: airbyte.faults.update({operation: list(faults)}), **fault)


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
        wait_retries: int = 0,
    ) -> tuple[DagRunResult, FakeAirbyte]:
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
        :param wait_retries: of the sensor; a poke that goes wrong must not cost a retry
        """
        if ends == START_FAILS:
            start_retries = int(DAG_TEST_COUNTS_TRIES)
        wait_retries = FOR_EVER if DAG_TEST_FAILS_POKES else wait_retries
        policy = {START: {"retries": start_retries, **IMPATIENT}, WAIT: {"retries": wait_retries, **IMPATIENT}}
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
        return result, airbyte

    return scenario


def assert_nothing_is_asked_after_the_end(airbyte: FakeAirbyte, log: str) -> None:
    """After the poke that says how the job ended, at most its page is asked for."""
    asked = [request for request in airbyte.requests if request.operation not in ("create_token", "get_connection")]
    ends = [number for number, request in enumerate(asked) if request.job_status in ENDED and request.status == 200]
    if ends and "following job" in log and asked[ends[0] - 1].operation == "list_jobs":
        ends.pop(0)  # The retry of the start has seen it first.
    assert ends in ([], [len(asked) - 1])


# Any fault, on any request, costs a try at most.

JOINS = {"existing_jobs": (RUNNING,), "log_contains": "is already running", "new_jobs": 0}


@pytest.mark.parametrize("fault", [*ANY_FAULT, Fault(409)], ids=str)
@pytest.mark.parametrize(
    "meets, arguments",
    [
        pytest.param(lambda fault: {"create_token": [fault]}, {}, marks=pytest.mark.airflow_3_0),
        (lambda fault: {"create_job": [fault]}, {"post_count": 2}),
        pytest.param(lambda fault: {"list_jobs": [fault]}, {"post_count": 2, **JOINS}, marks=pytest.mark.airflow_3_0),
        (lambda fault: {"create_job": [then("create_token", fault)]}, {"wait_retries": FOR_EVER}),
        (lambda fault: {"get_job": [None, fault]}, {}),
    ],
    ids=["token", "start", "look-up", "token of a poke", "poke"],
)
def test_any_fault_on_any_request_costs_a_try_at_most(scenario, meets, arguments, fault):
    scenario(faults=meets(fault), **arguments)


@pytest.mark.parametrize("fault", [*OF_EACH_KIND, Fault(body='{"data": [{}]}'), Fault(body='{"data": 1}')], ids=str)
def test_pokes_at_the_shortest_interval_if_the_earlier_syncs_are_not_known(scenario, fault):
    result, _ = scenario(faults={"list_jobs": [fault]}, log_contains="Earlier syncs are not known")
    assert "poke failed" not in result.log, "a line, and no traceback"


@pytest.mark.parametrize("start_time", ["", '"startTime": "soon", ', '"startTime": null, ', '"startTime": 5, '])
def test_accepts_a_job_without_a_start_time(scenario, start_time):
    job = Fault(body=f'{{{start_time}"jobId": 1001, "status": "running", "jobType": "sync"}}')
    scenario(faults={"get_job": [job, job]}, log_contains="Earlier syncs are not known")


# What a message says, and where it points.


@pytest.mark.parametrize(
    "operation, key", [("create_token", "access_token"), ("create_job", "jobId"), ("get_job", "status")]
)
@pytest.mark.parametrize("body", [*NOT_A_JOB.values(), '{"token": "under-another-name"}'])
def test_says_what_is_missing_in_an_answer_and_quotes_no_token(scenario, operation, key, body):
    result, _ = scenario(faults={operation: [Fault(body=body)]}, log_contains=f"It has no {key}.", post_count=None)
    assert f"Check {HTTP_CONNECTION}: https://api.airbyte.com" in result.log
    assert "under-another-name" not in result.log


@pytest.mark.parametrize(
    "fault, says",
    [
        (Fault(403), "POST /v1/jobs with 403. Check connection id, CLOUD_API_TOKEN if set, and airbyte"),
        (Fault(403), 'right host, no login. {"status": 403, '),
        (Fault(503), "POST /v1/jobs with 503. It is busy or in trouble. <html>"),
        (Fault(409), "409, but no job runs. Is the connection active in Airbyte?"),
    ],
)
def test_a_start_that_is_refused_for_long_fails_with_the_message(scenario, fault, says):
    scenario(
        faults={"create_job": [fault] * FOR_EVER}, ends=START_FAILS, log_contains=says, post_count=None, new_jobs=0
    )


# Pokes that are refused.


@pytest.mark.parametrize("fault", [*REFUSALS, Fault(409)], ids=str)
def test_fails_if_airbyte_refuses_a_poke_and_ten_more(scenario, fault):
    _, airbyte = scenario(
        faults={"get_job": [None, *[fault] * FOR_EVER]},
        statuses=("running",) * FOR_EVER,
        ends=WAIT_FAILS,
        log_contains=f"AirflowFailException: Airbyte answered GET /v1/jobs/1001 with {fault.status}. Check connection",
        wait_retries=2,
    )
    assert len(airbyte.requests_of("get_job")) == 12


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
    _, airbyte = scenario(faults={"get_job": [fault] * 13})
    assert len(airbyte.requests_of("get_job")) == 15


def test_asks_again_with_a_new_token(scenario):
    _, airbyte = scenario(faults={"get_job": [Fault(before=FakeAirbyte.expire_tokens)]})
    assert [request.status for request in airbyte.requests_of("get_job")] == [401, 200, 200]


def test_waits_between_two_refused_pokes(run_dag):
    with FakeAirbyte(faults={"get_job": [Fault(403)] * 2}) as airbyte:
        assert run_dag(airbyte.url, policy={WAIT: {"retry_delay": 0.5}}).state == "success"
    first, second, third = (request.time for request in airbyte.requests_of("get_job")[:3])
    assert min(second - first, third - second) >= 0.5


# A 409, and what the look-up finds then.


@pytest.mark.parametrize(
    "existing_jobs, ends",
    [
        ((RUNNING,), SUCCESS),
        (({"age": 60, "statuses": ("failed",)}, RUNNING), SUCCESS),
        ((*({"age": 60, "duration": 1},) * 25, RUNNING), SUCCESS),  # more than a page of others
        (({**RUNNING, "statuses": ("running", "running", "failed")},), WAIT_FAILS),
        (({**RUNNING, "type": "refresh"},), SUCCESS),
    ],
)
def test_joins_what_is_running(scenario, existing_jobs, ends):
    says = f"{1000 + len(existing_jobs)} is already running"
    scenario(existing_jobs=existing_jobs, ends=ends, log_contains=says, new_jobs=0, start_retries=0)


@pytest.mark.parametrize(
    "existing_jobs, faults, counts",
    [
        (({"statuses": ("pending", "succeeded")},), {}, {"new_jobs": 0}),  # Airbyte has not begun it.
        ((), {"create_job": [lost(Fault(409))]}, {}),
        ((), {"create_job": [Fault(409)]}, {"post_count": 2}),
        ((RUNNING,), {"list_jobs": [JOBS_END]}, {"post_count": 2}),
        ((RUNNING,), {"create_job": [Fault(after=FakeAirbyte.expire_tokens)]}, {"post_count": 2, "new_jobs": 0}),
    ],
)
def test_a_409_leads_to_one_sync(scenario, existing_jobs, faults, counts):
    scenario(existing_jobs=existing_jobs, faults=faults, **counts)


def test_a_server_before_february_2026_does_not_list_the_refresh_that_runs(scenario):
    refresh, ends = ({**RUNNING, "type": "refresh"},), {"create_job": [None, JOBS_END]}
    scenario(existing_jobs=refresh, listed_types=("sync", "reset"), faults=ends, post_count=2)


# Jobs of other types.


@pytest.mark.airflow_3_0
@pytest.mark.parametrize("job_type", ["reset", "clear"])
def test_waits_until_a_reset_has_ended(scenario, job_type):
    says = f"Airbyte job 1001 is a {job_type}, not a sync"
    scenario(existing_jobs=({**RUNNING, "type": job_type},), post_count=3, log_contains=says)
    scenario(before_syncs=(job_type,), post_count=None, new_jobs=2, log_contains=says)


def test_never_reports_a_reset_as_a_sync(scenario):
    scenario(
        existing_jobs=({"age": 60, "duration": 1}, {"type": "reset", "statuses": ("running",)}),
        ends=START_FAILS,
        log_contains="Airbyte job 1002 is a reset, not a sync",
        post_count=None,
        new_jobs=0,
    )


# A sync that an earlier try has started.


def clock_was_late(airbyte: FakeAirbyte) -> None:
    """Date the newest job back to before the run, and let it end."""
    airbyte.jobs[-1].created = airbyte.requests[0].time - 3
    airbyte.end_jobs()


def sync_ends_and_a_reset_follows(airbyte: FakeAirbyte) -> None:
    """Let somebody reset the connection after its sync has ended."""
    airbyte.end_jobs()
    airbyte.add_job(type="reset", statuses=("running",))


@pytest.mark.parametrize("fault", [*OF_EACH_KIND, SILENCE, DATABASE_DOWN], ids=str)
def test_one_sync_although_its_answer_is_lost(scenario, fault):
    scenario(faults={"create_job": [lost(fault)]}, post_count=None)


@pytest.mark.airflow_3_0
@needs_try_count
@pytest.mark.parametrize(
    "fault, look_up, arguments",
    [
        *((fault, [JOBS_END], {}) for fault in (CLOSED, SILENCE, Fault(503), Fault(403), SOMEBODY_ELSE[-1])),
        (CLOSED, [JOBS_END], {"statuses": ("running", "failed"), "ends": WAIT_FAILS}),
        (CLOSED, [CLOSED, Fault(403), JOBS_END], {}),
        (CLOSED, [then("get_job", Fault(403), Fault(409))], {}),
        (then("create_token", NOBODY_THERE, no_answer="closed"), [JOBS_END], {}),
        (CLOSED, [JOBS_END], {"before_syncs": ("refresh",)}),
        (CLOSED, [Fault(before=sync_ends_and_a_reset_follows)], {"new_jobs": 2}),
        (CLOSED, [Fault(before=clock_was_late)], {}),
    ],
)
def test_a_retry_follows_the_job_of_the_try_before(scenario, fault, look_up, arguments):
    faults = {"create_job": [lost(fault)], "list_jobs": look_up}
    scenario(faults=faults, log_contains="following job 1001", **arguments)


@needs_try_count
def test_says_that_the_job_is_refused_which_a_retry_follows(scenario):
    faults = {"create_job": [lost(CLOSED)], "get_job": [Fault(409)] * FOR_EVER}
    scenario(faults=faults, ends=START_FAILS, log_contains="GET /v1/jobs/1001 with 409. Check connection id")


@pytest.mark.parametrize("age", [60, 10])
def test_a_retry_does_not_follow_an_older_sync(scenario, age):
    scenario(faults={"create_job": [CLOSED]}, existing_jobs=({"age": age, "duration": 1},), post_count=2)


# How a job ends.


@pytest.mark.parametrize("base_path", ["", "/api/public"])
@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_fails_with_a_link_if_the_job_has_failed(scenario, status, base_path):
    result, airbyte = scenario(statuses=("running", status), base_path=base_path, ends=WAIT_FAILS, wait_retries=2)
    ui = airbyte.url[: -len(base_path)] if base_path else airbyte.url
    page = f"{ui}/workspaces/{WORKSPACE_ID}/connections/{CONNECTION_ID}/timeline?openLogs=true&jobId=1001"
    assert f"Airbyte job 1001 {status}: {page}" in result.log


def test_links_to_the_ui_of_airbyte_cloud(run_dag):
    with FakeAirbyte(statuses={CONNECTION_ID: ("failed",)}) as airbyte:
        proxy = {"HTTP_PROXY": airbyte.url, "NO_PROXY": None}  # so that the fake Airbyte answers for api.airbyte.com
        result = run_dag("http://api.airbyte.com", variables=proxy)
    assert result.tasks == WAIT_FAILS
    assert f"http://cloud.airbyte.com/workspaces/{WORKSPACE_ID}/connections/{CONNECTION_ID}/timeline" in result.log


@pytest.mark.parametrize("fault", OF_EACH_KIND, ids=str)
def test_says_that_the_job_has_failed_even_without_a_link(scenario, fault):
    scenario(
        statuses=("running", "failed"),
        faults={"get_connection": [fault]},
        ends=WAIT_FAILS,
        log_contains="Airbyte job 1001 failed: the connection's timeline in Airbyte.",
    )


# Tokens.


def test_the_wait_goes_on_when_tokens_come_back(scenario):
    no_tokens = [Fault(401), NOBODY_THERE, Fault(503), CLOSED, Fault(400), Fault(401), Fault(429)]
    scenario(faults={"create_job": [then("create_token", *no_tokens)]}, wait_retries=FOR_EVER)


# Settings that are missing, unreadable or wrong.

CLIENT_ID_VARIABLE, CLIENT_SECRET_VARIABLE = "AIRFLOW_VAR_AIRBYTE_CLIENT_ID", "AIRFLOW_VAR_AIRBYTE_CLIENT_SECRET"
CONNECTION_ID_VARIABLE, TOKEN_VARIABLE = "AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID", "AIRFLOW_VAR_CLOUD_API_TOKEN"
SET_CLIENT = "Set the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET, or CLOUD_API_TOKEN"
CHECK_CLIENT = "Check the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET."
READS = [
    (CLIENT_ID_VARIABLE, 4),
    (CLIENT_SECRET_VARIABLE, 4),
    (CONNECTION_ID_VARIABLE, 1),
    (HTTP_CONNECTION_VARIABLE, 9),
]


@pytest.mark.airflow_3_0
@pytest.mark.parametrize("name, number", [(name, number) for name, last in READS for number in range(1, last + 1)])
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
        faults={operation: [Fault(before=give_token)] for operation in ("list_jobs", "create_job")},
        failing_reads={name: {1, 2, 4, 5, 6}},
        log_contains=SET_CLIENT,
        wait_retries=FOR_EVER,
    )


WRONG_IDS = [
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
NO_PARAMETER = "No such parameter: connectionId. There is: connection_id."


@pytest.mark.parametrize(
    "says, arguments",
    [
        *(("Set the parameter connection_id to the UUID", {"conf": {"connection_id": id}}) for id in WRONG_IDS),
        *(("Set the Variable MY_EXAMPLE", {"variables": {CONNECTION_ID_VARIABLE: id}}) for id in WRONG_IDS[:4]),
        (NO_PARAMETER, {"conf": {"connectionId": CONNECTION_ID}}),
        (NO_PARAMETER, {"conf": {"connection_id": CONNECTION_ID, "connectionId": ""}}),
    ],
)
def test_fails_at_once_with_what_was_mistyped(scenario, says, arguments):
    result, airbyte = scenario(**arguments, ends=START_FAILS, log_contains=says, post_count=0, new_jobs=0)
    assert {request.operation for request in airbyte.requests} <= {"create_token"}
    assert result.tries[START] == 1 or not DAG_TEST_COUNTS_TRIES


CHECK_HOST = f"Check {HTTP_CONNECTION}: https://api.airbyte.com or https://<your host>/api/public, without /v1."


@pytest.mark.parametrize(
    "says, arguments",
    [
        ("Set the Variable MY_EXAMPLE_CONNECTION_ID", {"variables": {CONNECTION_ID_VARIABLE: None}}),
        ("Set the Variable MY_EXAMPLE_CONNECTION_ID", {"variables": {CONNECTION_ID_VARIABLE: " \n"}}),
        (SET_CLIENT, {"variables": {CLIENT_ID_VARIABLE: None}}),
        (SET_CLIENT, {"variables": {CLIENT_ID_VARIABLE: " \n"}}),
        (SET_CLIENT, {"variables": {CLIENT_SECRET_VARIABLE: None}}),
        (SET_CLIENT, {"variables": {CLIENT_SECRET_VARIABLE: " \n"}}),
        (CHECK_CLIENT, {"variables": {CLIENT_SECRET_VARIABLE: "wrong"}}),
        ('"errorId"', {"variables": {CLIENT_SECRET_VARIABLE: "wrong"}}),
        ("Invalid client id", {"variables": {CLIENT_SECRET_VARIABLE: "wrong"}, "base_path": "/api/public"}),
        (HTTP_CONNECTION, {"variables": {HTTP_CONNECTION_VARIABLE: None}}),
        (f"No answer. {CHECK_HOST}", {"host": "http://127.0.0.1:1"}),
        (f"No answer. {CHECK_HOST}", {"host": "http://airbyte.invalid"}),
        (f"No answer. {CHECK_HOST}", {"host": "http://air byte"}),
        (f"No answer. {CHECK_HOST}", {"host": ""}),
        (f"with 404. {CHECK_HOST}", {"host": "{root}", "base_path": "/api/public"}),
        (f"/v1/v1/applications/token with 404. {CHECK_HOST}", {"host": "{url}/v1"}),
        ("CLOUD_API_TOKEN if set", {"variables": {TOKEN_VARIABLE: "stale"}}),
        ("right host, no login", {"login": {"login": CLIENT_ID, "password": CLIENT_SECRET}}),
        ("Check connection id", {"conf": {"connection_id": "00000000-0000-4000-8000-000000000000"}}),
    ],
)
def test_says_what_is_wrong_with_the_set_up(scenario, says, arguments):
    result, _ = scenario(**arguments, ends=START_FAILS, log_contains=says, post_count=None, new_jobs=0)
    assert result.tries[START] == 2 or not DAG_TEST_COUNTS_TRIES, "it may have been put right"


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
    existing_jobs = [(), ({"age": 60, "statuses": (last,), "duration": 1},)]
    existing_jobs += [({**RUNNING, "type": job_type},) for job_type in ("sync", "refresh", "reset", "clear")]
    return {
        "faults": faults,
        "statuses": {CONNECTION_ID: (*statuses, last)},
        "before_syncs": random.choice([(), (), ("reset",), ("clear",), ("refresh",), ("reset", "refresh")]),
        "existing_jobs": random.choice(existing_jobs),
        "failing_reads": {name: set(random.choices(range(1, 13), k=random.randrange(4))) for name, _ in READS},
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
