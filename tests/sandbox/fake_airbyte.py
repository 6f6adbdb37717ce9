"""
A fake Airbyte: an HTTP server on loopback that answers, and refuses, as Airbyte's public API does.

    with FakeAirbyte(faults={"create_job": [Fault(503)]}) as airbyte:
        ...                    # point an Airflow HTTP connection to airbyte.url
        airbyte.requests       # what was sent
        airbyte.jobs           # the jobs that were created

`python tests/sandbox/fake_airbyte.py` runs it alone.
It answers what this repository's DAG, Airbyte's SDK, Airflow's Airbyte provider, Dagster and PyAirbyte ask for.
The API is documented at https://reference.airbyte.com, its server is https://github.com/airbytehq/airbyte-platform.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlencode, urlsplit

CONNECTION_ID = "7c1b3d0e-5a44-4a58-9d2b-0a8f6f4e2c11"
OTHER_CONNECTION_ID = "2d8c4a6e-7b1f-4d53-9c0a-5e6f7a8b9c22"
THIRD_CONNECTION_ID = "4b6e8f0a-9c2d-4e75-a1b3-c5d7e9f1a344"
FAILING_CONNECTION_ID = "9e5b7d1c-3a2f-4e64-8b1d-6f7a8b9c0d33"
WORKSPACE_ID = "5d3a9b7e-2c41-4f60-8e1d-3b5a7c9d1e22"
CLIENT_ID = "3f1c0a52-9f0b-4f0e-8d55-7a1f6f0c9f11"
CLIENT_SECRET = "fake-client-secret"
TOKEN_SECONDS = 900
SUCCEEDS = ("pending", "running", "succeeded")  # the statuses of a job, one after the other
ENDED = ("succeeded", "failed", "cancelled")
FAILS = ("pending", "running", "failed")
CONNECTIONS = {
    CONNECTION_ID: SUCCEEDS,
    OTHER_CONNECTION_ID: SUCCEEDS,
    THIRD_CONNECTION_ID: SUCCEEDS,
    FAILING_CONNECTION_ID: FAILS,
}

MICRONAUT = "no problem"  # but an error of Micronaut, on which Airbyte is built: airbytehq/airbyte, issue 65592
# Airbyte's problems (api-problems.yaml): the title, and the message if it is not the status in words.
PROBLEMS = {
    400: ("bad-request", ""),
    403: ("forbidden", "Caller does not have the required permissions to access the resource(s)."),
    404: ("resource-not-found", ""),
    409: ("state-conflict", "Could not fulfill request"),  # The other 409 is `try-again-later`.
    422: ("unprocessable-entity", ""),
}


def body_of(status: int, message: str = "", title: str = "") -> str:
    """Return what Airbyte, or the gateway in front of it, says with a status."""
    words = HTTPStatus(status).phrase
    if status in (302, 405, 408, 429, 502, 503, 504):  # of a gateway in front of Airbyte
        return f"<html><body><h1>{status} {words}</h1></body></html>"
    if status == 500:  # an error that nobody caught in Airbyte
        return json.dumps({"errorId": str(uuid.uuid4())})
    usual_title, usual_message = PROBLEMS.get(status, (MICRONAUT, ""))
    title, message = title or usual_title, message or usual_message or words
    if title == MICRONAUT:
        errors = [{"message": message, "_links": {}, "_embedded": {}}]
        return json.dumps({"message": words, "_links": {}, "_embedded": {"errors": errors}})
    url = f"https://reference.airbyte.com/reference/errors#{'409-' if title == 'state-conflict' else ''}{title}"
    data = {"resourceId" if status == 404 else "message": message}
    return json.dumps({"status": status, "type": url, "title": title, "detail": words, "data": data})


class Refused(Exception):
    """Airbyte refuses a request: the status and the body of its answer."""

    def __init__(self, status: int, message: str = "", title: str = "", body: str = "") -> None:
        super().__init__(status, body or body_of(status, message, title))


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request."""

    status: int = 0  # to answer with
    body: str | None = None  # to answer with, may quote {authorization}; else what Airbyte sends with this status
    drip: bool = False  # The answer's body comes a byte every half second, and after a minute no more of it.
    no_answer: str = ""  # how the request goes unanswered: the connection is "closed", or "silent"
    seconds: float = 0  # how long the request waits until all this happens
    carried_out: bool = False  # Airbyte does what was asked, although its answer does not arrive.
    before: Callable[[FakeAirbyte], None] = lambda airbyte: None  # happens just before the request is carried out

    def __str__(self) -> str:
        return self.no_answer or str(self.status or self.body)


# What Airbyte answers to everybody while its own database is down, and an ingress while no Airbyte is there.
DATABASE_DOWN = Fault(401, '{"message": "Could not get the current Airbyte user due to an internal error."}')
NOBODY_THERE = Fault(404, "404 page not found")


@dataclass
class Job:
    """A job of an Airbyte connection, and the statuses that it goes through."""

    id: int
    connection_id: str
    type: str
    statuses: tuple[str, ...]
    created: float  # in seconds since the epoch, as `ended`
    step: int = 0
    ended: float | None = None


@dataclass
class Request:
    """A request as it arrived, and what was answered."""

    operation: str | None  # the name of the method of FakeAirbyte that carries it out
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # their names in lower case
    body: str
    port: int  # the client's
    time: float = field(default_factory=time.time)
    status: int | None = None  # the answer's
    answer: str | None = None
    job_status: str | None = None  # of the job that was asked for


class FakeAirbyte(ThreadingHTTPServer):
    """
    The server. It runs in its `with` block.

    :param faults: what goes wrong with the next requests of an operation, by the operation's name
        (`create_token`, `create_job`, `get_job`, `list_jobs`, `cancel_job`, `get_connection`); None: nothing
    :param statuses: the statuses that a connection's jobs go through, by connection; these connections exist
    :param job_seconds: how long a job takes; without it, a job reaches its next status whenever somebody asks for it,
        and a reset, for which nobody asks, whenever it is in the way of a sync
    :param base_path: "/api/public" for a self-managed Airbyte, "" for Airbyte Cloud
    :param before_2026: whether it is an Airbyte from before February 2026, whose list without a type has only syncs and
        resets
    :param before_syncs: the types of the jobs that the next POSTs of a sync create instead: pending resets, refreshes
    :param port: 0 takes a free one
    :param log: called with each request once it is answered
    """

    request_queue_size = 128

    def __init__(
        self,
        faults: dict[str, list[Fault | None]] | None = None,
        statuses: dict[str, tuple[str, ...]] | None = None,
        job_seconds: float | None = None,
        base_path: str = "",
        before_2026: bool = False,
        before_syncs: tuple[str, ...] = (),
        port: int = 0,
        log: Callable[[Request], None] = lambda request: None,
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.faults = {operation: list(faults) for operation, faults in (faults or {}).items()}
        self.statuses = dict(statuses or {CONNECTION_ID: SUCCEEDS})
        self.job_seconds = job_seconds
        self.base_path = base_path
        self.self_managed = bool(base_path)
        self.before_2026 = before_2026
        self.before_syncs = list(before_syncs)
        self.log = log
        self.url = f"http://127.0.0.1:{self.server_port}{base_path}"
        self.jobs: list[Job] = []
        self.job_ids = itertools.count(1001)
        self.clock_offset = 0.0  # the seconds by which Airbyte's clock is ahead
        self.tokens: dict[str, float] = {}  # and when they expire
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()

    def __enter__(self) -> FakeAirbyte:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exc_info) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def requests_of(self, operation: str) -> list[Request]:
        """Return the requests of one operation, in the order they came."""
        return [request for request in self.requests if request.operation == operation]

    def forget(self) -> None:
        """Forget jobs, requests and faults, for the next test. Tokens live on, and job ids go on."""
        with self.lock:
            self.jobs, self.requests, self.faults = [], [], {}

    def add_job(
        self,
        connection_id: str = CONNECTION_ID,
        type: str = "sync",
        statuses: tuple[str, ...] = (),
        age: float = 0,
        duration: float | None = None,
    ) -> Job:
        """Create a job `age` seconds ago. With a duration, in seconds, it has reached its last status after that."""
        default = SUCCEEDS if type in ("reset", "clear") else self.statuses[connection_id]
        job = Job(next(self.job_ids), connection_id, type, tuple(statuses) or default, time.time() - age)
        if duration is not None:
            job.step, job.ended = len(job.statuses) - 1, job.created + duration
        self.jobs.append(job)
        return job

    def end_jobs(self) -> None:
        """Let every job reach its last status."""
        for job in self.jobs:
            job.step = len(job.statuses) - 1

    def unfinished(self, connection_id: str) -> list[Job]:
        """Return the jobs of a connection that have not ended."""
        return [job for job in self.jobs if job.connection_id == connection_id and self.status_of(job) not in ENDED]

    def status_of(self, job: Job) -> str:
        """Return the job's status now. A job that has ended stays so."""
        if self.job_seconds is not None and not job.ended:
            last, age = len(job.statuses) - 1, time.time() - job.created
            job.step = int(last * min(age / self.job_seconds, 1)) if self.job_seconds else last
        status = job.statuses[job.step]
        if status in ENDED and not job.ended:
            job.ended = job.created + self.job_seconds if self.job_seconds else time.time()
        return status

    def job_response(self, job: Job, with_stats: bool = False) -> dict:
        """Return the job as Airbyte shows it. What is not known yet is left out, as are the stats in some answers."""
        status = self.status_of(job)
        response = {"jobId": job.id, "status": status, "jobType": job.type, "connectionId": job.connection_id}
        response["startTime"] = iso_time(job.created + self.clock_offset)
        if job.ended:
            response["lastUpdatedAt"] = iso_time(job.ended + self.clock_offset)
        if status != "pending":
            response["duration"] = iso_duration(int((job.ended or time.time()) - job.created))
        if with_stats:
            synced = status == "succeeded" and job.type in ("sync", "refresh")
            response.update(bytesSynced=48_211_904 if synced else 0, rowsSynced=125_000 if synced else 0)
        return response

    def create_token(self, request: Request) -> dict:
        """POST /v1/applications/token"""
        is_form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
        client = dict(parse_qsl(request.body)) if is_form else json.loads(request.body)
        if (client.get("client_id"), client.get("client_secret")) != (CLIENT_ID, CLIENT_SECRET):
            if self.self_managed:
                raise Refused(400, "Invalid client id or token", MICRONAUT)
            raise Refused(401, body=body_of(500))
        token = f"fake.{uuid.uuid4()}"
        self.tokens[token] = time.time() + TOKEN_SECONDS
        return {"access_token": token, "token_type": "Bearer", "expires_in": TOKEN_SECONDS}

    def create_job(self, request: Request) -> dict:
        """POST /v1/jobs, of a sync"""
        self.authorize(request)
        body = json.loads(request.body)
        if body["jobType"] != "sync":
            raise Refused(422, "The fake Airbyte starts only syncs")
        connection_id = self.existing_connection(body["connectionId"])
        for job in self.unfinished(connection_id):
            begun = any(status not in ("pending", "queued") for status in job.statuses[: job.step + 1])
            response = self.job_response(job)
            if job.type in ("reset", "clear"):  # which nobody polls
                self.step(job)
            if not begun:
                return response
            raise Refused(409, f"A sync is already running for: {connection_id}", "try-again-later")
        return self.job_response(self.add_job(connection_id, self.before_syncs.pop(0) if self.before_syncs else "sync"))

    def get_job(self, request: Request) -> dict:
        """GET /v1/jobs/{jobId}"""
        job = self.existing_job(request)
        response = self.job_response(job, with_stats=True)
        request.job_status = response["status"]
        self.step(job)
        return response

    def cancel_job(self, request: Request) -> dict:
        """DELETE /v1/jobs/{jobId}: whatever runs on that job's connection is cancelled"""
        job = self.existing_job(request)
        if not (running := self.unfinished(job.connection_id)):
            raise Refused(409, "Job is not currently running")
        for each in running:
            each.statuses, each.step, each.ended = ("cancelled",), 0, time.time()
        return self.job_response(job)

    def list_jobs(self, request: Request) -> dict:
        """GET /v1/jobs: the oldest first, unless orderBy says otherwise"""
        self.authorize(request)
        query = request.query
        if "connectionId" in query and not self.self_managed:
            self.existing_connection(query["connectionId"])
        wanted = [
            job
            for job in self.jobs
            if job.connection_id == query.get("connectionId", job.connection_id)
            and job.type == query.get("jobType", job.type)
            and ("jobType" in query or job.type in ("sync", "reset") or not self.before_2026)  # getJobConfigTypes
            and self.status_of(job) == query.get("status", self.status_of(job))
        ]
        wanted.sort(key=lambda job: job.created, reverse=query.get("orderBy") == "createdAt|DESC")
        first, limit = int(query.get("offset", 0)), int(query.get("limit", 20))
        if first < 0 or not 1 <= limit <= 100:
            raise ValueError(f"offset {first}, limit {limit}")
        page = [self.job_response(job, with_stats=True) for job in wanted[first : first + limit]]
        before = self.link(query, limit, max(first - limit, 0)) if first else ""
        return {"data": page, "previous": before, "next": self.link(query, limit, first + limit) if page else ""}

    def link(self, query: dict[str, str], limit: int, offset: int) -> str:
        """Return the address of another page. It forgets filters and order, as Airbyte's does (JobsResponseMapper)."""
        kept = {name: query[name] for name in ("jobType", "connectionId", "workspaceIds") if name in query}
        return f"{self.url}/v1/jobs?{urlencode({**kept, 'limit': limit, 'offset': offset})}"

    def get_connection(self, request: Request) -> dict:
        """GET /v1/connections/{connectionId}"""
        self.authorize(request)
        return {
            "connectionId": self.existing_connection(request.path.rpartition("/")[2]),
            "name": "Shop → Warehouse",
            "sourceId": "1b2c3d4e-0001-4000-8000-000000000001",
            "destinationId": "1b2c3d4e-0002-4000-8000-000000000002",
            "workspaceId": WORKSPACE_ID,
            "status": "active",
            "schedule": {"scheduleType": "manual"},
            "configurations": {"streams": []},
            "createdAt": 1_700_000_000,
            "tags": [],
        }

    def refuse_path(self, request: Request) -> None:
        """Refuse a path that is none of the API's. A self-managed Airbyte looks at the token first."""
        if not self.self_managed:
            raise Refused(404, body='{"message":"The current request is not defined by this API.","code":404}')
        self.authorize(request)
        raise Refused(404, body="Object not found.")  # NotFoundController

    def authorize(self, request: Request) -> None:
        """Refuse a request without a token that is still alive."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or self.tokens.get(token, 0) < time.time():
            raise Refused(401)

    def existing_connection(self, connection_id: str) -> str:
        """Return the connection id, or refuse it if no connection has it."""
        if connection_id not in self.statuses:
            raise Refused(404, connection_id) if self.self_managed else Refused(403)
        return connection_id

    def existing_job(self, request: Request) -> Job:
        """Return the job whose id ends the path, or refuse the request."""
        self.authorize(request)
        for job in self.jobs:
            if str(job.id) == request.path.rpartition("/")[2]:
                return job
        raise Refused(409, "Job is not currently running") if self.self_managed else Refused(403)

    def step(self, job: Job) -> None:
        """Let the job reach its next status, unless the time decides that."""
        job.step = min(job.step + 1, len(job.statuses) - 1)


OPERATIONS = {
    "POST applications/token": "create_token",
    "POST jobs": "create_job",
    "GET jobs": "list_jobs",
    "GET jobs/[^/]+": "get_job",
    "DELETE jobs/[^/]+": "cancel_job",
    "GET connections/[^/]+": "get_connection",
}


class Handler(BaseHTTPRequestHandler):
    """Takes a request, lets it meet its fault or has it carried out, and answers."""

    server: FakeAirbyte

    def handle_request(self) -> None:
        airbyte, url = self.server, urlsplit(self.path)
        asked = f"{self.command} {url.path}".replace(f" {airbyte.base_path}/v1/", " ", 1)
        request = Request(
            operation=next((name for pattern, name in OPERATIONS.items() if re.fullmatch(pattern, asked)), None),
            method=self.command,
            path=url.path,
            query=dict(parse_qsl(url.query)),
            headers={key.lower(): value for key, value in self.headers.items()},
            body=self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(),
            port=self.client_address[1],
        )
        with airbyte.lock:
            airbyte.requests.append(request)
            faults = airbyte.faults.get(request.operation)
            fault = (faults.pop(0) if faults else None) or Fault()
        replaces_the_answer = fault.status or fault.no_answer or fault.body is not None
        airbyte.closing.wait(fault.seconds)
        with airbyte.lock:
            fault.before(airbyte)
            if fault.carried_out or not replaces_the_answer:
                request.status, request.answer = self.carry_out(request)
            if replaces_the_answer:
                request.status = fault.status or 200
                request.answer = body_of(request.status) if fault.body is None else fault.body
                request.answer = request.answer.replace("{authorization}", request.headers.get("authorization", ""))
        if fault.no_answer:
            request.answer = f"({fault.no_answer})"
        airbyte.log(request)
        if fault.no_answer == "silent":
            airbyte.closing.wait()
        elif not fault.no_answer:
            self.send(request.status, request.answer, fault)

    do_GET = do_POST = do_DELETE = handle_request

    def carry_out(self, request: Request) -> tuple[int, str]:
        """Return the status and the body of Airbyte's answer."""
        try:
            return 200, json.dumps(getattr(self.server, request.operation or "refuse_path")(request))
        except Refused as refused:
            return refused.args
        except (ValueError, KeyError, TypeError) as error:
            return 400, body_of(400, repr(error))

    def send(self, status: int, text: str, fault: Fault) -> None:
        """Send the answer."""
        body = text.encode(errors="surrogateescape")
        date = self.date_time_string(time.time() + self.server.clock_offset)
        kind = "text/html" if text.startswith("<") else "application/json"
        headers = {"Date": date, "Content-Type": kind, "Content-Length": str(len(body))}
        if status == 302:
            headers["Location"] = "https://sso.example.com/login"
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        with suppress(OSError):  # A client that was killed meanwhile
            self.end_headers()
            for part in [bytes([byte]) for byte in body[:120]] if fault.drip else [body]:
                self.wfile.write(part)
                self.server.closing.wait(0.5 if fault.drip else 0)

    def log_message(self, *args) -> None:
        """Leave the log to the server's `log`."""


def iso_time(seconds: float) -> str:
    """Return a time since the epoch as Airbyte writes it: whole seconds, and none where they are zero."""
    moment = datetime.fromtimestamp(int(seconds), timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ" if moment.second else "%Y-%m-%dT%H:%MZ")


def iso_duration(seconds: int) -> str:
    """Return a duration in seconds as Airbyte writes it: "PT1H4M", "PT12S", "PT0S"."""
    parts = ((seconds // 3600, "H"), (seconds // 60 % 60, "M"), (seconds % 60, "S"))
    return "PT" + ("".join(f"{number}{unit}" for number, unit in parts if number) or "0S")


def main() -> None:
    """Serve until Ctrl-C, on the port that the command line gives, or on a free one if that is in use."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8001

    def log(request: Request) -> None:
        print(request.method, request.path, request.status, request.answer, flush=True)

    options = {"statuses": CONNECTIONS, "job_seconds": 20, "log": log}
    try:
        airbyte = FakeAirbyte(**options, port=port)
    except OSError:
        airbyte = FakeAirbyte(**options)
    with airbyte:
        print(
            "The fake Airbyte is listening until Ctrl-C. Only programs on this machine can reach it, outside containers.\n"
        )
        print(f"host           {airbyte.url}\nclient id      {CLIENT_ID}\nclient secret  {CLIENT_SECRET}")
        print("connection ids", *CONNECTIONS, "of which the last one's syncs fail\n", sep="\n  ", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
