# SPDX-License-Identifier: GPL-2.0-only
"""Stages: the named places a packet passes, their meaning, and their order in each path.

A stage is independent of how it is attached. A path lists the stages of one direction in the order
in which a packet passes them, with the device each belongs to and the condition under which it is
passed at all.
"""

from __future__ import annotations

from typing import AbstractSet, Dict, Iterable, NamedTuple, Optional, Tuple

__all__ = [
    "DIRECTIONS",
    "ENDS",
    "PATHS",
    "STAGES",
    "TOTAL",
    "Step",
    "direction_of",
    "expected_next",
    "from_symbol",
    "meaning",
    "position",
]

#: Name of the pseudo stage at the end of a whole flight in pair tables.
TOTAL = "total"

#: Stage -> what it means that a packet was seen there.
STAGES: Dict[str, str] = {
    "dev.eth": "driver classified the frame",
    "dev.gro": "driver hands the frame over to GRO",
    "dev.rx": "core receive, after GRO",
    "dev.bklg": "queued to the backlog of a CPU",
    "dev.queue": "enters the transmit side of a device",
    "qd.in": "really queued in the qdisc",
    "qd.out": "taken from the qdisc",
    "qd.drop": "qdisc drops, with its own reason",
    "dev.xmit": "handed to the driver",
    "dev.ret": "the driver's answer",
    "free.drop": "buffer freed as a drop",
    "free.ok": "buffer freed as used",
    "mov.head": "buffer reallocated",
    "ovs.hook": "Open vSwitch caught the frame from a device",
    "ovs.in": "received by a port of Open vSwitch",
    "ovs.key": "flow key extracted",
    "ovs.lookup": "flow table lookup; again for each recirculation",
    "ovs.miss": "goes to user space: no flow, or a user space action",
    "ovs.upq": "copied to the queue of ovs-vswitchd",
    "ovs.back": "re-injected by ovs-vswitchd, in a new buffer",
    "ovs.exec": "actions of the flow start",
    "ovs.ct": "conntrack action starts",
    "ovs.ct_done": "conntrack action is done",
    "ovs.out": "output action",
    "ovs.send": "sent to a port of Open vSwitch",
    "ovs.int_tx": "local stack hands it to Open vSwitch by an internal port",
    "ovs.int_rx": "Open vSwitch hands it to the local stack by an internal port",
    "br.hook": "Linux bridge caught the frame from a device",
    "br.fwd": "Linux bridge forwards it to a port",
    "br.up": "Linux bridge hands it to the local stack",
    "l4.out": "TCP or UDP hands it down",
    "l3.xmit": "enters the IP layer",
    "l3.local_out": "netfilter hook LOCAL_OUT",
    "l3.out": "netfilter hook POSTROUTING",
    "l3.neigh": "after POSTROUTING and fragmentation, before the neighbour lookup",
    "l3.fwd": "routed on",
    "l3.in": "IP receive",
    "l3.deliver": "for this host, before netfilter hook INPUT and reassembly",
    "l4.in": "protocol receive",
    "sk.queue": "put on the queue of a socket",
    "sk.read": "read by the user",
    "vm.kick": "vhost worker starts a round of the guest's transmit queue",
    "vm.xmit": "put into the ring of the tap device",
    "vm.take": "taken from the ring of the tap device by vhost",
    "vm.copied": "copied to the memory of the guest or of QEMU",
}

#: How a flight can end -> what that means. ``started`` equals the sum of all ends.
ENDS: Dict[str, str] = {
    "completed": "reached the last stage of its path",
    "dropped": "did not go on in time, and its buffer was last seen freed as a drop",
    "elsewhere": "left only by devices that are not the end of the path, or went to others",
    "timed_out": "did not go on in time; nothing else was seen of it",
    "stale": "its buffer carries another packet: the end was not seen",
    "lost_track": "its buffer changed and it was not recognized again",
    "merged": "became part of another packet (GRO)",
    "open": "still under way when the counting ended",
}

#: Accepted word -> direction. Of a VM's packets, rx is what the host receives from the VM.
DIRECTIONS: Dict[str, str] = {
    "rx": "rx",
    "tx": "tx",
    "from-vm": "rx",
    "to-vm": "tx",
}


class Step(NamedTuple):
    """A stage in a path.

    :ivar stage: name of the stage.
    :ivar device: role of the device in this path: ``phy``, ``vnet``, ``int`` (internal port or
        bridge), ``out`` (any device that ends the path), or "" where there is none.
    :ivar when: empty if every packet of the path passes the stage; else the circumstances that
        must all hold: ``ovs``, ``bridge``, ``internal`` (by an internal port or the bridge's own
        device), ``miss``, ``ct``, ``queued``, ``gro``, ``vhost``, ``stack`` (deeper into the
        socket), ``local``.
    """

    stage: str
    device: str = ""
    when: Tuple[str, ...] = ()


def _steps(text: str) -> Tuple[Step, ...]:
    steps = []
    for word in text.split():
        place, _, when = word.partition("?")
        stage, _, device = place.partition("@")
        steps.append(Step(stage, device, tuple(when.split("+")) if when else ()))
    return tuple(steps)


_OVS = """
    ovs.in?ovs ovs.key?ovs ovs.lookup?ovs ovs.miss?ovs+miss ovs.upq?ovs+miss ovs.back?ovs+miss
    ovs.exec?ovs ovs.ct?ovs+ct ovs.ct_done?ovs+ct ovs.out?ovs ovs.send?ovs
"""
_FROM_HOST = """
    dev.queue@int?internal dev.xmit@int?internal ovs.int_tx@int?ovs+internal
"""
_TO_HOST = """
    ovs.int_rx@int?ovs+internal br.up@int?bridge+internal dev.bklg@int?ovs+internal
    dev.rx@int?internal
"""

#: Path -> its steps. Written as ``stage@device?circumstance+circumstance``.
PATHS: Dict[str, Tuple[Step, ...]] = {
    "sys.tx": _steps(
        "l4.out l3.xmit l3.local_out l3.out l3.neigh"
        + _FROM_HOST
        + _OVS
        + "br.fwd?bridge dev.queue@phy qd.in@phy?queued qd.out@phy?queued dev.xmit@phy"
    ),
    "sys.rx": _steps(
        "dev.eth@phy?gro dev.gro@phy?gro dev.rx@phy ovs.hook@phy?ovs br.hook@phy?bridge"
        + _OVS
        + _TO_HOST
        + "l3.in l3.deliver l4.in sk.queue?stack sk.read?stack"
    ),
    "vm.rx": _steps(
        "vm.kick@vnet?vhost dev.rx@vnet ovs.hook@vnet?ovs br.hook@vnet?bridge"
        + _OVS
        + "br.fwd?bridge"
        + _TO_HOST
        + "dev.queue@out qd.in@out?queued qd.out@out?queued dev.xmit@out"
    ),
    "vm.tx": _steps(
        "dev.eth@phy?gro dev.gro@phy?gro dev.rx@phy ovs.hook@phy?ovs br.hook@phy?bridge "
        "l3.out?local"
        + _FROM_HOST
        + _OVS
        + "br.fwd?bridge dev.queue@vnet qd.in@vnet?queued qd.out@vnet?queued dev.xmit@vnet "
        "vm.xmit@vnet vm.take@vnet?vhost vm.copied@vnet"
    ),
}


def meaning(stage: str) -> str:
    """One line on what ``stage`` is.

    :raises KeyError: no such stage.
    """
    return STAGES[stage]


def from_symbol(symbol: str, prefix: str = "NT_STAGE_") -> str:
    """Stage name of an enum member or a point: ``NT_STAGE_OVS_CT_DONE``, ``ovs_ct_done``."""
    if symbol.startswith(prefix):
        symbol = symbol[len(prefix) :]
    return symbol.lower().replace("_", ".", 1)


def direction_of(word: str) -> str:
    """``rx`` or ``tx`` of an accepted word.

    :raises ValueError: not a direction.
    """
    try:
        return DIRECTIONS[word]
    except KeyError:
        known = ", ".join(DIRECTIONS)
        raise ValueError(f"direction '{word}' is none of {known}") from None


def position(path: str, stage: str, device: str = "") -> int:
    """Where ``stage`` stands in ``path``, for sorting; unknown stages sort last, ``total`` after.

    :param device: role of the device, for a stage that a path passes twice; "" means the place
        that every packet passes, or the first.
    """
    steps = PATHS[path]
    found = [
        (bool(step.when), index)
        for index, step in enumerate(steps)
        if step.stage == stage and device in ("", step.device)
    ]
    return min(found)[1] if found else len(steps) + (stage == TOTAL)


def expected_next(
    path: str,
    stage: str,
    attached: AbstractSet[str],
    through: Iterable[str] = (),
    device: str = "",
) -> Optional[str]:
    """The stage that a packet last seen at ``stage`` should have reached next.

    A stage counts only if it is attached, and if its circumstances are known: named in
    ``through``, or those of ``stage`` itself. So a packet last seen in
    front of a switch is not said to miss a stage of a switch that it never meets.

    :param attached: stages that can be seen in this run.
    :param through: circumstances known to hold, for example ``("ovs",)`` when the device is a port
        of Open vSwitch.
    :param device: role of the device of ``stage``, for a stage that a path passes twice.
    :return: None if the path ends here, or if ``stage`` is not part of it.
    """
    steps = PATHS[path]
    at = position(path, stage, device)
    if at >= len(steps):
        return None
    known = {*through, *steps[at].when}
    for step in steps[at + 1 :]:
        if step.stage in attached and known.issuperset(step.when):
            return step.stage
    return None
