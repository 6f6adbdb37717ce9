# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "apache-airflow-core~=3.3.0",
#     "apache-airflow-providers-http>=6.0",
#     "selenium",
# ]
# ///
"""
Take the README's picture again, of a log in the web UI of `demo.py --ui` in Chromium.

It needs Debian's packages chromium, chromium-driver and fonts-liberation, and takes two minutes.
`uv run .ci/pictures.py` installs the rest, or `pip install selenium` adds it to the README's .venv.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import demo
from sandbox.throwaway_airflow import DAG_ID, DAGS

FLAGS = [
    *("--headless=new", "--no-sandbox", "--hide-scrollbars", "--no-proxy-server", "--force-device-scale-factor=1.5"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # It reaches loopback alone.
    "--window-size=1200,1200",  # A log is 870 pixels wide then, as the README is, and fits without scrolling.
]
LOG = "//*[@data-testid='virtualized-list']"


def start_browser() -> webdriver.Chrome:
    """Start Debian's Chromium. Selenium downloads nothing, because it is told where all is."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in FLAGS:
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    browser.implicitly_wait(60)  # for an element
    return browser


def find(browser: webdriver.Chrome, xpath: str) -> WebElement:
    """Return the first such element, once it is there and the page has stayed the same for two seconds."""
    browser.find_element(By.XPATH, xpath)
    page = ""
    while page != browser.page_source:
        page = browser.page_source
        time.sleep(2)
    return browser.find_element(By.XPATH, xpath)


def main() -> None:
    """Take the picture into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=DAGS.parent / ".github" / "images", help="default: %(default)s")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, demo.stop)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # for Selenium, which talks to the driver on loopback
    with tempfile.TemporaryDirectory() as name, demo.ui(Path(name), Path(name) / "log", print, port=0) as airflow:
        with start_browser() as browser:
            browser.get(airflow.url)
            browser.execute_script("localStorage.setItem('log_wrap', 'true')")  # as the key W does
            run_id = airflow.trigger()
            print(f"{run_id} has ended: {airflow.end_of(run_id)}", flush=True)
            browser.get(f"{airflow.url}/dags/{DAG_ID}/runs/{run_id}/tasks/wait_for_airbyte_sync")
            find(browser, f"{LOG}[contains(., 'Success criteria met')]").screenshot(str(folder / "log.png"))


if __name__ == "__main__":
    main()
