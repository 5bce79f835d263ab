"""Which IP addresses are of the public internet, by a table of our own.

`ipaddress.is_global` changes with Python's version, and calls some special ranges public. Here only
global unicast counts, less what the table names.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

# IANA IPv4 Special-Purpose Address Registry, and the IPv4 Multicast Address Space Registry.
# Anycast services in it (AS112, AMT) are public; no store is there.
_SPECIAL_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # shared by carriers; Alibaba Cloud's metadata: 100.100.100.200
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; metadata of most clouds: 169.254.169.254
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # IETF protocols; Oracle Cloud's metadata: 192.0.0.192
        "192.0.2.0/24",  # documentation (TEST-NET-1)
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",  # private use
        "192.175.48.0/24",  # AS112, by direct delegation
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation (TEST-NET-2)
        "203.0.113.0/24",  # documentation (TEST-NET-3)
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and the broadcast address
        # Not in the registry. Microsoft Learn, "What is IP address 168.63.129.16?": in Azure it is
        # the host's own, and gives machines their configuration.
        "168.63.129.16/32",
    )
)

# IANA IPv6 Address Space: the only block of global unicast addresses. Outside it are loopback,
# IPv4-compatible (::/96) and -translated addresses, NAT64 of local use (64:ff9b:1::/48),
# discard-only (100::/64), segment routing (5f00::/16), unique local (fc00::/7, with the metadata of
# AWS, fd00:ec2::254, and of Google Cloud, fd20:ce::254), link-local, site-local and multicast.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# IANA IPv6 Special-Purpose Address Registry: what of that block isn't unicast of the internet.
_SPECIAL_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocols: Teredo, benchmarks, AMT, AS112, ORCHID, drones
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, deprecated
        "2620:4f:8000::/48",  # AS112, by direct delegation
        "3fff::/20",  # documentation
    )
)
# An IPv4 address in the last 32 bits, reached as such: as the address of a socket (RFC 4291), or
# through a NAT64 (RFC 6052).
_CARRIES_V4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
# The 32 bits before an IPv4 address in an interface identifier of ISATAP (RFC 5214), whose routers
# tunnel to that address.
_ISATAP = (0x00005EFE, 0x02005EFE)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, however it is wrapped.

    An IPv4 address inside an IPv6 one counts as what is inside, where a host would reach it.
    An address with a scope (`%eth0`) belongs to a network of this machine.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return _is_public_v4(ip)
    if ip.scope_id is not None:
        return False
    inner = IPv4Address(int(ip) & 0xFFFFFFFF)
    if any(ip in network for network in _CARRIES_V4):
        return _is_public_v4(inner)
    if ip not in _GLOBAL_UNICAST or any(ip in network for network in _SPECIAL_V6):
        return False
    return not _is_isatap(ip) or _is_public_v4(inner)


def _is_public_v4(ip: IPv4Address) -> bool:
    return not any(ip in network for network in _SPECIAL_V4)


def _is_isatap(ip: IPv6Address) -> bool:
    return int(ip) >> 32 & 0xFFFFFFFF in _ISATAP
