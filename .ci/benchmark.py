# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "apache-airflow-core~=3.3.0",
#     "apache-airflow-providers-http>=6.0",
#     "pendulum>=3.0",
#     "apache-airflow-providers-airbyte==6.2.0",
#     "psycopg2-binary",
#     "asyncpg",
#     "psutil",
# ]
# ///
"""
Measure what a sync costs: many at once on a real Airflow (LocalExecutor, PostgreSQL) against the fake Airbyte.

It compares this DAG with those in `benchmark_dags.py`. With --waiting it shows how many syncs can wait at once.
It only prints figures, which depend on the machine: let nothing else run there.
It needs Debian's package postgresql. `uv run .ci/benchmark.py` installs the rest.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import demo  # noqa: E402
from sandbox import services  # noqa: E402
from sandbox.airflow_home import DAG_ID, dag_settings  # noqa: E402
from sandbox.deployment import Deployment, processes_in  # noqa: E402
from sandbox.fake_airbyte import CLIENT_ID, CLIENT_SECRET, FakeAirbyte, Job  # noqa: E402

WAYS = {
    DAG_ID: "this DAG",
    "article": "the article's DAG",
    "operator": "AirbyteTriggerSyncOperator",
    "operator_deferrable": "the same, deferrable",
}
FOREVER = 1e9
IDLE_SECONDS = 15
ENDED = "select run_id, state, end_date from dag_run where run_id = any(%s) and state in ('success', 'failed')"
RUNNING = "select count(*) from task_instance where state = 'running'"


def spread(values) -> str:
    """Return the median, the 95th percentile and the largest."""
    values = sorted(values) or [float("nan")]
    return f"{statistics.median(values):.1f} / {values[int(0.95 * len(values))]:.1f} / {values[-1]:.1f}"


def total(folder: Path, figure) -> float:
    """Return the sum of a figure over all processes that work in a folder."""
    result = 0.0
    for process in processes_in(folder):
        with suppress(psutil.Error):  # It has just ended.
            result += figure(process)
    return result


def cpu_seconds(folder: Path) -> float:
    """Return the CPU time of the processes in a folder, and of their children that have ended."""
    return total(folder, lambda process: sum(process.cpu_times()[:4]))


class Bench(Deployment):
    """An Airflow with PostgreSQL, all DAGs and the intervals that Airflow has by default."""

    def __init__(self, home: Path, airbyte: FakeAirbyte, server, out, slots: int, active: int | None) -> None:
        client = {"login": CLIENT_ID, "password": CLIENT_SECRET, "schema": "v1/applications/token"}
        environ = {
            **dag_settings(airbyte.url),
            "AIRFLOW_CONN_AIRBYTE_DEFAULT": json.dumps({"conn_type": "airbyte", "host": f"{airbyte.url}/v1", **client}),
            "AIRFLOW_VAR_ARTICLE_TOKEN": "article",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(slots),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": services.sqlalchemy_url(server),
        }
        super().__init__(home, environ, out, more={"triggerer": ["airflow", "triggerer", "--skip-serve-logs"]})
        self.environ = {name: value for name, value in self.environ.items() if "AIRFLOW__SCHEDULER__" not in name}
        self.airbyte, self.postgres = airbyte, server.folder
        self.triggered, self.job_seconds = {}, {}  # by run, which has the id of its Airbyte connection
        shutil.copy(Path(__file__).with_name("benchmark_dags.py"), home / "dags")
        if active:
            file = home / "dags" / f"{DAG_ID}.py"
            file.write_text(re.sub(r"max_active_runs=\d+", f"max_active_runs={active}", file.read_text()))

    def __enter__(self) -> Bench:
        super().__enter__()
        self.database = psycopg2.connect(self.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", ""))
        self.database.autocommit = True
        for dag_id in WAYS:
            self.wait_for(lambda: self.api(f"/dags/{dag_id}"), dag_id, 120)  # noqa: B023
            self.ends(self.start_runs(dag_id, 8, seconds=0))  # so that all is loaded
        return self

    def query(self, sql: str, *values) -> list[tuple]:
        """Return what the database answers."""
        with self.database.cursor() as cursor:
            cursor.execute(sql, values)
            return cursor.fetchall()

    def start_runs(self, dag_id: str, number: int, seconds: float = FOREVER, apart: float = 0) -> list[str]:
        """Trigger so many runs, each for a connection of its own. Their jobs' times differ by up to `apart`."""
        run_ids = [str(uuid4()) for _ in range(number)]
        for index, run_id in enumerate(run_ids):
            self.job_seconds[run_id] = seconds + apart * (index * 0.618 % 1 - 0.5)
            self.airbyte.statuses[run_id] = ("running", "succeeded")
            self.triggered[run_id] = time.time()
            # A run of the web UI and of TriggerDagRunOperator has a date, and the scheduler queues the oldest first.
            date = datetime.now(timezone.utc).isoformat()
            body = {"dag_run_id": run_id, "conf": {"connection_id": run_id}, "logical_date": date}
            if not self.api(f"/dags/{dag_id}/dagRuns", body):
                raise RuntimeError(f"Airflow did not answer for a run of {dag_id}")
        return run_ids

    def jobs(self, run_ids: list[str]) -> list[Job]:
        """Return the jobs of these runs."""
        return [job for job in self.airbyte.jobs if job.connection_id in set(run_ids)]

    def end_jobs(self, everything: bool = False) -> None:
        """Let the jobs succeed that have run for their time, or all."""
        now = time.time()
        with self.airbyte.lock:
            for job in self.airbyte.jobs:
                if not job.ended and (everything or now >= job.created + self.job_seconds[job.connection_id]):
                    job.step, job.ended = len(job.statuses) - 1, now

    def ends(self, run_ids: list[str]) -> dict[str, tuple[str, float]]:
        """Let jobs and runs end. Return the state and the time of each run's end."""
        while True:
            self.end_jobs()
            rows = self.query(ENDED, run_ids)
            if len(rows) == len(run_ids):
                return {run_id: (state, end.timestamp()) for run_id, state, end in rows}
            time.sleep(0.25)

    def idle_cores(self) -> float:
        """Let Airflow come to rest, and return how many CPU seconds it uses in a second then."""
        time.sleep(IDLE_SECONDS)
        before = cpu_seconds(self.home)
        time.sleep(IDLE_SECONDS)
        return (cpu_seconds(self.home) - before) / IDLE_SECONDS

    def busy_workers(self) -> int:
        """Return how many workers, the scheduler's children, have a child: the process of a task."""
        scheduler, parents = psutil.Process(self.processes["scheduler"].pid), set()
        for descendant in scheduler.children(recursive=True):
            with suppress(psutil.Error):
                parents.add(descendant.ppid())
        return len(parents - {scheduler.pid})

    @contextmanager
    def watch(self):
        """Sample in a thread what Airflow does in the block. Give a dict that has the figures in the end."""
        figures, done = {"running": 0.0, "busy": 0.0, "memory": 0.0}, threading.Event()

        def sample() -> None:
            last = memory = time.time()
            while not done.wait(0.25):
                running, busy, now = self.query(RUNNING)[0][0], self.busy_workers(), time.time()
                figures["running"] += running * (now - last)
                figures["busy"] += busy * (now - last)
                last = now
                if now >= memory:
                    pss = total(self.home, lambda process: process.memory_full_info().pss / 1e6)
                    figures["memory"], memory = max(figures["memory"], pss), now + 2

        thread = threading.Thread(target=sample, daemon=True)
        begin, cpu, postgres = time.time(), cpu_seconds(self.home), cpu_seconds(self.postgres)
        thread.start()
        yield figures
        figures["seconds"] = time.time() - begin
        figures["cpu"], figures["postgres"] = cpu_seconds(self.home) - cpu, cpu_seconds(self.postgres) - postgres
        done.set()
        thread.join()

    def compare(self, dag_id: str, syncs: int, seconds: float, apart: float) -> dict:
        """Run so many syncs at once in one way, and return the figures."""
        idle, requests = self.idle_cores(), len(self.airbyte.requests)
        with self.watch() as figures:
            ends = self.ends(run_ids := self.start_runs(dag_id, syncs, seconds, apart))
        return {
            **self.outcome(ends),
            "worker seconds per sync": figures["busy"] / syncs,
            "CPU seconds per sync": figures["cpu"] / syncs,
            "requests to Airbyte per sync": (len(self.airbyte.requests) - requests) / syncs,
            "peak memory, MB": figures["memory"],
            "s from trigger to end of the run": spread(ends[run_id][1] - self.triggered[run_id] for run_id in run_ids),
            "seconds in the state running per sync": figures["running"] / syncs,
            "CPU seconds per sync, without those when idle": (figures["cpu"] - idle * figures["seconds"]) / syncs,
            "CPU seconds of PostgreSQL per sync": figures["postgres"] / syncs,
            "s until all had ended": figures["seconds"],
        }

    def waiting(self, syncs: int, window: float) -> dict:
        """Let so many syncs of this DAG wait for so long, then let all jobs end, and return the figures."""
        idle, run_ids = self.idle_cores(), self.start_runs(DAG_ID, syncs)
        self.wait_for(lambda: len(self.jobs(run_ids)) >= syncs, "the start of all syncs", 3600)
        begin = time.time()
        with self.watch() as figures:
            time.sleep(window)
        stop = time.time()
        self.end_jobs(everything=True)
        ends, between, late, since, pokes = self.ends(run_ids), [], [], [], 0
        for job in self.jobs(run_ids):
            polls = [request for request in self.airbyte.requests_of("get_job") if request.path.endswith(f"/{job.id}")]
            times = [request.time for request in polls if request.time <= stop]
            pokes += sum(poke >= begin for poke in times)
            since.append(stop - max(times, default=job.created))
            for poke, following in zip(times, times[1:]):
                if following >= begin:
                    between.append(following - poke)
                    late.append(following - poke - max(30, min((poke - job.created) / 20, 300)))  # as the DAG says
        return {
            **self.outcome(ends),
            "s between two pokes": spread(between),
            "s of these beyond what the DAG asks for": spread(late),
            "s since a sync's last poke, at the end": spread(since),
            "pokes per second": pokes / window,
            "cores used": figures["cpu"] / figures["seconds"],
            "CPU seconds per poke": figures["cpu"] / max(pokes, 1),
            "cores used when idle": idle,
            "cores used by PostgreSQL": figures["postgres"] / figures["seconds"],
            "busy workers": figures["busy"] / figures["seconds"],
            "peak memory, MB": figures["memory"],
        }

    def outcome(self, ends: dict[str, tuple[str, float]]) -> dict[str, str]:
        """Return how many of these runs succeeded, and how late their syncs were started and their ends noticed."""
        jobs, successes = self.jobs(list(ends)), sum(state == "success" for state, _ in ends.values())
        started = [job.created - self.triggered[job.connection_id] for job in jobs]
        return {
            "succeeded": f"{successes} of {len(ends)}, {len(jobs)} syncs",
            "s from trigger to start of the sync": spread(started),
            "s from end of the sync to end of the run": spread(ends[job.connection_id][1] - job.ended for job in jobs),
        }


def show(results: dict[str, dict]) -> None:
    """Print each column's figures, with ratios to the first column, and the six rows after the first in Markdown."""

    def text(value: str | float) -> str:
        return value if isinstance(value, str) else f"{value:.2f}" if value < 10 else f"{value:.0f}"

    print(f"\n{'':46}" + "".join(f"{name:>28}" for name in results))
    markdown = ["|".join(["", "", *(f" {name} " for name in results), ""]), "|---" * (len(results) + 1) + "|"]
    for name, first in next(iter(results.values())).items():
        values = [column[name] for column in results.values()]
        numeric = isinstance(first, float) and first
        print(f"{name:46}" + "".join(f"{text(v) + (f' (x{v / first:.2f})' if numeric else ''):>28}" for v in values))
        markdown.append("|".join(["", f" {name} ", *(f" {text(value)} " for value in values), ""]))
    print(
        "\nThree numbers are the median, the 95th percentile and the largest.\n",
        *markdown[:2],
        *markdown[3:9],
        sep="\n",
    )


def main() -> None:
    """Measure what the command line says, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=8, help="worker slots (8)")
    parser.add_argument("--syncs", type=int, default=40, help="how many at once (40)")
    parser.add_argument("--seconds", type=float, default=60, help="how long a sync takes (60)")
    parser.add_argument("--apart", type=float, default=60, help="the spread of these durations (60, at most --seconds)")
    parser.add_argument("--waiting", type=int, nargs="*", help="measure so many waiting syncs instead (16 64 256)")
    parser.add_argument("--window", type=float, default=180, help="with --waiting: for how many seconds (180)")
    parser.add_argument("--max-active-runs", type=int, help="of this DAG (as the file says)")
    options = parser.parse_args()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, demo.stop)
    folder, results = Path(tempfile.mkdtemp(prefix="airflow-benchmark-")), {}
    log = folder.with_name(f"{folder.name}.log")
    print(f"Starting an Airflow; its log is {log}", flush=True)
    try:
        with log.open("w") as out, services.postgres(out) as server, FakeAirbyte(job_seconds=FOREVER) as airbyte:
            airbyte.tokens["article"] = FOREVER * 10
            with Bench(folder / "airflow", airbyte, server, out, options.slots, options.max_active_runs) as bench:
                for way in WAYS if options.waiting is None else options.waiting or (16, 64, 256):
                    if way in WAYS:
                        name, apart = WAYS[way], min(options.apart, options.seconds)
                        results[name] = bench.compare(way, options.syncs, options.seconds, apart)
                    else:
                        name = f"{way} syncs"
                        results[name] = bench.waiting(way, options.window)
                    print(name, json.dumps(results[name]), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(results)


if __name__ == "__main__":
    main()
