"""The data directory of an embedded service: its lock, its secrets and its connection file."""

import base64
import fcntl
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from app.embedded.process import EmbeddedError

SECRET_BYTES = 32


@dataclass(frozen=True)
class Secrets:
    """What encrypts the datasets, keys the digests and signs; losing it loses the data."""

    encryption_keys: str
    key_pepper: str
    signing_key: str
    opendsr_credentials: str


@dataclass(frozen=True)
class Connection:
    """How a client on this machine reaches the service; `url` is None while it is starting."""

    url: str | None
    api_key: str | None


class DataDirectory:
    """One folder per embedded service, used by one supervisor at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: IO[str] | None = None

    @property
    def connection_path(self) -> Path:
        """The file that client commands read."""
        return self.path / "connection.json"

    @property
    def secrets_path(self) -> Path:
        """The file with the generated keys."""
        return self.path / "secrets.json"

    def acquire(self) -> None:
        """Makes the folder and takes its lock; EmbeddedError while another supervisor holds it."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (self.path / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise EmbeddedError(f"{self.path} is in use by another `lethe up` (process {holder})") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def release(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def secrets(self) -> Secrets:
        """The service's keys, drawn at the first start. A directory that is older than one of them gets it now."""
        if self.secrets_path.exists():
            stored = json.loads(self.secrets_path.read_text())
        else:
            stored = {"encryption_keys": f"k1:{random_key()}", "key_pepper": random_key()}
        if not {"signing_key", "opendsr_credentials"} <= stored.keys():
            # Here and not above: client commands read this folder, too, and need no cryptography.
            from app.kit.certificates import self_signed
            from app.kit.signing import PrivateKey

            drawn = {"signing_key": PrivateKey.generate().export(), "opendsr_credentials": self_signed("localhost")}
            stored = drawn | stored
            write_private(self.secrets_path, json.dumps(stored, indent=2) + "\n")
        return Secrets(**stored)

    def connection(self) -> Connection:
        """What the connection file says; nothing known without one."""
        try:
            content = json.loads(self.connection_path.read_text())
        except FileNotFoundError:
            return Connection(None, None)
        return Connection(content.get("url"), content.get("api_key"))

    def write_connection(self, connection: Connection) -> None:
        """Replaces the connection file in one step."""
        write_private(self.connection_path, json.dumps(asdict(connection), indent=2) + "\n")


def random_key() -> str:
    """Base64 of 32 random bytes."""
    return base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def write_private(path: Path, text: str) -> None:
    """Writes a file of mode 0600 so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
