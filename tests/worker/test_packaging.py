"""From trained factors to released bytes, and back from the bytes to the same numbers."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import safe_open

from app.adapters.archive import ArchiveDigest
from app.attestations.statement import ATTESTATION_FILE
from app.methods import Policy
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny, blur_method, encode
from worker.evaluation.checks import Gate, Value, at_least, at_most
from worker.evaluation.evaluate import SetScores, evaluate_model
from worker.packaging import (
    CardFacts,
    SetFacts,
    model_card,
    write_adapter_directory,
    write_archive,
)
from worker.reproduce import main
from worker.unlearning.loop import Outcome, unlearn
from worker.unlearning.lora import adapter_state, known_peft_warnings, read_state
from worker.unlearning.models import load_base

BASE_NAME = "example-org/tiny-base"


def unlearned(tiny: Tiny) -> tuple[Any, Any]:
    """The adapter after a few steps."""
    model, tokenizer = tiny.load()
    forget, retain = encode(FORGET_RECORDS, tokenizer), encode(RETAIN_RECORDS, tokenizer)
    method = blur_method(steps=3, learning_rate=5e-3)
    unlearn(model, tokenizer, forget, retain, method, seed=1)
    return model, tokenizer


def package(tiny: Tiny, model: Any, directory: Path) -> Path:
    """The released directory."""
    state = adapter_state(model, like=read_state(tiny.adapter))
    write_adapter_directory(
        directory, state, tiny.config(), base_model_name=BASE_NAME, revision="main", card="# card\n"
    )
    (directory / ATTESTATION_FILE).write_text("{}\n")
    return directory


def load_with_peft(tiny: Tiny, directory: Path) -> Any:
    base, _ = load_base(tiny.base)
    with known_peft_warnings():
        return PeftModel.from_pretrained(base, str(directory))


def pack(directory: Path, target: Path) -> ArchiveDigest:
    """Pack a directory into a file."""
    with target.open("wb") as sink:
        return write_archive(directory, sink)


def test_plain_peft_loads_the_very_model_that_was_trained(tiny: Tiny, tmp_path: Path) -> None:
    model, tokenizer = unlearned(tiny)
    reloaded = load_with_peft(tiny, package(tiny, model, tmp_path))
    ids = torch.tensor([encode(FORGET_RECORDS, tokenizer)[0].input_ids])
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_tensor_file_has_the_keys_shapes_and_types_of_the_source(tiny: Tiny, tmp_path: Path) -> None:
    model, _ = unlearned(tiny)
    package(tiny, model, tmp_path)
    source, result = read_state(tiny.adapter), read_state(tmp_path)
    described = [{k: (v.shape, v.dtype) for k, v in state.items()} for state in (source, result)]
    assert described[0] == described[1]
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_configuration_keeps_the_lora_and_names_the_public_base(llama: Tiny, tmp_path: Path) -> None:
    model, _ = llama.load()
    source = llama.config() | {"base_model_name_or_path": "/srv/models/private", "lora_alpha": 8}
    state = adapter_state(model, like=read_state(llama.adapter))
    write_adapter_directory(tmp_path, state, source, base_model_name=BASE_NAME, revision=None, card="")
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "/srv" not in json.dumps(written)
    changed = {"base_model_name_or_path": BASE_NAME, "revision": None, "inference_mode": True}
    assert written == source | changed


def test_same_files_give_the_same_archive_whenever_and_wherever(llama: Tiny, tmp_path: Path) -> None:
    model, _ = unlearned(llama)
    again, _ = unlearned(llama)
    first, second = package(llama, model, tmp_path / "a"), package(llama, again, tmp_path / "b")
    for number, path in enumerate(sorted(second.iterdir())):
        os.utime(path, (number, number))
        path.chmod(0o600)
    one = pack(first, tmp_path / "one.tar.gz")
    two = pack(second, tmp_path / "another name.tar.gz")
    assert one == two
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "another name.tar.gz").read_bytes()


def test_archive_digest_is_that_of_the_file(llama: Tiny, tmp_path: Path) -> None:
    model, _ = llama.load()
    digest = pack(package(llama, model, tmp_path / "a"), tmp_path / "a.tar.gz")
    content = (tmp_path / "a.tar.gz").read_bytes()
    assert (digest.sha256, digest.bytes) == (hashlib.sha256(content).hexdigest(), len(content))


def test_archive_holds_the_known_files_at_top_level_without_traces(llama: Tiny, tmp_path: Path) -> None:
    model, _ = llama.load()
    directory = package(llama, model, tmp_path / "a")
    (directory / "optimizer.bin").write_bytes(b"must stay here")
    pack(directory, tmp_path / "a.tar.gz")
    content = (tmp_path / "a.tar.gz").read_bytes()
    assert content[3] == 0, "no file name in the gzip header"
    assert content[4:8] == bytes(4), "no time in the gzip header"
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as archive:
        entries = archive.getmembers()
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "attestation.dsse.json"]
    assert [entry.name for entry in entries] == names
    assert {(e.mtime, e.uid, e.gid, e.mode, e.uname, e.gname) for e in entries} == {(0, 0, 0, 0o644, "", "")}


def test_archive_without_a_needed_file_is_refused(llama: Tiny, tmp_path: Path) -> None:
    model, _ = llama.load()
    directory = package(llama, model, tmp_path / "a")
    (directory / "README.md").unlink()
    with pytest.raises(FileNotFoundError):
        pack(directory, tmp_path / "a.tar.gz")


def scores(probability: float) -> SetScores:
    return SetScores(4, 0, probability, 1.5, 0.25, 0.5, 0.75, ())


FACTS = CardFacts(
    job_id="job_123",
    base_model_name=BASE_NAME,
    revision="main",
    adapter_name="support-bot",
    config={"r": 4, "target_modules": ["q_proj"]},
    method=blur_method(steps=80),
    training=Outcome(60, 40, "targets_met", "the targets hold", (), 8, 1),
    seed=7,
    policy=Policy(),
    forget=SetFacts("ds_forget", 4),
    retain=SetFacts("ds_retain", 90),
    gate=Gate.of(
        [
            at_most("recall", "forget_probability", "answer probability", Value(0.1, 4), 0.2),
            at_most("recall", "forget_extraction_strength", "extraction strength", Value(0.25, 4), 0.1),
            at_least("utility", "retain_probability_ratio", "kept", Value(0.95, 4), 0.9),
        ]
    ),
    not_tested=("membership inference",),
    scores={
        "before": {"forget": scores(0.9), "retain": scores(0.8)},
        "after": {"forget": scores(0.1), "retain": scores(0.76)},
        "base model alone": {"forget": scores(0.05)},
    },
)


def test_card_states_what_was_done_and_how_well() -> None:
    card = model_card(FACTS)
    for stated in (
        "job_123",
        "ds_forget",
        "4 records",
        "90 records",
        '"beta": 0.03',
        '"steps": 80',
        "| method | BLUR (arXiv 2506.08164)",
        "| losses | `npo` to forget, `nll` to retain |",
        "| training | 60 of at most 80 steps, step 40 kept: the targets hold |",
        "| seed | 7 |",
        "| set | metric | before | after | base model alone |",
        "| forget (4 records) | answer probability | 0.9000 | 0.1000 | 0.0500 |",
        "| retain (4 records) | answer probability | 0.8000 | 0.7600 | not measured |",
        "Gate: failed (policy `default`, version 1)",
        "| 0.1000 | <= 0.2 | passed |",
        "| 0.2500 | <= 0.1 | failed |",
        "approximate unlearning",
        "- Not tested: membership inference.",
        "fine-tuning of this adapter, even on other data, may bring records back",
        "PeftModel.from_pretrained",
        "--max-lora-rank 8",
        '"name": "support-bot"',
        "LORA_ADAPTERS=support-bot=/adapters/support-bot",
        '"adapter_source": "local"',
        "lethe verify adapter.tar.gz --keys keys.json",
    ):
        assert stated in card


def test_card_front_matter_is_yaml_that_a_name_cannot_break() -> None:
    name = 'org/base"\ntags: [evil]'
    front = model_card(replace(FACTS, base_model_name=name)).split("---\n")[1]
    parsed = yaml.safe_load(front)
    assert parsed["base_model"] == name
    assert parsed["library_name"] == "peft"
    assert parsed["pipeline_tag"] == "text-generation"
    assert "unlearning" in parsed["tags"]
    assert parsed["base_model_relation"] == "adapter"
    assert parsed.keys() == {"library_name", "base_model", "base_model_relation", "pipeline_tag", "tags"}


@pytest.fixture
def released(llama: Tiny, tmp_path: Path) -> Path:
    """A folder with the archive, the unpacked adapter and both sets."""
    model, _ = unlearned(llama)
    pack(package(llama, model, tmp_path / "adapter"), tmp_path / "adapter.tar.gz")
    for name, records in (("forget", FORGET_RECORDS), ("retain", RETAIN_RECORDS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def reproduce(tiny: Tiny, folder: Path, adapter: str, *more: str) -> dict[str, Any]:
    """Run the command line and read its JSON."""
    sets = [f"--set={name}={folder / name}.jsonl" for name in ("forget", "retain")]
    out = folder / "out.json"
    assert main(["--base", str(tiny.base), "--adapter", adapter, *sets, "--json", str(out), *more]) == 0
    result: dict[str, Any] = json.loads(out.read_text())
    return result


@pytest.mark.parametrize("name", ["adapter", "adapter.tar.gz"])
def test_reproduce_measures_what_the_trained_model_scored(llama: Tiny, released: Path, name: str) -> None:
    model, tokenizer = unlearned(llama)
    sets = {"forget": encode(FORGET_RECORDS, tokenizer), "retain": encode(RETAIN_RECORDS, tokenizer)}
    expected = evaluate_model(model, tokenizer, sets)
    result = reproduce(llama, released, str(released / name))["sets"]
    for key, measured in result.items():
        fields = {field: value for field, value in vars(expected[key]).items() if field != "per_record"}
        assert measured == fields


def test_reproduce_none_measures_the_base_alone(llama: Tiny, released: Path) -> None:
    base, tokenizer = load_base(llama.base)
    expected = evaluate_model(base, tokenizer, {"forget": encode(FORGET_RECORDS, tokenizer)})["forget"]
    result = reproduce(llama, released, "none")["sets"]["forget"]
    assert result["nll"] == pytest.approx(expected.nll, rel=1e-6)


def test_reproduce_shows_answers_only_when_asked(
    llama: Tiny, released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = reproduce(llama, released, "none")
    assert "answers" not in silent
    assert not any(record["prompt"] in capsys.readouterr().out for record in FORGET_RECORDS)
    shown = reproduce(llama, released, "none", "--answers", "2")["answers"]
    assert [answer["prompt"] for answer in shown["forget"]] == [r["prompt"] for r in FORGET_RECORDS[:2]]
    assert FORGET_RECORDS[0]["completion"].strip() in capsys.readouterr().out


def test_reproduce_trains_the_adapter_further_and_scores_it_again(
    llama: Tiny, released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(*more: str) -> dict[str, Any]:
        found = reproduce(llama, released, str(released / "adapter"), "--train-on", "retain", *more)
        scores: dict[str, Any] = found["trained"]["sets"]
        assert {name: kept["probability"] for name, kept in found["sets"].items()} == before
        return {name: score["probability"] for name, score in scores.items()}

    plain = reproduce(llama, released, str(released / "adapter"))
    assert "trained" not in plain
    before = {name: score["probability"] for name, score in plain["sets"].items()}
    short, long = trained("--epochs", "1"), trained("--epochs", "9", "--learning-rate", "5e-3")
    assert before["retain"] < short["retain"] < long["retain"]
    assert "after 9 epochs of training on retain" in capsys.readouterr().out
    assert "trained" not in reproduce(llama, released, "none", "--train-on", "retain")


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "2"])
def test_reproduce_refuses_a_learning_rate_that_is_none(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--base", ".", "--adapter", "none", "--set", "forget=f", "--learning-rate", rate])
    assert "must be above 0 and at most 1" in capsys.readouterr().err


def test_reproduce_reads_nothing_but_the_known_files(llama: Tiny, released: Path) -> None:
    hostile = released / "hostile.tar.gz"
    with tarfile.open(hostile, "w:gz") as archive:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            archive.add(released / "adapter" / name, arcname=name)
        for name in ("../escaped", "extra.txt"):
            entry = tarfile.TarInfo(name)
            archive.addfile(entry, io.BytesIO())
        link = tarfile.TarInfo("README.md")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    assert reproduce(llama, released, str(hostile)) == reproduce(llama, released, str(released / "adapter"))
    assert not (released / "escaped").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--set", "forget"], "takes NAME=FILE"),
        (["--set", "forget=missing.jsonl"], "missing.jsonl"),
        (["--set", "forget=broken.jsonl"], "line 2 of broken.jsonl is not JSON"),
        (["--set", "forget=list.jsonl"], "line 1 of list.jsonl is not a JSON object"),
        (["--set", "forget=shape.jsonl"], "record 1 has none of the shapes"),
        (["--set", "forget=forget.jsonl", "--adapter", "list.jsonl"], "not a .tar.gz"),
        (["--set", "forget=forget.jsonl", "--adapter", "empty"], "no adapter_model.safetensors"),
        (["--set", "forget=forget.jsonl", "--base", "empty"], "no config.json"),
        (["--set", "forget=forget.jsonl", "--train-on", "kept"], "--train-on kept names none of the sets"),
    ],
)
def test_reproduce_explains_unusable_inputs_and_quotes_no_record(
    llama: Tiny,
    released: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(released)
    Path("broken.jsonl").write_text('{"text": "fine"}\n{"text": "secret words"\n')
    Path("list.jsonl").write_text('["secret words"]\n')
    Path("shape.jsonl").write_text('{"words": "secret words"}\n')
    Path("empty").mkdir()
    assert main(["--base", str(llama.base), "--adapter", "none", *arguments]) == 2
    output = capsys.readouterr()
    assert reason in output.err
    assert "secret" not in output.err + output.out


def test_reproduce_can_be_asked_for_a_base_in_four_bits(
    llama: Tiny, released: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(_directory: Path, **options: Any) -> None:
        assert options["quantization_config"].load_in_4bit
        raise ImportError

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", missing)
    sets = ["--set", f"forget={released / 'forget.jsonl'}"]
    assert main(["--base", str(llama.base), "--adapter", "none", "--four-bit", *sets]) == 2
    assert "bitsandbytes" in capsys.readouterr().err


def test_reproduce_reads_line_separators_inside_strings(llama: Tiny, released: Path) -> None:
    record = {"prompt": "Line\u2028separated?", "completion": " Yes."}
    (released / "forget.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert reproduce(llama, released, "none")["sets"]["forget"]["records"] == 1


def test_reproduce_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "--set forget=forget.jsonl --set retain=retain.jsonl" in capsys.readouterr().out


def test_pickled_adapter_is_not_opened(llama: Tiny, released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(llama.adapter, released / "pickled")
    (released / "pickled" / "adapter_model.safetensors").unlink()
    torch.save(read_state(llama.adapter), released / "pickled" / "adapter_model.bin")
    arguments = ["--base", str(llama.base), "--adapter", str(released / "pickled")]
    assert main([*arguments, "--set", f"forget={released / 'forget.jsonl'}"]) == 2
    assert "no adapter_model.safetensors" in capsys.readouterr().err
