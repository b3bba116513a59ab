"""A judge without a process of its own: a second each would make hundreds of tests slow. Some use the real one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from pydantic import TypeAdapter

from worker.answering import answer
from worker.evaluation.judgement import Judgement
from worker.explaining import explain
from worker.judging import Request

THERE = threading.Event()
THERE.set()


class JudgeHere:
    """Takes the place of `worker.judging.Judge`. Request and judgement go through JSON as they do there."""

    def __enter__(self) -> JudgeHere:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        return None

    def prepare(self, request: Request) -> None:
        """Nothing: this process is busy training."""

    def judge(
        self, request: Request, check: Callable[[], None], on_probe: Callable[[str], None], _patience: float
    ) -> Judgement:
        """Judge."""
        requests, judgements = TypeAdapter(Request), TypeAdapter(Judgement)

        def looked(name: str) -> None:
            check()
            on_probe(name)

        check()
        try:
            judgement = answer(requests.validate_json(requests.dump_json(request)), looked, THERE)
        except Exception as error:
            expected = explain(error)
            if expected is None:
                raise
            raise expected from error
        check()
        return judgements.validate_json(judgements.dump_json(judgement))
