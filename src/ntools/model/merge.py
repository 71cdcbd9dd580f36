# SPDX-License-Identifier: GPL-2.0-only
"""Two hosts that saw the same packets: which of them, or what lies between, lost them.

A is the host of the sender, B that of the receiver. What both saw is put together by what the
packets say: addresses, identifier and sequence of an echo; addresses, ports, length and
identification of a datagram, the k-th of its kind at A with the k-th at B.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

__all__ = [
    "ECHO_VERDICTS", "LEGS", "POINTS", "UNIT_VERDICTS", "Clock", "Host", "Merge", "Unit", "Way",
    "clock_of", "count", "merge",
]  # fmt: skip

#: Verdict -> what it means, in the order of the way.
ECHO_VERDICTS: Dict[str, str] = {
    "a_internal_req": "the request was lost inside A",
    "network_a_to_b": "the request was lost between A and B",
    "b_internal_req": "the request was lost inside B",
    "receiver_no_reply": "the receiver, behind B, did not reply",
    "b_internal_rep": "the reply was lost inside B",
    "network_b_to_a": "the reply was lost between B and A",
    "a_internal_rep": "the reply was lost inside A",
    "complete": "the reply left A",
    "undecided": "a side lost records, or its run ended",
    "only_b": "A did not see it come in",
    "edge": "too near to the beginning or the end of a recording",
}
#: The same of packets that are not answered.
UNIT_VERDICTS: Dict[str, str] = {
    "a_internal": "lost inside A",
    "network": "lost between A and B",
    "b_internal": "lost inside B",
    "complete": "left B",
    "undecided": "a side lost records, or its run ended",
    "only_b": "A did not see it come in",
    "edge": "too near to the beginning or the end of a recording",
}
#: Verdicts that say where something was lost.
LOST = frozenset(ECHO_VERDICTS) | frozenset(UNIT_VERDICTS)
LOST -= {"complete", "undecided", "only_b", "edge"}

#: Points both hosts count at, in the order of the forward direction.
POINTS = ("a_in", "a_out", "b_in", "b_out")
#: Where something can be lost -> between which points, of the forward and of the reply direction.
LEGS: Dict[str, Tuple[Tuple[str, str], Tuple[str, str]]] = {
    "a_internal": (("a_in", "a_out"), ("a_in", "a_out")),
    "network": (("a_out", "b_in"), ("b_out", "a_in")),
    "b_internal": (("b_in", "b_out"), ("b_in", "b_out")),
}

Record = Mapping[str, Any]


class Host(NamedTuple):
    """What one host recorded.

    :ivar units: records of single packets or echoes.
    :ivar offset_ns: from its monotonic to its wall clock.
    :ivar begun_ns, ended_ns: of the run, by its wall clock.
    :ivar lost: why single records may be missing; empty: none is.
    """

    units: Sequence[Record]
    offset_ns: int
    begun_ns: int
    ended_ns: int
    lost: Mapping[str, int]

    def wall(self, unit: Record, stage: str) -> Optional[int]:
        """Wall time of a stage; None if it was not reached."""
        found = unit["stages"].get(stage)
        return None if found is None else int(found["ts_ns"]) + self.offset_ns


class Clock(NamedTuple):
    """How far the clock of B is ahead of that of A: the bounds that packets give.

    :ivar low_ns, high_ns: None where no packet went that way.
    """

    low_ns: Optional[int]
    high_ns: Optional[int]

    @property
    def offset_ns(self) -> Optional[int]:
        """The middle; None without both bounds."""
        if self.low_ns is None or self.high_ns is None:
            return None
        return (self.low_ns + self.high_ns) // 2

    @property
    def error_ns(self) -> Optional[int]:
        """Half the distance of the bounds."""
        if self.low_ns is None or self.high_ns is None:
            return None
        return (self.high_ns - self.low_ns + 1) // 2


class Way(NamedTuple):
    """What was counted of one direction.

    :ivar segs, bytes: segments and bytes of payload that passed each of :data:`POINTS`.
    :ivar lost_segs, lost_bytes: on each of :data:`LEGS`; negative: more arrived than had left.
    """

    direction: str
    segs: Dict[str, int]
    bytes: Dict[str, int]
    lost_segs: Dict[str, int]
    lost_bytes: Dict[str, int]


class Unit(NamedTuple):
    """One echo or packet, as each side saw it."""

    a: Optional[Record]
    b: Optional[Record]
    verdict: str


class Merge(NamedTuple):
    """The result: every unit, how many of each verdict, and the clocks."""

    units: List[Unit]
    counts: "Counter[str]"
    clock: Clock
    echoes: bool


def merge(a: Host, b: Host, guard_ns: int = 0) -> Merge:
    """Put together what two hosts saw.

    :param guard_ns: units that near to the edge of either run are not judged.
    """
    echoes = any("status" in unit and "icmp_seq" in unit for unit in (*a.units, *b.units))
    pairs = list(_pairs(a.units, b.units))
    clock = clock_of(a, b, [(x, y) for x, y in pairs if x is not None and y is not None])
    offset = clock.offset_ns or 0
    begun = max(a.begun_ns, b.begun_ns - offset) + guard_ns
    ended = min(a.ended_ns, b.ended_ns - offset) - guard_ns
    judge = _judge_echo if echoes else _judge_packet
    units = []
    for one, other in pairs:
        at = a.wall(one, _FIRST) if one is not None else None
        if at is None and other is not None:
            seen = b.wall(other, _FIRST)
            at = None if seen is None else seen - offset
        if at is not None and not begun <= at <= ended:
            verdict = "edge"
        elif one is None:
            verdict = "only_b"
        else:
            verdict = judge(one, other)
            if verdict != "complete" and _doubtful(verdict, one, other, a, b):
                verdict = "undecided"
        units.append(Unit(one, other, verdict))
    return Merge(units, Counter(unit.verdict for unit in units), clock, echoes)


_FIRST = "req_rx"


def count(a: Iterable[Record], b: Iterable[Record]) -> List[Way]:
    """What two hosts counted of flows that are cut differently on each, as those of TCP are.

    :param a, b: ``path_stats`` of whole runs, one per direction.
    """
    found = {("a", rec["direction"]): rec for rec in a}
    found.update({("b", rec["direction"]): rec for rec in b})
    ways = []
    for number, direction in enumerate(("forward", "reply")):
        if ("a", direction) not in found or ("b", direction) not in found:
            continue
        sums: List[Dict[str, int]] = []
        for what in ("segs", "bytes"):
            at = {
                point: int(found[point[0], direction]["{}_{}".format(what, point[2:])])
                for point in POINTS
            }
            legs = {leg: ends[number] for leg, ends in LEGS.items()}
            sums += [at, {leg: at[first] - at[last] for leg, (first, last) in legs.items()}]
        segs, lost_segs, octets, lost_bytes = sums
        ways.append(Way(direction, segs, octets, lost_segs, lost_bytes))
    return ways


def clock_of(a: Host, b: Host, both: Iterable[Tuple[Record, Record]]) -> Clock:
    """Bounds of the difference of the clocks: no packet arrives before it was sent."""
    high: Optional[int] = None
    low: Optional[int] = None
    for one, other in both:
        sent, came = a.wall(one, "req_tx"), b.wall(other, "req_rx")
        if sent is not None and came is not None:
            high = came - sent if high is None else min(high, came - sent)
        sent, came = b.wall(other, "rep_tx"), a.wall(one, "rep_rx")
        if sent is not None and came is not None:
            low = sent - came if low is None else max(low, sent - came)
    return Clock(low, high)


def _key(unit: Record, left: bool = False) -> Tuple[Any, ...]:
    """What a packet says of itself; `left`: as it left, where it was translated."""
    nat = (unit.get("nat") or {}) if left else {}
    src, dst = nat.get("src_ip", unit.get("src_ip")), nat.get("dst_ip", unit.get("dst_ip"))
    if "icmp_seq" in unit:
        return src, dst, nat.get("icmp_id", unit.get("icmp_id")), unit["icmp_seq"]
    return (
        src, dst, unit.get("src_port"), unit.get("dst_port"), unit.get("protocol"),
        unit.get("ip_id"), unit.get("len_bytes", unit.get("datagram_bytes")),
    )  # fmt: skip


def _pairs(
    a: Sequence[Record], b: Sequence[Record]
) -> Iterable[Tuple[Optional[Record], Optional[Record]]]:
    """The k-th of its kind at A with the k-th at B, in the order of A; then what only B saw."""
    waiting: Dict[Tuple[Any, ...], List[Record]] = defaultdict(list)
    for unit in sorted(b, key=_time):
        waiting[_key(unit)].append(unit)
    for unit in sorted(a, key=_time):
        found = waiting.get(_key(unit, left=True))
        yield unit, (found.pop(0) if found else None)
    for rest in waiting.values():
        for unit in rest:
            yield None, unit


def _time(unit: Record) -> int:
    return int(unit["ts_ns"])


def _judge_echo(one: Record, other: Optional[Record]) -> str:
    near = one["stages"]
    far = {} if other is None else other["stages"]
    for verdict, missing in (
        ("a_internal_req", "req_tx" not in near),
        ("network_a_to_b", "req_rx" not in far),
        ("b_internal_req", "req_tx" not in far),
        ("receiver_no_reply", "rep_rx" not in far),
        ("b_internal_rep", "rep_tx" not in far),
        ("network_b_to_a", "rep_rx" not in near),
        ("a_internal_rep", "rep_tx" not in near),
    ):
        if missing:
            return verdict
    return "complete"


def _judge_packet(one: Record, other: Optional[Record]) -> str:
    if "req_tx" not in one["stages"]:
        return "a_internal"
    if other is None:
        return "network"
    return "complete" if "req_tx" in other["stages"] else "b_internal"


def _doubtful(verdict: str, one: Record, other: Optional[Record], a: Host, b: Host) -> bool:
    """Whether what is missing may be missing because it was not recorded."""
    if "timeout" in (one.get("status"), (other or {}).get("status")):
        return True
    if verdict.startswith("a_internal"):
        return False  # A itself saw it stop
    return bool(b.lost) if other is None else bool(a.lost)
