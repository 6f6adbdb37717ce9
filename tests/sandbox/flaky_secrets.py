"""Look-ups that fail now and then. Airflow logs the error and goes on as if the name was not set."""

from __future__ import annotations

import os
from collections import Counter

reads: Counter[str] = Counter()  # how often an environment variable was looked up: AIRFLOW_VAR_…, AIRFLOW_CONN_…


def fail(monkeypatch, failing_reads: dict[str, set[int]]) -> None:
    """Let look-ups of environment variables fail: of each by its name the first, second, …"""
    from airflow.secrets.environment_variables import EnvironmentVariablesBackend

    def read(name: str) -> str | None:
        reads[name] += 1
        if reads[name] in failing_reads.get(name, ()):
            raise ConnectionError(f"throttled: {name}")
        return os.environ.get(name)

    def get_variable(backend, key: str, *args, **options) -> str | None:
        return read(f"AIRFLOW_VAR_{key.upper()}")

    def get_conn_value(backend, conn_id: str, *args, **options) -> str | None:
        return read(f"AIRFLOW_CONN_{conn_id.upper()}")

    reads.clear()
    monkeypatch.setattr(EnvironmentVariablesBackend, "get_variable", get_variable)
    monkeypatch.setattr(EnvironmentVariablesBackend, "get_conn_value", get_conn_value)
