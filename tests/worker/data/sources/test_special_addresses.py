"""What counts as public: nothing that a registry of IANA sets apart, in whatever form it comes."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.worker.data.sources.special_addresses import (
    IPV4_SPECIAL,
    IPV6_GLOBAL_UNICAST,
    IPV6_SPECIAL,
    is_public,
)

#: Every row of both special-purpose registries, and of the address spaces what is not unicast.
V4_BLOCKS = """
0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
192.0.0.0/29 192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24
192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.88.99.2/32 192.168.0.0/16 192.175.48.0/24
198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32
"""
V6_BLOCKS = """
::1/128 ::/128 ::ffff:0:0/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32
2001:1::1/128 2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28
2001:20::/28 2001:30::/28 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7
fe80::/10 fec0::/10 ff00::/8 ::/96 200::/7 400::/6 800::/5 1000::/4 4000::/3 6000::/3 8000::/3
a000::/3 c000::/3 e000::/4 f000::/5 f800::/6 fe00::/9
"""
v4 = st.ip_addresses(v=4)


@pytest.mark.parametrize("block", (V4_BLOCKS + V6_BLOCKS).split())
def test_no_address_of_a_block_that_is_set_apart_is_public(block):
    network = ipaddress.ip_network(block)
    middle = network[network.num_addresses // 2]
    for address in (network[0], middle, network[-1]):
        assert not is_public(str(address))


@pytest.mark.parametrize("block", sorted({**IPV4_SPECIAL, **IPV6_SPECIAL}))
def test_the_neighbours_of_a_block_are_as_public_as_their_own(block):
    """No block is larger than it should be."""
    blocks = {**IPV4_SPECIAL, **IPV6_SPECIAL}
    network = ipaddress.ip_network(block)
    for number in (int(network[0]) - 1, int(network[-1]) + 1):
        if not 0 <= number < 2**network.max_prefixlen:
            continue
        beside = type(network[0])(number)
        is_special = any(beside in ipaddress.ip_network(one) for one in blocks)
        is_unicast = beside.version == 4 or beside in IPV6_GLOBAL_UNICAST
        assert is_public(str(beside)) == (is_unicast and not is_special)


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "93.184.216.34",
        "2606:2800:220:1::1",
        "2001:4860:4860::8888",
        "64:ff9b::5db8:d822",
    ],
)
def test_ordinary_hosts_are_public(address):
    assert is_public(address)


@given(v4)
def test_an_address_in_another_form_is_no_more_public(address):
    number = int(address)
    forms = {
        "mapped": f"::ffff:{address}",
        "compatible": f"::{address}",
        "6to4": str(ipaddress.IPv6Address((0x2002 << 112) | (number << 80))),
        "Teredo": str(ipaddress.IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF))),
        "local translation": str(ipaddress.IPv6Address((0x0064FF9B0001 << 80) | number)),
    }
    assert [form for form, text in forms.items() if is_public(text)] == []
    assert is_public(f"64:ff9b::{address}") == is_public(str(address))


@given(v4 | st.ip_addresses(v=6))
def test_whatever_python_calls_private_is_not_public(address):
    if is_public(str(address)) and address not in ipaddress.ip_network("64:ff9b::/96"):
        assert not address.is_private
        assert not address.is_multicast
        assert not address.is_reserved


def test_the_zone_of_an_address_changes_nothing():
    assert not is_public("fe80::1%eth0")
    assert is_public("2606:2800:220:1::1%1")
