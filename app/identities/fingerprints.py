"""Identities as keyed digests: equal ones meet, whatever format each side knows, and nobody reads them back.

OpenDSR lets either side hold an identity as it is or as a sha1, md5 or sha256 of it. A raw identity therefore has
three fingerprints, one for each digest of it, and a digest has one: two identities are the same person's when they
share one. The key is the tenant's own, so that a table of fingerprints cannot be tried out against a list of
addresses by who does not hold the pepper, nor compared with another tenant's.
"""

from __future__ import annotations

import hashlib
import hmac

from app.identities.schemas import Identity

BYTES = 16
# Formats of the specification, not a way to protect anything: the keyed hash on top does that.
_DIGESTS = ("md5", "sha1", "sha256")
_EXACT = "controller_customer_id"


def secret_of(tenant_id: str, pepper: bytes) -> bytes:
    """The key of a tenant's fingerprints."""
    return hashlib.blake2b(f"identities/{tenant_id}".encode(), key=pepper[:64], digest_size=32).digest()


def fingerprints(identity: Identity, secret: bytes) -> set[bytes]:
    """The keyed digests, 16 bytes each, by which an identity is found."""
    kind, value = identity.identity_type, identity.identity_value
    if identity.identity_format != "raw":
        known = {(str(identity.identity_format), value.lower())}
    else:
        known = {
            (name, hashlib.new(name, form.encode(), usedforsecurity=False).hexdigest())
            for form in _forms(kind, value)
            for name in _DIGESTS
        }
    return {hmac.digest(secret, "/".join((kind, *one)).encode(), hashlib.sha256)[:BYTES] for one in known}


def _forms(kind: str, value: str) -> set[str]:
    """How a value is written where it is hashed.

    Addresses are compared in lower case. Ids of devices are hashed in either case, depending on the platform. A
    customer's number is the controller's own, and stays as it is.
    """
    plain = value.strip()
    if kind == _EXACT:
        return {plain}
    return {plain.lower()} if kind == "email" else {plain.lower(), plain.upper()}
