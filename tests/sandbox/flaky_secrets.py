"""A secrets backend that fails now and then. Airflow logs its error and goes on as if the name was not set."""

from __future__ import annotations

import os
from collections import Counter

from airflow.secrets import BaseSecretsBackend

PREFIX = "FLAKY_"  # of the environment variables that it reads: FLAKY_AIRFLOW_VAR_…, FLAKY_AIRFLOW_CONN_…
failing_reads: dict[str, set[int]] = {}  # by name without prefix: which look-ups fail, the first, the second, …
reads: Counter[str] = Counter()


class FlakySecrets(BaseSecretsBackend):
    """Airflow asks it before it looks into its environment and its database."""

    def get_variable(self, key: str, *args, **options) -> str | None:
        return read(f"AIRFLOW_VAR_{key}")

    def get_conn_value(self, conn_id: str, *args, **options) -> str | None:
        return read(f"AIRFLOW_CONN_{conn_id.upper()}")


def read(name: str) -> str | None:
    """Return what is stored under a name, if anything. Raise ConnectionError if this look-up is to fail."""
    reads[name] += 1
    if reads[name] in failing_reads.get(name, ()):
        raise ConnectionError(f"throttled: {name}")
    return os.environ.get(PREFIX + name)
