"""Which hosts and addresses are asked for images."""

from __future__ import annotations

import ipaddress

import pytest

from serving.access.hosts import AllowedHost, is_reachable
from serving.access.settings import RemoteSettings

PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
PRIVATE = [
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
    *("169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "192.0.2.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::7f00:1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    *("2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:db8::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "fec0::1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_reached(address: str) -> None:
    assert is_reachable(address, ())


@pytest.mark.parametrize("address", PRIVATE)
def test_private_special_and_metadata_addresses_are_not_in_whatever_form(address: str) -> None:
    assert not is_reachable(address, ())


def test_a_private_network_that_is_listed_is_reached_and_no_other() -> None:
    networks = (ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/64"))
    assert is_reachable("10.1.2.3", networks)
    assert is_reachable("::ffff:10.1.2.3", networks)
    assert is_reachable("fd00::5", networks)
    assert not is_reachable("10.2.0.1", networks)
    assert not is_reachable("127.0.0.1", networks)


@pytest.mark.parametrize(
    ("entry", "allowed", "refused"),
    [
        ("a.example.com", ("https", "a.example.com", 443), ("http", "a.example.com", 80)),
        ("a.example.com", ("https", "a.example.com", 443), ("https", "b.a.example.com", 443)),
        ("a.example.com", ("https", "a.example.com", 443), ("https", "a.example.com.evil.com", 443)),
        ("a.example.com", ("https", "a.example.com", 443), ("https", "xa.example.com", 443)),
        ("a.example.com", ("https", "a.example.com", 443), ("https", "a.example.com", 8443)),
        ("*.example.com", ("https", "x.y.example.com", 443), ("https", "example.com", 443)),
        ("*.example.com", ("https", "x.example.com", 443), ("https", "xexample.com", 443)),
        ("HTTP://A.example.com:8080", ("http", "a.example.com", 8080), ("https", "a.example.com", 8080)),
        ("https://[2001:DB8::1]:8443", ("https", "2001:db8::1", 8443), ("https", "2001:db8::2", 8443)),
    ],
)
def test_an_entry_means_scheme_host_and_port(
    entry: str, allowed: tuple[str, str, int], refused: tuple[str, str, int]
) -> None:
    host = AllowedHost.read(entry)
    assert host.allows(*allowed)
    assert not host.allows(*refused)


@pytest.mark.parametrize("entry", ["", "*", "ftp://a", "https://a/path", "a b", "a:0", "a:99999", "user@a", "*.*.a"])
def test_what_is_no_host_is_refused_as_a_setting(entry: str) -> None:
    with pytest.raises(ValueError, match="is no host"):
        RemoteSettings(hosts=("good.example.com", entry))
