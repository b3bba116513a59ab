"""A child process on a leash: own session, its output line by line, a stop that always ends."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LEASH = Path(__file__).with_name("leash.py")
KEPT_LINES = 40

LineSink = Callable[[str], None]


class EmbeddedError(Exception):
    """Something on this machine stops the embedded service; the text is for the person at the terminal."""


def discard(line: str) -> None:
    """A sink for output that nobody wants to see."""
    del line


@dataclass(frozen=True)
class User:
    """The operating-system user that a child runs as."""

    uid: int
    gid: int


class Child:
    """One supervised process.

    The thread that calls `start` must live as long as the child: the kernel sends the death signal when
    that *thread* ends, so children are started from the main thread only.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        sink: LineSink = discard,
        env: Mapping[str, str] | None = None,
        user: User | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.stop_signal = stop_signal
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._command = list(command)
        self._sink = sink
        self._env = dict(env) if env is not None else None
        self._user = user
        self._process: subprocess.Popen[str] | None = None
        self._pump: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """Process id, also the id of its session and process group."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll() if self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the process and the thread that reads its output."""
        self._process = subprocess.Popen(  # noqa: S603 - our own argument list, no shell
            self._leashed(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=self._env,
            start_new_session=True,
        )
        if self._process.stdout is None:
            raise RuntimeError("the child has no output pipe")
        self._pump = threading.Thread(
            target=self._read, args=(self._process.stdout,), name=f"{self.name}-output", daemon=True
        )
        self._pump.start()

    def _leashed(self) -> list[str]:
        uid, gid = (str(self._user.uid), str(self._user.gid)) if self._user else ("-", "-")
        leash = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), str(int(self.stop_signal))]
        return [*leash, uid, gid, *self._command]

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                text = line.rstrip("\n")
                self.last_lines.append(text)
                self._sink(text)

    def signal(self, number: signal.Signals) -> None:
        """Signals the process itself, not its children."""
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds; whether the process has ended."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def finish(self) -> None:
        """Kills what is left of the process group, reaps the process and ends the reading thread."""
        if self._process is None:
            return
        # An empty group is what we want; macOS answers EPERM for a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._pump is not None:
            self._pump.join(timeout=5)

    def stop(self, grace: float) -> None:
        """Asks politely, waits up to `grace` seconds, then kills the whole process group."""
        if self.running:
            self.signal(self.stop_signal)
            self.wait(grace)
        self.finish()
