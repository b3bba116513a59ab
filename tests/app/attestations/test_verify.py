"""An archive verifies as it was released, and no otherwise; what does not hold is named."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.attestations.statement import ATTESTATION_FILE, SUBJECTS, WEIGHTS_FILE
from app.attestations.verify import Proof, VerificationError, read_keys, verify_archive
from app.kit.signing import PrivateKey
from tests.app.attestations.release import (
    FILES,
    KEY,
    keys_file,
    packed,
    parts,
    release,
    sha256,
    signed,
    stated,
    zipped,
)

ALL_FILES = (*SUBJECTS, ATTESTATION_FILE)


def verify(files: dict[str, bytes] | list[tuple[str, bytes]]) -> Proof:
    """Pack and verify with the usual key."""
    return verify_archive(zipped(packed(files)), [KEY.public])


def refused(archive: io.BytesIO | dict[str, bytes] | list[tuple[str, bytes]], key: PrivateKey = KEY) -> str:
    """Why it does not verify."""
    opened = archive if isinstance(archive, io.BytesIO) else zipped(packed(archive))
    with pytest.raises(VerificationError) as refusal:
        verify_archive(opened, [key.public])
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def flipped(data: bytes, place: int, bit: int) -> bytes:
    """One bit of one byte changed."""
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def test_a_release_verifies_and_one_line_says_what_is_proved() -> None:
    proof = verify(release())
    assert proof.key_id == KEY.public.key_id
    assert proof.sentence() == (
        f"verified: adapter_model.safetensors sha256 {sha256(FILES[WEIGHTS_FILE])} is the result of job_1, which "
        "passed policy default v3 (2 checks) on 32 forget records; signed 2026-03-01T12:30:00Z by key "
        f"{KEY.public.key_id}"
    )


def test_the_order_of_the_files_does_not_matter() -> None:
    assert verify(list(reversed(release().items()))).key_id == KEY.public.key_id


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_changed_byte_of_a_file_is_found_and_the_file_is_named(name: str) -> None:
    draw = random.Random(7)  # noqa: S311 - a fixed sample
    for place in range(len(FILES[name])):
        reason = refused(release(**{name: flipped(FILES[name], place, draw.randrange(8))}))
        assert reason.startswith(f"{name} is not the attested file"), place


def test_every_changed_byte_of_the_attestation_is_found_and_it_is_named() -> None:
    # Payload, signature, key id, and the JSON around them.
    draw, whole = random.Random(8), signed()  # noqa: S311 - a fixed sample
    for place in range(len(whole)):
        reason = refused(release(**{ATTESTATION_FILE: flipped(whole, place, draw.randrange(8))}))
        assert ATTESTATION_FILE in reason, place


def test_the_bits_that_base64_leaves_unused_count_too() -> None:
    outer = json.loads(signed())
    assert outer["signatures"][0]["sig"].endswith("==")
    for field in (outer["signatures"][0], outer):
        name = "sig" if "sig" in field else "payload"
        text = field[name]
        place = len(text.rstrip("=")) - 1
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        twin = alphabet[alphabet.index(text[place]) ^ 1]
        changed = text[:place] + twin + text[place + 1 :]
        if base64.b64decode(changed) != base64.b64decode(text):
            continue
        field[name] = changed
        assert ATTESTATION_FILE in refused(release(**{ATTESTATION_FILE: compact(outer)}))
        field[name] = text


def compact(envelope: dict[str, Any]) -> bytes:
    """An envelope in its only form."""
    return (json.dumps(envelope, separators=(",", ":")) + "\n").encode()


def test_no_changed_byte_of_the_archive_lets_other_content_pass() -> None:
    draw, tar = random.Random(9), packed(release())  # noqa: S311 - a fixed sample
    whole = zipped(tar).getvalue()
    for data, make in ((tar, zipped), (whole, io.BytesIO)):
        accepted = 0
        for place in draw.sample(range(len(data)), 2500):
            try:
                proof = verify_archive(make(flipped(data, place, draw.randrange(8))), [KEY.public])
            except VerificationError:
                continue
            accepted += 1
            assert proof.statement == verify(release()).statement
        # What is left gives the same files: the time in gzip's header, another way to compress the same zeros.
        assert accepted < 250


def test_swapped_files_are_found() -> None:
    files = release() | {"README.md": FILES["adapter_config.json"], "adapter_config.json": FILES["README.md"]}
    assert "is not the attested file" in refused(files)


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_missing_file_is_named(name: str) -> None:
    files = release()
    del files[name]
    assert refused(files) == f"the archive lacks {name}"


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_file_that_is_there_twice_is_named(name: str) -> None:
    # A reader that takes the first, and one that takes the last, would see two different adapters.
    files = list(release().items())
    assert refused([*files, (name, b"other")]) == f"the archive holds {name} twice"
    assert refused([(name, b"other"), *files]) == f"the archive holds {name} twice"


@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.bin",
        "../README.md",
        "/README.md",
        "./README.md",
        "sub/README.md",
        "readme.md",
        "README.md\x1b[2J",
        "x" * 150,
    ],
)
def test_a_file_that_does_not_belong_there_is_named(name: str) -> None:
    reason = refused([*release().items(), (name, b"x")])
    assert reason.startswith("the archive holds ")
    assert reason.isprintable()
    assert len(reason) < 200


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_LONGNAME],
)
def test_what_is_no_plain_file_is_refused(kind: bytes) -> None:
    entry = tarfile.TarInfo("README.md")
    entry.type, entry.linkname = kind, "/etc/passwd"
    tar = entry.tobuf(tarfile.GNU_FORMAT) + packed(release())
    assert refused(zipped(tar)) == "the archive holds 'README.md', which is not a plain file"


def test_a_header_that_overrides_the_next_one_is_refused() -> None:
    # Readers of pax headers would see another name or size than what stands in the plain header.
    entry = tarfile.TarInfo("README.md")
    entry.pax_headers = {"path": "evil.bin"}
    tar = entry.tobuf(tarfile.PAX_FORMAT) + packed(release())
    assert "which is not a plain file" in refused(zipped(tar))


def test_bytes_hidden_between_and_behind_the_files_are_found() -> None:
    tar = packed(release())
    padding = tar.index(FILES["README.md"]) + len(FILES["README.md"]) + 5
    assert refused(zipped(flipped(tar, padding, 0))) == "the archive hides bytes behind README.md"
    assert refused(zipped(tar + b"\0" * 512 + b"more")) == "the archive hides bytes behind its end"
    assert refused(zipped(tar + packed(release()))) == "the archive hides bytes behind its end"
    assert "hides bytes" in refused(io.BytesIO(zipped(tar).getvalue() + gzip.compress(b"more")))
    assert "damaged" in refused(io.BytesIO(zipped(tar).getvalue() + b"more"))


def test_an_archive_that_was_cut_off_is_refused_wherever() -> None:
    whole = zipped(packed(release())).getvalue()
    for length in range(0, len(whole), 37):
        assert refused(io.BytesIO(whole[:length]))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x1f\x8b", b"\x00" * 2000, gzip.compress(b""), b"{}"])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    assert "archive" in refused(io.BytesIO(data))


class Bomb(io.RawIOBase):
    """A stream that counts what was taken from it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.taken = io.BytesIO(data), 0

    def read(self, size: int = -1) -> bytes:
        found = self.data.read(size)
        self.taken += len(found)
        return found


def test_a_bomb_is_not_unpacked() -> None:
    entry = tarfile.TarInfo("README.md")
    entry.size = 4 * 1024**3
    assert refused(zipped(entry.tobuf())) == "README.md is too large"
    # Zeros behind the end compress to nothing.
    bomb = Bomb(gzip.compress(packed(release()) + b"\0" * 300 * 1024**2, compresslevel=1))
    with pytest.raises(VerificationError, match="hides bytes behind its end"):
        verify_archive(bomb, [KEY.public])  # type: ignore[arg-type]
    assert bomb.taken < len(bomb.data.getvalue()) / 10


def test_another_key_is_refused() -> None:
    reason = refused(release(), PrivateKey.generate())
    assert reason == f"{ATTESTATION_FILE}: it was signed with a key that is not among the trusted ones"


def test_another_key_under_a_trusted_key_s_id_is_refused() -> None:
    forged = json.loads(signed(key=PrivateKey.generate()))
    forged["signatures"][0]["keyid"] = KEY.public.key_id
    assert "does not hold" in refused(release(**{ATTESTATION_FILE: compact(forged)}))


def test_a_statement_about_other_files_of_the_same_key_is_refused() -> None:
    other = stated()
    other["subject"][0]["digest"]["sha256"] = "0" * 64
    reason = refused(release(**{ATTESTATION_FILE: signed(json.dumps(other).encode())}))
    assert reason.startswith("README.md is not the attested file")


def test_an_envelope_has_exactly_one_signature() -> None:
    outer = json.loads(signed())
    twin = json.loads(signed(key=PrivateKey.generate()))["signatures"][0]
    for signatures in ([], [outer["signatures"][0], twin], [outer["signatures"][0]] * 2):
        envelope = compact({**outer, "signatures": signatures})
        assert f"carries {len(signatures)} signatures" in refused(release(**{ATTESTATION_FILE: envelope}))


@pytest.mark.parametrize("envelope", [b"", b"[]", b"null", b"\xff", b"{}", b"[" * 100_000, b'{"payload":1}'])
def test_what_is_no_envelope_is_refused(envelope: bytes) -> None:
    assert refused(release(**{ATTESTATION_FILE: envelope})) == f"{ATTESTATION_FILE}: it is no DSSE envelope"


def test_a_payload_of_another_type_is_refused() -> None:
    envelope = signed(payload_type="application/json")
    assert "payloadType" in refused(release(**{ATTESTATION_FILE: envelope}))


def test_the_type_of_a_payload_is_signed_with_it() -> None:
    outer = json.loads(signed(payload_type="application/json"))
    outer["payloadType"] = "application/vnd.in-toto+json"
    assert "does not hold" in refused(release(**{ATTESTATION_FILE: compact(outer)}))


def without(*path: str) -> Callable[[dict[str, Any]], None]:
    """Removes a field."""

    def remove(document: dict[str, Any]) -> None:
        for name in path[:-1]:
            document = document[name]
        del document[path[-1]]

    return remove


def put(value: object, *path: str) -> Callable[[dict[str, Any]], None]:
    """Sets a field."""

    def change(document: dict[str, Any]) -> None:
        for name in path[:-1]:
            document = document[name]
        document[path[-1]] = value

    return change


def fail_a_check(document: dict[str, Any]) -> None:
    """As no gate that passed has it."""
    document["predicate"]["checks"][1]["passed"] = False


def extra_subject(document: dict[str, Any]) -> None:
    """A file that is not in the archive."""
    document["subject"].append({"name": "x", "digest": {"sha256": "0" * 64}})


def same_subject_twice(document: dict[str, Any]) -> None:
    """Two digests for one file."""
    document["subject"].append({"name": "README.md", "digest": {"sha256": "0" * 64}})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("https://in-toto.io/Statement/v0.1", "_type"), "_type"),
        (put("https://slsa.dev/provenance/v1", "predicateType"), "predicateType"),
        (without("predicateType"), "predicateType"),
        (without("subject"), "subject"),
        (put([], "subject"), "subject"),
        (extra_subject, "subject"),
        (same_subject_twice, "subject"),
        (put("failed", "predicate", "verdict"), "verdict"),
        (without("predicate", "verdict"), "verdict"),
        (put([], "predicate", "checks"), "checks"),
        (fail_a_check, "forget_rouge_l_recall"),
        (put("0" * 64, "predicate", "evaluation", "weights_sha256"), "evaluation.weights_sha256"),
        (without("predicate", "limits"), "limits"),
    ],
)
def test_a_signed_statement_that_says_too_little_or_another_thing_is_refused(
    change: Callable[[dict[str, Any]], None], named: str
) -> None:
    document = stated()
    change(document)
    reason = refused(release(**{ATTESTATION_FILE: signed(json.dumps(document).encode())}))
    assert named in reason


@pytest.mark.parametrize("payload", [b"", b"no json", b"\xff\xfe", b"[]", b"{"])
def test_a_signed_payload_that_is_no_json_object_is_refused(payload: bytes) -> None:
    reason = refused(release(**{ATTESTATION_FILE: signed(payload)}))
    assert reason == f"{ATTESTATION_FILE} is signed, but cannot be read (no JSON)"


def test_fields_of_a_later_service_do_not_disturb() -> None:
    document = stated()
    document["later"] = document["predicate"]["later"] = {"field": 1}
    document["predicate"]["checks"][0]["later"] = 1
    document["predicate"]["policy"]["max_later"] = 1
    assert (
        verify(release(**{ATTESTATION_FILE: signed(json.dumps(document).encode())})).statement.predicate.job
        == "job_1"
    )


def test_what_a_statement_says_cannot_steer_the_terminal() -> None:
    document = stated()
    document["predicate"]["job"] = "job\x1b[2J\nverified: yes"
    sentence = verify(release(**{ATTESTATION_FILE: signed(json.dumps(document).encode())})).sentence()
    assert sentence.isprintable()


def test_keys_are_read_from_the_answer_of_the_service(tmp_path: Path) -> None:
    other = PrivateKey.generate().public
    assert read_keys(keys_file(tmp_path / "keys.json", KEY.public, other)) == [KEY.public, other]


def test_a_retired_key_still_verifies_what_it_signed(tmp_path: Path) -> None:
    new = PrivateKey.generate().public
    document = json.loads(keys_file(tmp_path / "keys.json", new, KEY.public).read_text())
    document["data"][1]["retired_at"] = "2026-04-01T00:00:00Z"
    (tmp_path / "keys.json").write_text(json.dumps(document))
    assert verify_archive(zipped(packed(release())), read_keys(tmp_path / "keys.json")).key_id == KEY.public.key_id


def change_key(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Another value in the only key."""
    return lambda document: document["data"][0].update({name: value})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda document: document.update(data=[]), "holds no key"),
        (lambda document: document.pop("data"), "is not the answer of GET /keys"),
        (change_key("public_key", "AAAA"), "is not the answer of GET /keys"),
        (change_key("public_key", "!" * 44), "is not the answer of GET /keys"),
        (change_key("public_key_pem", "x"), "is not the answer of GET /keys"),
        (change_key("public_key", PrivateKey.generate().public.base64), "does not have the id"),
        (change_key("public_key_pem", PrivateKey.generate().public.pem), "does not have the id"),
        (change_key("key_id", "0" * 64), "does not have the id"),
    ],
)
def test_a_file_of_keys_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    path = keys_file(tmp_path / "keys.json", KEY.public)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(VerificationError, match=reason):
        read_keys(path)


def test_verifying_loads_neither_torch_nor_the_service() -> None:
    code = (
        "import sys, app.attestations.verify; "
        "print([name for name in ('torch', 'transformers', 'safetensors', 'fastapi', 'sqlalchemy', 'celery') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={}, check=True)
    assert done.stdout.strip() == "[]"


def test_the_envelope_is_the_one_of_the_specification() -> None:
    outer, inner = parts(signed())
    assert set(outer) == {"payload", "payloadType", "signatures"}
    assert [set(one) for one in outer["signatures"]] == [{"keyid", "sig"}]
    assert outer["payloadType"] == "application/vnd.in-toto+json"
    assert inner["_type"] == "https://in-toto.io/Statement/v1"
