# SPDX-License-Identifier: GPL-2.0-only
"""ntools-udp-path: datagrams whole and in fragments, lost here or before."""

from __future__ import annotations

import socket
import struct
import time
from typing import Any, Dict, Sequence

from lab.expect import all_of, contains, equal
from lab.faults import NftDrop
from lab.latency import check_records
from lab.netns import Namespace
from lab.raw import RawSocket, ethernet, ipv4
from lab.routed import A_IP, B_IP, Routed, routed
from lab.scenario import scenario
from lab.tool import PATIENT, Result, Tool

_SMALL, _LARGE = 7001, 7002
_IP_MTU_DISCOVER, _PMTUDISC_DO, _PMTUDISC_DONT = 10, 2, 0
_COUNT = 23
_TRACKED = """\
table ip tracked {
  chain c {
    type filter hook forward priority 0;
    ct state new accept
  }
}
"""

_FORM = ("--format", "json", "--exit-code")


def _watch(place: Routed, *args: str) -> Tool:
    ends = ["--src-ip", A_IP, "--dst-ip", B_IP, "--rx-iface", "ha", "--tx-iface", "hb"]
    return Tool(place.h, "ntools-udp-path", [*ends, *_FORM, *PATIENT, *args])


def _send(ns: Namespace, port: int, size: int, discover: int = _PMTUDISC_DONT) -> None:
    with ns.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, discover)
        for number in range(_COUNT):
            sock.sendto(bytes([number]) * size, (B_IP, port))
            time.sleep(0.01)


def _both(place: Routed) -> None:
    """Datagrams in one packet, and in three fragments."""
    _send(place.a, _SMALL, 100)
    _send(place.a, _LARGE, 4000)


def _stats(result: Result, packets: int, **expected: int) -> Dict[str, Any]:
    """Totals of the forward direction: so many packets, and what became of datagrams."""
    (rec,) = [one for one in result.of_type("path_stats")
              if one["agg"] == "total" and one["direction"] == "forward"]  # fmt: skip
    equal(rec["holds"], True, "sum of the ends", rec)
    equal(rec["units_in"], packets, "packets", rec)
    names = ("datagrams_complete", "datagrams_dropped", "datagrams_partial",
             "datagrams_incomplete", "datagrams_open")  # fmt: skip
    wanted = {name: expected.get(name, 0) for name in (*names, "dropped", "timed_out", "open")}
    equal({name: rec[name] for name in wanted}, wanted, "ends", rec)
    equal(rec["datagrams"], sum(rec[name] for name in names), "datagrams", rec)
    equal(result.summary["lost"], {}, "lost")
    ok = set(expected) <= {"datagrams_complete"}
    equal(result.status, 0 if ok else 10, "exit status", result.stderr)
    check_records(result)
    return rec


def _run(place: Routed, *args: str, send: Any = _both, shown: Sequence[str] = ()) -> Result:
    with _watch(place, *args, *shown) as tool:
        send(place)
        time.sleep(1.8)
        return tool.stop()


_SHOWN = ("--drops", "--force")


@scenario()
def nothing_is_lost(lab: Any) -> None:
    with routed() as place:
        result = _run(place)
    rec = _stats(result, _COUNT, datagrams_complete=_COUNT)
    equal((rec["fragments_in"], rec["fragments_out"]), (3 * _COUNT, 3 * _COUNT), "fragments")


def _sent_by(ns: Namespace, dev: str) -> int:
    shown = ns.json(["ip", "-s", "-j", "link", "show", "dev", dev])
    return int(shown[0]["stats64"]["tx"]["packets"])


@scenario(requires=("nft",))
def last_fragments_dropped(lab: Any) -> None:
    """A rule of H that sees no ports: every fifth last fragment."""
    with routed() as place:
        match = "ip frag-off & 0x1fff == 0x172"
        rule = NftDrop(place.h, 5, "ingress:ha", match)
        before = _sent_by(place.h, "hb")
        result = _run(place, shown=_SHOWN)
        dropped = rule.counter()
        sent = _sent_by(place.h, "hb") - before
    equal(dropped, 4, "dropped by the rule")
    # Where connection tracking is on in every namespace, H keeps the others of such a datagram.
    alone = (sent - _COUNT - 3 * (_COUNT - dropped)) // dropped
    contains((0, 2), alone, "fragments that H sent on without the last")
    end, status = {
        0: ("datagrams_dropped", "internal_drop"),
        2: ("datagrams_partial", "internal_drop_partial"),
    }[alone]
    lab.log(sent, end)
    _stats(result, _COUNT, **{"datagrams_complete": _COUNT - dropped, end: dropped})
    found = result.of_type("datagram")
    equal(len(found), dropped, "datagrams shown")
    all_of(found, "datagram", status=status, dst_port=_LARGE, fragments_out=alone)


@scenario()
def fragments_missing_before(lab: Any) -> None:
    """The second of three fragments was never sent."""

    def send(place: Routed) -> None:
        payload = struct.pack(">HHHH", 4000, _LARGE, 8 + 4000, 0) + bytes(4000)
        to, own = (
            ns.json(["ip", "-j", "link", "show", "dev", dev])[0]["address"]
            for ns, dev in ((place.h, "ha"), (place.a, "ea"))
        )
        # Past the stack of A, which might keep them until all are there.
        with RawSocket(place.a, "ea") as sock:
            for ident in range(1, _COUNT + 1):
                for first, more in ((0, 1), (2960, 0)):
                    part = payload[first : first + 1480]
                    field = more << 13 | first >> 3
                    sock.send(ethernet(to, own, 0x0800, ipv4(A_IP, B_IP, 17, part, ident, field)))

    with routed() as place:
        result = _run(place, send=send, shown=_SHOWN)
    _stats(result, 0, datagrams_incomplete=_COUNT)
    all_of(result.of_type("datagram"), "datagram", status="incomplete_rx", datagram_bytes=4008)


@scenario(requires=("nft",))
def datagrams_without_an_identification(lab: Any) -> None:
    """A socket that finds its path MTU sends id 0 each time; no two of them are one."""
    with routed() as place:
        rule = NftDrop(place.h, 5, "forward", f"ip daddr {B_IP} udp dport {_SMALL}")
        result = _run(place, send=lambda p: _send(p.a, _SMALL, 100, _PMTUDISC_DO), shown=_SHOWN)
        dropped = rule.counter()
    equal(dropped, 4, "dropped by the rule")
    _stats(result, _COUNT, dropped=dropped)
    equal(len(result.of_type("packet")), dropped, "packets shown")


@scenario()
def one_port_of_two(lab: Any) -> None:
    with routed() as place:
        small = _run(place, "--dst-port", str(_SMALL))
        large = _run(place, "--dst-port", str(_LARGE))
    _stats(small, _COUNT)
    _stats(large, 0, datagrams_complete=_COUNT)


@scenario(requires=("conntrack",))
def reassembled_on_the_way(lab: Any) -> None:
    """Connection tracking makes one packet of three fragments, and three again."""
    with routed() as place:
        place.h.run(["nft", "-f", "-"], _TRACKED)
        result = _run(place)
    _stats(result, _COUNT, datagrams_complete=_COUNT)
