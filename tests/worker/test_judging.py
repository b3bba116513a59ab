"""The process that judges: what goes in, what comes out, and every way in which it may break."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import TypeAdapter

from app.methods import Policy
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny, blur_method
from tests.worker.judges import THERE
from worker.answering import answer
from worker.errors import JobError
from worker.judging import Judge, Request
from worker.libraries import loading_libraries

MARKER = "Zanzibar-Quux-4711"


def request_of(tiny: Tiny, **changes: Any) -> Request:
    parts: dict[str, Any] = {
        "base": tiny.base,
        "adapters": {"source": tiny.adapter, "result": tiny.adapter},
        "records": {"forget": FORGET_RECORDS, "retain": RETAIN_RECORDS},
        "policy": Policy(),
        "method": blur_method(),
        "seed": 7,
        "device": "cpu",
        "threads": 1,
        "four_bit": False,
        "spread": False,
    }
    return Request(**parts | changes)


def ask(request: Request, check: Callable[[], None] = lambda: None) -> Any:
    with Judge() as process:
        return process.judge(request, check, lambda _probe: None)


def playing(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have another program play the judge."""
    popen = subprocess.Popen

    def other(command: list[str], **options: Any) -> Any:
        assert command == [sys.executable, "-m", "worker.judge"]
        return popen([sys.executable, "-c", code], **options)

    monkeypatch.setattr("worker.judging.subprocess.Popen", other)


def test_it_answers_what_this_process_would(llama: Tiny) -> None:
    request = request_of(llama)
    probes: list[str] = []
    with Judge() as process:
        judgement = process.judge(request, lambda: None, probes.append)
    here = answer(request, lambda _probe: None, THERE)
    assert judgement.scores == here.scores
    assert judgement.gate == here.gate
    assert probes == ["recall", "utility"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"base": Path("/nowhere")}, "model_unusable"),
        ({"records": {"forget": [{"smell": MARKER}], "retain": RETAIN_RECORDS}}, "record_unusable"),
        ({"adapters": {"source": Path("/nowhere"), "result": Path("/nowhere")}}, "adapter_unusable"),
        ({"records": {"forget": FORGET_RECORDS}}, "evaluation_failed"),
    ],
)
def test_an_error_comes_back_as_the_jobs(llama: Tiny, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(JobError) as caught:
        ask(request_of(llama, **changes))
    assert caught.value.code == code
    assert MARKER not in caught.value.message
    assert "nowhere" not in caught.value.message


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys; sys.stdin.buffer.readline(); sys.exit(3)", ("evaluation_failed", "status 3")),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ("out_of_memory", "killed")),
        ("import os; os.close(0); os._exit(0)", ("evaluation_failed", "status 0")),
    ],
)
def test_a_process_that_ends_early_fails_the_job(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch, code: str, expected: tuple[str, str]
) -> None:
    playing(monkeypatch, code)
    with pytest.raises(JobError, match=expected[1]) as caught:
        ask(request_of(llama))
    assert caught.value.code == expected[0]


def test_one_that_hangs_is_given_up(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    playing(monkeypatch, "import time; time.sleep(600)")
    with Judge() as process, pytest.raises(JobError, match="LETHE_PROBE_SECONDS") as caught:
        process.judge(request_of(llama), lambda: None, lambda _probe: None, patience=0.2)
    assert caught.value.code == "evaluation_timeout"


def test_what_needs_no_result_is_measured_while_there_is_none(llama: Tiny, tmp_path: Path) -> None:
    result = tmp_path / "result"
    request = request_of(llama, adapters={"source": llama.adapter, "result": result})
    with Judge() as process:
        process.prepare(request)
        shutil.copytree(llama.adapter, result)
        judgement = process.judge(request, lambda: None, lambda _probe: None)
    assert judgement.gate == answer(request, lambda _probe: None, THERE).gate


@pytest.mark.parametrize("asked", [True, False])
def test_one_that_is_told_of_no_result_ends(llama: Tiny, *, asked: bool) -> None:
    """Nor does one stay, or complain, that was started for a run that never came to a request."""
    data = TypeAdapter(Request).dump_json(request_of(llama)) + b"\n" if asked else b""
    done = subprocess.run(
        [sys.executable, "-m", "worker.judge"], input=data, capture_output=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_what_the_check_raises_ends_the_process(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    playing(monkeypatch, "import time; time.sleep(600)")
    looks: list[int] = []

    def check() -> None:
        looks.append(1)
        if len(looks) > 3:
            raise InterruptedError

    with Judge() as process, pytest.raises(InterruptedError):
        process.judge(request_of(llama), check, lambda _probe: None)
    assert not psutil.pid_exists(process._process.pid)


def test_it_is_given_nothing_of_the_services_settings(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LETHE_KEY_PEPPER", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, MARKER)
    tell = "import json, os, sys; sys.stdin.buffer.readline(); print(json.dumps({'error': {'code': 'x', 'message': "
    playing(monkeypatch, tell + "' '.join(n for n, v in os.environ.items() if 'Zanzibar' in v)}}))")
    with pytest.raises(JobError) as caught:
        ask(request_of(llama))
    assert caught.value.message == ""


def test_it_ends_with_the_process_that_asked_it() -> None:
    """A worker that is killed must leave no process behind that holds the records."""
    start = "import time; from worker.judging import Judge; j = Judge(); "
    code = start + "print(j._process.pid, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as asker:
        assert asker.stdout is not None
        judge = psutil.Process(int(asker.stdout.readline()))
        deadline = time.monotonic() + 60
        while judge.num_threads() < 2 and time.monotonic() < deadline:  # it watches before its libraries are loaded
            time.sleep(0.1)
        os.kill(asker.pid, signal.SIGKILL)
    judge.wait(timeout=60)


def test_no_library_is_looked_through_for_garbage_and_what_comes_after_is() -> None:
    with loading_libraries():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.unfreeze()


def test_a_request_survives_its_way(llama: Tiny) -> None:
    adapter = TypeAdapter(Request)
    request = request_of(llama)
    assert adapter.validate_json(adapter.dump_json(request)) == request


def test_whatever_a_library_prints_is_no_answer(llama: Tiny, tmp_path: Path) -> None:
    """The process's own output is kept apart from the lines that are read."""
    code = "import os, worker.answering as a, worker.judge as j; "
    code += "a.answer = lambda *_: os.write(1, b'noise\\n') and 1 / 0; j.main()"
    data = TypeAdapter(Request).dump_json(request_of(llama)) + b"\n\n"
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True, timeout=120)
    lines = done.stdout.splitlines()
    assert [json.loads(line)["error"]["code"] for line in lines] == ["evaluation_failed"]
