"""Which hosts may be asked for images, and which addresses never: a name says nothing of where it leads."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_ENTRY = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<any>\*\.)?(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}))?"
)
_PORTS = {"https": 443, "http": 80}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""RFC 6052: an IPv4 address in its last 32 bits, to which a gateway passes on."""
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("192.0.0.0/24", "100.64.0.0/10", "198.18.0.0/15", "168.63.129.16/32"),
        *("64:ff9b:1::/48", "2001::/23", "3fff::/20"),
    )
)
"""Metadata of Oracle's cloud and of Azure are among them, in the midst of public addresses; of the others, versions of
Python think differently."""


@dataclass(frozen=True)
class AllowedHost:
    """An entry of the list of hosts.

    Attributes:
        scheme: "https" or "http".
        host: In small letters, IPv6 without brackets.
        port: Of TCP.
        with_below: Names below `host` are meant, and not itself.
    """

    scheme: str
    host: str
    port: int
    with_below: bool

    @classmethod
    def read(cls, text: str) -> AllowedHost:
        """Return the entry that a text means: a host for HTTPS, or with scheme and port.

        Raises:
            ValueError: It is none.
        """
        match = _ENTRY.fullmatch(text.strip().lower())
        if match is None or not 0 < int(match["port"] or 1) < 65536:
            raise ValueError(
                f"{text!r} is no host; write images.example.com, *.example.com, or http://10.0.0.5:8080 with scheme "
                "and port"
            )
        scheme = match["scheme"] or "https"
        return cls(scheme, plain_host(match["host"]), int(match["port"] or _PORTS[scheme]), match["any"] is not None)

    def allows(self, scheme: str, host: str, port: int) -> bool:
        """Return whether a URL's place is meant."""
        is_host = host.endswith(f".{self.host}") if self.with_below else host == self.host
        return is_host and (scheme, port) == (self.scheme, self.port)


def plain_host(host: str) -> str:
    """Return a host as it is compared: in small letters, without brackets and the root's dot."""
    return host.lower().strip("[]").rstrip(".")


def port_of(scheme: str, port: int | None) -> int:
    """Return the port that a URL means."""
    return _PORTS[scheme] if port is None else port


def is_reachable(text: str, networks: Sequence[Network]) -> bool:
    """Return whether an address may be connected to: a public one, or one of the networks that were listed.

    Args:
        text: As a resolver returns it.
        networks: Listed by the operator.
    """
    address = _meant(ipaddress.ip_address(text.partition("%")[0]))
    if any(address.version == network.version and address in network for network in networks):
        return True
    is_special = address.is_multicast or address.is_reserved or getattr(address, "is_site_local", False)
    is_never = any(address.version == network.version and address in network for network in _NEVER)
    return address.is_global and not (is_special or is_never)


def _meant(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one stands for, where it stands for one."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
