# /// script
# requires-python = ">=3.10"
# dependencies = ["apache-airflow-core~=3.3.0", "apache-airflow-providers-http>=6.0", "playwright"]
# ///
"""
Take the README's picture again, of a log in the web UI of `demo.py --ui` in Chromium.

It needs Debian's packages chromium and fonts-liberation. `uv run .ci/pictures.py` installs the rest.
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import demo
from sandbox.throwaway_airflow import DAG_ID, DAGS

LOOPBACK_ALONE = ["--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
SIZE = {"width": 1200, "height": 1200}  # A log is 870 pixels wide then, as the README is, and fits without scrolling.

with tempfile.TemporaryDirectory() as name, demo.ui(Path(name), Path(name) / "log", port=0) as airflow:
    run_id = airflow.trigger()
    airflow.end_of(run_id)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=LOOPBACK_ALONE)
        page = browser.new_page(viewport=SIZE, device_scale_factor=1.5)
        page.add_init_script("localStorage.setItem('log_wrap', 'true')")  # as the key W does
        page.goto(f"{airflow.url}/dags/{DAG_ID}/runs/{run_id}/tasks/wait_for_airbyte_sync")
        log = page.get_by_test_id("virtualized-list").filter(has_text="Success criteria met")
        log.wait_for()
        page.wait_for_timeout(2000)  # so that the page has come to rest
        log.screenshot(path=DAGS.parent / ".github" / "images" / "log.png")
