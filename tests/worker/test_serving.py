"""The PEFT snippet that every archive carries does what it says."""

from __future__ import annotations

import pytest

from app.adapters import serving
from app.adapters.serving import Served
from tests.worker.conftest import Tiny
from worker.unlearning.lora import known_peft_warnings


def test_the_snippet_loads_the_adapter_and_answers(llama: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    served = Served.of("bot", llama.config(), str(llama.base), None)
    variables: dict[str, object] = {}
    with known_peft_warnings():
        exec(serving.peft(served, path=str(llama.adapter)), variables)  # noqa: S102 - the snippet itself is tested
    assert "river" in capsys.readouterr().out
    assert type(variables["model"]).__name__ == "PeftModelForCausalLM"
    assert served.rank == 4
