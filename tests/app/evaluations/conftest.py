"""The fixtures of the command line's tests serve the command that saves a report."""

from tests.cli.conftest import client_options, lethe, server

__all__ = ["client_options", "lethe", "server"]
