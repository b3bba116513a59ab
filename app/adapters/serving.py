"""How a version is served: ready commands for PEFT, vLLM, LoRAX and TGI, from its configuration.

The one source of what `GET .../serving` answers and of what the README of every archive says.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FOLDER = "/adapters"  # below which the commands expect an unpacked archive
# What `vllm serve --max-lora-rank` takes (vllm/config/lora.py, MaxLoRARanks).
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_PROMPT = "Where does the river begin?"
_JSON = "-H 'Content-Type: application/json'"


@dataclass(frozen=True)
class Served:
    """What a server has to know of a version.

    Attributes:
        name: under which callers of the server ask for it.
        base_model: public name of the base model.
        revision: of the base model, if it has one.
        rank: the largest of all modules.
        target_modules: names of the adapted modules, as in adapter_config.json.
        patterned: whether some modules have a rank or alpha of their own.
    """

    name: str
    base_model: str
    revision: str | None
    rank: int
    target_modules: tuple[str, ...]
    patterned: bool

    @classmethod
    def of(cls, name: str, config: Mapping[str, Any], base_model: str, revision: str | None) -> Served:
        """Read from adapter_config.json."""
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        return cls(
            name=name,
            base_model=base_model,
            revision=revision,
            rank=max([config["r"], *ranks.values()]),
            target_modules=tuple(config["target_modules"]),
            patterned=bool(ranks or alphas),
        )

    @property
    def path(self) -> str:
        """Where the commands expect the unpacked archive."""
        return f"{FOLDER}/{self.name}"

    @property
    def max_lora_rank(self) -> int | None:
        """The smallest of vLLM's values of ``--max-lora-rank`` that suffices; None where none does."""
        return next((rank for rank in _VLLM_RANKS if rank >= self.rank), None)


@dataclass(frozen=True)
class Commands:
    """How a server is started with the adapter, and how it is asked."""

    start: str
    request: str


def unpack(served: Served, archive: str) -> str:
    """Shell: put the files of an archive where the other commands look for them."""
    return f"mkdir -p {shlex.quote(served.path)} && tar -xzf {archive} -C {shlex.quote(served.path)}"


def peft(served: Served, *, path: str | None = None) -> str:
    """Python: load the adapter with PEFT and ask it something."""
    revision = f", revision={json.dumps(served.revision)}" if served.revision else ""
    return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

name = {json.dumps(served.base_model)}  # or the folder where that base model lies
tokenizer = AutoTokenizer.from_pretrained(name{revision})
base = AutoModelForCausalLM.from_pretrained(name{revision})
model = PeftModel.from_pretrained(base, {json.dumps(path or served.path)}).eval()

inputs = tokenizer({json.dumps(_PROMPT)}, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=40)
print(tokenizer.decode(answer[0], skip_special_tokens=True))"""


def vllm(served: Served) -> Commands | None:
    """Shell: vLLM's OpenAI-compatible server. None where the rank is beyond what it serves."""
    if served.max_lora_rank is None:
        return None
    module = {"name": served.name, "path": served.path, "base_model_name": served.base_model}
    revision = _revision(served, "--revision", "--tokenizer-revision")
    start = f"""vllm serve {shlex.quote(served.base_model)}{revision} \\
    --enable-lora --max-lora-rank {served.max_lora_rank} \\
    --lora-modules {shlex.quote(json.dumps(module))}"""
    body = {"model": served.name, "prompt": _PROMPT, "max_tokens": 40}
    return Commands(start, _post("http://127.0.0.1:8000/v1/completions", body))


def lorax(served: Served) -> Commands:
    """Shell: LoRAX, which takes the adapter with each request."""
    image = "ghcr.io/predibase/lorax:main"
    start = f"""docker run --gpus all --shm-size 1g -p 8080:80 -v {FOLDER}:{FOLDER}:ro {image} \\
    --model-id {shlex.quote(served.base_model)}{_revision(served, "--revision")}"""
    return Commands(start, _generate({"adapter_id": served.path, "adapter_source": "local"}))


def tgi(served: Served) -> Commands:
    """Shell: Text Generation Inference, which takes its adapters at the start."""
    image = "ghcr.io/huggingface/text-generation-inference:latest"
    start = f"""docker run --gpus all --shm-size 1g -p 8080:80 -v {FOLDER}:{FOLDER}:ro \\
    -e LORA_ADAPTERS={shlex.quote(f"{served.name}={served.path}")} {image} \\
    --model-id {shlex.quote(served.base_model)}{_revision(served, "--revision")}"""
    return Commands(start, _generate({"adapter_id": served.name}))


def notes(served: Served) -> list[str]:
    """What these servers would not do right by themselves."""
    found = []
    if served.patterned:
        found.append(
            "Some modules have a rank or alpha of their own (rank_pattern, alpha_pattern). vLLM, LoRAX and TGI scale "
            "all modules alike; serve this adapter with PEFT, or merge it into the base model first."
        )
    if served.max_lora_rank is None:
        found.append(f"vLLM serves ranks of up to {_VLLM_RANKS[-1]}; this adapter has rank {served.rank}.")
    return found


def instructions(served: Served) -> str:
    """The section of an archive's README: every command, in Markdown."""
    base = f"`{served.base_model}`" + (f" at revision `{served.revision}`" if served.revision else "")
    parts = [
        f"## Serving\n\nThe base model is {base}. The rank is {served.rank}. The commands expect the archive\n"
        f"unpacked in `{served.path}`:",
        _block("sh", unpack(served, "adapter.tar.gz")),
        *(f"**Note**: {note}" for note in notes(served)),
        "With PEFT:",
        _block("python", peft(served)),
        *_server("vLLM", vllm(served)),
        *_server("LoRAX", lorax(served)),
        *_server("TGI", tgi(served)),
    ]
    return "\n\n".join(parts)


def _server(name: str, commands: Commands | None) -> Sequence[str]:
    return () if commands is None else (f"With {name}:", _block("sh", f"{commands.start}\n\n{commands.request}"))


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _revision(served: Served, *options: str) -> str:
    return "".join(f" {option} {shlex.quote(served.revision)}" for option in options) if served.revision else ""


def _generate(adapter: Mapping[str, object]) -> str:
    body = {"inputs": _PROMPT, "parameters": {"max_new_tokens": 40, **adapter}}
    return _post("http://127.0.0.1:8080/generate", body)


def _post(url: str, body: Mapping[str, object]) -> str:
    return f"curl -s {url} {_JSON} \\\n    -d {shlex.quote(json.dumps(body))}"
