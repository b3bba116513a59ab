"""Children on a leash: their output, their end, and the end of their parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from app.embedded.process import Child

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(grandchild.pid, flush=True)
time.sleep(600)
"""
PARENT = """
import sys, time
from app.embedded.process import Child
child = Child("sleeper", [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
child.start()
# Only a child that has become its command shows whether the kernel's signal reaches it.
while not child.last_lines:
    time.sleep(0.02)
print(child.pid, flush=True)
time.sleep(600)
"""


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits until `condition` holds; fails when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether no process, or only a zombie, has this id."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_output_comes_line_by_line_with_undecodable_bytes_replaced() -> None:
    lines: list[str] = []
    code = "import sys; sys.stdout.buffer.write(b'one\\n\\xff two\\nthree')"
    child = Child("talker", [sys.executable, "-c", code], sink=lines.append)
    child.start()
    assert child.wait(20)
    child.finish()
    assert lines == ["one", "\ufffd two", "three"]
    assert list(child.last_lines) == lines
    assert child.exit_code == 0


def test_a_child_runs_in_its_own_session_so_that_ctrl_c_does_not_reach_it() -> None:
    child = Child("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"])
    child.start()
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    child.stop(grace=10)
    assert child.exit_code == -signal.SIGTERM


def test_a_child_that_ignores_the_stop_signal_is_killed_with_its_own_children() -> None:
    child = Child("stubborn", [sys.executable, "-c", STUBBORN])
    child.start()
    wait_for(lambda: bool(child.last_lines))
    grandchild = int(child.last_lines[0])
    child.stop(grace=0.2)
    assert child.exit_code == -signal.SIGKILL
    wait_for(lambda: gone(grandchild))


def test_stopping_a_child_that_never_started_does_nothing() -> None:
    Child("never", ["/nonexistent"]).stop(grace=0)


def test_a_killed_parent_takes_its_child_along() -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
        wait_for(lambda: gone(pid))
