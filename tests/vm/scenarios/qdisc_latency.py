# SPDX-License-Identifier: GPL-2.0-only
"""ntools-qdisc-latency: who waited how long, who passed, who was dropped, who was split."""

from __future__ import annotations

import contextlib
import socket
import struct
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

from lab.expect import all_of, at_least, between, contains, equal
from lab.faults import Qdisc
from lab.latency import check_records
from lab.netns import Namespace
from lab.replay import replay, replayed_equal
from lab.routed import A_IP, B_IP, B_IP6, Routed, routed
from lab.scenario import scenario
from lab.tool import PATIENT, Result, Tool, side_by_side
from lab.traffic import ping, udp

_TBF = "tbf rate 8mbit burst 1540 limit 100k"
_RATE = 1e6  # bytes per second of it
_BURST = 1540
_ENDS = ("dequeued", "bypassed", "dropped", "split", "consumed", "stale", "timed_out", "open")
_TAKEN = (
    "sent", "taken_dropped", "taken_split", "taken_consumed", "taken_stale", "taken_timed_out",
    "taken_open",
)  # fmt: skip


def _watch(ns: Namespace, *args: str) -> Tool:
    options = ["--format", "json", *PATIENT, "--admit-s", "0.2", *args]
    return Tool(ns, "ntools-qdisc-latency", options)


def _rows(result: Result) -> List[Dict[str, Any]]:
    """Queues of the whole run: each adds up, and so do they together; nothing was lost."""
    rows = [rec for rec in result.of_type("qdisc_stats") if rec["agg"] == "total"]
    for rec in rows:
        equal(rec["holds"], True, "sums", rec)
        equal(rec["queued"], sum(rec[name] for name in _ENDS), "queued = sum of the ends", rec)
        equal(rec["taken"], sum(rec[name] for name in _TAKEN), "taken = sum of its ends", rec)
        drops = rec.get("drops", [])
        equal(sum(one["count"] for one in drops if one["state"] == "queued"), rec["dropped"],
              "drops by reason", rec)  # fmt: skip
    counts = result.summary["counts"]
    equal(counts["matched"], sum(rec["queued"] for rec in rows), "packets that passed the filter")
    equal(result.summary["invariant"]["holds"], True, "sums of the summary")
    equal(result.summary["lost"], {}, "lost")
    equal(result.status, 0, "exit status", result.stderr)
    check_records(result)
    return rows


def _row(result: Result, **counts: int) -> Dict[str, Any]:
    """The only queue; what is not named is 0."""
    (rec,) = _rows(result)
    found = {name: rec[name] for name in ("queued", *_ENDS) if rec[name]}
    equal(found, {name: count for name, count in counts.items() if count}, "counts", rec)
    return rec


def _hists(result: Result) -> Dict[str, Dict[str, Any]]:
    """Histograms of the whole run by name: of one queue."""
    return {rec["name"]: rec for rec in result.of_type("hist") if rec["agg"] == "total"}


def _still(place: Routed) -> None:
    """Nothing but the traffic of the scenario leaves A: no neighbour is asked for."""
    for ns, dev, peer in ((place.a, "ea", "192.168.70.1"), (place.h, "ha", A_IP)):
        ns.run(["ip", "neigh", "change", peer, "dev", dev, "nud", "permanent"])


def _sums(rows: Sequence[Dict[str, Any]]) -> Dict[str, int]:
    """Counts of all queues together: flows may have different ones of a device."""
    found: Dict[str, int] = {}
    for rec in rows:
        for name, value in rec.items():
            if type(value) is int:
                found[name] = found.get(name, 0) + value
    return found


def _samples(result: Result, name: str) -> int:
    """Samples of all histograms of a name, of the whole run."""
    hists = [rec for rec in result.of_type("hist") if (rec["name"], rec["agg"]) == (name, "total")]
    return sum(rec["count"] for rec in hists)


def _emptied(ns: Namespace, dev: str = "ea") -> None:
    """Wait until a queue has sent everything."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        shown = ns.json(["tc", "-s", "-j", "qdisc", "show", "dev", dev])
        if not any(one.get("qlen") for one in shown):
            time.sleep(0.1)
            return
        time.sleep(0.05)
    raise AssertionError(f"the queue of {dev} does not become empty")


def _all_wait(ipv6: bool) -> None:
    dst, overhead = (B_IP6, 62) if ipv6 else (B_IP, 42)
    with routed(ipv6) as place, contextlib.ExitStack() as stack:
        qdisc = Qdisc(place.a, "ea", _TBF)
        stack.callback(qdisc.remove)
        with _watch(place.a, "--interface", "ea", "--details", "--order", "--force",
                    "--dst-port", "9000", "--protocol", "udp") as tool:  # fmt: skip
            sent = udp(place.a, dst, count=50, size=1000, wait_s=0)
            _emptied(place.a)
            result = tool.stop()
    equal(sent.sent, 50, "datagrams sent")
    row = _row(result, queued=50, dequeued=50)
    equal((row["qdisc"], row["handle"], row["parent"], row["tx_queue"]), ("tbf", "9:", "root", 0))
    equal((row["sent"], row["bytes"]), (50, 50 * (1000 + overhead)), "sent, bytes")
    equal(row["reordered"], 0, "out of order", row)
    hists = _hists(result)
    equal((hists["wait"]["count"], hists["driver"]["count"]), (50, 50), "times")
    equal(hists["qlen"]["count"], 50, "lengths of the queue")
    packets = sorted(result.of_type("qdisc_packet"), key=lambda rec: rec["ts_ns"])
    equal(len(packets), 50, "packets")
    all_of(packets, "packet", end="sent", interface="ea", protocol="udp", dst_ip=dst,
           dst_port=9000, src_port=sent.src_ports[0], reordered=False, segs=1,
           len_bytes=1000 + overhead)  # fmt: skip
    # One at a time, but for where a slow machine lets the bucket fill in between.
    heads = [rec for rec in packets if rec["position"] == 0]
    equal((len(heads), sum(rec["bulk_packets"] for rec in heads)), (row["bulks"], 50), "dequeues")
    _check_rate(packets, 1000 + overhead)
    equal(packets[0]["qlen_packets"], 0, "found by the first")
    slowest = max(rec["wait_ns"] for rec in packets)
    equal(hists["wait"]["max"], slowest, "longest wait of the histogram")
    equal(hists["wait"]["sum"], sum(rec["wait_ns"] for rec in packets), "sum of the histogram")


def _check_rate(packets: Sequence[Dict[str, Any]], size: int) -> None:
    """The bucket lets no packet go before it has its tokens, nor much after."""
    begun = packets[0]["ts_ns"]
    out = [rec["ts_ns"] + rec["wait_ns"] for rec in packets]
    equal(out, sorted(out), "dequeued in the order of arrival")
    for number, rec in enumerate(packets):
        due = ((number + 1) * size - _BURST) / _RATE * 1e9
        arrived = rec["ts_ns"] - begun
        whole = (len(packets) * size - _BURST) / _RATE * 1e9
        # 10 % of the longest below; an emulated CPU runs its timers late.
        at_least(rec["wait_ns"], due - arrived - 0.1 * whole, f"wait of packet {number}", rec)
        between(rec["wait_ns"], 0, due + 2e9, f"wait of packet {number}", rec)


@scenario(requires=("tbf",))
def all_wait(lab: Any) -> None:
    """50 datagrams back to back into 8 Mbit/s: the k-th waits for the k before it."""
    _all_wait(False)


@scenario(requires=("tbf", "ipv6"))
def all_wait_ipv6(lab: Any) -> None:
    _all_wait(True)


@scenario()
def nobody_waits(lab: Any) -> None:
    """A device without qdisc, and then with an idle one: single packets pass."""
    with routed() as place:
        with _watch(place.a, "--interface", "ea", "--dst-port", "9000") as tool:
            udp(place.a, B_IP, count=20, size=100, gap_s=0.005, wait_s=0)
            qdisc = Qdisc(place.a, "ea", "pfifo_fast")
            udp(place.a, B_IP, count=15, size=100, gap_s=0.005, wait_s=0)
            time.sleep(0.2)
            result = tool.stop()
        qdisc.remove()
    rows = {rec["qdisc"]: rec for rec in _rows(result)}
    equal(sorted(rows), ["noqueue", "pfifo_fast"], "qdiscs")
    none, idle = rows["noqueue"], rows["pfifo_fast"]
    equal((none["queued"], none["bypassed"], none["taken"]), (20, 20, 0), "without qdisc", none)
    equal(idle["queued"], 15, "idle qdisc: packets", idle)
    # 5.10 has it go through the queue although that is empty.
    equal(idle["bypassed"] + idle["dequeued"], 15, "idle qdisc: passed or dequeued", idle)
    if lab.kernel >= (6, 1):
        equal(idle["bypassed"], 15, "idle qdisc: passed", idle)
    equal(_samples(result, "wait"), idle["dequeued"], "waits")


@scenario(requires=("tbf",))
def dropped_at_the_limit(lab: Any) -> None:
    """A queue of 10 kB: what tc counts as dropped, with the reason of this kernel."""
    with routed() as place, contextlib.ExitStack() as stack:
        _still(place)
        qdisc = Qdisc(place.a, "ea", "tbf rate 8mbit burst 1540 limit 10k")
        stack.callback(qdisc.remove)
        with _watch(place.a, "--interface", "ea", "--details", "--force",
                    "--dst-port", "9000", "--protocol", "udp") as tool:  # fmt: skip
            sent = udp(place.a, B_IP, count=50, size=1000, wait_s=0)
            _emptied(place.a)
            dropped = qdisc.stats()["drops"]
            result = tool.stop()
    equal(sent.sent, 50, "datagrams sent")
    at_least(dropped, 1, "drops that tc counts")
    row = _row(result, queued=50, dropped=dropped, dequeued=50 - dropped)
    derived = lab.kernel < (5, 17)
    gone = [rec for rec in result.of_type("qdisc_packet") if rec["end"] == "dropped"]
    equal(len(gone), dropped, "packets shown as dropped")
    for rec in (*row["drops"], *gone):
        contains(("qdisc_drop", "qdisc_overlimit"), rec["reason"], "reason")
        equal(bool(rec.get("reason_derived")), derived, "derived", rec)


@scenario(requires=("tbf",))
def split_into_segments(lab: Any) -> None:
    """What is larger than the bucket is cut into segments, which leave in its place."""
    with routed() as place, contextlib.ExitStack() as stack:
        _still(place)
        qdisc = Qdisc(place.a, "ea", _TBF)
        stack.callback(qdisc.remove)
        with _watch(place.a, "--interface", "ea", "--details", "--force") as tool:
            before = qdisc.stats()["packets"]
            stream = place.stream(20_000)
            _emptied(place.a)
            passed = qdisc.stats()["packets"] - before
            result = tool.stop()
    equal(stream.received, 20_000, "received")
    row = _sums(_rows(result))
    at_least(row["split"], 1, "packets that were split", row)
    equal((row["dropped"], row["bypassed"], row["stale"], row["consumed"]), (0, 0, 0, 0), "", row)
    equal(row["children"], row["segments"], "segments seen on their way", row)
    equal(row["taken"], row["dequeued"] + row["children"], "taken", row)
    equal(row["sent"], passed, "packets that tc counts", row)
    equal(_samples(result, "driver"), row["sent"], "times to the driver")
    equal(_samples(result, "wait"), row["dequeued"], "waits: segments have none")
    packets = result.of_type("qdisc_packet")
    parents = [rec for rec in packets if rec["end"] == "split"]
    children = [rec for rec in packets if rec.get("child")]
    equal((len(parents), len(children)), (row["split"], row["children"]), "parents, segments")
    equal(sum(rec["segs"] for rec in parents), row["segments"], "segments of the parents")
    for rec in children:
        equal((rec["end"], "wait_ns" in rec, "driver_ns" in rec), ("sent", False, True), "", rec)


@scenario(requires=("tbf",))
def taken_in_bulks(lab: Any) -> None:
    """A bucket that is opened at once, on a device with two queues: several go in one dequeue."""
    with Namespace("a") as a, Namespace("b") as b:
        a.ip(
            f"link add qa numtxqueues 2 type veth peer name qb netns {b.name}",
            "addr add 192.168.90.1/24 dev qa",
            "link set qa up",
        )
        b.ip("addr add 192.168.90.2/24 dev qb", "link set qb up")
        ping(a, "192.168.90.2", 1)
        Qdisc(a, "qa", "tbf rate 8kbit burst 1540 limit 100k")
        with _watch(a, "--interface", "qa", "--details", "--order", "--force",
                    "--dst-port", "9000", "--protocol", "udp") as tool:  # fmt: skip
            with _sender(a) as sender:
                for _ in range(30):
                    sender.sendto(bytes(1000), ("192.168.90.2", 9000))
                open_wide = "root handle 9: tbf rate 1gbit burst 100k limit 100k"
                a.run(["tc", "qdisc", "change", "dev", "qa", *open_wide.split()])
                # Its arrival has all that wait taken.
                sender.sendto(bytes(1000), ("192.168.90.2", 9000))
            _emptied(a, "qa")
            result = tool.stop()
    row = _row(result, queued=31, dequeued=31)
    equal((row["sent"], row["reordered"]), (31, 0), "sent, out of order", row)
    bulk = _hists(result)["bulk"]
    equal((bulk["count"], bulk["sum"]), (row["bulks"], 31), "bulks, packets in them")
    at_least(bulk["max"], 2, "largest bulk")
    packets = result.of_type("qdisc_packet")
    heads = [rec for rec in packets if rec["position"] == 0]
    equal(len(heads), row["bulks"], "first ones")
    equal(sum(rec["bulk_packets"] for rec in heads), 31, "packets in their bulks")
    equal(max(rec["position"] for rec in packets), bulk["max"] - 1, "last place of all")


def _sender(ns: Namespace) -> socket.socket:
    """A socket for datagrams in a namespace."""
    with ns.entered():
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


@scenario(requires=("tbf",))
def no_room_and_no_end(lab: Any) -> None:
    """What finds no room is lost and counted; what waits for too long is given up, and counted."""
    with routed() as place, contextlib.ExitStack() as stack:
        qdisc = Qdisc(place.a, "ea", "tbf rate 8kbit burst 1540 limit 100k")
        stack.callback(qdisc.remove)
        wanted = ("--interface", "ea", "--dst-port", "9000", "--protocol", "udp")
        with side_by_side(
            _watch(place.a, *wanted, "--max-flights", "4", "--strict"),
            _watch(place.a, *wanted, "--timeout-ms", "300"),
        ) as (small, hasty):
            equal(udp(place.a, B_IP, count=20, size=1000, wait_s=0).sent, 20, "sent")
            time.sleep(2)
            short, impatient = small.stop(), hasty.stop()
    summary = short.summary
    equal((short.status, list(summary["lost"])), (4, ["map_full"]), "status, causes of loss")
    equal(summary["counts"]["matched"], 20, "packets that passed the filter")
    equal(summary["counts"]["queued"] + summary["lost"]["map_full"], 20, "followed and lost")
    equal(summary["invariant"]["holds"], True, "sums")
    (row,) = _rows(impatient)
    equal((row["queued"], row["dequeued"] + row["timed_out"] + row["open"]), (20, 20), "ends", row)
    at_least(row["timed_out"], 10, "given up", row)


@contextlib.contextmanager
def _listener(ns: Namespace) -> Iterator[socket.socket]:
    with _sender(ns) as sock:
        sock.bind((B_IP, 9000))
        sock.settimeout(10)
        yield sock


def _overtaken(sock: socket.socket, count: int) -> int:
    """Datagrams that come behind one with a higher number."""
    highest, late = -1, 0
    for _ in range(count):
        number = struct.unpack("!I", sock.recv(2000)[:4])[0]
        late += number < highest
        highest = max(highest, number)
    return late


@scenario(requires=("tbf",))
def overtaken(lab: Any) -> None:
    """Bands by priority below a slow bucket: as many are overtaken as the receiver finds late."""
    with routed() as place, contextlib.ExitStack() as stack:
        qdisc = Qdisc(place.a, "ea", _TBF)
        stack.callback(qdisc.remove)
        place.a.run(["tc", "qdisc", "add", "dev", "ea", "parent", "9:1", "pfifo_fast"])
        with (
            _listener(place.b) as receiver,
            _watch(place.a, "--interface", "ea", "--order", "--dst-port", "9000") as tool,
        ):
            with _sender(place.a) as sender:
                for number in range(30):
                    # 6: interactive, the first band; 0: best effort, the second.
                    sender.setsockopt(
                        socket.SOL_SOCKET, socket.SO_PRIORITY, 6 if number % 3 == 2 else 0
                    )
                    payload = struct.pack("!I", number).ljust(1000, b"Z")
                    sender.sendto(payload, (B_IP, 9000))
            late = _overtaken(receiver, 30)
            result = tool.stop()
    at_least(late, 1, "late at the receiver")
    row = _row(result, queued=30, dequeued=30)
    equal(row["reordered"], late, "overtaken", row)


@scenario(requires=("tbf",))
def only_what_is_asked_for(lab: Any) -> None:
    """One port of two, and one device of two: the other packets are rejected there."""
    with routed() as place, contextlib.ExitStack() as stack:
        qdisc = Qdisc(place.a, "ea", _TBF)
        stack.callback(qdisc.remove)
        with side_by_side(
            _watch(place.a, "--interface", "ea", "--dst-port", "9001", "--explain"),
            _watch(place.h, "--interface", "ha", "--protocol", "udp", "--explain"),
        ) as (port, other):
            for number, count in ((9001, 10), (9002, 7)):
                equal(udp(place.a, B_IP, number, count, 200, wait_s=0).sent, count, "sent")
            _emptied(place.a)
            results = port.stop(), other.stop()
    _row(results[0], queued=10, dequeued=10)
    at_least(results[0].summary["explain"]["filter_port"], 7, "rejected by the port")
    equal(_rows(results[1]), [], "queues of the other device")
    at_least(results[1].summary["explain"]["interface"], 17, "rejected by the device")


@scenario(requires=("tbf",))
def slow_ones_and_the_recording(lab: Any) -> None:
    """Only those that waited long are shown; a recording says the same, and narrows further."""
    with routed() as place, contextlib.ExitStack() as stack:
        qdisc = Qdisc(place.a, "ea", _TBF)
        stack.callback(qdisc.remove)
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        with _watch(place.a, "--interface", "ea", "--latency-us", "10000", "--interval", "0.5",
                    "--record", str(path)) as tool:  # fmt: skip
            _send(place, 9000, 40)
            _send(place, 9001, 30)
            live = tool.stop()
        again = replay("ntools-qdisc-latency", path)
        few = replay("ntools-qdisc-latency", path, "--dst-port", "9001")
    row = _sums(_rows(live))
    at_least(row["queued"], 70, "queued")
    equal(row["dequeued"], row["queued"], "all of them waited", row)
    equal(_samples(live, "wait"), row["queued"], "waits")
    slow = live.of_type("qdisc_packet")
    between(len(slow), 2, row["queued"] - 1, "slow ones")
    at_least(min(rec["wait_ns"] for rec in slow), 10_000_000, "shortest wait shown")
    replayed_equal(live, again)
    equal([rec["wait_ns"] for rec in few.of_type("qdisc_packet")],
          [rec["wait_ns"] for rec in slow if rec.get("dst_port") == 9001], "narrowed")  # fmt: skip


def _send(place: Routed, port: int, count: int) -> None:
    equal(udp(place.a, B_IP, port, count, 1000, wait_s=0).sent, count, "sent")
    _emptied(place.a)
