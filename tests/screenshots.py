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
from airflow_home import DAG_ID
from deployment import free_port, process

IMAGES = Path(__file__).resolve().parent.parent / ".github" / "images"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element in the WebDriver protocol
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --hide-scrollbars --window-size=1280,900"
)


class Browser:
    """Chromium, by the WebDriver protocol (https://www.w3.org/TR/webdriver2/)."""

    def __init__(self, driver: str) -> None:
        self.url = driver
        self.url += (
            "/session/"
            + self.call("/session", capabilities={"alwaysMatch": {"goog:chromeOptions": {"args": FLAGS.split()}}})[
                "sessionId"
            ]
        )

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

    def shoot(self, path: Path) -> None:
        """Save what the window shows."""
        with urllib.request.urlopen(f"{self.url}/screenshot", timeout=60) as response:
            path.write_bytes(base64.b64decode(json.load(response)["value"]))

    def close(self) -> None:
        """End the browser."""
        urllib.request.urlopen(urllib.request.Request(self.url, method="DELETE"), timeout=60).close()


def tour(airflow, browser: Browser, folder: Path) -> None:
    """Do what a newcomer does, and take a picture of each step."""
    dag = f"{airflow.url}/dags/{DAG_ID}"
    browser.open(dag)
    browser.find("//button[contains(., 'Trigger')]")
    time.sleep(3)
    browser.shoot(folder / "dag.png")
    browser.click("//button[contains(., 'Trigger')]")
    time.sleep(3)
    browser.shoot(folder / "trigger.png")


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
