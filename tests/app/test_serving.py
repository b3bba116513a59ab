"""Ready commands: valid shell, valid JSON, complete, and with this adapter's own numbers."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from app.adapters import serving
from app.adapters.serving import Served

CONFIG: dict[str, Any] = {"r": 24, "rank_pattern": {}, "alpha_pattern": {}, "target_modules": ["q_proj", "v_proj"]}


def served(config: dict[str, Any] | None = None, base: str = "acme/base 1b", revision: str | None = "abc") -> Served:
    """A version called "bot"."""
    return Served.of("bot", CONFIG | (config or {}), base, revision)


def option(command: str, name: str) -> str:
    """The value of an option, as the shell gives it to the program."""
    words = shlex.split(command.replace("\\\n", " "))
    return words[words.index(name) + 1]


def body(command: str) -> dict[str, Any]:
    """The JSON that a request sends."""
    sent: dict[str, Any] = json.loads(option(command, "-d"))
    return sent


def test_vllm_gets_rank_base_revision_and_a_whole_module() -> None:
    commands = serving.vllm(served())
    assert commands is not None
    assert shlex.split(commands.start)[:3] == ["vllm", "serve", "acme/base 1b"]
    assert (option(commands.start, "--revision"), option(commands.start, "--tokenizer-revision")) == ("abc", "abc")
    assert option(commands.start, "--max-lora-rank") == "32"
    module = {"name": "bot", "path": "/adapters/bot", "base_model_name": "acme/base 1b"}
    assert json.loads(option(commands.start, "--lora-modules")) == module
    assert body(commands.request)["model"] == "bot"


def test_lorax_and_tgi_get_base_revision_and_adapter() -> None:
    lorax, tgi = serving.lorax(served()), serving.tgi(served())
    for commands in (lorax, tgi):
        assert option(commands.start, "--model-id") == "acme/base 1b"
        assert option(commands.start, "--revision") == "abc"
        assert option(commands.start, "-v") == "/adapters:/adapters:ro"
    adapter = {"adapter_id": "/adapters/bot", "adapter_source": "local"}
    assert body(lorax.request)["parameters"] == {"max_new_tokens": 40} | adapter
    assert option(tgi.start, "-e") == "LORA_ADAPTERS=bot=/adapters/bot"
    assert body(tgi.request)["parameters"]["adapter_id"] == "bot"


def test_a_base_without_a_revision_gets_no_option() -> None:
    text = serving.instructions(served(revision=None))
    assert "revision" not in text


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (9, 16), (200, 256), (512, 512)])
def test_the_rank_is_rounded_up_to_what_vllm_takes(rank: int, allowed: int) -> None:
    assert served({"r": rank}).max_lora_rank == allowed


def test_the_largest_rank_of_any_module_counts_and_a_pattern_is_warned_of() -> None:
    patterned = served({"rank_pattern": {"model.q_proj": 64}})
    assert (patterned.rank, patterned.max_lora_rank) == (64, 64)
    assert "serve this adapter with PEFT" in serving.notes(patterned)[0]
    assert serving.notes(patterned)[0] in serving.instructions(patterned)
    assert serving.notes(served({"alpha_pattern": {"model.q_proj": 2}})) == serving.notes(patterned)
    assert serving.notes(served()) == []


def test_a_rank_beyond_what_vllm_serves_gets_no_command() -> None:
    large = served({"r": 1024})
    assert serving.vllm(large) is None
    assert "rank 1024" in serving.notes(large)[0]
    assert "vllm serve" not in serving.instructions(large)


def test_a_name_cannot_end_a_command() -> None:
    hostile = served(base="x\"; rm -rf /; echo $(id) '")
    commands = serving.vllm(hostile)
    assert commands is not None
    for start in (commands.start, serving.lorax(hostile).start, serving.tgi(hostile).start):
        assert hostile.base_model in shlex.split(start.replace("\\\n", " "))
    compile(serving.peft(hostile), "snippet", "exec")
