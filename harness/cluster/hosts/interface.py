"""Which interface and address of a host its rank speaks through."""

from __future__ import annotations

import socket

import psutil

from harness.errors import UsageError

LOOPBACK = "lo"


def check(interface: str | None, address: str | None) -> None:
    """Refuse an interface that is not there, or an address that is none of its own.

    Raises:
        UsageError: it names those that there are.
    """
    known = addresses()
    if interface is not None and not known.get(interface):
        raise UsageError.at("command line", "--interface", interface, f"one with an IPv4 address: {', '.join(known)}")
    if address is not None and interface_of(address) is None:
        allowed = ", ".join(each for own in known.values() for each in own)
        raise UsageError.at("command line", "--address", address, f"an IPv4 address of this host: {allowed}")
    if interface is not None and address is not None and interface_of(address) != interface:
        raise UsageError.at("command line", "--address", address, f"one of {interface}: {', '.join(known[interface])}")


def chosen(interface: str | None, address: str | None, seen: str) -> tuple[str, str]:
    """The interface and its address: those that were asked for, or those of the connection to rank 0.

    Args:
        seen: this host's address on that connection.

    Raises:
        UsageError: no interface has it.
    """
    check(interface, address)
    own = address or (addresses()[interface][0] if interface else seen)
    found = interface or interface_of(own)
    if found is None:
        raise UsageError.at("command line", "--interface", "none", f"one by name: none has the address {own}")
    return found, own


def addresses() -> dict[str, list[str]]:
    """The IPv4 addresses of each interface that has any."""
    every = psutil.net_if_addrs().items()
    found = {name: [each.address for each in own if each.family == socket.AF_INET] for name, own in every}
    return {name: own for name, own in found.items() if own}


def interface_of(address: str) -> str | None:
    """Whose address it is; the whole of 127.0.0.0/8 is the loopback's."""
    if address.startswith("127."):
        return LOOPBACK
    return next((name for name, own in addresses().items() if address in own), None)
