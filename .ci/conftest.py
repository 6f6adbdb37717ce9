"""The proof that the template keeps its promises. It stands on tests/, and nothing there knows of it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from sandbox.fixtures import *  # noqa: F403
