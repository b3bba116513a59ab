"""The programs in docs/webhooks.md verify what is signed here, and nothing else."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.webhooks.events import EVENTS
from app.webhooks.signing import Secret, public_text, signed_headers

GUIDE = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text()
BODY = b'{"type":"unlearn_job.failed"}'
Verify = Callable[[str, dict[str, str], bytes], bool]


def program(name: str) -> Verify:
    """A function that the guide defines, run as it stands there."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if f"def {name}(" in block]
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102 - our own document
    verify: Verify = names[name]
    return verify


@pytest.mark.parametrize(("name", "kind"), [("verify_v1", "v1"), ("verify_v1a", "v1a")])
def test_the_guides_programs_verify_webhooks(name: str, kind: str) -> None:
    verify, secret, before, now = program(name), Secret.generate(), Secret.generate(), int(time.time())
    headers = signed_headers("msg_1", now, BODY, [secret, before], ["v1", "v1a"])
    for signer in (secret, before):
        assert verify(shown(signer, kind), headers, BODY)
    assert not verify(shown(Secret.generate(), kind), headers, BODY)
    assert not verify(shown(secret, kind), headers, BODY + b" ")
    assert not verify(shown(secret, kind), {**headers, "webhook-id": "msg_2"}, BODY)
    assert not verify(shown(secret, kind), {**headers, "webhook-timestamp": str(now - 1)}, BODY)
    old = signed_headers("msg_1", now - 301, BODY, [secret], ["v1", "v1a"])
    assert not verify(shown(secret, kind), old, BODY)


def shown(secret: Secret, kind: str) -> str:
    """What a receiver holds."""
    return secret.shown if kind == "v1" else public_text(secret.public_key)


def test_the_guide_names_every_event() -> None:
    assert [event for event in EVENTS if f"| `{event}` |" not in GUIDE] == []


def test_a_secret_is_not_printed() -> None:
    secret = Secret.generate()
    assert "hmac_key" not in repr(secret)
