"""
What can go wrong, and how the run copes with it: every fault on every request.

A second sync is never started while the first one may be running. What a person must put right costs a try, and is
final at the sixth. Any other trouble costs a poke nothing. Every log says what to check.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import time
from dataclasses import replace
from random import Random

import pendulum
import pytest
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
from sandbox.fixtures import (
    CLOSED,
    DAG_TEST_COUNTS_TRIES,
    DAG_TEST_FAILS_POKES,
    FOR_EVER,
    JOBS_END,
    RUNNING,
    START_FAILS,
    SUCCESS,
    WAIT_FAILS,
    needs_try_count,
)
from sandbox.throwaway_airflow import AIRFLOW_VERSION, HTTP_CONNECTION, HTTP_CONNECTION_VARIABLE, START, WAIT

NO_SYNCS = ("reset", "clear")
NOT_A_JOB = {"html": "<!doctype html><p>Sign in, \udcfcbrigens in Latin-1", "list": "[]", "empty": "", "keyless": "{}"}
SILENCE = Fault(no_answer="silent")
BUSY = [Fault(status) for status in (408, 429, 500, 502, 503, 504)]
REFUSALS = [Fault(status, "{}") for status in (400, 401, 402, 403, 404, 422)]
SOMEBODY_ELSE = [Fault(302), Fault(405), NOBODY_THERE, *(Fault(body=body) for body in NOT_A_JOB.values())]
OF_EACH_KIND = [Fault(403), Fault(503), *SOMEBODY_ELSE, CLOSED]
FEW = [Fault(403), CLOSED]
ANY_FAULT = [*BUSY, *REFUSALS, Fault(409), *SOMEBODY_ELSE, DATABASE_DOWN, CLOSED, SILENCE]
IMPATIENT = {"extra_options": {"timeout": 2}}  # for a request that is not answered
TOKENS_EXPIRE = Fault(before=FakeAirbyte.expire_tokens)


def lost(fault: Fault) -> Fault:
    """Return the fault after which Airbyte has done what was asked, although its answer does not tell."""
    return replace(fault, carried_out=True)


def then(operation: str, *faults: Fault, **fault) -> Fault:
    """Return a fault after which the next requests of an operation meet these faults."""
    return Fault(after=lambda airbyte: airbyte.faults.update({operation: list(faults)}), **fault)


# Any fault, on any request, costs a try at most, and the log says what to check.

JOINS_LATE = {"existing_jobs": (RUNNING,), "posts": 2, "new_jobs": 0}
CHECK_HOST = f"Check the host of {HTTP_CONNECTION}: https://api.airbyte.com or https://<your host>/api/public, no /v1."
CHECK_CLIENT = "Check the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET."
CHECK_ID = "Check the connection id, and that your Airbyte user has the role Runner."
ADVICE = {
    **dict.fromkeys([*BUSY, DATABASE_DOWN], "It is busy or in trouble."),
    **dict.fromkeys(SOMEBODY_ELSE, CHECK_HOST),
    Fault(401, "{}"): f"Check CLOUD_API_TOKEN if set, and that {HTTP_CONNECTION} has no login. {CHECK_HOST}",
    **dict.fromkeys([Fault(403), Fault(403, "{}")], CHECK_ID),
    Fault(404, "{}"): CHECK_HOST,
    Fault(409): "Check in Airbyte whether the connection is active",
}


# All of them on one Airflow, and few on 3.0, where a task of dag.test() takes ten seconds.
@pytest.mark.parametrize("fault", {(2, 11): ANY_FAULT, (3, 0): FEW}.get(AIRFLOW_VERSION, OF_EACH_KIND), ids=str)
@pytest.mark.parametrize(
    "meets, of_token, arguments",
    [
        pytest.param(lambda fault: {"create_token": [fault]}, True, {}, marks=pytest.mark.airflow_3_0),
        (lambda fault: {"create_job": [fault]}, False, {"posts": 2}),
        pytest.param(lambda fault: {"list_jobs": [fault]}, False, JOINS_LATE, marks=pytest.mark.airflow_3_0),
        (lambda fault: {"create_job": [then("create_token", fault)]}, True, {"wait_retries": FOR_EVER}),
        (lambda fault: {"get_job": [None, fault]}, False, {}),
    ],
    ids=["token", "start", "look-up", "token of a poke", "poke"],
)
def test_any_fault_on_any_request_costs_a_try_at_most(scenario, meets, of_token, arguments, fault):
    refused = fault in [*REFUSALS, Fault(403), Fault(409)]
    says = CHECK_CLIENT if refused and of_token and fault.status != 404 else ADVICE.get(fault, "")
    result, _ = scenario(faults=meets(fault), **{"wait_retries": int(refused), "says": says, **arguments})
    if "get_job" in meets(fault) and not DAG_TEST_FAILS_POKES:
        assert result.tries[WAIT] == 1 + refused or not DAG_TEST_COUNTS_TRIES


@pytest.mark.parametrize("fault", [*OF_EACH_KIND, Fault(body='{"data": [{}]}'), Fault(body='{"data": 1}')], ids=str)
def test_pokes_at_the_shortest_interval_if_the_earlier_syncs_are_not_known(scenario, fault):
    result, _ = scenario(faults={"list_jobs": [fault]}, says="Earlier syncs are not known")
    assert "poke failed" not in result.log, "a line, and no traceback"


@pytest.mark.parametrize("start_time", ["", '"startTime": "soon", ', '"startTime": null, ', '"startTime": 5, '])
def test_accepts_a_job_without_a_start_time(scenario, start_time):
    job = Fault(body=f'{{{start_time}"jobId": 1001, "status": "running", "jobType": "sync"}}')
    scenario(faults={"get_job": [job, job]}, says="Earlier syncs are not known")


# What a message says, and where it points.


@pytest.mark.parametrize(
    "operation, key", [("create_token", "access_token"), ("create_job", "jobId"), ("get_job", "status")]
)
@pytest.mark.parametrize("body", [*NOT_A_JOB.values(), '{"token": "under-another-name"}'])
def test_says_what_is_missing_in_an_answer_and_quotes_no_token(scenario, operation, key, body):
    result, _ = scenario(faults={operation: [Fault(body=body)]}, says=f"It has no {key}.", posts=None)
    assert f"Check the host of {HTTP_CONNECTION}: https://api.airbyte.com" in result.log
    assert "under-another-name" not in result.log


# Pokes that are refused.


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([Fault(403)] * 5, id="five times", marks=pytest.mark.airflow_3_0),
        pytest.param([Fault(403), None, Fault(403), None, *[Fault(401)] * 3], id="five times in all"),
        pytest.param([*[Fault(403)] * 5, *[Fault(503)] * 5, CLOSED], id="five times, then trouble"),
    ],
)
def test_goes_on_if_airbyte_stops_refusing(scenario, faults):
    scenario(faults={"get_job": faults}, statuses=("running",) * 4 + ("succeeded",), wait_retries=FOR_EVER)


@needs_try_count
def test_a_refusal_after_five_failed_tries_of_any_kind_is_final(scenario):
    faults = {"create_token": [None, *[Fault(503)] * 5, None], "get_job": [Fault(403)]}
    scenario(faults=faults, ends=WAIT_FAILS, wait_retries=FOR_EVER)


@pytest.mark.parametrize("fault", [DATABASE_DOWN, NOBODY_THERE, *SOMEBODY_ELSE], ids=str)
def test_no_number_of_other_answers_ends_the_wait(scenario, fault):
    _, airbyte = scenario(faults={"get_job": [fault] * 8})
    assert len(airbyte.requests_of("get_job")) == 10


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 0), reason="dag.test() lets the timeout end it here")
def test_a_body_that_drips_ends_with_the_execution_timeout(scenario):
    dripping = {"get_job": [Fault(body=json.dumps({"drip": "x" * 100}), drip=True)]}
    limit = {WAIT: {"execution_timeout": 4, "retries": FOR_EVER}}
    _, airbyte = scenario(faults=dripping, run={"policy": limit}, timeout=3)
    pokes = airbyte.requests_of("get_job")
    assert pokes[1].time - pokes[0].time < 15


def test_after_a_poke_that_goes_wrong_the_next_one_comes_later_the_older_the_run(scenario):
    _, airbyte = scenario(faults={"get_job": [Fault(503)]}, run={"age": 180})
    first, second, third = (poke.time for poke in airbyte.requests_of("get_job"))
    assert 5 < second - first < 12
    assert third - second < 5, "and at the shortest interval once it goes well"


@needs_try_count
@pytest.mark.parametrize(
    "faults, says",
    [
        pytest.param(
            {"create_token": [None, Fault(503), Fault(503)]},
            "No end of v1/jobs/1001 seen. Clear this task to wait longer.",
            id="no token",
        ),
        pytest.param({"get_job": [Fault(403), *[Fault(503)] * FOR_EVER]}, "timed out", id="no job"),
    ],
)
def test_a_wait_without_any_answer_has_an_end_as_well(scenario, faults, says):
    over = {"age": 100, "policy": {WAIT: {"timeout": 60, "retries": FOR_EVER}}}
    _, airbyte = scenario(faults=faults, run=over, ends=WAIT_FAILS, says=says)
    assert len(airbyte.requests_of("get_job")) <= 2, "one more look"


def test_a_run_whose_date_lies_years_back_waits_all_the_same(scenario):
    scenario(run={"age": 3 * 365 * 24 * 60 * 60, "policy": {WAIT: {"timeout": 24 * 60 * 60}}}, statuses=("succeeded",))
    started = {"create_job": [Fault(after=lambda airbyte: setattr(airbyte.jobs[0], "created", time.time() - 100))]}
    scenario(faults=started, run={"age": 400, "policy": {WAIT: {"timeout": 200}}})


def test_fails_at_once_if_the_start_was_marked_as_a_success_and_left_no_job_id(scenario):
    nothing = {WAIT: {"endpoint": "v1/jobs/None", "retries": 3}}
    result, airbyte = scenario(run={"policy": nothing}, ends=WAIT_FAILS, says="There is no job id.")
    assert result.tries[WAIT] == 1
    assert airbyte.requests_of("get_job") == []


@pytest.mark.skipif(AIRFLOW_VERSION > (2, 8), reason="newer ones end the task by themselves")
def test_a_task_that_is_stopped_in_a_poke_stays_stopped(scenario):
    stop = Fault(before=lambda airbyte: os.kill(os.getpid(), signal.SIGTERM), seconds=0.5)
    scenario(faults={"get_job": [stop]}, ends=WAIT_FAILS)


# A 409, and what the look-up finds then.


@pytest.mark.parametrize(
    "existing_jobs, ends",
    [
        pytest.param(({"age": 60, "statuses": ("failed",)}, RUNNING), SUCCESS, id="after a failed one"),
        pytest.param((*({"age": 60, "duration": 1},) * 25, RUNNING), SUCCESS, id="after more than a page"),
        pytest.param(({**RUNNING, "statuses": ("running", "failed")},), WAIT_FAILS, id="and then it fails"),
    ],
)
def test_joins_what_is_running(scenario, existing_jobs, ends):
    says = f"{1000 + len(existing_jobs)} is already running"
    scenario(existing_jobs=existing_jobs, ends=ends, says=says, new_jobs=0, start_retries=0)


@pytest.mark.parametrize(
    "existing_jobs, faults, counts",
    [
        (({"statuses": ("pending", "succeeded")},), {}, {"new_jobs": 0}),
        ((), {"create_job": [lost(Fault(409))]}, {"posts": None}),
        ((), {"create_job": [Fault(409)]}, {"posts": 2}),
        ((RUNNING,), {"list_jobs": [JOBS_END]}, {"posts": 2}),
        ((RUNNING,), {"create_job": [Fault(after=FakeAirbyte.expire_tokens)]}, {"posts": 2, "new_jobs": 0}),
    ],
    ids=["not yet begun", "but it was started", "and nothing runs", "it ends meanwhile", "tokens expire meanwhile"],
)
def test_a_409_leads_to_one_sync(scenario, existing_jobs, faults, counts):
    scenario(existing_jobs=existing_jobs, faults=faults, **counts)


def test_a_server_before_february_2026_does_not_list_the_refresh_that_runs(scenario):
    refresh, ends = ({**RUNNING, "type": "refresh"},), {"create_job": [None, JOBS_END]}
    scenario(existing_jobs=refresh, listed_types=("sync", "reset"), faults=ends, posts=2)


# Jobs of other types.


def test_never_reports_a_reset_as_a_sync(scenario):
    scenario(
        existing_jobs=({"age": 60, "duration": 1}, {"type": "reset", "statuses": ("running",)}),
        ends=START_FAILS,
        says="Airbyte job 1002 is a reset, not a sync",
        posts=None,
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
    scenario(faults={"create_job": [lost(fault)]}, posts=None)


@needs_try_count
@pytest.mark.parametrize(
    "fault, look_up, arguments",
    [
        *((fault, [JOBS_END], {}) for fault in (SILENCE, Fault(503), Fault(403), SOMEBODY_ELSE[-1])),
        (CLOSED, [JOBS_END], {}),
        (CLOSED, [JOBS_END], {"statuses": ("running", "failed"), "ends": WAIT_FAILS}),
        (CLOSED, [CLOSED, Fault(403), JOBS_END], {}),
        pytest.param(CLOSED, [then("get_job", Fault(403), Fault(409))], {}, marks=pytest.mark.airflow_3_0),
        (then("create_token", NOBODY_THERE, no_answer="closed"), [JOBS_END], {}),
        (CLOSED, [JOBS_END], {"before_syncs": ("refresh",)}),
        (CLOSED, [Fault(before=sync_ends_and_a_reset_follows)], {"new_jobs": 2}),
        (CLOSED, [Fault(before=clock_was_late)], {}),
    ],
    ids=[
        "no answer",
        "503",
        "403",
        "somebody else's answer",
        "connection lost",
        "and it fails",
        "the look-up goes wrong",
        "its job is refused",
        "the token, too",
        "a refresh",
        "a reset follows it",
        "its clock is late",
    ],
)
def test_a_retry_follows_the_job_of_the_try_before(scenario, fault, look_up, arguments):
    faults = {"create_job": [lost(fault)], "list_jobs": look_up}
    scenario(faults=faults, says="following job 1001", **arguments)


@needs_try_count
def test_says_that_the_job_is_refused_which_a_retry_follows(scenario):
    faults = {"create_job": [lost(CLOSED)], "get_job": [Fault(409)] * FOR_EVER}
    scenario(faults=faults, ends=START_FAILS, says="/v1/jobs/1001 with 409. Check in Airbyte whether")


# How a job ends.


@pytest.mark.parametrize(
    "api, ui",
    [
        ("http://api.airbyte.com", "http://cloud.airbyte.com"),
        ("http://host.docker.internal:8000", "http://localhost:8000"),
    ],
)
def test_links_to_the_ui(run_dag, api, ui):
    with FakeAirbyte(statuses={CONNECTION_ID: ("failed",)}) as airbyte:
        proxy = {"HTTP_PROXY": airbyte.url, "NO_PROXY": None}  # so that the fake Airbyte answers for api.airbyte.com
        result = run_dag(api, variables=proxy)
    assert result.tasks == WAIT_FAILS
    assert f"Airbyte job 1001 failed: {ui}/workspaces/{WORKSPACE_ID}/connections/{CONNECTION_ID}/timeline" in result.log


@pytest.mark.parametrize("fault", OF_EACH_KIND, ids=str)
def test_says_that_the_job_has_failed_even_without_a_link(scenario, fault):
    scenario(
        statuses=("running", "failed"),
        faults={"get_connection": [fault]},
        ends=WAIT_FAILS,
        says="Airbyte job 1001 failed: the connection's timeline in Airbyte.",
    )


# Tokens.


def test_the_wait_goes_on_when_tokens_come_back(scenario):
    no_tokens = [Fault(401), Fault(400), Fault(401), NOBODY_THERE, Fault(503), CLOSED, Fault(429)]
    scenario(faults={"create_job": [then("create_token", *no_tokens)]}, wait_retries=FOR_EVER)


# Settings that are missing, unreadable or wrong.

CLIENT_ID_VARIABLE, CLIENT_SECRET_VARIABLE = "AIRFLOW_VAR_AIRBYTE_CLIENT_ID", "AIRFLOW_VAR_AIRBYTE_CLIENT_SECRET"
CONNECTION_ID_VARIABLE, TOKEN_VARIABLE = "AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID", "AIRFLOW_VAR_CLOUD_API_TOKEN"
SET_CLIENT = "Set the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET, or CLOUD_API_TOKEN"
READS = [
    (CLIENT_ID_VARIABLE, 4),
    (CLIENT_SECRET_VARIABLE, 4),
    (CONNECTION_ID_VARIABLE, 1),
    (HTTP_CONNECTION_VARIABLE, 9),
]


@pytest.mark.parametrize("name, number", [(name, each + 1) for name, reads in READS for each in range(reads)])
def test_a_hiccup_of_the_secrets_backend_costs_a_try(scenario, name, number):
    from sandbox.flaky_secrets import reads

    scenario(
        statuses=("running", "running", "succeeded"),
        run={"failing_reads": {name: {number}}},
        wait_retries=FOR_EVER,
        posts=None,
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
        run={"variables": variables, "failing_reads": {name: {1, 2, 4}}},
        faults={operation: [Fault(before=give_token)] for operation in ("list_jobs", "create_job")},
        says=SET_CLIENT,
        wait_retries=FOR_EVER,
    )


WRONG_IDS = [
    "1234",
    "my connection",
    f"https://cloud.airbyte.com/workspaces/{WORKSPACE_ID}/connections/{CONNECTION_ID}/status",
    CONNECTION_ID.replace("-", ""),
    f"{CONNECTION_ID}/status",
    'it\'s "quoted" \\',
    "{{ 1 / 0 }}",
    "{% raw %}",
]
NO_PARAMETER = "No such parameter: connectionId. There are: ['connection_id']"


@pytest.mark.parametrize(
    "says, arguments",
    [
        *(("Set the parameter connection_id to the UUID", {"conf": {"connection_id": each}}) for each in WRONG_IDS),
        ("Set the Variable MY_EXAMPLE_CONNECTION_ID to the UUID", {"variables": {CONNECTION_ID_VARIABLE: "1234"}}),
        (NO_PARAMETER, {"conf": {"connectionId": CONNECTION_ID}}),
        (NO_PARAMETER, {"conf": {"connection_id": CONNECTION_ID, "connectionId": ""}}),
    ],
    ids=str,
)
def test_fails_at_once_with_what_was_mistyped(scenario, says, arguments):
    result, airbyte = scenario(run=arguments, ends=START_FAILS, says=says, posts=0, new_jobs=0)
    assert airbyte.requests == []
    assert result.tries[START] == 1 or not DAG_TEST_COUNTS_TRIES


def connection(uri: str | None = None, **fields: str) -> dict:
    """Return the arguments of a run with this Airflow connection, or without it."""
    return {"run": {"variables": {HTTP_CONNECTION_VARIABLE: json.dumps(fields) if fields else uri}}}


SECRET_WRONG = {"run": {"variables": {CLIENT_SECRET_VARIABLE: "wrong"}}}
UNKNOWN_ID = {"run": {"conf": {"connection_id": "00000000-0000-4000-8000-000000000000"}}}
SELF_MANAGED = {"base_path": "/api/public"}
STALE = {"run": {"variables": {TOKEN_VARIABLE: "stale"}}}


@pytest.mark.parametrize(
    "says, arguments",
    [
        pytest.param("Set the Variable MY_EX", {"run": {"variables": {CONNECTION_ID_VARIABLE: " \n"}}}, id="blank id"),
        pytest.param('"errorId"', SECRET_WRONG, id="wrong secret on Cloud"),
        pytest.param("Invalid client id", {**SECRET_WRONG, **SELF_MANAGED}, id="wrong secret, self-managed"),
        pytest.param("of type HTTP: The conn_id", connection(), id="no connection"),
        *(
            pytest.param(
                f"to HTTP, for https, too. It is of type {each}.", connection(conn_type=each), id=f"type {each}"
            )
            for each in ("https", "airbyte", "generic")
        ),
        pytest.param("It is of type https", connection("https://127.0.0.1:1"), id="https as a URI"),
        pytest.param(CHECK_HOST, connection("http://user:pass-word@127.0.0.1/api/public"), id="a URI with a path"),
        pytest.param("No answer from http://127.0.0.1:1", {"host": "127.0.0.1:1"}, id="no scheme"),
        pytest.param(CHECK_HOST, {"host": "http://airbyte.invalid"}, id="no such host"),
        pytest.param(CHECK_HOST, {"host": "http://air byte"}, id="no host name"),
        pytest.param(CHECK_HOST, {"host": ""}, id="no host"),
        pytest.param(f"with 401. {CHECK_CLIENT} {CHECK_HOST}", {**SELF_MANAGED, "host": "{root}"}, id="no /api/public"),
        pytest.param(f"/v1/v1/applications/token with 404. {CHECK_HOST}", {"host": "{url}/v1"}, id="host with /v1"),
        pytest.param(f"with 403. {CHECK_ID}", UNKNOWN_ID, id="unknown connection on Cloud"),
        pytest.param(f"with 404. {CHECK_ID} {CHECK_HOST}", {**UNKNOWN_ID, **SELF_MANAGED}, id="the same, self-managed"),
    ],
)
def test_says_what_is_wrong_with_the_set_up(scenario, says, arguments):
    result, _ = scenario(**arguments, ends=START_FAILS, says=says, posts=None, new_jobs=0, start_retries=1)
    assert result.tries[START] == 2 or not DAG_TEST_COUNTS_TRIES, "it may have been put right"
    assert "pass-word" not in result.log


def test_a_401_does_not_blame_the_connection_id(scenario):
    result, _ = scenario(**STALE, ends=START_FAILS, posts=None, new_jobs=0, start_retries=0)
    assert "connection id" not in result.log


def test_sends_nothing_where_the_type_of_the_connection_is_https(run_dag):
    with FakeAirbyte() as airbyte:
        host = airbyte.url.removeprefix("http://")
        variables = connection(conn_type="https", host=host)["run"]["variables"]
        assert run_dag(airbyte.url, variables=variables, policy={START: {"retries": 0}}).state == "failed"
    assert airbyte.requests == []


def test_names_what_to_do_where_the_certificate_is_not_known(scenario, tmp_path):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), 1, *(pendulum.now("UTC").add(days=n) for n in (-1, 1))
    )
    certificate = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=True)
    pem = certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    plain = serialization.NoEncryption()
    pem += key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (tmp_path / "server.pem").write_bytes(pem)
    with FakeAirbyte() as airbyte:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        airbyte.socket = context.wrap_socket(airbyte.socket, server_side=True)
        says = "REQUESTS_CA_BUNDLE"
        host = f"https://localhost:{airbyte.server_port}"
        scenario(host=host, ends=START_FAILS, says=says, posts=0, new_jobs=0, start_retries=0)


# Answers that are odd.


@pytest.mark.parametrize("status", [401, 503])
def test_an_answer_that_quotes_the_client_is_logged_without_it(scenario, status):
    page = f"on /invalid-client: {CLIENT_ID} {CLIENT_SECRET}"
    result, _ = scenario(faults={"create_token": [Fault(status, page)]}, says="on /invalid-client: *** ***")
    assert CLIENT_SECRET not in result.log


def test_a_long_answer_that_quotes_the_token_is_cut_after_it_is_masked(scenario):
    page = "x" * 975 + " {authorization}"
    result, airbyte = scenario(faults={"create_job": [Fault(503, page)]}, posts=2)
    assert not any(token[:12] in result.log for token in airbyte.tokens)


def test_says_where_a_redirect_points(scenario):
    redirect = Fault(302, headers={"Location": "https://me:pass-word@sso.example.com/login"})
    result, _ = scenario(faults={"create_job": [redirect]}, posts=2, says="https://sso.example.com/login")
    assert "pass-word" not in result.log


@pytest.mark.parametrize("front", ["\n\n", "\ufeff", " \r\n"], ids=repr)
def test_reads_an_answer_with_something_in_front(scenario, front):
    succeeded = {"jobId": 1001, "jobType": "sync", "status": "running", "connectionId": CONNECTION_ID}
    scenario(
        faults={"get_job": [Fault(body=front + json.dumps(succeeded))]}, says='"status": "running", "connectionId"'
    )


def test_a_token_with_blanks_inside_works(scenario):
    token = Fault(
        body='{"access_token": "a-to\\nken that works"}',
        before=lambda airbyte: airbyte.tokens.update({"a-tokenthatworks": float("inf")}),
    )
    _, airbyte = scenario(faults={"create_token": [token]})
    assert airbyte.requests_of("create_job")[0].headers["authorization"] == "Bearer a-tokenthatworks"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"existing_jobs": ({"age": 60, "duration": 1},)}, id="what has ended"),
    ],
)
def test_says_that_airbyte_believes_a_job_to_run_and_shows_none(scenario, arguments):
    stuck = Fault(409, json.dumps({"title": "try-again-later"}))
    says = "Airbyte says that a job of this connection is running, but lists none."
    scenario(faults={"create_job": [stuck]}, posts=2, says=says, **arguments)


def test_does_not_join_an_old_row_where_the_connection_is_inactive(scenario):
    scenario(
        faults={"create_job": [Fault(409)] * FOR_EVER},
        existing_jobs=({"age": 600, "statuses": ("running",)},),
        ends=START_FAILS,
        says="Check in Airbyte whether the connection is active",
        posts=None,
        new_jobs=0,
        start_retries=0,
    )


def test_a_job_of_a_type_unknown_today_is_a_sync(scenario):
    scenario(before_syncs=("of_a_type_unknown_today",))


@pytest.mark.parametrize("offset", [-300, 300], ids=["late", "early"])
def test_airbytes_clock_may_be_wrong(run_dag, offset):
    for existing, posts in (((), 1), (({"age": 100, "duration": 1},), 2)):
        lost_answer = lost(CLOSED) if not existing else CLOSED
        with FakeAirbyte({"create_job": [lost_answer], "list_jobs": [JOBS_END]}) as airbyte:
            airbyte.clock_offset = offset
            for job in existing:
                airbyte.add_job(**job)
            result = run_dag(airbyte.url, policy={START: {"retries": 3}})
        assert result.state == "success"
        assert len(airbyte.requests_of("create_job")) == posts or not DAG_TEST_COUNTS_TRIES
        assert result.job_id == airbyte.jobs[-1].id


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

    syncs = [job for job in airbyte.jobs[len(existing_jobs) :] if job.type not in NO_SYNCS]
    assert len(syncs) <= 1, f"a sync was started twice: {schedule}"
    if result.job_id is None:  # refused for the sixth time
        assert result.tasks == START_FAILS, schedule
        return
    (followed,) = [job for job in airbyte.jobs if job.id == result.job_id]
    assert followed.type not in NO_SYNCS, schedule
    ended = result.job if result.state == "success" else f"Airbyte job {followed.id} {followed.statuses[-1]}: "
    if result.state == "success":
        assert followed.statuses[-1] == "succeeded" == result.job["status"], schedule
    else:  # ended, or refused for the sixth time
        assert result.tasks == WAIT_FAILS, schedule
        assert ended in result.log or result.tries[WAIT] > 5, schedule
