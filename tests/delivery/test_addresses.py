"""An address is public only if it is global unicast of the internet. No test connects."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery import read_target
from delivery.addresses import is_public
from errors import UploadUrlRefused

# Special addresses, many of which `ipaddress.is_global` of some version of Python calls public.
SPECIAL = {
    "this network": "0.0.0.0",
    "private use": "10.1.2.3",
    "shared by carriers": "100.64.0.1",
    "Alibaba Cloud's metadata": "100.100.100.200",
    "loopback": "127.0.0.53",
    "metadata of most clouds": "169.254.169.254",
    "credentials of AWS's containers": "169.254.170.2",
    "Azure's host": "168.63.129.16",
    "Oracle Cloud's metadata": "192.0.0.192",
    "NAT64's discovery": "192.0.0.170",
    "IETF's anycast": "192.0.0.9",
    "documentation 1": "192.0.2.1",
    "documentation 2": "198.51.100.1",
    "documentation 3": "203.0.113.1",
    "AS112": "192.31.196.1",
    "AMT": "192.52.193.1",
    "AS112, delegated": "192.175.48.1",
    "6to4 relay": "192.88.99.1",
    "benchmarks": "198.19.255.255",
    "multicast": "224.0.1.1",
    "multicast for documentation": "233.252.0.1",
    "administratively scoped multicast": "239.255.255.250",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "unspecified": "::",
    "IPv6 loopback": "::1",
    "IPv4-compatible loopback": "::127.0.0.1",
    "IPv4-compatible public address": "::8.8.8.8",
    "IPv4-mapped loopback": "::ffff:127.0.0.1",
    "IPv4-mapped metadata": "::ffff:169.254.169.254",
    "IPv4-mapped Azure host": "::ffff:168.63.129.16",
    "IPv4-translated": "::ffff:0:8.8.8.8",
    "NAT64 to a private address": "64:ff9b::10.0.0.1",
    "NAT64 to Azure's host": "64:ff9b::168.63.129.16",
    "NAT64 of local use": "64:ff9b:1::8.8.8.8",
    "discard-only": "100::1",
    "dummy prefix": "100:0:0:1::1",
    "Teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "IPv6 benchmarks": "2001:2::1",
    "AMT over IPv6": "2001:3::1",
    "ORCHID": "2001:10::1",
    "ORCHIDv2": "2001:20::1",
    "drones": "2001:30::1",
    "documentation over IPv6": "2001:db8::1",
    "more documentation": "3fff::1",
    "6to4 of a private address": "2002:a00:1::",
    "6to4 of a public address": "2002:808:808::1",
    "AS112 over IPv6": "2620:4f:8000::1",
    "unallocated": "4000::1",
    "segment routing": "5f00::1",
    "AWS's metadata": "fd00:ec2::254",
    "Google Cloud's metadata": "fd20:ce::254",
    "unique local": "fc00::1",
    "link-local": "fe80::1",
    "site-local": "fec0::1",
    "IPv6 multicast, global": "ff0e::1",
    "ISATAP, link-local": "fe80::5efe:8.8.8.8",
    "ISATAP of a private address": "2606:4700::5efe:10.0.0.1",
    "ISATAP of a private address, marked as unique": "2606:4700::200:5efe:10.0.0.1",
    "a scope": "2606:4700::1111%lo",
    "a link-local scope": "fe80::1%eth0",
}
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "52.216.0.1",
    "168.63.129.17",
    "192.0.1.1",
    "100.128.0.1",
    "223.255.255.255",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2003::1",
    "2600:1f70::1",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]
# What Python's own sockets read as a host's address, however it is written.
NOTATIONS = [
    "http://3232235521/x",  # 192.168.0.1
    "http://0xa83f8110/x",  # 168.63.129.16
    "http://168.63.33040/x",
    "http://0300.0.0.0300/x",  # 192.0.0.192
    "http://[0:0:0:0:0:ffff:a83f:8110]/x",
    "http://[2606:4700::1111%25lo]/x",
    "http://100.100.100.200./x",
]


@pytest.mark.parametrize("address", SPECIAL.values(), ids=SPECIAL)
def test_a_special_address_is_not_public_and_a_url_of_it_is_refused(address):
    assert not is_public(address)
    host = f"[{address.replace('%', '%25')}]" if ":" in address else address
    with pytest.raises(UploadUrlRefused) as caught:
        read_target(f"http://{host}/x", compressed=False)
    assert address not in str(caught.value)


@pytest.mark.parametrize("url", NOTATIONS)
def test_a_special_address_is_refused_in_any_notation(url):
    with pytest.raises(UploadUrlRefused):
        read_target(url, compressed=False)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address):
    assert is_public(address)
    host = f"[{address}]" if ":" in address else address
    assert not read_target(f"http://{host}/x", compressed=False).exempt


def test_what_is_no_address_is_not_public():
    for text in ("", "example.org", "1.2.3", "1.2.3.4.5", "::1::"):
        assert not is_public(text)


@given(st.ip_addresses(v=6))
def test_only_global_unicast_and_ipv4_in_its_two_forms_are_public(v6):
    carries = v6.ipv4_mapped is not None or v6 in ipaddress.ip_network("64:ff9b::/96")
    if is_public(str(v6)):
        assert carries or v6 in ipaddress.ip_network("2000::/3")


@given(st.ip_addresses(v=4))
def test_a_private_address_is_not_public_inside_any_wrapping(v4):
    number = int(v4)
    high, low = number >> 16, number & 0xFFFF
    wrapped = [
        f"::{v4}",
        f"::ffff:{v4}",
        f"::ffff:0:{v4}",
        f"64:ff9b::{v4}",
        f"64:ff9b:1::{v4}",
        f"2002:{high:x}:{low:x}::1",
        f"2606:4700::5efe:{v4}",
        f"2001:0:4136:e378:0:0:{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}",
    ]
    if not is_public(str(v4)):
        assert not any(map(is_public, wrapped))
