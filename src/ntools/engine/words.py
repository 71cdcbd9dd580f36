# SPDX-License-Identifier: GPL-2.0-only
"""Numbers of the flight engine's kernel side as the words of its records."""

from typing import Any, Dict, Iterable

from ntools.host.uplink import Topology
from ntools.model import stages

__all__ = ["by_number", "device_bits", "explain_names", "peer_kinds"]


def peer_kinds(topology: Topology) -> Dict[int, str]:
    """What each device is to the user: uplink, vm, host, other."""
    kinds = {device.ifindex: "other" for device in topology.others}
    for device in topology.others:
        if device.kind in ("tap", "macvtap"):
            kinds[device.ifindex] = "vm"
    kinds.update((device.ifindex, "uplink") for device in topology.uplinks)
    kinds.update((device.ifindex, "host") for device in topology.host_ports)
    kinds.update((device.ifindex, "vm") for device in topology.vm)
    return kinds


class _Names(Dict[int, str]):
    """Names by number; a number without one is shown as what it is."""

    def __missing__(self, number: int) -> str:
        return "unknown({})".format(number)


def by_number(obj: Any, enum: str, prefix: str) -> Dict[int, str]:
    """Value -> name of one of our own enums, without its prefix and in lower case."""
    numbers = obj.types.enum(enum)
    if enum == "nt_stage":
        return _Names((number, stages.from_symbol(name)) for name, number in numbers.items())
    return {
        number: name[len(prefix) :].lower()
        for name, number in numbers.items()
        if not name.endswith("_MAX")
    }


def explain_names(obj: Any) -> Dict[int, str]:
    """Index of the rejection counters -> name of the step."""
    steps = by_number(obj, "nt_explain", "NT_EXPLAIN_")
    base = next(number for number, name in steps.items() if name == "filter")
    names = {number: name for number, name in steps.items() if number < base}
    for number, name in by_number(obj, "nt_reject", "NT_REJECT_").items():
        names[base + number] = "filter_" + name
    return names


def device_bits(obj: Any, ifindexes: Iterable[int]) -> bytes:
    """The bits of devices: a program looks no device up whose bit is 0."""
    count = obj.types.enum("nt_flight_size")["NT_DEVICE_BITS"]
    bits = bytearray(count // 8)
    for ifindex in ifindexes:
        bits[ifindex % count // 8] |= 1 << ifindex % 8
    return bytes(bits)
