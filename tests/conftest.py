"""The fixtures are in sandbox/fixtures.py, from where `.ci/` takes them as well."""

from sandbox.fixtures import *  # noqa: F403
