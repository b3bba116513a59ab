"""Which identities meet."""

from __future__ import annotations

import hashlib

import pytest
from pydantic import ValidationError

from app.identities.fingerprints import fingerprints, secret_of
from app.identities.schemas import Identity

SECRET = secret_of("ten_a", b"p" * 32)
IDFA = "8c8f6f0e-0c0b-4d59-9d55-3f9a0f6f2a11"


def of(value: str, kind: str = "email", how: str = "raw", secret: bytes = SECRET) -> set[bytes]:
    """The fingerprints of an identity; hashed beforehand where `how` says so."""
    if how != "raw":
        value = hashlib.new(how, value.encode()).hexdigest()
    identity = Identity.model_validate({"identity_type": kind, "identity_value": value, "identity_format": how})
    return fingerprints(identity, secret)


@pytest.mark.parametrize("how", ["raw", "sha1", "md5", "sha256"])
def test_an_address_is_found_in_every_format(how: str) -> None:
    assert of("ada@example.org", how=how) & of("ada@example.org")
    assert not of("eve@example.org", how=how) & of("ada@example.org")


def test_case_and_blanks_of_an_address_do_not_matter() -> None:
    assert of(" Ada@Example.ORG ") == of("ada@example.org")
    assert of("ada@example.org", how="sha256") & of("Ada@example.org")


def test_digests_may_be_in_upper_case() -> None:
    digest = hashlib.sha256(b"ada@example.org").hexdigest().upper()
    identity = Identity(identity_type="email", identity_value=digest, identity_format="sha256")
    assert fingerprints(identity, SECRET) & of("ada@example.org")


@pytest.mark.parametrize("value", [IDFA, IDFA.upper()])
def test_an_id_of_a_device_is_found_whichever_case_was_hashed(value: str) -> None:
    for other in (IDFA, IDFA.upper()):
        assert of(value, "ios_advertising_id", "sha256") & of(other, "ios_advertising_id")


def test_a_customers_number_is_taken_as_it_is() -> None:
    assert not of("Ab1", "controller_customer_id") & of("ab1", "controller_customer_id")


def test_the_same_value_of_another_type_or_format_is_another_identity() -> None:
    assert not of("7", "controller_customer_id") & of("7", "android_id")
    assert not of("x", how="md5") & of("x", how="sha1")


def test_two_tenants_have_no_fingerprint_in_common() -> None:
    assert not of("ada@example.org") & of("ada@example.org", secret=secret_of("ten_b", b"p" * 32))


NOTHING = [("ada@example.org", "sha256"), ("0" * 63, "sha256"), ("g" * 32, "md5"), ("  ", "raw"), ("", "raw")]


@pytest.mark.parametrize(("value", "how"), NOTHING)
def test_what_is_no_digest_or_nothing_is_refused(value: str, how: str) -> None:
    with pytest.raises(ValidationError):
        Identity.model_validate({"identity_type": "email", "identity_value": value, "identity_format": how})
