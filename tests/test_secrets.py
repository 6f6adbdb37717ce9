"""No secret in what an Airflow of any version keeps. (test_deployment.py asks the same of a real deployment.)"""

from __future__ import annotations

from airbyte_api import CLIENT_ID, CLIENT_SECRET, CONNECTION_ID, AirbyteApi
from airflow_home import files, leaks
from conftest import HOME


def test_no_secret_is_kept(run):
    stale = "a-token-that-has-grown-stale"
    with AirbyteApi() as airbyte:
        assert run(airbyte.url).state == "success"
        airbyte.statuses = {CONNECTION_ID: ("failed",)}
        assert run(airbyte.url).state == "failed"
        assert run(airbyte.url, variables={"AIRFLOW_VAR_CLOUD_API_TOKEN": stale}).state == "failed"
        secrets = [CLIENT_ID, CLIENT_SECRET, stale, *airbyte.tokens]
    kept = files(HOME)
    assert any(b"Authorization" in content for content in kept.values()), "the rendered fields are searched"
    assert leaks(kept, secrets) == set()
