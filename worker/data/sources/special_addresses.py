"""Addresses that are not on the public internet, by the registries of IANA (as of October 2025).

The tables have the registries' names. A block within a listed one is left out, and those that can
be reached are listed too: they are for protocols, and nobody keeps files there.
``ipaddress.is_global`` is no substitute: in Python 3.11 it is true of several of these blocks.
"""

import ipaddress
from collections.abc import Iterable, Mapping

#: iana-ipv4-special-registry, and ipv4-address-space what is not unicast.
IPV4_SPECIAL: Mapping[str, str] = {
    "0.0.0.0/8": "This network",
    "10.0.0.0/8": "Private-Use",
    "100.64.0.0/10": "Shared Address Space",
    "127.0.0.0/8": "Loopback",
    "169.254.0.0/16": "Link Local",
    "172.16.0.0/12": "Private-Use",
    "192.0.0.0/24": "IETF Protocol Assignments",
    "192.0.2.0/24": "Documentation (TEST-NET-1)",
    "192.31.196.0/24": "AS112-v4",
    "192.52.193.0/24": "AMT",
    "192.88.99.0/24": "Deprecated (6to4 Relay Anycast)",
    "192.168.0.0/16": "Private-Use",
    "192.175.48.0/24": "Direct Delegation AS112 Service",
    "198.18.0.0/15": "Benchmarking",
    "198.51.100.0/24": "Documentation (TEST-NET-2)",
    "203.0.113.0/24": "Documentation (TEST-NET-3)",
    "224.0.0.0/4": "Multicast",
    "240.0.0.0/4": "Reserved",
    "255.255.255.255/32": "Limited Broadcast",
}
#: iana-ipv6-special-registry; not its "IPv4-IPv6 Translat.", see below.
IPV6_SPECIAL: Mapping[str, str] = {
    "::/128": "Unspecified Address",
    "::1/128": "Loopback Address",
    "::ffff:0:0/96": "IPv4-mapped Address",
    "64:ff9b:1::/48": "IPv4-IPv6 Translat.",
    "100::/64": "Discard-Only Address Block",
    "100:0:0:1::/64": "Dummy IPv6 Prefix",
    "2001::/23": "IETF Protocol Assignments",
    "2001:db8::/32": "Documentation",
    "2002::/16": "6to4",
    "2620:4f:8000::/48": "Direct Delegation AS112 Service",
    "3fff::/20": "Documentation",
    "5f00::/16": "Segment Routing (SRv6) SIDs",
    "fc00::/7": "Unique-Local",
    "fe80::/10": "Link-Local Unicast",
}
#: ipv6-address-space: "Global Unicast". All the rest is reserved, local or multicast.
IPV6_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
#: Leads to the IPv4 address in it (RFC 6052). Networks without IPv4 reach the hosts that have no
#: IPv6 this way.
IPV6_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")

_V4 = [ipaddress.IPv4Network(block) for block in IPV4_SPECIAL]
_V6 = [ipaddress.IPv6Network(block) for block in IPV6_SPECIAL]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet.

    >>> [is_public(address) for address in ("1.1.1.1", "10.0.0.1", "::ffff:1.1.1.1")]
    [True, False, False]
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return not _is_in(found, _V4)
    if found in IPV6_TRANSLATED:
        return not _is_in(ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF), _V4)
    return found in IPV6_GLOBAL_UNICAST and not _is_in(found, _V6)


def _is_in(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    blocks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network],
) -> bool:
    return any(address in block for block in blocks)
