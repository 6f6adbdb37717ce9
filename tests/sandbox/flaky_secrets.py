"""A secrets backend that fails now and then. Airflow logs its error and goes on as if the name was not set."""

from __future__ import annotations

from collections import Counter

from airflow.secrets import BaseSecretsBackend

stored: dict[str, str] = {}  # what it knows, by the names of environment variables: AIRFLOW_VAR_…, AIRFLOW_CONN_…
failing_reads: dict[str, set[int]] = {}  # by name: whether the first, second, … look-up fails
reads: Counter[str] = Counter()


class FlakySecrets(BaseSecretsBackend):
    """Airflow asks it before it looks into its environment and its database."""

    def __init__(self, **options) -> None:
        super().__init__()

    def get_variable(self, key: str, *args, **options) -> str | None:
        return read(f"AIRFLOW_VAR_{key}")

    def get_conn_value(self, conn_id: str, *args, **options) -> str | None:
        return read(f"AIRFLOW_CONN_{conn_id.upper()}")


def read(name: str) -> str | None:
    """Return what is stored under a name, if anything. Raise ConnectionError if this look-up is to fail."""
    reads[name] += 1
    if reads[name] in failing_reads.get(name, ()):
        raise ConnectionError(f"throttled: {name}")
    return stored.get(name)


def store(values: dict[str, str], failing: dict[str, set[int]]) -> None:
    """Know these values and no others, and let these look-ups fail."""
    for known, new in ((stored, values), (failing_reads, failing), (reads, {})):
        known.clear()
        known.update(new)
