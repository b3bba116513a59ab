"""The token of a download link: what it opens and until when, and a MAC over that.

``tenant.version.sha256.expires.mac``, all of it safe in a URL. Nothing of it is secret but the MAC, without which it
opens nothing; nothing is stored, so that there is nothing to look up before the MAC has been checked.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass

from app.kit.crypto import derive_key

_PURPOSE = "lethe download link v1"
_TOKEN = re.compile(r"([a-z0-9_]{1,64})\.([a-z0-9_]{1,64})\.([0-9a-f]{64})\.([1-9][0-9]{0,11})\.([A-Za-z0-9_-]{43})")


@dataclass(frozen=True)
class Link:
    """What a link opens. `sha256` is that of the archive, `expires` is in seconds since 1970."""

    tenant_id: str
    version_id: str
    sha256: str
    expires: int


def sign(link: Link, pepper: bytes) -> str:
    """The token of a link."""
    said = f"{link.tenant_id}.{link.version_id}.{link.sha256}.{link.expires}"
    return f"{said}.{_mac(said, pepper)}"


def read(token: str, pepper: bytes) -> Link | None:
    """What a token opens, whether or not it has expired; None for one that this service did not sign."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        return None
    # As text: several texts decode to the same bytes, and only one of them is the token.
    if not hmac.compare_digest(_mac(token.rpartition(".")[0], pepper), match[5]):
        return None
    return Link(match[1], match[2], match[3], int(match[4]))


def _mac(said: str, pepper: bytes) -> str:
    mac = hmac.digest(derive_key(pepper, _PURPOSE), said.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(mac).decode().rstrip("=")
