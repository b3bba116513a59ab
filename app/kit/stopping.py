"""Whether the server wants to stop: for answers that would go on without an end."""

from __future__ import annotations

import signal


def server_is_stopping() -> bool:
    """Whether uvicorn was told to stop.

    It waits for open answers before it tells the application, and an answer without an end would have it wait until
    its own patience (``--timeout-graceful-shutdown``) is over. So it is asked, through the handler that it has
    installed for signals; under a server that has none, this is False and that patience decides.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))
