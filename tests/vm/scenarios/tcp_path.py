# SPDX-License-Identifier: GPL-2.0-only
"""ntools-tcp-path: what came in, what left, and what was lost between, in each direction."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Dict

from lab.expect import all_of, at_least, equal
from lab.faults import NftDrop
from lab.latency import check_records
from lab.replay import replay, replayed_equal
from lab.routed import A_IP, A_IP6, B_IP, B_IP6, Routed, Stream, routed
from lab.scenario import scenario
from lab.tool import PATIENT, Result, Tool

_SIZE = 5_000_000
_FORM = ("--format", "json", "--exit-code")


def _watch(place: Routed, *args: str, dst: str = B_IP) -> Tool:
    src = A_IP6 if ":" in dst else A_IP
    ends = ["--src-ip", src, "--dst-ip", dst, "--rx-iface", "ha", "--tx-iface", "hb"]
    return Tool(place.h, "ntools-tcp-path", [*ends, *_FORM, *PATIENT, *args])


def _stats(result: Result, **lost: int) -> Dict[str, Dict[str, Any]]:
    """Totals by direction: they add up, and nothing was lost but what is named."""
    found = {rec["direction"]: rec for rec in result.of_type("path_stats") if rec["agg"] == "total"}
    equal(sorted(found), ["forward", "reply"], "directions")
    for direction, rec in found.items():
        equal(rec["holds"], True, "sum of the ends", rec)
        equal(rec["units_in"], rec["started"], "followed", rec)
        equal(rec["units_out"], rec["completed"] + rec["split_out"], "left", rec)
        equal((rec["timed_out"], rec["open"]), (0, 0), "without an end", rec)
        equal(rec["dropped"], lost.get(direction, 0), f"{direction}: dropped", rec)
    equal(result.summary["lost"], {}, "lost")
    equal(result.status, 10 if lost else 0, "exit status", result.stderr)
    check_records(result)
    return found


@scenario()
def nothing_is_lost(lab: Any) -> None:
    with routed() as place, _watch(place) as tool:
        sent = place.stream(_SIZE)
        time.sleep(1.5)
        result = tool.stop()
    _all_through(sent, result)


@scenario(requires=("ipv6",))
def nothing_is_lost_ipv6(lab: Any) -> None:
    with routed(ipv6=True) as place, _watch(place, dst=B_IP6) as tool:
        sent = place.stream(_SIZE, dst=B_IP6)
        time.sleep(1.5)
        result = tool.stop()
    _all_through(sent, result)


def _all_through(sent: Stream, result: Result) -> None:
    equal(sent.received, _SIZE, "received")
    found = _stats(result)
    forward, reply = found["forward"], found["reply"]
    equal(forward["bytes_in"], forward["bytes_out"], "bytes in and out")
    at_least(forward["bytes_in"], _SIZE, "bytes")
    equal((forward["syn"], reply["syn"]), (1, 1), "connections")
    equal((forward["units_in"], reply["units_in"]), (forward["units_out"], reply["units_out"]), "")
    times = {rec["labels"]["direction"]: rec["count"] for rec in result.of_type("hist")
             if rec["agg"] == "total"}  # fmt: skip
    equal(times["forward"], forward["completed"], "times of all")


@scenario(requires=("nft",))
def dropped_inside(lab: Any) -> None:
    """Every 20th packet, by a rule of H: each is named, with function and reason."""
    with routed() as place:
        rule = NftDrop(place.h, 20, "forward", f"ip daddr {B_IP} tcp dport 7000")
        with _watch(place, "--drops", "--force") as tool:
            sent = place.stream(_SIZE // 5)
            time.sleep(2)
            result = tool.stop()
        dropped = rule.counter()
    equal(sent.received, _SIZE // 5, "received")
    at_least(dropped, 1, "dropped by the rule")
    found = _stats(result, forward=dropped)
    at_least(found["forward"]["retrans_before"], 1, "came again without having left")
    records = result.of_type("packet")
    equal(len(records), dropped, "packets shown")
    all_of(records, "packet", end="dropped", direction="forward", dst_ip=B_IP)
    caller = "nf_hook_slow" if lab.kernel < (6, 1) else "nft_do_chain"
    for rec in records:
        evidence = rec["evidence"]
        equal((evidence["reason"], evidence["caller"]), ("netfilter_drop", caller), "by", rec)


@scenario(requires=("nft",))
def dropped_outside(lab: Any) -> None:
    """The same at the receiver: nothing is lost here, but packets come again after they left."""
    with routed() as place:
        rule = NftDrop(place.b, 20, "input", "tcp dport 7000")
        with _watch(place) as tool:
            sent = place.stream(_SIZE // 5)
            time.sleep(1.5)
            result = tool.stop()
        dropped = rule.counter()
    equal(sent.received, _SIZE // 5, "received")
    at_least(dropped, 1, "dropped by the rule")
    forward = _stats(result)["forward"]
    at_least(forward["retrans_after"], dropped, "came again after having left", forward)
    equal(forward["retrans_before"], 0, "came again without having left", forward)


@scenario()
def cut_into_segments(lab: Any) -> None:
    """What comes in as one buffer of many segments leaves as many: nothing is lost."""
    with routed() as place:
        place.h.run(["ethtool", "-K", "hb", "tso", "off", "gso", "off"])
        with _watch(place) as tool:
            sent = place.stream(_SIZE)
            time.sleep(1.5)
            result = tool.stop()
    equal(sent.received, _SIZE, "received")
    forward = _stats(result)["forward"]
    at_least(forward["split_out"], 1, "pieces", forward)
    equal(forward["bytes_in"], forward["bytes_out"], "bytes", forward)


@scenario(requires=("nft",))
def the_recording_says_the_same(lab: Any) -> None:
    """Totals, and packets that were lost."""
    with routed() as place, tempfile.TemporaryDirectory() as home:
        NftDrop(place.h, 20, "forward", f"ip daddr {B_IP} tcp dport 7000")
        for number, more in enumerate(((), ("--drops", "--force"))):
            path = Path(home) / str(number)
            with _watch(place, "--interval", "1", "--record", str(path), *more) as tool:
                place.stream(_SIZE // 5)
                time.sleep(1.5)
                live = tool.stop()
            at_least(len(live.of_type("path_stats")), 4, "reports")
            replayed_equal(live, replay("ntools-tcp-path", path))
