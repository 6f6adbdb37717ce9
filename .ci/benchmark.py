# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "apache-airflow-core~=3.3.0",
#     "apache-airflow-providers-http>=6.0",
#     "apache-airflow-providers-airbyte==6.2.0",
#     "psycopg2-binary",
#     "asyncpg",
#     "psutil",
# ]
# ///
"""
Measure what a sync costs: many at once on a real Airflow (LocalExecutor, PostgreSQL) against the fake Airbyte.

It compares this DAG with those in `benchmark_dags.py`. With --waiting it shows how many syncs can wait at once,
and with --trouble what waiting syncs leave to another DAG while Airbyte is in trouble.
It only prints figures, which depend on the machine: let nothing else run there.
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
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import services
from sandbox.deployment import Deployment
from sandbox.fake_airbyte import CLIENT_ID, CLIENT_SECRET, OPERATIONS, FakeAirbyte, Fault, Job
from sandbox.throwaway_airflow import DAG_FILE, DAG_ID, dag_settings

WAYS = {
    DAG_ID: "this DAG",
    "article": "the article's DAG",
    "operator": "AirbyteTriggerSyncOperator",
    "operator_deferrable": "the same, deferrable",
}
TROUBLES = {"good": "no trouble", "silent": "Airbyte never answers", "expired": "CLOUD_API_TOKEN has expired"}
FOREVER = 1e10
ENDED = "select run_id, state, end_date from dag_run where run_id = any(%s) and state in ('success', 'failed')"
POKES = """
select run_id, extract(epoch from poke.end_date)::float, extract(epoch from poke.reschedule_date)::float
from task_reschedule poke join task_instance on task_instance.id = poke.ti_id
where run_id = any(%s) order by poke.end_date
"""
TASKS = """
select task.id::text, run_id, run.state, task_id, task.state, extract(epoch from task.start_date)::float
from task_instance task join dag_run run using (dag_id, run_id) where run_id = any(%s) order by task_id
"""


def spread(values) -> str:
    """Return the median, with the 95th percentile in brackets."""
    values = sorted(values) or [float("nan")]
    return f"{statistics.median(values):.1f} ({values[int(0.95 * len(values))]:.1f})"


def count(values) -> str:
    """Return how many there are of each."""
    return ", ".join(f"{number} {value}" for value, number in Counter(values).items())


class Bench(Deployment):
    """An Airflow with PostgreSQL, the DAGs to measure and the intervals that Airflow has by default."""

    def __init__(self, airflow_home: Path, airbyte: FakeAirbyte, server, out, options: argparse.Namespace) -> None:
        client = {"login": CLIENT_ID, "password": CLIENT_SECRET, "schema": "v1/applications/token"}
        environ = {
            **dag_settings(airbyte.url),
            "AIRFLOW_CONN_AIRBYTE_DEFAULT": json.dumps({"conn_type": "airbyte", "host": f"{airbyte.url}/v1", **client}),
            "AIRFLOW_VAR_ARTICLE_TOKEN": "article",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(options.slots),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": services.sqlalchemy_url(server),
        }
        super().__init__(airflow_home, environ, out, more={"triggerer": ["airflow", "triggerer", "--skip-serve-logs"]})
        self.environ = {name: value for name, value in self.environ.items() if "AIRFLOW__SCHEDULER__" not in name}
        self.airbyte, self.options = airbyte, options
        self.triggered, self.job_seconds = {}, {}  # by run, which has the id of its Airbyte connection
        self.held: Counter[str] = Counter()  # the seconds that a task instance held a worker, by its id
        self.full_seconds = 0.0  # in which no worker was free
        shutil.copy(Path(__file__).with_name("benchmark_dags.py"), airflow_home / "dags")
        shutil.copy(options.dag, airflow_home / "dags" / DAG_FILE.name)

    def __enter__(self) -> Bench:
        super().__enter__()
        self.database = psycopg2.connect(self.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", ""))
        self.database.autocommit = True
        for dag_id in self.options.ways:
            self.start_runs(dag_id, 8, seconds=0)  # so that all is loaded
            self.ends()
        threading.Thread(target=self.watch_workers, daemon=True).start()
        return self

    def watch_workers(self) -> None:
        """Add up how long workers, the scheduler's children, have a child: the process of a task."""
        scheduler, last = self.processes["scheduler"], time.time()
        while scheduler.poll() is None:
            time.sleep(0.25)
            found = {process.pid: process.info for process in psutil.process_iter(["ppid", "cmdline"])}
            parents = {process["ppid"] for process in found.values()}.intersection(found)
            busy = [pid for pid in parents if found[pid]["ppid"] == scheduler.pid]
            now = time.time()
            for pid in busy:  # A worker is called "airflow worker -- LocalExecutor: <id of the task instance>".
                self.held["".join(found[pid]["cmdline"] or "").rpartition(" ")[2]] += now - last
            self.full_seconds += (now - last) * (len(busy) >= self.options.slots)
            last = now

    def cpu_seconds(self) -> float:
        """Return the CPU time of all processes that work in this Airflow's folder, and of their ended children."""
        processes, home = psutil.process_iter(["cwd", "cpu_times"]), self.environ["AIRFLOW_HOME"]
        return sum(sum(each.info["cpu_times"][:4]) for each in processes if (each.info["cwd"] or "").startswith(home))

    def query(self, sql: str) -> list[tuple]:
        """Return what the database answers to a query about the present runs."""
        with self.database.cursor() as cursor:
            cursor.execute(sql, [list(self.triggered)])
            return cursor.fetchall()

    def start_run(self, dag_id: str, run_id: str, **conf: str) -> None:
        """Trigger a run."""
        self.triggered[run_id] = time.time()
        # A run of the web UI and of TriggerDagRunOperator has a date, and the scheduler queues the oldest first.
        body = {"dag_run_id": run_id, "conf": conf, "logical_date": datetime.now(timezone.utc).isoformat()}
        self.wait_for(lambda: self.api(f"/dags/{dag_id}/dagRuns", body), f"a run of {dag_id}")

    def start_runs(self, dag_id: str, number: int, seconds: float, apart: float = 0, age: float = 0) -> None:
        """Trigger runs, each for a connection of its own. Their jobs' times differ by up to `apart`. An `age`: they run."""
        self.airbyte.forget()
        self.triggered, self.job_seconds, chance, share = {}, {}, random.Random(0), self.options.history
        for index, run_id in enumerate(str(uuid4()) for _ in range(number)):
            self.job_seconds[run_id] = seconds + apart * (index * 0.618 % 1 - 0.5)
            self.airbyte.statuses[run_id] = ("running", "succeeded")
            for days in range(1, 20) if share is not None else ():
                duration = self.job_seconds[run_id] * chance.uniform(1 - share, 1 + share)
                with self.airbyte.lock:
                    self.airbyte.add_job(run_id, age=days * 24 * 60 * 60, duration=duration)
            if age:
                self.airbyte.add_job(run_id, age=age)
            self.start_run(dag_id, run_id, connection_id=run_id)

    def jobs(self) -> list[Job]:
        """Return the jobs of the present runs, without their connections' history."""
        return [job for job in self.airbyte.jobs if job.created >= self.triggered[job.connection_id]]

    def ends(self) -> dict[str, tuple[str, float]]:
        """Let jobs succeed that have run for their time. Return the state and the time of each run's end."""
        while len(rows := self.query(ENDED)) < len(self.triggered):
            with self.airbyte.lock:
                now = time.time()
                for job in self.jobs():
                    if not job.ended and now >= job.created + self.job_seconds[job.connection_id]:
                        job.step, job.ended = len(job.statuses) - 1, now
            time.sleep(0.25)
        return {run_id: (state, end.timestamp()) for run_id, state, end in rows}

    def compare(self, dag_id: str) -> dict[str, str | float]:
        """Run the syncs at once in one way, and return the figures."""
        syncs, busy, cpu = self.options.syncs, sum(self.held.values()), self.cpu_seconds()
        self.start_runs(dag_id, syncs, self.options.seconds, self.options.apart)
        figures = self.outcome()
        return {
            **figures,
            "s in a worker slot per sync": (sum(self.held.values()) - busy) / syncs,
            "CPU s per sync": (self.cpu_seconds() - cpu) / syncs,
            "requests to Airbyte per sync": len(self.airbyte.requests) / syncs,
        }

    def waiting(self, syncs: int) -> dict[str, str | float]:
        """Let so many syncs of this DAG wait for the window, then let them all end, and return the figures."""
        self.start_runs(DAG_ID, syncs, self.options.seconds, self.options.apart)
        self.wait_for(lambda: len(self.jobs()) >= syncs, "the start of all syncs", 3600)
        begin, cpu = time.time(), self.cpu_seconds()
        time.sleep(self.options.window)
        seconds, cpu = time.time() - begin, self.cpu_seconds() - cpu
        pokes, between, late = 0, [], []
        last = {job.connection_id: (job.created, None) for job in self.jobs()}
        for run_id, poke, next_poke in self.query(POKES):
            earlier, due = last[run_id]
            last[run_id] = poke, next_poke
            pokes += poke >= begin
            if poke >= begin and due:
                between.append(poke - earlier)
                late.append(poke - due)
        self.job_seconds = dict.fromkeys(self.job_seconds, 0)
        return {
            **self.outcome(),
            "s between two pokes": spread(between),
            "s of these beyond what the DAG asks for": spread(late),
            "cores used": cpu / seconds,
            "CPU s per poke": cpu / max(pokes, 1),
        }

    def trouble(self, kind: str) -> dict[str, str | float]:
        """Let runs wait for jobs of two hours ago. Return what they leave to another DAG in the window of trouble."""
        if kind == "expired":
            self.api("/variables", {"key": "CLOUD_API_TOKEN", "value": "article"})
        syncs = self.options.trouble
        self.start_runs(DAG_ID, syncs, seconds=FOREVER, age=2 * 60 * 60)
        self.wait_for(lambda: str(self.query(TASKS)).count("up_for_reschedule") == syncs, "the wait of all runs", 600)
        if kind == "silent":
            self.airbyte.faults = {each: [Fault(no_answer="silent")] * 100_000 for each in OPERATIONS.values()}
        elif kind == "expired":
            self.airbyte.expire_tokens()
        self.held, self.full_seconds, begin = Counter(), 0.0, time.time()
        while time.time() < begin + self.options.window:
            self.start_run("bystander", str(uuid4()))
            time.sleep(20)
        end, held, full, tasks = time.time(), dict(self.held), self.full_seconds, self.query(TASKS)
        others = {row[0]: (row[5] or end) - self.triggered[row[1]] for row in tasks if row[3] == "do_nothing"}
        return {
            "worker slots held by waiting runs": sum(held[each] for each in held.keys() - others) / (end - begin),
            "time without a free slot": f"{full / (end - begin):.0%}",
            "s from trigger to start of the other DAG's task": f"{spread(others.values())}, max {max(others.values()):.1f}",
            "waiting runs at the end": count(row[2] for row in tasks if row[3] == "wait_for_airbyte_sync"),
            "their tasks": count(f"{row[3]} {row[4]}" for row in tasks if row[0] not in others),
        }

    def outcome(self) -> dict[str, str]:
        """Return, at the runs' end, how many succeeded, and how late syncs were started and their ends noticed."""
        ends, jobs = self.ends(), self.jobs()
        started = [job.created - self.triggered[job.connection_id] for job in jobs]
        successes = sum(state == "success" for state, _ in ends.values())
        return {
            "succeeded": f"{successes} of {len(ends)}, {len(jobs)} syncs",
            "s from trigger to start of the sync": spread(started),
            "s from end of the sync to end of the run": spread(ends[job.connection_id][1] - job.ended for job in jobs),
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


def measure(sitting: list, options: argparse.Namespace) -> Iterator[tuple[str, dict]]:
    """Start an Airflow, and yield the name and the figures of each way, number of waiting syncs or trouble."""
    with tempfile.TemporaryDirectory(prefix="airflow-benchmark-", ignore_cleanup_errors=True) as folder:
        log = Path(f"{folder}.log")
        print(f"Starting an Airflow; its log is {log}", flush=True)
        with log.open("w") as out, services.postgres(out) as server, FakeAirbyte(job_seconds=FOREVER) as airbyte:
            airbyte.tokens["article"] = FOREVER
            with Bench(Path(folder).resolve() / "airflow", airbyte, server, out, options) as bench:
                for each in sitting:
                    time.sleep(15)  # so that Airflow comes to rest
                    name = {**WAYS, **TROUBLES}.get(each, f"{each} syncs")
                    kind = bench.compare if each in WAYS else bench.trouble if each in TROUBLES else bench.waiting
                    figures = kind(each)
                    print(name, json.dumps(figures), flush=True)
                    yield name, figures


def main() -> None:
    """Measure what the command line says, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="which DAGs to compare (all)")
    parser.add_argument("--dag", type=Path, default=DAG_FILE, help="another version of this DAG's file")
    parser.add_argument("--slots", type=int, default=8, help="worker slots (8)")
    parser.add_argument("--syncs", type=int, default=40, help="how many at once (40)")
    parser.add_argument("--seconds", type=float, default=60, help="how long a sync takes (60)")
    parser.add_argument("--apart", type=float, default=60, help="the spread of these durations (60, at most --seconds)")
    parser.add_argument("--history", type=float, help="let 19 earlier syncs differ from these by up to a share (none)")
    parser.add_argument("--waiting", type=int, nargs="*", help="measure so many waiting syncs instead (16 64 256)")
    parser.add_argument("--trouble", type=int, nargs="?", const=8, help="measure troubles of so many syncs instead (8)")
    parser.add_argument("--window", type=float, help="with --waiting or --trouble: for how many seconds (180, 600)")
    options = parser.parse_args()
    options.window = options.window or (600 if options.trouble else 180)
    sittings = [options.ways]
    if options.trouble or options.waiting is not None:
        sittings = [[trouble] for trouble in TROUBLES] if options.trouble else [options.waiting or [16, 64, 256]]
        options.ways = [DAG_ID]
    results = dict(result for sitting in sittings for result in measure(sitting, options))
    print(f"\nTwo numbers are the median and, in brackets, the 95th percentile.\n\n{table(results)}")


if __name__ == "__main__":
    main()
