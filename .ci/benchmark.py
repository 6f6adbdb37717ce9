"""
What waiting costs: N syncs at once on a real Airflow with P worker slots, against the stand-in for Airbyte.

It compares the DAG as it is, which gives its slot back between pokes, with the same DAG as people wrote it in 2023:
`mode="poke"`, every 5 seconds. Needs Airflow 3, whose SQLite takes more than one worker slot.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import threading
import time
import uuid
from datetime import datetime
from pathlib import Path

import psutil
from airbyte_api import SUCCEEDS, AirbyteApi
from airflow_home import DAG_ID, WAIT, settings
from deployment import Deployment


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Return the CPU time that the processes, and those of their children that have ended, have used."""
    return sum(sum(process.cpu_times()[:4]) for process in processes if process.is_running())


def measure(syncs: int, slots: int, seconds: float, policy: dict) -> dict[str, float]:
    """
    Run so many syncs at once, each of so many seconds, on so many worker slots.

    :param policy: what differs from the DAG's own settings, by task
    :return: the figures, in seconds where they are times
    """
    connections = [str(uuid.uuid4()) for _ in range(syncs)]
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "out.log", "w") as out:
        with AirbyteApi(statuses={connection: SUCCEEDS for connection in connections}, job_seconds=seconds) as airbyte:
            environ = {
                **settings(airbyte.url),
                "AIRFLOW__CORE__PARALLELISM": str(slots),
                "TASK_POLICY": json.dumps(policy),
            }
            with Deployment(Path(folder) / "airflow", environ, out) as airflow:
                time.sleep(10)  # what starts with Airflow is not the cost of waiting
                samples: list[tuple[float, int, int]] = []
                done = threading.Event()

                def sample() -> None:
                    database = sqlite3.connect(f"file:{airflow.home}/airflow.db?mode=ro", uri=True)
                    while not done.wait(0.25):
                        running = database.execute(
                            "select count(*) from task_instance where state = 'running'"
                        ).fetchone()[0]
                        memory = 0
                        for process in airflow.running():
                            try:
                                memory += process.memory_full_info().pss
                            except psutil.Error:
                                pass
                        samples.append((time.time(), running, memory))

                sampler = threading.Thread(target=sample)
                sampler.start()
                cpu, begin = cpu_seconds(airflow.running()), time.time()
                runs = {airflow.trigger(connection_id=connection): connection for connection in connections}
                for run_id in runs:
                    assert airflow.end_of(run_id, 3600) == "success"
                cpu = cpu_seconds(airflow.running()) - cpu
                done.set()
                sampler.join()
                ends = {
                    connection: datetime.fromisoformat(
                        airflow.get(f"/dags/{DAG_ID}/dagRuns/{run_id}")["end_date"].replace("Z", "+00:00")
                    ).timestamp()
                    for run_id, connection in runs.items()
                }
            late = sorted(ends[job["connection"]] - job["ended"] for job in airbyte.jobs)
            slot_seconds = sum((after[0] - now[0]) * now[1] for now, after in zip(samples, samples[1:]))
            return {
                "wall time until all runs have ended, s": max(ends.values()) - begin,
                "from a job's end to its run's, median, s": statistics.median(late),
                "from a job's end to its run's, 95th percentile, s": late[min(len(late) - 1, round(0.95 * len(late)))],
                "requests to Airbyte per sync": len(airbyte.requests) / syncs,
                "worker-slot seconds per sync": slot_seconds / syncs,
                "CPU seconds of the deployment": cpu,
                "peak memory of the deployment, MB": max(memory for _, _, memory in samples) / 1e6,
            }


def main() -> None:
    """Measure both and print the figures and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--syncs", type=int, default=6, help="how many at once (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=2, help="worker slots (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="how long a sync takes (default: %(default)s)")
    parser.add_argument("--poke-interval", type=float, help="of the DAG, in seconds (default: its own)")
    arguments = parser.parse_args()
    size = arguments.syncs, arguments.slots, arguments.seconds
    print(f"{size[0]} syncs of {size[2]:.0f} s on {size[1]} worker slots", flush=True)
    ours = measure(*size, {WAIT: {"poke_interval": arguments.poke_interval}} if arguments.poke_interval else {})
    poke = measure(*size, {WAIT: {"mode": "poke", "poke_interval": 5}})
    print(f"{'':52}{'this DAG':>10}{'poke, 5 s':>11}{'ratio':>8}")
    for name, value in ours.items():
        print(f"{name:52}{value:10.1f}{poke[name]:11.1f}{value / poke[name]:8.2f}")


if __name__ == "__main__":
    main()
