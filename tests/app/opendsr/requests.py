"""What tests of OpenDSR share."""

from __future__ import annotations

import base64
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

UUID = "a7551968-d5d6-44b2-9831-815ac9017798"


def request_body(*identities: dict[str, str], request_id: str = UUID, **fields: Any) -> dict[str, Any]:
    """An erasure request."""
    return {
        "regulation": "gdpr",
        "subject_request_id": request_id,
        "subject_request_type": "erasure",
        "submitted_time": "2026-01-31T12:00:00Z",
        "subject_identities": list(identities),
        **fields,
    }


async def post_request(client: httpx.AsyncClient, *identities: dict[str, str], **fields: Any) -> httpx.Response:
    """Ask for an erasure."""
    return await client.post("/opendsr/v2/requests", json=request_body(*identities, **fields))


async def status_of(client: httpx.AsyncClient, request_id: str = UUID) -> dict[str, Any]:
    """Where a request stands."""
    response = await client.get(f"/opendsr/v2/requests/{request_id}")
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


def verify(headers: httpx.Headers | dict[str, str], body: bytes, certificate_pem: bytes) -> None:
    """Check a signature as a controller does: the certificate, then the raw bytes. Raises when it does not hold."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert headers["X-OpenDSR-Processor-Domain"] in names.get_values_for_type(x509.DNSName)
    key = certificate.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    key.verify(base64.b64decode(headers["X-OpenDSR-Signature"], validate=True), body, padding.PKCS1v15(), SHA256())
