"""
Take the README's pictures again: drive the web UI of `demo.py --ui` in a real browser, as a person would.

Needs Chromium and its driver (Debian: apt install chromium chromium-driver), and Airflow 3.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import demo
from airflow_home import DAG_ID, START, WAIT
from deployment import Deployment, free_port, process

IMAGES = Path(__file__).resolve().parent.parent / ".github" / "images"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element in the WebDriver protocol
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --hide-scrollbars --window-size=1500,900"
)


class Browser:
    """Chromium, by the WebDriver protocol (https://www.w3.org/TR/webdriver2/)."""

    def __init__(self, driver: str) -> None:
        self.url = driver
        options = {"goog:chromeOptions": {"args": FLAGS.split()}}
        session = self.call("/session", capabilities={"alwaysMatch": options})
        self.url = f"{driver}/session/{session['sessionId']}"

    def call(self, path: str, **body):
        """Make a call of the protocol, a POST, and return its value."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]

    def open(self, url: str) -> None:
        """Open a page."""
        self.call("/url", url=url)

    def find(self, xpath: str, seconds: float = 30) -> str:
        """Return the first element, waiting for it."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.call("/element", using="xpath", value=xpath)[ELEMENT]
            except urllib.error.HTTPError as error:
                if time.monotonic() > deadline:
                    self.shoot(Path(tempfile.gettempdir()) / "missing.png")
                    raise LookupError(f"{xpath}: {error.read().decode()[:200]}") from None
                time.sleep(0.3)

    def click(self, xpath: str) -> None:
        """Click the first element."""
        self.call(f"/element/{self.find(xpath)}/click")

    def type(self, xpath: str, text: str) -> None:
        """Type into the first element."""
        self.call(f"/element/{self.find(xpath)}/value", text=text)

    def shoot(self, path: Path, xpath: str | None = None, width: int | None = None, height: int | None = None) -> None:
        """Save what the window shows, or an element of it, or so much from an element's top left."""
        clip = {}
        if xpath:
            argument = {ELEMENT: self.find(xpath)}
            box = self.call(
                "/execute/sync", script="return arguments[0].getBoundingClientRect().toJSON()", args=[argument]
            )
            box.update({key: size for key, size in (("width", width), ("height", height)) if size})
            clip = {"clip": {**{key: box[key] for key in ("x", "y", "width", "height")}, "scale": 1}}
        picture = self.call("/goog/cdp/execute", cmd="Page.captureScreenshot", params={"format": "png", **clip})
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self) -> None:
        """End the browser."""
        urllib.request.urlopen(urllib.request.Request(self.url, method="DELETE"), timeout=60).close()


def tour(airflow: Deployment, browser: Browser, folder: Path) -> None:
    """Do what a newcomer does, and take a picture of each step."""
    dialog = "//div[@role='dialog' and @data-state='open']"
    field = f"{dialog}//label[contains(., 'Airbyte connection id')]/following::input[1]"

    def runs() -> set[str]:
        """Return the ids of all runs."""
        return {run["dag_run_id"] for run in airflow.get(f"/dags/{DAG_ID}/dagRuns")["dag_runs"]}

    def trigger(connection_id: str, picture: str | None = None) -> str:
        """Fill the form and press Trigger, and return the id of the run once it has ended."""
        before = runs()
        browser.open(f"{airflow.url}/dags/{DAG_ID}")
        browser.click("//button[normalize-space()='Trigger']")
        browser.type(field, connection_id)
        time.sleep(1)
        if picture:
            browser.shoot(folder / picture, dialog)
        browser.click(f"{dialog}//button[normalize-space()='Trigger']")
        run_id = airflow.wait_for(lambda: runs() - before, "the run").pop()
        print(run_id, connection_id, airflow.end_of(run_id), flush=True)
        return run_id

    browser.open(f"{airflow.url}/dags/{DAG_ID}")
    browser.click("//button[@aria-label='Dag Docs']")
    browser.find(f"{dialog}//*[contains(., 'Start an Airbyte sync')]")

    good = trigger(demo.OTHER_CONNECTION_ID, "trigger.png")
    bad = trigger(demo.FAILING_CONNECTION_ID)
    for run_id, picture, height in ((good, "log.png", 535), (bad, "log-of-a-failure.png", 355)):
        browser.open(f"{airflow.url}/dags/{DAG_ID}/runs/{run_id}/tasks/{WAIT}")
        browser.find("//div[contains(., 'Airbyte job')]")
        time.sleep(2)
        browser.type("//body", "w")  # the key that wraps the lines of a log
        time.sleep(1)
        browser.shoot(folder / picture, "//*[text()='Operator']", 1110, height)
    browser.open(f"{airflow.url}/dags/{DAG_ID}/runs/{good}")
    browser.click("//button[contains(@aria-label, 'Show Graph')]")
    browser.find(f"//*[contains(@class, 'react-flow')]//*[contains(., '{START}')]")
    time.sleep(3)
    browser.shoot(folder / "graph.png", "//*[contains(@class, 'react-flow__node ')]", 680, 122)

    airflow.get(
        f"/connections/{demo.HTTP_CONNECTION}?update_mask=host",
        {"connection_id": demo.HTTP_CONNECTION, "conn_type": "http", "host": "https://api.airbyte.com"},
        "PATCH",
    )
    browser.open(f"{airflow.url}/connections")
    browser.click("//button[@aria-label='Edit Connection']")
    browser.find(f"{dialog}//*[contains(., 'Standard Fields')]")
    time.sleep(2)
    browser.shoot(folder / "connection.png", dialog, height=560)
    browser.open(f"{airflow.url}/variables")
    browser.find("//*[contains(text(), 'MY_EXAMPLE_CONNECTION_ID')]")
    time.sleep(1)
    browser.shoot(folder / "variables.png", "//table")


def main() -> None:
    """Take all pictures into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=IMAGES, help="where they go (default: %(default)s)")
    arguments = parser.parse_args()
    driver = shutil.which("chromedriver")
    if not driver or not shutil.which("chromium"):
        sys.exit("Chromium and its driver are missing. On Debian: apt install chromium chromium-driver")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        home, port = Path(folder), free_port()
        with demo.ui(home, home / "airflow.log", print, port=0) as airflow:
            with process([driver, f"--port={port}"], stdout=subprocess.DEVNULL):
                time.sleep(2)
                browser = Browser(f"http://127.0.0.1:{port}")
                try:
                    tour(airflow, browser, arguments.folder)
                finally:
                    browser.close()


if __name__ == "__main__":
    main()
