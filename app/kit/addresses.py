"""URLs that a caller chose, and the addresses to which they may lead.

A URL is taken apart once, by one strict grammar, so that what was checked is what is used. `app.kit.net` sends to it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Sequence[str]]

MAX_URL = 2048
PORTS = (443, 8443)
# A subset of what RFC 3986 allows on which no two parsers disagree: no user, no fragment, no backslash, no escapes in
# the host. Names in other scripts are given in their xn-- form.
_URL = re.compile(
    r"(?P<scheme>https?)://(?:\[(?P<ipv6>[0-9a-fA-F:.]+)\]|(?P<name>[A-Za-z0-9._-]{1,253}))"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<target>[/?](?:(?![\\#])[!-~])*)?"
)
# Of IPv6 only the global unicast range is routed; of that, and of IPv4, what leads elsewhere than it seems: relays
# and tunnels that carry an IPv4 address inside (6to4, Teredo), and blocks for special use.
_ROUTED = ipaddress.ip_network("2000::/3")
_SPECIAL = [
    ipaddress.ip_network(block)
    for block in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
    )
]  # fmt: skip


class Refused(Exception):
    """The URL is not one to which requests are sent. The text says why and quotes nothing of it."""


def lookup(name: str, port: int) -> list[str]:
    """The addresses of a name, as the system orders them. Raises OSError."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True)
class Policy:
    """Where requests may go besides public addresses over https.

    Attributes:
        networks: addresses that may be reached although they are not public.
        hosts: names whose addresses may be reached whatever they are, in lower case.
        timeout: seconds for the whole request.
        limit: most bytes that are read of an answer's body.
        trust: certificates; the system's when left out.
    """

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()
    timeout: float = 15.0
    limit: int = 2048
    resolve: Resolver = lookup
    trust: ssl.SSLContext | None = None

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Policy:
        """Read networks such as ``10.0.0.0/8`` and names. Raises ValueError."""
        networks: list[Network] = []
        hosts: set[str] = set()
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                if "/" in entry or not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", entry) or _ends_in_a_number(entry):
                    raise ValueError("must hold networks such as 10.0.0.0/8 and host names") from None
                hosts.add(entry.lower())
        return cls(tuple(networks), frozenset(hosts))

    def lets_in(self, host: str, address: Address) -> bool:
        """Whether an address that is not public may be reached."""
        return host in self.hosts or any(address in network for network in self.networks)


@dataclass(frozen=True)
class Target:
    """A URL in its parts, `host` in lower case and without brackets."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def usual(self) -> bool:
        """Whether scheme and port are those of the public internet."""
        return self.scheme == "https" and self.port in PORTS

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"


def check_url(url: str, policy: Policy) -> Target:
    """Take a URL apart and refuse it where that is certain without asking a name server.

    Raises:
        Refused: it is none that `post` would ever send to.
    """
    match = _URL.fullmatch(url) if len(url) <= MAX_URL else None
    if match is None:
        raise Refused("must be an https URL in plain ASCII, without user, password or fragment")
    host = (match["ipv6"] or match["name"]).lower()
    port = int(match["port"] or {"http": 80, "https": 443}[match["scheme"]])
    path = match["target"] or "/"
    target = Target(match["scheme"], host, port, path if path.startswith("/") else f"/{path}")
    if not 0 < port < 65536:
        raise Refused("has no possible port")
    address = _literal(host, is_ipv6=match["ipv6"] is not None)
    if address is not None:
        check_address(target, address, policy)
    elif not target.usual and not policy.networks and host not in policy.hosts:
        raise Refused(f"must be https, on port {' or '.join(map(str, PORTS))}")
    return target


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, and carries no other one inside."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _ROUTED:
        return False
    return address.is_global and not any(address in block for block in _SPECIAL)


def check_address(target: Target, address: Address, policy: Policy) -> None:
    """Refuse an address that the target may not be at."""
    if policy.lets_in(target.host, address):
        return
    if not is_public(address):
        raise Refused("leads to an address that is not public")
    if not target.usual:
        raise Refused(f"must be https, on port {' or '.join(map(str, PORTS))}")


def _literal(host: str, *, is_ipv6: bool) -> Address | None:
    """The address that a host is; none when it is a name. Raises Refused for addresses in any unusual form."""
    try:
        if is_ipv6:
            return ipaddress.IPv6Address(host)
        if _ends_in_a_number(host):
            # The system would also read 0x7f.1, 0177.0.0.1 and 2130706433 as addresses; here only four decimals are.
            return ipaddress.IPv4Address(host)
    except ValueError:
        raise Refused("has no possible host") from None
    return None


def _ends_in_a_number(host: str) -> bool:
    last = host.rstrip(".").rpartition(".")[2]
    return last.isdigit() or re.fullmatch(r"0[xX][0-9a-fA-F]*", last) is not None
