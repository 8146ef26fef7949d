"""Which network addresses may be dialled. Knows addresses and sockets, not URLs or names."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from jobs.config import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Exemptions = frozenset[tuple[Address, int]]  # exactly one address and one port each

# IANA IPv4 and IPv6 special-purpose address registries, written out because `is_global` differs between Python
# releases. Azure's platform service answers at a public address that every one of its machines reaches.
_BLOCKED_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
            "168.63.129.16/32",
        ),
    )
)
# Only 2000::/3 is global unicast: loopback, mapped, compatible, NAT64 (64:ff9b::/96), local and multicast lie outside.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
# Protocol assignments with Teredo and ORCHID, documentation, 6to4, documentation (RFC 9637).
_BLOCKED_V6 = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))

# Without its brackets `::1:80` would be one address too, and a zone would never be that of an address dialled.
_EXEMPTION = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})")


class BlockedAddress(OSError):
    """An address that must not be dialled."""


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet: global, unicast and no tunnel into another range."""
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not any(address in network for network in _BLOCKED_V4)
    if address.scope_id is not None:  # a zone is of a link, and only its machine knows what is there
        return False
    return address in _GLOBAL_V6 and address.is_global and not any(address in network for network in _BLOCKED_V6)


def parse_exemptions(texts: Iterable[str]) -> Exemptions:
    """`address:port` and `[address]:port` texts as exemptions; raises ConfigError for anything else."""
    found = set()
    for text in texts:
        match = _EXEMPTION.fullmatch(text)
        try:
            if match is None or not 0 < int(match[3]) < 65536:
                raise ValueError("no port, or no brackets around an IPv6 address")
            found.add((ipaddress.IPv6Address(match[1]) if match[1] else ipaddress.IPv4Address(match[2]), int(match[3])))
        except ValueError as e:
            raise ConfigError(
                f"crawl.allow_addresses: {text!r} is not one IP address with a port, such as 127.0.0.1:8080"
            ) from e
    return frozenset(found)


def hosts_without_contact(exemptions: Exemptions) -> frozenset[str]:
    """Hosts, as URLs have them, that may be crawled without a contact address: the exemptions that are loopback."""
    hosts = set()
    for address, port in exemptions:
        if address.is_loopback:
            for name in ("localhost", f"[{address}]" if address.version == 6 else str(address)):
                hosts |= {f"{name}:{port}"} | ({name} if port in (80, 443) else set())
    return frozenset(hosts)


@dataclass
class Dialled:
    """What a request tried to dial: how often it was let, and why it was not."""

    n_allowed: int = 0
    refused: list[str] = field(default_factory=list)


# Set by whoever makes a request: aiohttp folds several failed dials into one plain OSError.
dialled: ContextVar[Dialled] = ContextVar("dialled")


def checked_socket(exemptions: Exemptions, *, public: bool) -> Callable[[Any], socket.socket]:
    """A socket factory that sees every address really dialled, and raises BlockedAddress for one that may not be.

    With `public` false only the exemptions may be dialled.
    """

    def make(address_info: Any) -> socket.socket:
        family, type_, protocol, _, (host, port, *_rest) = address_info
        address, without_zone = ipaddress.ip_address(host), ipaddress.ip_address(host.partition("%")[0])
        seen = dialled.get(Dialled())
        if (without_zone, port) not in exemptions and not (public and is_public(address)):
            reason = f"{address} port {port} " + ("is not public" if public else "needs crawl.contact to be set")
            seen.refused.append(reason)
            raise BlockedAddress(reason)
        seen.n_allowed += 1
        return socket.socket(family=family, type=type_, proto=protocol)

    return make
