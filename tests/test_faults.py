"""
What goes wrong, and what the run makes of it: a row per fault.

Each ends in one of two ways. Either the sync is followed to its true end, or the task fails with a message that
says what to do. No row starts a second sync while the first may run.
"""

from __future__ import annotations

import re
from random import Random
from typing import NamedTuple

import pytest
from airbyte_api import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, ENDED, PROBLEMS, AirbyteApi
from airflow_home import AIRFLOW_VERSION, START, WAIT, settings

CONNECTION = "AIRFLOW_CONN_AIRBYTE-API-CLOUD-CONNECTION"
VARIABLES = "AIRFLOW_VAR_AIRBYTE_CLIENT_ID", "AIRFLOW_VAR_AIRBYTE_CLIENT_SECRET"
SUCCESS = {START: "success", WAIT: "success"}
START_FAILS = {START: "failed", WAIT: "upstream_failed"}
WAIT_FAILS = {START: "success", WAIT: "failed"}
TRANSIENT = ("408", "429", "500", "502", "503", "504")
REFUSALS = ("400", "401", "403", "404", "422")
NOT_A_JOB = ("html", "list", "empty", "keyless", "null")
ALWAYS = 99
COUNTED = AIRFLOW_VERSION >= (2, 10)  # Before, a retry in dag.test() does not know that it is one.
SHORT = {task: {"extra_options": {"timeout": 0.5}} for task in (START, WAIT)}
RUNNING = {"age": 100, "statuses": ("running", "running", "succeeded")}


class Row(NamedTuple):
    """A fault: what Airbyte does, and what is true after the run."""

    name: str
    tasks: dict[str, str]
    says: str = ""  # in the task's log
    posts: int | None = 1  # requests that start a sync
    syncs: int = 1  # those that Airbyte made of them
    faults: dict = {}
    statuses: tuple = ("running", "succeeded")
    before: tuple = ()  # jobs that somebody else has started
    host: str = "{url}"
    login: dict = {}
    base_path: str = ""
    conf: dict | None = None
    variables: dict = {}
    policy: dict = {}
    retries: bool = False  # it needs Airflow to count the tries of dag.test()


def words(status: str) -> str:
    """Return what Airbyte or its gateway says with a status."""
    return PROBLEMS[int(status)][1] if int(status) in PROBLEMS else ""


# fmt: off
ROWS = [
    # -- every status on every call -------------------------------------------------------------------------------
    *(
        Row(f"token {status}", START_FAILS, f"v1/applications/token with {status}: ", 0, 0, {"token": [status]})
        for status in (*REFUSALS, "409")
    ),
    *(Row(f"token {status}", SUCCESS, f"with {status}", faults={"token": [status]}) for status in TRANSIENT),
    *(
        Row(f"start {status}", START_FAILS, f"Airbyte answered POST /v1/jobs with {status}: ", 1, 0, {"start": [status]})
        for status in REFUSALS
    ),
    *(Row(f"start {status}", SUCCESS, f"with {status}", 2, faults={"start": [status]}) for status in TRANSIENT),
    *(
        Row(f"start {status}, but the job was made", SUCCESS, posts=None, faults={"start": [f"{status} after"]})
        for status in TRANSIENT
    ),
    *(
        Row(f"poll {status}", WAIT_FAILS, f"Airbyte answered GET /v1/jobs/1001 with {status}: ", faults={"poll": [status]})
        for status in (*REFUSALS, "409")
    ),
    *(Row(f"poll {status}", SUCCESS, f"with {status}", faults={"poll": [status]}) for status in TRANSIENT),
    # -- 409 ------------------------------------------------------------------------------------------------------
    Row("a sync is already running", SUCCESS, "already running: waiting for its job 1001", 1, 0, before=(RUNNING,)),
    Row("a sync is already running, after others", SUCCESS, "waiting for its job 1002", 1, 0,
        before=({"age": 200, "statuses": ("failed",)}, RUNNING)),
    Row("the sync that is already running fails", WAIT_FAILS, "job 1001 failed", 1, 0,
        before=({"age": 9, "statuses": ("running", "running", "failed")},)),
    Row("409, but the job was made", SUCCESS, "already running", 1, faults={"start": ["409 after"]}),
    Row("409, no sync is running, then it starts", SUCCESS, words("409"), 2, faults={"start": ["409"]}),
    Row("409 for ever: the connection is inactive", START_FAILS, words("409"), None, 0, {"start": ["409"] * ALWAYS}),
    Row("409, and the sync ends before the look-up", SUCCESS, "A sync is already running for", 2, 1,
        {"list": ["ended"]}, before=(RUNNING,)),
    Row("409, and the token ends before the look-up", SUCCESS, "already running", 1, 0,
        {"start": ["stale after"]}, before=(RUNNING,)),
    Row("409 of a reset, after which the sync starts", SUCCESS, "A sync is already running for", 2, 1,
        {"start": [None, "ended"]}, before=({"age": 99, "statuses": ("failed",)}, {**RUNNING, "kind": "reset"})),
    Row("409 of a reset for ever", START_FAILS, "A sync is already running for", None, 0,
        before=({"age": 99, "statuses": ("succeeded",)}, {**RUNNING, "kind": "reset"})),
    *(
        Row(f"409, and {fault} to the look-up", SUCCESS, "already running", 2, 0, {"list": [fault]}, before=(RUNNING,))
        for fault in (*TRANSIENT, *NOT_A_JOB, "reset")
    ),
    *(
        Row(f"409, and {fault} to the look-up", START_FAILS, f"with {fault}", 1, 0, {"list": [fault]}, before=(RUNNING,))
        for fault in REFUSALS
    ),
    # -- an answer that is lost -----------------------------------------------------------------------------------
    Row("start reset", SUCCESS, "Connection reset", 2, faults={"start": ["reset"]}),
    Row("start reset, but the job was made", SUCCESS, posts=None, faults={"start": ["reset after"]}),
    Row("start silent", SUCCESS, "Read timed out", 2, faults={"start": ["silence"]}, policy=SHORT),
    Row("start silent, but the job was made", SUCCESS, posts=None, faults={"start": ["silence after"]}, policy=SHORT),
    *(
        Row(f"start {fault}, and the job ends before the retry", SUCCESS, "following its job 1001", 1, retries=True,
            faults={"start": [f"{fault} after"], "list": ["ended"]}, policy=SHORT)
        for fault in ("reset", "silence", "503", "html")
    ),
    Row("start reset, and the job fails before the retry", WAIT_FAILS, "job 1001 failed", 1, retries=True,
        faults={"start": ["reset after"], "list": ["ended"]}, statuses=("running", "failed")),
    Row("start reset, and the look-up of the retry too", SUCCESS, posts=1, retries=True,
        faults={"start": ["reset after"], "list": ["reset", "503", "ended"]}),
    Row("start reset, with an older sync that has ended", SUCCESS, "", 2, retries=True,
        faults={"start": ["reset"]}, before=({"age": 60, "statuses": ("succeeded",)},)),
    Row("poll reset", SUCCESS, "Connection reset", faults={"poll": ["reset", None, "reset"]}),
    Row("poll silent", SUCCESS, "Read timed out", faults={"poll": ["silence"]}, policy=SHORT),
    Row("token reset", SUCCESS, "Connection reset", faults={"token": ["reset"]}),
    Row("token silent", SUCCESS, "Read timed out", faults={"token": ["silence"]}, policy=SHORT),
    # -- an answer that is none -----------------------------------------------------------------------------------
    *(Row(f"token {fault}", SUCCESS, "no JSON object with access_token", faults={"token": [fault]}) for fault in NOT_A_JOB),
    *(Row(f"start {fault}", SUCCESS, "no JSON object with jobId", 2, faults={"start": [fault]}) for fault in NOT_A_JOB),
    *(Row(f"poll {fault}", SUCCESS, "no JSON object with status", faults={"poll": [fault]}) for fault in NOT_A_JOB),
    Row("start html for ever", START_FAILS, "Airflow connection airbyte-api-cloud-connection: its host", None, 0,
        {"start": ["html"] * ALWAYS}),
    Row("start 503 for ever", START_FAILS, "with 503", None, 0, {"start": ["503"] * ALWAYS}),
    Row("start redirected", START_FAILS, "Airbyte answered POST /v1/jobs with 302", 1, 0, {"start": ["302"]}),
    Row("poll redirected", WAIT_FAILS, "Airbyte answered GET /v1/jobs/1001 with 302", faults={"poll": ["302"]}),
    # -- what a job goes through ----------------------------------------------------------------------------------
    Row("failed", WAIT_FAILS, "Airbyte job 1001 failed", statuses=("running", "incomplete", "failed")),
    Row("cancelled", WAIT_FAILS, "Airbyte job 1001 cancelled", statuses=("pending", "cancelled")),
    Row("back to pending", SUCCESS, statuses=("running", "pending", "running", "succeeded")),
    Row("incomplete", SUCCESS, statuses=("running", "incomplete", "running", "succeeded")),
    Row("a status unknown today", SUCCESS, "paused", statuses=("queued", "paused", "succeeded")),
    Row("never ends", WAIT_FAILS, "timed out", statuses=("running",), policy={WAIT: {"timeout": 0}}),
    # -- tokens ---------------------------------------------------------------------------------------------------
    Row("each token ends before the next task start", SUCCESS, faults={"token": [None, *["stale"] * ALWAYS]},
        statuses=("pending", "running", "incomplete", "running", "succeeded")),
    Row("no token for a while, amid the wait", SUCCESS, "v1/applications/token with 503",
        faults={"token": [None, None, "503", "429", "reset", "html", None, "500"]}, statuses=("running",) * 4 + ("succeeded",)),
    Row("the client is refused amid the wait", WAIT_FAILS, "AIRBYTE_CLIENT_ID", faults={"token": [None, None, "401"]},
        statuses=("running",) * 4 + ("succeeded",)),
    Row("no token for ever", START_FAILS, "v1/applications/token with 503", 0, 0, {"token": ["503"] * ALWAYS}),
    Row("a token in the Variable that has expired", START_FAILS, "with 401", 1, 0,
        variables={"AIRFLOW_VAR_CLOUD_API_TOKEN": "expired"}),
    Row("a wrong client secret", START_FAILS, "Invalid client id or token", 0, 0, variables={VARIABLES[1]: "wrong"}),
    # -- what the user has set, or not ----------------------------------------------------------------------------
    *(
        Row(f"{name.rpartition('_')[2].lower()} of the client {how}", START_FAILS,
            "Set the Variables AIRBYTE_CLIENT_ID and AIRBYTE_CLIENT_SECRET, or CLOUD_API_TOKEN", 0, 0,
            variables={name: value})
        for name in VARIABLES
        for how, value in (("missing", None), ("blank", " \n"))
    ),
    *(
        Row(f"no connection id: {value!r}", START_FAILS, "Set the Variable MY_EXAMPLE_CONNECTION_ID", 0, 0,
            variables={"AIRFLOW_VAR_MY_EXAMPLE_CONNECTION_ID": value})
        for value in (None, "", " \n")
    ),
    *(
        Row(f"a connection id that is none: {value}", START_FAILS, "Invalid UUID string: ", 1, 0,
            conf={"connection_id": value})
        for value in ("it's \"quoted\" \\", "{{ 1 / 0 }}", "{% raw %}", "1234")
    ),
    Row("a connection id that Airbyte does not know", START_FAILS, words("403"), 1, 0,
        conf={"connection_id": "00000000-0000-4000-8000-000000000000"}),
    Row("no HTTP connection", START_FAILS, "Create the Airflow connection airbyte-api-cloud-connection", 0, 0,
        variables={CONNECTION: None}),
    Row("a login on the HTTP connection", START_FAILS, "no login", 1, 0,
        login={"login": CLIENT_ID, "password": CLIENT_SECRET}),
    Row("a host that nobody listens at", START_FAILS, "Connection refused", 0, 0, host="http://127.0.0.1:1"),
    Row("a host without its path", START_FAILS, "the host of airbyte-api-cloud-connection", 0, 0,
        base_path="/api/public", host="{root}"),
    Row("a host with /v1 too much", START_FAILS, "/v1/v1/applications/token with 404", 0, 0, host="{url}/v1"),
]
# fmt: on


def kind(row: Row) -> tuple:
    """Return what rows that differ only in the status or the garbage have in common."""
    return *row.tasks.values(), re.sub(r"\d{3}", "", row.says), row.posts, row.syncs, *row.faults, *row.policy


FIRST_OF_KIND = {kind(row): row for row in reversed(ROWS)}


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_fault(run, row, request):
    slow = (3, 0) <= AIRFLOW_VERSION < (3, 2) and not request.config.getoption("every_row")
    if slow and FIRST_OF_KIND[kind(row)] is not row:
        pytest.skip("dag.test() takes seconds for a task here: one row of a kind, unless with --every-row")
    if row.retries and not COUNTED:
        pytest.skip("before Airflow 2.10, dag.test() does not count tries")
    policy = {START: {"retries": 3}, WAIT: {}}
    if row.tasks == START_FAILS:
        policy[START]["retries"] = 1 if COUNTED else 0  # it would retry for ever
    if set(row.faults) == {"poll"} and AIRFLOW_VERSION != (3, 0):  # whose dag.test() itself fails every other poke
        policy[WAIT]["retries"] = 0  # A poke that Airbyte cannot answer costs none.
    for task_id, changes in row.policy.items():
        policy[task_id].update(changes)
    with AirbyteApi(row.faults, {CONNECTION_ID: row.statuses}, base_path=row.base_path) as airbyte:
        for job in row.before:
            airbyte.add_job(**job)
        host = row.host.format(url=airbyte.url, root=airbyte.url[: -len(row.base_path) or None])
        variables = {**settings(host, **row.login), **row.variables}
        result = run(host, conf=row.conf, variables=variables, policy=policy)

    assert result.tasks == row.tasks, result.log[-3000:]
    assert row.says in result.log
    assert len(airbyte.jobs) - len(row.before) == row.syncs
    if row.posts is not None:
        assert len(airbyte.calls("start")) == row.posts
    if result.tasks == SUCCESS:
        assert result.job["status"] == "succeeded"
        assert result.job["jobId"] == result.job_id == airbyte.jobs[-1]["id"]
    if row.conf and row.posts:
        assert airbyte.calls("start")[0]["body"]["connectionId"] == row.conf["connection_id"]
    assert all(request["query"] == {} for request in airbyte.calls("poll"))
    # Once the sensor knows the end, nothing more is asked. (A retry of the start may have seen it before.)
    ends = [request for request in airbyte.calls("poll") if request["status"] in ENDED]
    assert len(ends) <= 1 + row.retries
    assert not ends or airbyte.requests[-1] is ends[-1]


def draw(seed: int) -> Row:
    """Return a row of faults drawn at random: all calls meet many, and now and then one is refused for good."""
    random = Random(seed)
    menu = [*TRANSIENT, *NOT_A_JOB, "reset", "silence"]
    menu += [f"{fault} after" for fault in menu]
    faults = {
        call: [random.choice(menu) if random.random() < 0.5 else None for _ in range(random.randrange(10))]
        for call in ("token", "start", "poll", "list")
    }
    faults["token"] += ["stale"] * random.randrange(3)
    if COUNTED:  # else no sync may end before a retry
        faults["list"] += ["ended"] * random.randrange(3)
    if random.random() < 0.3:
        faults[random.choice([*faults])].append(random.choice(REFUSALS))
    for schedule in faults.values():
        random.shuffle(schedule)
    last = random.choice(ENDED)
    going_on = ("pending", "queued", "running", "incomplete", "unheard_of")
    statuses = random.choices(going_on, k=random.randrange(0 if COUNTED else 1, 5))
    before = random.choice([(), (), (RUNNING,), ({"age": 60, "statuses": (last,)},), ({**RUNNING, "kind": "reset"},)])
    return Row(f"seed {seed}", {}, faults=faults, statuses=(*statuses, last), before=before)


def test_faults_at_random(run, seed):
    row = draw(seed)
    policy = {START: {"retries": 99, **SHORT[START]}, WAIT: SHORT[WAIT]}
    with AirbyteApi(row.faults, {CONNECTION_ID: row.statuses}) as airbyte:
        for job in row.before:
            airbyte.add_job(**job)
            if job.get("kind") == "reset":  # which nobody polls, so it would never end
                airbyte.faults["start"] += [None, "ended"]
        result = run(airbyte.url, policy=policy)
    assert len(airbyte.jobs) - len(row.before) <= 1, "our syncs"
    refusals = [int(status) for status in REFUSALS]
    refused = [request for request in airbyte.requests if request["answer"] in refusals]
    if refused:
        assert refused == airbyte.requests[-1:], "nothing is asked after a refusal"
        assert result.state == "failed"
        assert f"with {refused[0]['answer']}: " in result.log
    else:
        followed = next(job for job in airbyte.jobs if job["id"] == result.job_id)
        assert followed["kind"] == "sync"
        assert result.tasks == (SUCCESS if followed["statuses"][-1] == "succeeded" else WAIT_FAILS)
        assert airbyte.requests[-1]["status"] == followed["statuses"][-1]
