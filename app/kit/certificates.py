"""An RSA key with its X.509 certificate: signs bytes for readers who fetch the certificate and know nothing else.

RSASSA-PKCS1-v1_5 over SHA-256 (FIPS 186-4). Whoever may choose takes Ed25519 (app.kit.signing) instead.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

_SMALLEST = 2048
_NEW = 3072
_PEM = re.compile(r"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----", re.DOTALL)
_SELF_SIGNED_FOR = timedelta(days=397)


@dataclass(frozen=True)
class Credentials:
    """A private key and the certificates that speak for it, the key's own first."""

    key: rsa.RSAPrivateKey
    chain: tuple[x509.Certificate, ...]
    domain: str

    @classmethod
    @lru_cache(maxsize=2)  # to check an RSA key takes a tenth of a second, and settings are read more than once
    def parse(cls, text: str) -> Credentials:
        """Read base64 of PEM blocks: ``cat key.pem certificate.pem chain.pem | base64 -w0``.

        Raises:
            ValueError: the text is nothing of the kind, or key and certificate do not fit. It is not quoted.
        """
        try:
            pem = base64.b64decode(text, validate=True).decode("ascii")
            blocks = [match[0] for match in _PEM.finditer(pem)]
            [key] = [load_pem_private_key(block.encode(), None) for block in blocks if "PRIVATE KEY" in block]
            chain = tuple(
                x509.load_pem_x509_certificate(block.encode()) for block in blocks if "CERTIFICATE" in block
            )
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError(
                "must be base64 of PEM: one private key without a password, then its certificate"
            ) from None
        if not isinstance(key, rsa.RSAPrivateKey) or key.key_size < _SMALLEST:
            raise ValueError(f"the private key must be RSA of at least {_SMALLEST} bits")
        if not chain or chain[0].public_key() != key.public_key():
            raise ValueError("the first certificate must be the private key's own")
        return cls(key, chain, _domain(chain[0]))

    @property
    def chain_pem(self) -> str:
        """The certificates, for everybody."""
        return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in self.chain)

    def sign(self, body: bytes) -> str:
        """Base64 of the signature over the bytes as they are."""
        return base64.b64encode(self.key.sign(body, padding.PKCS1v15(), SHA256())).decode()


def self_signed(domain: str, bits: int = _NEW) -> str:
    """Credentials that nobody vouches for, in the form that `Credentials.parse` reads."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, domain)])
    now = datetime.now(UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
         "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + _SELF_SIGNED_FOR)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(domain)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .sign(key, SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(
        Encoding.PEM
    )
    return base64.b64encode(pem).decode()


def _domain(certificate: x509.Certificate) -> str:
    """The first name that the certificate was issued to. Raises ValueError."""
    extensions = certificate.extensions
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
            x509.DNSName
        )
    except x509.ExtensionNotFound:
        names = []
    if not names or "*" in names[0]:
        raise ValueError("the certificate must name one domain in its subject alternative names, no wildcard")
    try:
        signs = extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    except x509.ExtensionNotFound:
        signs = True
    if not signs:
        raise ValueError("the certificate must allow digital signatures")
    return names[0]
