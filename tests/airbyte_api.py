"""
A stand-in for the Airbyte API: a real HTTP server on loopback that gives, and refuses, what Airbyte does.

    with AirbyteApi(faults={"start": ["reset after"]}) as airbyte:
        ...                    # point an Airflow HTTP connection to airbyte.url
        airbyte.requests       # what was sent
        airbyte.jobs           # the jobs that were made of it

Run by itself (`python tests/airbyte_api.py`) it prints what to try with curl, and each exchange as it happens.
The API that it follows: https://reference.airbyte.com
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import struct
import threading
import time
import uuid
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

CONNECTION_ID = "7c1b3d0e-5a44-4a58-9d2b-0a8f6f4e2c11"
CLIENT_ID = "3f1c0a52-9f0b-4f0e-8d55-7a1f6f0c9f11"
CLIENT_SECRET = "stand-in-client-secret"
SUCCEEDS = ("pending", "running", "succeeded")  # the statuses of a job, one after another
ENDED = ("succeeded", "failed", "cancelled")

# What Airbyte says with a status, in the form of its problems: (type, data.message).
PROBLEMS = {
    400: ("bad-request", "The request could not be understood"),
    401: ("unauthorized", "Unauthorized"),
    403: ("forbidden", "You don't have permission to access this resource"),
    404: ("resource-not-found", "Could not find a resource for the given id"),
    408: ("request-timeout", "The request took too long to arrive"),
    409: ("state-conflict", "Could not fulfill request"),
    415: ("unsupported-media-type", "Content Type not allowed: send application/json"),
    422: ("unprocessable-entity", "The body of the request was not understood"),
    500: ("unexpected-problem", "An unexpected problem has occurred"),
}
# What a gateway in front of Airbyte answers instead: a body, with status 200 where it is a fault of its own.
GATEWAY = {
    "429": '{"message":"You are being rate limited."}',
    "502": "<html><body><h1>502 Bad Gateway</h1></body></html>",
    "503": "<html><body><h1>503 Service Temporarily Unavailable</h1></body></html>",
    "504": "<html><body><h1>504 Gateway Time-out</h1></body></html>",
    "302": "",
    "html": "<!doctype html><html><body>Sign in to continue</body></html>",
    "list": "[]",
    "empty": "",
    "keyless": "{}",
    "null": "null",
}


class Refused(Exception):
    """Airbyte's refusal: a status, and the type and message of its problem."""

    def __init__(self, status: int, message: str = "", kind: str = "") -> None:
        default_kind, default_message = PROBLEMS[status]
        self.status = status
        body = {
            "status": status,
            "type": f"https://reference.airbyte.com/reference/errors#{kind or default_kind}",
            "title": kind or default_kind,
            "detail": "The request was not fulfilled; data.message says why.",
            "documentationUrl": None,
            "data": {"message": message or default_message},
        }
        self.text = json.dumps(body)


class AirbyteApi(ThreadingHTTPServer):
    """
    The server. It runs while it is a context manager's.

    :param faults: what the n-th call meets, for each of the calls `token`, `start`, `poll` and `list`:
        None, or a status ("503"), a key of GATEWAY ("html"), "reset" (of the connection), "silence" (no answer
        comes); each may be followed by " after": the call is carried out first, so that its job is made.
        "stale" lets all tokens expire, and "ended" all jobs end, before the call is carried out, or after.
    :param statuses: what a job goes through, by the id of its connection; these are the connections there are
    :param job_seconds: how long a job takes; without it, a job goes on by one status whenever it is asked for
    :param token_seconds: how long a token lives
    :param base_path: of a self-managed Airbyte: "/api/public"
    :param port: 0 takes a free one
    :param log: is given each request as it is answered, with the `text` of the answer
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        faults: dict[str, list[str | None]] | None = None,
        statuses: dict[str, tuple[str, ...]] | None = None,
        job_seconds: float | None = None,
        token_seconds: float = 900,
        base_path: str = "",
        port: int = 0,
        log=lambda request: None,
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.faults = faults or {}
        self.statuses = statuses or {CONNECTION_ID: SUCCEEDS}
        self.job_seconds = job_seconds
        self.token_seconds = token_seconds
        self.base_path = base_path
        self.log = log
        self.url = f"http://127.0.0.1:{self.server_port}{base_path}"
        self.jobs: list[dict] = []
        self.tokens: dict[str, float] = {}
        self.requests: list[dict] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()

    def __enter__(self) -> AirbyteApi:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exc_info) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def calls(self, call: str) -> list[dict]:
        """Return the requests of one call (`token`, `start`, `poll`, `list`), in the order they came."""
        return [request for request in self.requests if request["call"] == call]

    def next_fault(self, call: str | None) -> str:
        """Return the fault that the request just recorded meets, or an empty text."""
        schedule, number = self.faults.get(call, []), len(self.calls(call))
        return (schedule[number - 1] if number <= len(schedule) else None) or ""

    def will_meet(self, call: str, *faults: str | None) -> None:
        """Let the next calls of a kind meet these faults."""
        with self.lock:
            self.faults[call] = [None] * len(self.calls(call)) + [*faults]

    def running(self) -> list[dict]:
        """Return the jobs that have not ended."""
        return [job for job in self.jobs if self.status(job) not in ENDED]

    def add_job(self, connection_id: str = CONNECTION_ID, statuses=None, kind: str = "sync", age: float = 0) -> dict:
        """Make a job that began `age` seconds ago, as if somebody else had started it, and return it."""
        statuses = statuses or self.statuses[connection_id]
        job = {
            "id": 1001 + len(self.jobs),
            "connection": connection_id,
            "kind": kind,
            "statuses": statuses,
            "step": 0,
            "created": time.time() - age,
            "ended": None,
        }
        self.jobs.append(job)
        return job

    def end_jobs(self) -> None:
        """Let every job reach its last status."""
        for job in self.jobs:
            job["step"] = len(job["statuses"]) - 1

    def status(self, job: dict) -> str:
        """Return the job's status now. A job that has ended stays so."""
        last = len(job["statuses"]) - 1
        if self.job_seconds is not None and not job["ended"]:
            share = (time.time() - job["created"]) / self.job_seconds if self.job_seconds else 1
            job["step"] = min(int(share * last), last)
        status = job["statuses"][job["step"]]
        if status in ENDED and not job["ended"]:
            job["ended"] = job["created"] + self.job_seconds if self.job_seconds else time.time()
        return status

    def job_response(self, job: dict) -> dict:
        """Return the job as Airbyte shows it: some keys come only once they are known."""
        status = self.status(job)
        seconds = int((job["ended"] or time.time()) - job["created"])
        response = {
            "jobId": job["id"],
            "status": status,
            "jobType": job["kind"],
            "startTime": java_time(job["created"]),
            "connectionId": job["connection"],
        }
        if status in ENDED:
            response["lastUpdatedAt"] = java_time(job["ended"])
        if status != "pending":
            response["duration"] = java_duration(seconds)
            done = status == "succeeded"
            response.update(bytesSynced=48_211_904 if done else None, rowsSynced=125_000 if done else None)
        return response

    # -- the calls --------------------------------------------------------------------------------------------

    def token(self, request: dict) -> dict:
        """POST /v1/applications/token"""
        body = request["body"]
        if set(body) != {"client_id", "client_secret", "grant-type"} or body["grant-type"] != "client_credentials":
            raise Refused(422)
        if (body["client_id"], body["client_secret"]) != (CLIENT_ID, CLIENT_SECRET):
            raise Refused(401, "Invalid client id or token", "invalid-client")
        token = f"stand-in.{uuid.uuid4()}"
        self.tokens[token] = time.time() + self.token_seconds
        return {"access_token": token, "token_type": "Bearer", "expires_in": int(self.token_seconds)}

    def start(self, request: dict) -> dict:
        """POST /v1/jobs"""
        self.authorize(request)
        body = request["body"]
        if set(body) != {"connectionId", "jobType"} or body["jobType"] not in ("sync", "reset", "refresh", "clear"):
            raise Refused(422)
        connection_id = self.known(body["connectionId"])
        if connection_id in [job["connection"] for job in self.running()]:
            raise Refused(409, f"A sync is already running for: {connection_id}", "try-again-later")
        return self.job_response(self.add_job(connection_id, kind=body["jobType"]))

    def poll(self, request: dict) -> dict:
        """GET /v1/jobs/{jobId}"""
        self.authorize(request)
        wanted = request["path"].rpartition("/")[2]
        if not wanted.isdigit():
            raise Refused(400, f"Failed to convert argument [jobId] for value [{wanted}]")
        for job in self.jobs:
            if job["id"] == int(wanted):
                response = self.job_response(job)
                request["status"] = response["status"]
                job["step"] = min(job["step"] + 1, len(job["statuses"]) - 1)
                return response
        raise Refused(404)

    def list(self, request: dict) -> dict:
        """GET /v1/jobs, oldest first unless orderBy says otherwise"""
        self.authorize(request)
        query = request["query"]
        order = query.get("orderBy", "createdAt|ASC")
        if set(query) - {"connectionId", "jobType", "status", "orderBy", "limit"} or not re.fullmatch(
            r"(createdAt|updatedAt)\|(ASC|DESC)", order
        ):
            raise Refused(400)
        limit = int(query.get("limit", "20"))
        if not 1 <= limit <= 100:
            raise Refused(400, "limit must be between 1 and 100")
        if "connectionId" in query:
            self.known(query["connectionId"])
        wanted = {
            "connectionId": query.get("connectionId"),
            "jobType": query.get("jobType"),
            "status": query.get("status"),
        }
        jobs = [self.job_response(job) for job in sorted(self.jobs, key=lambda job: job["created"])]
        jobs = [job for job in jobs if all(value in (None, job[key]) for key, value in wanted.items())]
        if order.endswith("DESC"):
            jobs.reverse()
        return {"data": jobs[:limit], "next": "", "previous": ""}

    def authorize(self, request: dict) -> None:
        """Refuse a request without a token that is still alive."""
        scheme, _, token = request["headers"].get("authorization", "").partition(" ")
        if scheme != "Bearer" or self.tokens.get(token, 0) < time.time():
            raise Refused(401)

    def known(self, connection_id: str) -> str:
        """Return the connection id, or refuse it: it is no UUID, or not of a connection here."""
        try:
            uuid.UUID(connection_id)
        except (ValueError, AttributeError, TypeError):
            raise Refused(400, f"Invalid UUID string: {connection_id}") from None
        if connection_id not in self.statuses:
            raise Refused(403)
        return connection_id


class Handler(BaseHTTPRequestHandler):
    """One request: it is recorded, meets its fault or is carried out, and is answered."""

    server: AirbyteApi

    def handle_request(self) -> None:
        airbyte, url = self.server, urlsplit(self.path)
        request = {
            "call": None,
            "method": self.command,
            "path": url.path,
            "query": {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()},
            "headers": {key.lower(): value for key, value in self.headers.items()},
            "body": self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(),
            "time": time.time(),
            "port": self.client_address[1],  # the client's
            "answer": None,
            "status": None,  # of the job that is answered, if any
        }
        for method, pattern, call in (
            ("POST", "/v1/applications/token", "token"),
            ("POST", "/v1/jobs", "start"),
            ("GET", "/v1/jobs/[^/]*", "poll"),
            ("GET", "/v1/jobs", "list"),
        ):
            if method == self.command and re.fullmatch(re.escape(airbyte.base_path) + pattern, url.path):
                request["call"] = call
        with airbyte.lock:
            airbyte.requests.append(request)
            fault, _, after = airbyte.next_fault(request["call"]).partition(" ")
            event = {"stale": airbyte.tokens.clear, "ended": airbyte.end_jobs}.get(fault)
            if event and not after:
                event()
            if event or after or not fault:
                request["answer"], text = self.carry_out(request)
            if event and after:
                event()
            elif fault in ("reset", "silence"):
                request["answer"], text = fault, ""
            elif fault and not event:
                request["answer"], text = int(fault) if fault.isdigit() else 200, GATEWAY.get(fault)
                text = Refused(int(fault)).text if text is None else text
        airbyte.log({**request, "text": text})
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif fault == "silence":
            airbyte.closing.wait()
        else:
            self.answer(request["answer"], text)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

    def carry_out(self, request: dict) -> tuple[int, str]:
        """Return the status and the body that Airbyte gives for the request."""
        try:
            agent = request["headers"].get("user-agent", "")
            if not agent or agent.startswith(("python-requests", "Python-urllib")):
                raise Refused(403, "The request has no User-Agent of its own")
            if not request["call"]:
                return 404, '{"message":"The current request is not defined by this API.","code":404}'
            if self.command == "POST":
                if request["headers"].get("content-type", "").partition(";")[0] != "application/json":
                    raise Refused(415)
                try:
                    request["body"] = json.loads(request["body"])
                except ValueError:
                    raise Refused(400) from None
                if not isinstance(request["body"], dict):
                    raise Refused(400)
            return 200, json.dumps(getattr(self.server, request["call"])(request))
        except Refused as refused:
            return refused.status, refused.text

    def answer(self, status: int, text: str) -> None:
        """Send the status and the body."""
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if text.startswith("<") else "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 302:
            self.send_header("Location", f"{self.server.url}/v1/jobs")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        """Leave the log to the server's `log`."""


def java_time(seconds: float) -> str:
    """Return a time since the epoch as Airbyte writes it: whole seconds, and none where they are zero."""
    moment = datetime.fromtimestamp(int(seconds), timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ" if moment.second else "%Y-%m-%dT%H:%MZ")


def java_duration(seconds: int) -> str:
    """Return a duration in seconds as Airbyte writes it: "PT1H4M", "PT12S", "PT0S"."""
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    parts = ((hours, "H"), (minutes, "M"), (seconds, "S"))
    return "PT" + ("".join(f"{number}{unit}" for number, unit in parts if number) or "0S")


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A stand-in for the Airbyte API on loopback.")
    parser.add_argument("--port", type=int, default=8001, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--job-seconds", type=float, default=20, help="how long a sync takes (default: %(default)s)")
    parser.add_argument("--base-path", default="", help="of a self-managed Airbyte: /api/public")
    arguments = parser.parse_args()
    with AirbyteApi(
        port=arguments.port,
        job_seconds=arguments.job_seconds,
        base_path=arguments.base_path,
        log=lambda request: print("{method} {path} -> {answer} {text}".format(**request), flush=True),
    ) as airbyte:
        print(
            f"""Airbyte's stand-in answers at {airbyte.url} until Ctrl-C. Get a token, start a sync, ask for it:

curl {airbyte.url}/v1/applications/token -H 'Content-Type: application/json' \\
  -d '{{"client_id": "{CLIENT_ID}", "client_secret": "{CLIENT_SECRET}", "grant-type": "client_credentials"}}'
curl {airbyte.url}/v1/jobs -H 'Content-Type: application/json' -H 'Authorization: Bearer <access_token>' \\
  -d '{{"connectionId": "{CONNECTION_ID}", "jobType": "sync"}}'
curl {airbyte.url}/v1/jobs/1001 -H 'Authorization: Bearer <access_token>'
""",
            flush=True,
        )
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
