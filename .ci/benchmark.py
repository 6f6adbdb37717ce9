# /// script
# requires-python = ">=3.10"
# dependencies = ["apache-airflow-core~=3.3.0", "apache-airflow-providers-http>=6.0",
#     "apache-airflow-providers-airbyte==6.2.0", "psycopg2-binary", "asyncpg", "psutil"]
# ///
"""
Measure what a sync costs: many at once on a real Airflow (LocalExecutor, PostgreSQL) against the fake Airbyte.

It compares this DAG with the Airbyte provider's operator, or with --trouble what syncs that wait leave to another DAG
while Airbyte is in trouble. It only prints figures, which depend on the machine: let nothing else run there.
It needs Debian's package postgresql. `uv run .ci/benchmark.py` installs the rest.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg2
from psycopg2.extras import NamedTupleCursor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from proved_deployment import run_postgres
from sandbox.deployment import Deployment
from sandbox.fake_airbyte import CLIENT_ID, CLIENT_SECRET, OPERATIONS, FakeAirbyte, Fault, Job
from sandbox.throwaway_airflow import DAG_FILE, DAG_ID, dag_settings

WAYS = (DAG_ID, "operator", "operator_deferrable")
TROUBLES = ("good", "silent", "expired")  # none, Airbyte never answers, CLOUD_API_TOKEN has expired
FOREVER = 1e10
PRELOAD = """
import airflow.providers.http.hooks.http, airflow.providers.http.operators.http, airflow.providers.http.sensors.http
import airflow.sdk.execution_time.task_runner
"""
TASKS = """
select task.id::text, run_id, run.state as run_state, extract(epoch from run.end_date)::float as run_ended,
    task_id, task.state, extract(epoch from task.start_date)::float as started
from task_instance task join dag_run run using (dag_id, run_id) where run_id = any(%s) order by task_id
"""


def spread(values) -> str:
    """Return the median, with the 95th percentile in brackets."""
    values = sorted(values) or [float("nan")]
    return f"{statistics.median(values):.1f} ({values[int(0.95 * len(values))]:.1f})"


class TimedAirbyte(FakeAirbyte):
    """A fake Airbyte where each connection has its own `seconds` that a sync takes."""

    def status_of(self, job: Job) -> str:
        self.job_seconds = self.seconds[job.connection_id]
        return super().status_of(job)


class Bench(Deployment):
    """An Airflow with PostgreSQL, the DAGs to measure and the intervals that Airflow has by default."""

    def __init__(self, airflow_home: Path, airbyte: TimedAirbyte, database: str, out, options) -> None:
        client = {"login": CLIENT_ID, "password": CLIENT_SECRET, "schema": "v1/applications/token"}
        environ = {
            **dag_settings(airbyte.url),
            "AIRFLOW_CONN_AIRBYTE_DEFAULT": json.dumps({"conn_type": "airbyte", "host": f"{airbyte.url}/v1", **client}),
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(options.slots),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        }
        super().__init__(airflow_home, environ, out, more={"triggerer": ["airflow", "triggerer", "--skip-serve-logs"]})
        self.environ = {name: value for name, value in self.environ.items() if "AIRFLOW__SCHEDULER__" not in name}
        self.airbyte, self.options = airbyte, options
        self.database = psycopg2.connect(database.replace("+psycopg2", ""), cursor_factory=NamedTupleCursor)
        self.samples: list[tuple[float, set[str]]] = []  # for how many seconds which task instances held workers
        shutil.copy(Path(__file__).with_name("benchmark_dags.py"), airflow_home / "dags")
        shutil.copy(options.dag, airflow_home / "dags" / DAG_FILE.name)

    def start(self, name: str) -> None:
        """Start one of the commands. With --preload, the workers fork from a process that has loaded the HTTP provider."""
        settings = self.airflow_home / "config" / "airflow_local_settings.py"
        if self.options.preload and PRELOAD not in settings.read_text():
            settings.write_text(settings.read_text() + PRELOAD)
        super().start(name)

    def watch_workers(self) -> None:
        """Take the samples. A worker is called "airflow worker -- LocalExecutor: <task instance's id>"."""
        scheduler, last = self.processes["scheduler"], time.time()
        while scheduler.poll() is None:
            time.sleep(0.25)
            processes = [each.info for each in psutil.process_iter(["ppid", "cmdline"])]
            titles = ["".join(each["cmdline"] or "") for each in processes if each["ppid"] == scheduler.pid]
            busy = [title for title in titles if "LocalExecutor" in title and "<idle>" not in title]
            last, seconds = time.time(), time.time() - last
            self.samples.append((seconds, {title.rpartition(" ")[2] for title in busy}))

    def cpu_seconds(self) -> float:
        """Return the CPU time of all processes that work in this Airflow's folder, and of their ended children."""
        processes, home = psutil.process_iter(["cwd", "cpu_times"]), str(self.airflow_home)
        return sum(sum(each.info["cpu_times"][:4]) for each in processes if (each.info["cwd"] or "").startswith(home))

    def tasks(self) -> list:
        """Return the task instances of the present runs."""
        with self.database, self.database.cursor() as cursor:
            cursor.execute(TASKS, [list(self.triggered)])
            return cursor.fetchall()

    def start_run(self, dag_id: str, run_id: str, **conf: str) -> None:
        """Trigger a run."""
        self.triggered[run_id] = time.time()
        # A run of the web UI and of TriggerDagRunOperator has a date, and the scheduler queues the oldest first.
        body = {"dag_run_id": run_id, "conf": conf, "logical_date": datetime.now(timezone.utc).isoformat()}
        self.wait_for(lambda: self.api(f"/dags/{dag_id}/dagRuns", body), f"a run of {dag_id}")

    def start_runs(self, dag_id: str, number: int, seconds: float, age: float = 0) -> None:
        """Trigger runs, each of its own connection. A job takes so long, give or take a half. With an age, it runs."""
        self.airbyte.forget()
        self.triggered, self.airbyte.seconds = {}, {}
        chance, share = random.Random(0), self.options.history
        for index, run_id in enumerate(str(uuid4()) for _ in range(number)):
            job_seconds = seconds * (0.5 + index * 0.618 % 1)
            self.airbyte.seconds[run_id], self.airbyte.statuses[run_id] = job_seconds, ("running", "succeeded")
            with self.airbyte.lock:
                for days in range(1, 20) if share is not None else ():
                    duration = job_seconds * chance.uniform(1 - share, 1 + share)
                    self.airbyte.add_job(run_id, age=days * 24 * 60 * 60, duration=duration)
                if age:
                    self.airbyte.add_job(run_id, age=age)
            self.start_run(dag_id, run_id, connection_id=run_id)

    def ends(self) -> dict:
        """Wait until all runs have ended. Return a task instance of each, by run."""
        while len(ends := {each.run_id: each for each in self.tasks() if each.run_ended}) < len(self.triggered):
            time.sleep(0.25)
        return ends

    def compare(self, dag_id: str) -> dict[str, str | float]:
        """Run the syncs at once in one way, and return the figures."""
        syncs, cpu, begin = self.options.syncs, self.cpu_seconds(), time.time()
        threading.Thread(target=self.watch_workers, daemon=True).start()
        self.start_runs(dag_id, syncs, self.options.seconds)
        ends = self.ends()
        jobs = [job for job in self.airbyte.jobs if job.created >= begin]
        started = [job.created - self.triggered[job.connection_id] for job in jobs]
        due = {job.connection_id: job.created + self.airbyte.seconds[job.connection_id] for job in jobs}
        return {
            "succeeded": f"{[each.run_state for each in ends.values()].count('success')} of {syncs}, {len(jobs)} syncs",
            "s from trigger to start of the sync": spread(started),
            "s from end of the sync to end of the run": spread(ends[run_id].run_ended - due[run_id] for run_id in due),
            "s in a worker slot per sync": sum(seconds * len(busy) for seconds, busy in self.samples) / syncs,
            "CPU s per sync": (self.cpu_seconds() - cpu) / syncs,
            "requests to Airbyte per sync": len(self.airbyte.requests) / syncs,
            "checks of the job per sync": len(self.airbyte.requests_of("get_job")) / syncs,
        }

    def trouble(self, kind: str) -> dict[str, str | float]:
        """Let runs wait for jobs of two hours ago. Return what they leave to another DAG in the window of trouble."""
        if kind == "expired":
            self.api("/variables", {"key": "CLOUD_API_TOKEN", "value": "static"})
        syncs = self.options.trouble
        self.start_runs(DAG_ID, syncs, seconds=FOREVER, age=2 * 60 * 60)
        self.wait_for(lambda: str(self.tasks()).count("up_for_reschedule") == syncs, "the wait of all runs", 600)
        if kind == "silent":
            self.airbyte.faults = {each: [Fault(no_answer="silent")] * 100_000 for each in OPERATIONS.values()}
        elif kind == "expired":
            self.airbyte.tokens.clear()
        threading.Thread(target=self.watch_workers, daemon=True).start()
        begin = time.time()
        while time.time() < begin + self.options.window:
            self.start_run("bystander", str(uuid4()))
            time.sleep(20)
        end, samples, tasks = time.time(), self.samples[:], self.tasks()
        full = sum(seconds for seconds, busy in samples if len(busy) >= self.options.slots)
        others = {each.id: each for each in tasks if each.task_id == "do_nothing"}
        delays = [(each.started or end) - self.triggered[each.run_id] for each in others.values()]
        held = sum(seconds * len(busy - others.keys()) for seconds, busy in samples)
        return {
            "worker slots held by waiting runs": held / (end - begin),
            "time without a free slot": f"{full / (end - begin):.0%}",
            "s from trigger to start of the other DAG's task": f"{spread(delays)}, max {max(delays):.1f}",
            "waits at the end": str(Counter(each.state for each in tasks if each.task_id == "wait_for_airbyte_sync")),
        }


def table(results: dict[str, dict]) -> str:
    """Return the figures in Markdown, a column each. Those without a spread have ratios to the first column's."""
    lines = [["", *results], ["---"] * (len(results) + 1)]
    for name, first in next(iter(results.values())).items():
        values = [column[name] for column in results.values()]
        if isinstance(first, float):
            values = [f"{value:.2f}, x{value / (first or float('nan')):.2f}" for value in values]
        lines.append([name, *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure(name: str, options: argparse.Namespace) -> dict[str, str | float]:
    """Start an Airflow, and return the figures of a way or a trouble."""
    with tempfile.TemporaryDirectory(prefix="airflow-benchmark-", ignore_cleanup_errors=True) as folder:
        log = Path(f"{folder}.log")
        print(f"Starting an Airflow; its log is {log}", flush=True)
        with log.open("w") as out, contextmanager(run_postgres)() as (database, _), TimedAirbyte() as airbyte:
            airbyte.tokens["static"] = FOREVER
            with Bench(Path(folder).resolve(), airbyte, database, out, options) as bench:
                bench.start_runs(name if name in WAYS else DAG_ID, 8, seconds=0)  # so that all is loaded
                bench.ends()
                time.sleep(15)  # so that Airflow comes to rest
                figures = bench.compare(name) if name in WAYS else bench.trouble(name)
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="which DAGs to compare (all)")
    parser.add_argument("--dag", type=Path, default=DAG_FILE, help="another version of this DAG's file")
    parser.add_argument("--preload", action="store_true", help="load the HTTP provider before the workers fork")
    parser.add_argument("--slots", type=int, default=8, help="worker slots (8)")
    parser.add_argument("--syncs", type=int, default=40, help="how many at once (40)")
    parser.add_argument("--seconds", type=float, default=60, help="how long a sync takes, give or take a half (60)")
    parser.add_argument("--history", type=float, help="let 19 earlier syncs differ from these by up to a share (none)")
    parser.add_argument("--trouble", type=int, nargs="?", const=8, help="measure troubles of so many syncs instead (8)")
    parser.add_argument("--window", type=float, default=600, help="with --trouble: for how many seconds (600)")
    options = parser.parse_args()
    names = TROUBLES if options.trouble else options.ways
    results = {name: measure(name, options) for name in names}
    print(f"\nTwo numbers are the median and, in brackets, the 95th percentile.\n\n{table(results)}")
