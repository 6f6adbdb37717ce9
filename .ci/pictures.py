# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "apache-airflow-core~=3.3.0",
#     "apache-airflow-providers-http>=6.0",
#     "pendulum>=3.0",
#     "selenium",
# ]
# ///
"""
Take the README's pictures again: drive the web UI of `demo.py --ui` in Chromium, as a newcomer does.

It needs Debian's packages chromium and chromium-driver, and takes two minutes.
`uv run .ci/pictures.py` installs the rest, or `pip install selenium` adds it to the README's .venv.
"""

from __future__ import annotations

import argparse
import base64
import os
import signal
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import demo  # noqa: E402
from sandbox.airflow_home import DAG_ID, WAIT  # noqa: E402
from sandbox.deployment import Deployment  # noqa: E402

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = [
    *"--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update".split(),
    *"--disable-sync --no-first-run --hide-scrollbars --no-proxy-server".split(),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # It reaches loopback alone.
    "--window-size=1200,1200",  # A log is 870 pixels wide then, as the README is, and fits without scrolling.
]
SECONDS = 60
DIALOG = "//*[@role='dialog' and @data-state='open']"
HEADER = "//*[@data-testid='header-card']"
LOG = "//*[@data-testid='virtualized-list']"


def start_browser() -> webdriver.Chrome:
    """Start Debian's Chromium. Selenium downloads nothing, because it is told where all is."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


def find(browser: webdriver.Chrome, xpath: str) -> WebElement:
    """Return the first such element as soon as it can be clicked."""
    condition = expected_conditions.element_to_be_clickable((By.XPATH, xpath))
    return WebDriverWait(browser, SECONDS).until(condition, f"{xpath} is not on {browser.current_url}")


def settle(browser: webdriver.Chrome) -> None:
    """Wait until the page has not changed for two seconds."""
    pages = ["", ""]

    def unchanged(browser: webdriver.Chrome) -> bool:
        pages.append(browser.page_source)
        return pages[-1] == pages[-2] == pages[-3]

    WebDriverWait(browser, SECONDS, poll_frequency=1).until(unchanged, f"{browser.current_url} keeps changing")


def save(browser: webdriver.Chrome, path: Path, first: str, last: str) -> None:
    """Save a picture from the top of the first element to the bottom of the last, in twice the screen's resolution."""
    settle(browser)
    box, end = find(browser, first).rect, find(browser, last).rect
    clip = {**box, "height": end["y"] + end["height"] - box["y"], "scale": 2}
    picture = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip})
    path.write_bytes(base64.b64decode(picture["data"]))


def trigger(browser: webdriver.Chrome, airflow: Deployment, connection_id: str, path: Path) -> str:
    """Fill the trigger form, save its picture and send it. Return the id of the run."""
    browser.get(f"{airflow.url}/dags/{DAG_ID}")
    find(browser, "//button[@data-testid='trigger-dag-button']").click()
    settle(browser)
    find(browser, f"{DIALOG}//input[@name='element_connection_id']").send_keys(connection_id)
    save(browser, path, DIALOG, DIALOG)
    find(browser, f"{DIALOG}//button[@data-testid='trigger-dag-submit']").click()
    WebDriverWait(browser, SECONDS).until(expected_conditions.url_contains("/runs/"), "The form leads to no run")
    return browser.current_url.rpartition("/runs/")[2]


def save_log(browser: webdriver.Chrome, airflow: Deployment, run_id: str, end: str, path: Path) -> None:
    """Wait until a run has ended, and save a picture of the wait's log. It is complete when it contains `end`."""
    print(f"{run_id} has ended: {airflow.end_of(run_id)}", flush=True)
    browser.execute_script("localStorage.setItem('log_wrap', 'true')")  # as the key W does
    browser.get(f"{airflow.url}/dags/{DAG_ID}/runs/{run_id}/tasks/{WAIT}")
    find(browser, f"{LOG}[contains(., '{end}')]")
    settle(browser)
    for traceback in browser.find_elements(By.CSS_SELECTOR, "details[open] > summary"):
        traceback.click()  # to close it
    save(browser, path, HEADER, LOG)


def main() -> None:
    """Take all pictures into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / ".github" / "images", help="default: %(default)s")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, demo.stop)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # for Selenium, which talks to the driver on loopback
    with tempfile.TemporaryDirectory() as name, demo.ui(Path(name), Path(name) / "log", print, port=0) as airflow:
        with start_browser() as browser:
            good = trigger(browser, airflow, demo.OTHER_CONNECTION_ID, folder / "trigger.png")
            save_log(browser, airflow, good, "Success criteria met", folder / "log.png")
            bad = airflow.trigger(connection_id=demo.FAILING_CONNECTION_ID)
            save_log(browser, airflow, bad, "its log in Airbyte says why", folder / "log-of-a-failure.png")


if __name__ == "__main__":
    main()
