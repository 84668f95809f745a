"""Which network interface ranks talk to each other through.

Gloo and NCCL guess: gloo takes the address that the host's name resolves to, which is a loopback
one on a stock Debian or Ubuntu. Towards the rendezvous is the interface that other hosts reach.
"""

import os
import socket

import psutil

_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def use_interface_towards(address: str) -> None:
    """Make gloo and NCCL use the way to ``address``, where an operator has not chosen another."""
    name = interface_towards(address)
    for variable in _VARIABLES:
        if name is not None:
            os.environ.setdefault(variable, name)


def interface_towards(address: str) -> str | None:
    """Return the name of the interface that packets to ``address`` leave through, if there is one.

    Nothing is sent: connecting a datagram socket only looks the route up.
    """
    family, _, _, _, target = socket.getaddrinfo(address, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(target)
        except OSError:
            return None
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == own for found in addresses):
            return name
    return None
