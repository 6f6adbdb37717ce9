"""
What can go wrong, and how the run copes with it: every fault on every request.

A second sync is never started while the first one may be running. What a person must put right costs a try, and so
does any other trouble of the start. It costs the wait none. Every log says what to check.
"""

import json
import os
import shutil
import ssl
import subprocess
import time
from dataclasses import replace
from random import Random

import pytest
from sandbox.fake_airbyte import CONNECTION_ID, DATABASE_DOWN, ENDED, NOBODY_THERE, WORKSPACE_ID, FakeAirbyte, Fault
from sandbox.fixtures import CLOSED, COUNTS_TRIES, FOR_EVER, JOBS_END, RUNNING, START_FAILS, WAIT_FAILS, needs_try_count
from sandbox.throwaway_airflow import AIRFLOW_VERSION, CONNECTION_VARIABLE, START, WAIT

NO_SYNCS = ("reset", "clear")
NO_VALUES = json.dumps({"token": "under-another-name", **dict.fromkeys(("access_token", "jobId", "status", "data"))})
NOT_AN_ANSWER = ["<!doctype html><p>Sign in, \udcfcbrigens in Latin-1", "[]", "", NO_VALUES]
SILENCE = Fault(no_answer="silent")
BUSY = [Fault(status) for status in (408, 429, 500, 502, 503, 504)]
GATEWAYS_401 = Fault(401, "<!doctype html><p>Unauthorized")
REFUSALS = [GATEWAYS_401, *(Fault(status, "{}") for status in (400, 401, 402, 403, 404, 422))]
SOMEBODY_ELSE = [Fault(302), Fault(405), NOBODY_THERE, *(Fault(body=body) for body in NOT_AN_ANSWER)]
OF_EACH_KIND = [Fault(403), GATEWAYS_401, Fault(503), *SOMEBODY_ELSE, CLOSED]
ANY_FAULT = [*BUSY, *REFUSALS, Fault(409), *SOMEBODY_ELSE, DATABASE_DOWN, CLOSED, SILENCE]


def lost(fault: Fault) -> Fault:
    """Return the fault after which Airbyte has done what was asked, although its answer does not tell."""
    return replace(fault, carried_out=True)


JOINS_LATE = {"existing_jobs": (RUNNING,), "posts": 2, "new_jobs": 0}
CHECK_HOST = "Check the host of the Airflow connection: https://api.airbyte.com or https://<your host>/api/public."
CHECK_CLIENT = "Check the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET."
CHECK_ID = "Check the id of the Airbyte connection, and that your Airbyte user has the role Runner or higher."
CHECK_TOKEN = f"Check CLOUD_API_TOKEN, if it is set, and that the Airflow connection has no login. {CHECK_HOST}"
CHECK_ACTIVE = "Check in Airbyte whether the connection is active"
ADVICE = {
    **dict.fromkeys([*BUSY, DATABASE_DOWN], "It is busy or in trouble."),
    **dict.fromkeys(SOMEBODY_ELSE, CHECK_HOST),
    **dict.fromkeys([Fault(status, "{}") for status in (400, 402, 422)], "Airbyte gives the reason. The answer: {}"),
    **dict.fromkeys([GATEWAYS_401, Fault(401, "{}")], f"with 401. {CHECK_TOKEN}"),
    **dict.fromkeys([Fault(403), Fault(403, "{}")], CHECK_ID),
    Fault(404, "{}"): CHECK_HOST,
    Fault(409): CHECK_ACTIVE,
}


# All of them on one Airflow, and few on 3.0, where a task of dag.test() takes ten seconds.
FAULTS = {(2, 11): ANY_FAULT, (3, 0): [Fault(403), CLOSED]}.get(AIRFLOW_VERSION, OF_EACH_KIND)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize(
    "operation, earlier, key, arguments",
    [
        pytest.param("create_token", 0, "access_token", {}, id="token", marks=pytest.mark.airflow_3_0),
        pytest.param("create_job", 0, "jobId", {"posts": 2}, id="start"),
        pytest.param("list_jobs", 0, "data", JOINS_LATE, id="look-up", marks=pytest.mark.airflow_3_0),
        pytest.param("create_token", 1, "access_token", {}, id="token of a poke"),
        pytest.param("get_job", 1, "status", {}, id="poke"),
    ],
)
def test_any_fault_on_any_request_costs_a_try_at_most(scenario, operation, earlier, key, arguments, fault):
    refused = fault in [*REFUSALS, Fault(403), Fault(409)]
    says = ADVICE.get(fault, "")
    if fault.body in NOT_AN_ANSWER:
        says = f"{CHECK_HOST} The answer has no {key}."
    elif refused and key == "access_token":
        says = CHECK_CLIENT
    faults = {operation: [*[None] * earlier, fault]}
    result, _ = scenario(faults=faults, **{"wait_retries": int(refused), "says": says, **arguments})
    assert "under-another-name" not in result.log, "it may be a token"
    if earlier and COUNTS_TRIES and AIRFLOW_VERSION != (3, 0):
        assert result.tries[WAIT] == 1 + refused


PATIENT = {"policy": {START: {"extra_options": {"timeout": 60}}}}


@needs_try_count
@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({"create_token": [SILENCE]}, id="token"),
        pytest.param({"create_job": [lost(CLOSED)], "get_job": [SILENCE]}, id="the job that is followed"),
    ],
)
def test_only_the_post_has_the_timeout_of_the_start(scenario, faults):
    _, airbyte = scenario(faults=faults, run=PATIENT)
    assert max(later.time - each.time for each, later in zip(airbyte.requests, airbyte.requests[1:])) < 30


@pytest.mark.parametrize("operation", ["create_token", "get_job", "list_jobs"])
def test_an_airbyte_that_answers_late_is_waited_for(scenario, operation):
    as_it_is = {"policy": {WAIT: {"extra_options": {}}}}
    result, airbyte = scenario(faults={operation: [Fault(seconds=12)]}, run=as_it_is)
    assert len(airbyte.requests_of("get_job")) == 2
    assert "Read timed out" not in result.log


RAISE = "raise REQUEST_TIMEOUT in the DAG file"
WITHOUT = "Without an answer in REQUEST_TIMEOUT"


@pytest.mark.parametrize(
    "operation, earlier, says", [("create_token", 1, RAISE), ("get_job", 0, WITHOUT), ("list_jobs", 0, RAISE)]
)
def test_says_which_constant_to_raise_if_airbyte_answers_later_still(scenario, operation, earlier, says):
    slow = {operation: [*[None] * earlier, Fault(seconds=3)]}
    result, _ = scenario(faults=slow, says=says, run={"policy": {WAIT: {"poke_interval": 2}}})
    assert "Read timed out" in result.log


JOB = {"jobId": 1001, "jobType": "sync", "status": "running", "connectionId": CONNECTION_ID}  # and no startTime
ODD = [("list_jobs", odd) for odd in (*OF_EACH_KIND, Fault(body='{"data": [{}]}'), Fault(body='{"data": 1}'))]
ODD += [("get_job", Fault(body=json.dumps({**JOB, **odd}))) for odd in ({}, {"startTime": "soon"}, {"startTime": 5})]


@pytest.mark.parametrize("operation, odd", ODD, ids=str)
def test_goes_on_if_the_earlier_syncs_or_the_start_are_not_known(scenario, operation, odd):
    result, _ = scenario(faults={operation: [odd]}, says="Earlier syncs not known, which is harmless")
    assert "poke failed" not in result.log, "a line, and no traceback"


# The wait.


@pytest.mark.airflow_3_0
def test_goes_on_if_airbyte_refuses_as_often_as_there_are_retries(scenario):
    faults = [Fault(403), None, Fault(403), None, *[Fault(401)] * 3, Fault(503), CLOSED]
    scenario(faults={"get_job": faults}, statuses=("running", "running", "succeeded"), wait_retries=5)


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 0), reason="dag.test() lets the timeout end it here")
def test_a_body_that_drips_ends_with_the_execution_timeout(scenario):
    dripping = {"get_job": [Fault(body=json.dumps({"drip": "x" * 100}), drip=True)]}
    limit = {WAIT: {"execution_timeout": 4, "retries": FOR_EVER}}
    _, airbyte = scenario(faults=dripping, run={"policy": limit})
    pokes = airbyte.requests_of("get_job")
    assert 3 < pokes[1].time - pokes[0].time < 15


@pytest.mark.parametrize("operation, earlier", [("get_job", 0), ("create_token", 1)])
@pytest.mark.parametrize("trouble", [Fault(503), CLOSED], ids=str)
def test_an_airbyte_that_does_not_answer_is_asked_less_often(scenario, operation, earlier, trouble):
    run = {"policy": {WAIT: {"poke_interval": 1}}}
    _, airbyte = scenario(faults={operation: [*[None] * earlier, trouble]}, run=run)
    first, second, third = (token.time for token in airbyte.requests_of("create_token")[1:])
    assert second - first > 8
    assert third - second < 6, "and at the shortest interval once it goes well"


@needs_try_count
@pytest.mark.parametrize(
    "faults, says",
    [
        pytest.param({"create_token": [None, *[Fault(503)] * 3]}, "with 503", id="no token"),
        pytest.param({"get_job": [Fault(403), *[Fault(503)] * FOR_EVER]}, "timed out", id="no job"),
    ],
)
def test_a_wait_without_any_answer_has_an_end_as_well(scenario, faults, says):
    over = {"age": 100, "policy": {WAIT: {"timeout": 2, "retries": 2}}}
    result, _ = scenario(faults=faults, run=over, ends=WAIT_FAILS, says=says)
    assert "The run is older than `timeout`. If this task fails, clear it to go on waiting" in result.log


def test_a_run_waits_although_the_job_that_it_joins_or_its_own_date_is_older_than_the_timeout(scenario):
    policy = {WAIT: {"timeout": 200}}
    scenario(existing_jobs=({**RUNNING, "age": 400},), new_jobs=0, run={"policy": policy})
    scenario(run={"age": 3 * 365 * 24 * 60 * 60, "policy": policy}, statuses=("succeeded",))
    started = {"get_job": [Fault(before=lambda airbyte: setattr(airbyte.jobs[0], "created", time.time() - 100))]}
    scenario(faults=started, run={"age": 400, "policy": policy})


def test_fails_at_once_if_the_start_was_marked_as_a_success_and_left_no_job_id(scenario):
    nothing = {WAIT: {"endpoint": "v1/jobs/None", "retries": 3}}
    result, airbyte = scenario(run={"policy": nothing}, ends=WAIT_FAILS, says="No job id in v1/jobs/None.")
    assert result.tries[WAIT] == 1
    assert airbyte.requests_of("get_job") == []


# Another job is in the way of the start.

HAS_ENDED = {"age": 60, "duration": 1}


def test_joins_a_sync_that_is_newer_than_a_page_of_others(scenario):
    scenario(existing_jobs=(*[HAS_ENDED] * 25, RUNNING), new_jobs=0, says="Airbyte job 1026 is already running")


def test_tries_again_if_what_is_running_ends_before_the_look_up(scenario):
    says = "Airbyte says that a job of this connection is running, but lists none."
    scenario(existing_jobs=(RUNNING,), faults={"list_jobs": [JOBS_END]}, posts=2, says=says)


def test_does_not_join_an_old_row_where_the_connection_is_inactive(scenario):
    old_row, inactive = {"age": 600, "statuses": ("running",)}, {"create_job": [Fault(409)] * FOR_EVER}
    scenario(existing_jobs=(old_row,), faults=inactive, ends=START_FAILS, says=CHECK_ACTIVE, posts=None)


# A sync that an earlier try has started.


def clock_was_late(airbyte: FakeAirbyte) -> None:
    """Date the newest job back to before the run, and let it end."""
    airbyte.jobs[-1].created = airbyte.requests[0].time - 3
    airbyte.end_jobs()


def ends_before_a_reset(airbyte: FakeAirbyte) -> None:
    """Let somebody reset the connection after its sync has ended."""
    airbyte.end_jobs()
    airbyte.add_job(type="reset", statuses=("running",))


@pytest.mark.parametrize("fault", [*OF_EACH_KIND, SILENCE, DATABASE_DOWN, Fault(409)], ids=str)
def test_one_sync_although_its_answer_is_lost(scenario, fault):
    scenario(faults={"create_job": [lost(fault)]}, posts=None)


@needs_try_count
@pytest.mark.parametrize(
    "faults, arguments",
    [
        pytest.param({}, {"statuses": ("running", "failed"), "ends": WAIT_FAILS}, id="and it fails"),
        pytest.param({"list_jobs": [CLOSED, Fault(403), JOBS_END]}, {}, id="the look-up goes wrong"),
        pytest.param(
            {"get_job": [Fault(403), Fault(409)]},
            {"says": f"/v1/jobs/1001 with 409. {CHECK_ACTIVE}"},
            id="its job is refused",
            marks=pytest.mark.airflow_3_0,
        ),
        pytest.param({}, {"before_syncs": ("refresh",)}, id="a refresh"),
        pytest.param({"list_jobs": [Fault(before=ends_before_a_reset)]}, {"new_jobs": 2}, id="a reset follows it"),
        pytest.param({"list_jobs": [Fault(before=clock_was_late)]}, {}, id="its clock is late"),
    ],
)
def test_a_retry_follows_the_job_of_the_try_before(scenario, faults, arguments):
    faults = {"create_job": [lost(CLOSED)], "list_jobs": [JOBS_END], **faults}
    scenario(**{"faults": faults, "says": "following job 1001", **arguments})


UI = {"http://api.airbyte.com": "http://cloud.airbyte.com", "http://host.docker.internal:8000": "http://localhost:8000"}


@pytest.mark.parametrize("api, ui", UI.items(), ids=["Cloud", "from a container"])
def test_links_to_the_ui(run_dag, api, ui):
    answer = Fault(body=json.dumps({**JOB, "status": "failed", "workspaceId": WORKSPACE_ID}))
    with FakeAirbyte({each: [answer] for each in ("create_job", "get_job", "get_connection")}) as airbyte:
        proxy = {"HTTP_PROXY": airbyte.url, "NO_PROXY": None}  # so that the fake Airbyte answers for api.airbyte.com
        result = run_dag(api, variables=proxy)
    assert result.tasks == WAIT_FAILS
    assert f"Airbyte job 1001 failed: {ui}/workspaces/{WORKSPACE_ID}/connections/{CONNECTION_ID}/timeline" in result.log


@pytest.mark.parametrize("fault", OF_EACH_KIND, ids=str)
def test_says_that_the_job_has_failed_even_without_a_link(scenario, fault):
    says = "Airbyte job 1001 failed: see the connection's timeline in Airbyte."
    scenario(faults={"get_connection": [fault]}, statuses=("running", "failed"), ends=WAIT_FAILS, says=says)


# Settings that are missing, unreadable or wrong.

ID = "AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID"
CLIENT, SECRET = "AIRFLOW_VAR_AIRBYTE_CLIENT_ID", "AIRFLOW_VAR_AIRBYTE_CLIENT_SECRET"
READS = {CLIENT: 4, SECRET: 4, ID: 1, CONNECTION_VARIABLE: 9}


@pytest.mark.parametrize("name, number", [(name, each + 1) for name, reads in READS.items() for each in range(reads)])
def test_a_hiccup_of_the_secrets_backend_costs_tries(scenario, name, number):
    from sandbox.flaky_secrets import reads

    run = {"failing_reads": {name: {number, number + 1}}}  # Airflow 3 asks twice.
    scenario(run=run, statuses=("running", "running", "succeeded"), posts=None, wait_retries=FOR_EVER)
    assert reads[name] >= number, "it did fail"


@pytest.mark.parametrize(
    "connection_id",
    [
        f"/connections/{CONNECTION_ID}",
        f"{CONNECTION_ID}/",
        CONNECTION_ID.replace("-", ""),
        'it\'s "so" \\',
        "{{ 1 / 0 }}",
    ],
)
def test_fails_at_once_if_the_parameter_is_no_connection_id(scenario, connection_id):
    run, says = {"conf": {"connection_id": connection_id}}, "Set the parameter connection_id to the UUID"
    result, airbyte = scenario(run=run, ends=START_FAILS, says=says, posts=0)
    assert airbyte.requests == []
    assert result.tries[START] == 1 or not COUNTS_TRIES


NOBODYS_ID = "00000000-0000-4000-8000-000000000000"
SELF_MANAGED = {"base_path": "/api/public"}
NO_PATH = {**SELF_MANAGED, "host": "http://127.0.0.1:{port}"}
OTHER_TYPE = {CONNECTION_VARIABLE: "airbyte://127.0.0.1"}
PATH_IN_URI = {CONNECTION_VARIABLE: "http://user:a-password@127.0.0.1/api/public"}


@pytest.mark.parametrize(
    "says, variables, arguments",
    [
        pytest.param("Set the Variable MY_EX", {ID: " \n"}, {}, id="blank id"),
        pytest.param("Invalid client id", {SECRET: "wrong"}, SELF_MANAGED, id="wrong secret, self-managed"),
        pytest.param("to HTTP, even for https", OTHER_TYPE, {}, id="type airbyte"),
        pytest.param("Airflow connection", PATH_IN_URI, {}, id="a URI with a path"),
        pytest.param(f"No answer from http://127.0.0.1:1. {CHECK_HOST}", {}, {"host": "http://127.0.0.1:1"}, id="port"),
        pytest.param(
            "begin the host with http://", {}, {"host": "https://127.0.0.1:{port}"}, id="https in place of http"
        ),
        pytest.param(CHECK_HOST, {}, {"host": "http://air byte"}, id="no host name"),
        pytest.param(CHECK_HOST, {}, {"host": ""}, id="no host"),
        pytest.param(f"with 401. {CHECK_CLIENT} {CHECK_HOST}", {}, NO_PATH, id="no /api/public"),
        pytest.param(f"with 403. {CHECK_ID}", {ID: NOBODYS_ID}, {}, id="unknown connection on Cloud"),
        pytest.param(f"with 404. {CHECK_ID} {CHECK_HOST}", {ID: NOBODYS_ID}, SELF_MANAGED, id="the same, self-managed"),
    ],
)
def test_says_what_is_wrong_with_the_set_up(scenario, says, variables, arguments):
    run = {"variables": variables}
    result, _ = scenario(**arguments, run=run, ends=START_FAILS, says=says, posts=None, start_retries=1)
    assert result.tries[START] == 2 or not COUNTS_TRIES, "it may have been put right"


@pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl")
def test_names_what_to_do_where_the_certificate_is_not_known(scenario, tmp_path):
    pem, context = tmp_path / "server.pem", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    make = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout"
    subprocess.run([*make.split(), pem, "-out", pem.with_suffix(".crt")], check=True, stderr=subprocess.DEVNULL)
    context.load_cert_chain(pem.with_suffix(".crt"), pem)
    with FakeAirbyte() as airbyte:
        airbyte.socket = context.wrap_socket(airbyte.socket, server_side=True)
        host = f"https://localhost:{airbyte.server_port}"
        scenario(host=host, ends=START_FAILS, says="REQUESTS_CA_BUNDLE", posts=0, start_retries=0)


@pytest.mark.parametrize("status", [401, 503])
def test_an_answer_that_quotes_the_client_is_logged_without_it(scenario, status):
    faults = {"create_token": [Fault(status, "on /invalid-client: a-client a-secret")]}
    client = {"variables": {CLIENT: "a-client", SECRET: "a-secret"}}
    says = "on /invalid-client: *** ***"
    scenario(faults=faults, run=client, ends=START_FAILS, says=says, posts=0, start_retries=0)


def test_a_long_answer_that_quotes_the_token_is_cut_after_it_is_masked(scenario):
    result, _ = scenario(faults={"create_job": [Fault(503, "x" * 975 + " {authorization} and so on and on")]}, posts=2)
    assert "and on" not in result.log


def test_says_where_a_redirect_points(scenario):
    scenario(faults={"create_job": [Fault(302)]}, posts=2, says="https://sso.example.com/login")


def test_an_answer_that_is_cut_short_is_none(scenario):
    scenario(faults={"get_job": [Fault(body='{"jobId": 10')]}, says="/v1/jobs/1001 with 200. Check the host")


@needs_try_count
@pytest.mark.parametrize("offset", [-300, 300], ids=["late", "early"])
def test_airbytes_clock_may_be_wrong(scenario, offset):
    set_clock = [Fault(before=lambda airbyte: setattr(airbyte, "clock_offset", offset))]
    scenario(faults={"create_token": set_clock, "create_job": [lost(CLOSED)], "list_jobs": [JOBS_END]})
    scenario(faults={"create_token": set_clock, "create_job": [CLOSED]}, existing_jobs=(HAS_ENDED,), posts=2)


def draw(random: Random) -> dict:
    """Return faults, jobs and hiccups of the secrets backend that are drawn at random."""
    menu = [*ANY_FAULT, *map(lost, ANY_FAULT)]
    faults = {
        operation: [random.choice(menu) if random.random() < 0.5 else None for _ in range(random.randrange(10))]
        for operation in ("create_token", "create_job", "get_job", "list_jobs", "get_connection")
    }
    faults["create_token"] += [Fault(before=lambda airbyte: airbyte.tokens.clear())] * random.randrange(3)
    if COUNTS_TRIES:  # else no job may end before a retry
        faults["list_jobs"] += [JOBS_END] * random.randrange(3)
    for schedule in faults.values():
        random.shuffle(schedule)
    last = random.choice(ENDED)
    going_on = ("pending", "queued", "running", "incomplete", "unheard_of")
    statuses = random.choices(going_on, k=random.randrange(0 if COUNTS_TRIES else 1, 5))
    existing_jobs = [(), ({**HAS_ENDED, "statuses": (last,)},)]
    existing_jobs += [({**RUNNING, "type": job_type},) for job_type in ("sync", "refresh", "reset", "clear")]
    return {
        "faults": faults,
        "statuses": {CONNECTION_ID: (*statuses, last)},
        "before_syncs": random.choice([(), (), ("reset",), ("clear",), ("refresh",), ("reset", "refresh")]),
        "existing_jobs": random.choice(existing_jobs),
        "failing_reads": {name: set(random.choices(range(1, 13), k=random.randrange(4))) for name in READS},
    }


@pytest.mark.airflow_3_0
@pytest.mark.parametrize("seed", range(1, 1 + int(os.environ.get("SCHEDULES", 20))))
def test_faults_at_random(run_dag, seed):
    drawn = draw(Random(seed))
    schedule = f"seed {seed} drew {drawn}"
    existing_jobs, failing_reads = drawn.pop("existing_jobs"), drawn.pop("failing_reads")
    retries = {"retries": FOR_EVER, "extra_options": {"timeout": 2}}
    with FakeAirbyte(**drawn) as airbyte:
        for job in existing_jobs:
            airbyte.add_job(**job)
        result = run_dag(airbyte.url, policy={START: retries, WAIT: retries}, failing_reads=failing_reads)

    syncs = [job for job in airbyte.jobs[len(existing_jobs) :] if job.type not in NO_SYNCS]
    assert len(syncs) <= 1, f"a sync was started twice: {schedule}"
    (followed,) = [job for job in airbyte.jobs if job.id == result.job_id]
    assert followed.type not in NO_SYNCS, schedule
    if result.state == "success":
        assert followed.statuses[-1] == "succeeded" == result.job["status"], schedule
    else:
        assert result.tasks == WAIT_FAILS, schedule
        assert f"Airbyte job {followed.id} {followed.statuses[-1]}: " in result.log, schedule
