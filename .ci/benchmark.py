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

It compares this DAG with those in `benchmark_dags.py`, or with --trouble what syncs that wait leave to another DAG
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
from datetime import datetime, timezone
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from postgres import Postgres
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

    def __init__(self, airflow_home: Path, airbyte: FakeAirbyte, database: str, out, options) -> None:
        client = {"login": CLIENT_ID, "password": CLIENT_SECRET, "schema": "v1/applications/token"}
        environ = {
            **dag_settings(airbyte.url),
            "AIRFLOW_CONN_AIRBYTE_DEFAULT": json.dumps({"conn_type": "airbyte", "host": f"{airbyte.url}/v1", **client}),
            "AIRFLOW_VAR_ARTICLE_TOKEN": "article",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(options.slots),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        }
        super().__init__(airflow_home, environ, out, more={"triggerer": ["airflow", "triggerer", "--skip-serve-logs"]})
        self.environ = {name: value for name, value in self.environ.items() if "AIRFLOW__SCHEDULER__" not in name}
        self.airbyte, self.options = airbyte, options
        self.database = psycopg2.connect(database.replace("+psycopg2", ""))
        self.database.autocommit = True
        self.triggered, self.job_seconds = {}, {}  # by run, which has the id of its Airbyte connection
        self.held: Counter[str] = Counter()  # the seconds that a task instance held a worker, by its id
        self.full_seconds = 0.0  # in which no worker was free
        shutil.copy(Path(__file__).with_name("benchmark_dags.py"), airflow_home / "dags")
        shutil.copy(options.dag, airflow_home / "dags" / DAG_FILE.name)

    def watch_workers(self) -> None:
        """Add up how long workers are busy. They are called "airflow worker -- LocalExecutor: <task instance's id>"."""
        scheduler, last = self.processes["scheduler"], time.time()
        while scheduler.poll() is None:
            time.sleep(0.25)
            processes = [each.info for each in psutil.process_iter(["ppid", "cmdline"])]
            titles = ["".join(each["cmdline"] or "") for each in processes if each["ppid"] == scheduler.pid]
            busy = [title.rpartition(" ")[2] for title in titles if "LocalExecutor" in title and "<idle>" not in title]
            now = time.time()
            for task_instance in busy:
                self.held[task_instance] += now - last
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
        syncs, cpu = self.options.syncs, self.cpu_seconds()
        threading.Thread(target=self.watch_workers, daemon=True).start()
        self.start_runs(dag_id, syncs, self.options.seconds, self.options.apart)
        figures = self.outcome()
        return {
            **figures,
            "s in a worker slot per sync": sum(self.held.values()) / syncs,
            "CPU s per sync": (self.cpu_seconds() - cpu) / syncs,
            "requests to Airbyte per sync": len(self.airbyte.requests) / syncs,
            "checks of the job per sync": len(self.airbyte.requests_of("get_job")) / syncs,
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
            self.airbyte.tokens.clear()
        threading.Thread(target=self.watch_workers, daemon=True).start()
        begin = time.time()
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


def measure(name: str, options: argparse.Namespace) -> dict[str, str | float]:
    """Start an Airflow, and return the figures of a way or a trouble."""
    with tempfile.TemporaryDirectory(prefix="airflow-benchmark-", ignore_cleanup_errors=True) as folder:
        log = Path(f"{folder}.log")
        print(f"Starting an Airflow; its log is {log}", flush=True)
        with log.open("w") as out, Postgres() as database, FakeAirbyte(job_seconds=FOREVER) as airbyte:
            airbyte.tokens["article"] = FOREVER
            with Bench(Path(folder).resolve(), airbyte, database.url, out, options) as bench:
                bench.start_runs(name if name in WAYS else DAG_ID, 8, seconds=0)  # so that all is loaded
                bench.ends()
                time.sleep(15)  # so that Airflow comes to rest
                figures = bench.compare(name) if name in WAYS else bench.trouble(name)
    print(json.dumps(figures), flush=True)
    return figures


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
    parser.add_argument("--trouble", type=int, nargs="?", const=8, help="measure troubles of so many syncs instead (8)")
    parser.add_argument("--window", type=float, default=600, help="with --trouble: for how many seconds (600)")
    options = parser.parse_args()
    names = TROUBLES if options.trouble else {way: WAYS[way] for way in options.ways}
    results = {title: measure(name, options) for name, title in names.items()}
    print(f"\nTwo numbers are the median and, in brackets, the 95th percentile.\n\n{table(results)}")


if __name__ == "__main__":
    main()
