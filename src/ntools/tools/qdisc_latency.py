# SPDX-License-Identifier: GPL-2.0-only
"""ntools-qdisc-latency: how long packets wait in the transmit queue of a device."""

import argparse
from typing import Any, Dict, List, Optional, Tuple

from ntools.cli import app, options

EXAMPLES = """\
examples:
  ntools-qdisc-latency --interface eth2
      every queue of the device: who waited how long, every 5 seconds; summary at Ctrl-C
  ntools-qdisc-latency --interface eth2,vnet0 --dst-ip 10.0.0.7 --order
      packets to one address, and whether some overtake others of their flow
  ntools-qdisc-latency --interface eth2 --latency-ms 5
      a line for each packet that waited 5 ms or more
"""


def parser() -> argparse.ArgumentParser:
    """The command line; needs neither libbpf nor root."""
    made = app.Parser(
        prog="ntools-qdisc-latency",
        description="How long do packets wait in the transmit queue of a device, in which one, "
        "and which are dropped there?",
        epilog=EXAMPLES,
    )
    which = made.add_argument_group("what to follow")
    add = which.add_argument
    add("--interface", "--dev", dest="interface", metavar="NAMES",
        help="only these devices, NETNS/NAME for other namespaces (default: all)")  # fmt: skip
    add("--netns", metavar="NAME|PATH|PID",
        help="only this network namespace; devices are looked up there (default: all)")  # fmt: skip
    add("--queue", type=options.number(0, 65535), default=None, metavar="N",
        help="only this transmit queue")  # fmt: skip
    add("--order", action="store_true",
        help="count packets that were overtaken by a later one of their flow")  # fmt: skip
    add("--details", action="store_true", help="one record per packet")
    slow = which.add_mutually_exclusive_group()
    slow.add_argument("--latency-ms", type=options.milliseconds, default=0.0, metavar="MS",
        help="one record per packet that waited at least so long")  # fmt: skip
    slow.add_argument("--latency-us", dest="latency_ms", type=_from_us, metavar="US",
        help="the same in microseconds")  # fmt: skip
    add("--timeout-ms", type=options.timeout_ms, default=30000.0, metavar="MS",
        help="a packet not seen for so long is given up (10 to 600000, default 30000)")  # fmt: skip
    add("--max-flights", type=options.positive, metavar="N",
        help="packets in queues at a time (default 16384)")  # fmt: skip
    add("--max-queues", type=options.number(16, 65536), metavar="N",
        help="queues with a row of their own (default 1024)")  # fmt: skip
    add("--histogram", action="store_true", help="bars for the time of waiting")
    options.add_filter(made)
    options.add_common(made, interval_s=5.0)
    return made


def _from_us(text: str) -> float:
    return options.milliseconds(text) / 1e3


def run(args: argparse.Namespace) -> int:
    """Find the devices, follow packets through their queues, report."""
    from ntools.cli import filters, safety, session
    from ntools.cli.commands import COMMANDS
    from ntools.engine.qdisc import QdiscEngine, QdiscOptions
    from ntools.engine.run import Limits

    command = COMMANDS["qdisc-latency"]
    flt = session.learn_filter(args, lambda: filters.build(args))
    details = args.details or args.latency_ms > 0
    mode = "details" if details else "summary"
    advice = "run without --details first: it tells which queue to look at"
    if details:
        safety.need_one_flow(args, flt, "--details", advice)
    may_cost = safety.build(args, command.overhead[mode], advice)
    netns, devices = session.learn(args, "where", lambda: _where(args), _fields, _from_fields)
    shown = flt.shown()
    for name in ("interface", "netns", "queue", "filters_file"):
        if getattr(args, name) is not None:
            shown[name] = getattr(args, name)
    with session.open_object(args, command.objects[0]) as obj:
        obj.need(*command.needed)
        obj.want(*command.wanted)
        if args.max_flights:
            obj.resize("queued", args.max_flights)
        if args.max_queues:
            obj.resize("queues", args.max_queues)
            obj.resize("queue_times", 2 * args.max_queues)
        chosen = QdiscOptions(
            filter=flt,
            netns=netns,
            devices=tuple(devices),
            queue=-1 if args.queue is None else args.queue,
            details=details,
            threshold_ns=int(args.latency_ms * 1e6),
            timeout_s=args.timeout_ms / 1e3,
            order=args.order,
            explain=args.explain,
        )
        engine = QdiscEngine(obj, chosen, session.lookups(args, obj))
        if args.dry_run:
            from ntools.cli import plan

            plan.print_plan(obj, shown, command.overhead[mode])
            return 0
        return session.run(
            args,
            engine,
            View(args.histogram, args.explain),
            Limits(args.interval, args.duration, args.count, args.strict),
            {"args": args.argv, "filters": shown},
            may_cost,
        )


class View:
    """Text: a block per queue and interval; packets one by one."""

    def __init__(self, bars: bool, explain: bool) -> None:
        self._bars, self._explain = bars, explain
        self._hists: Dict[str, Dict[str, Any]] = {}

    def header(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.text import attach_lines

        lines = ["Following packets through transmit queues. Ctrl-C ends and prints the summary."]
        return lines + (attach_lines(rec) if self._explain else [])

    def interval(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.model.clock import wall_text

        seconds = (rec["end_ns"] - rec["start_ns"]) / 1e9
        return ["", "{}  {:.1f} s".format(wall_text(rec["utc_ns"], 3), seconds)]

    def hist(self, rec: Dict[str, Any]) -> None:
        self._hists[rec["name"]] = rec

    def qdisc_stats(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.qdisc import queue_lines

        hists, self._hists = self._hists, {}
        return queue_lines(rec, hists, self._bars)

    def qdisc_packet(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.qdisc import packet_lines

        return packet_lines(rec)

    def summary(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.qdisc import summary_lines

        return summary_lines(rec)


def main(argv: Optional[List[str]] = None) -> int:
    """Entry point of the command."""
    return app.run(parser, run, argv)


def _where(args: argparse.Namespace) -> Tuple[int, List[Any]]:
    """(inode number of the wanted namespace or 0, wanted devices)."""
    from ntools.host.devices import Devices

    if not args.interface and not args.netns:
        return 0, []
    devices = Devices.snapshot(args.netns)
    found = devices.find_list(args.interface) if args.interface else []
    return (devices.netns_inum if args.netns else 0), found


def _fields(where: Tuple[int, List[Any]]) -> Any:
    return [where[0], [device.fields() for device in where[1]]]


def _from_fields(fields: Any) -> Tuple[int, List[Any]]:
    from ntools.host.devices import Device

    return int(fields[0]), [Device.from_fields(device) for device in fields[1]]


MANUAL = {
    "DESCRIPTION": "A packet that is to be sent enters the transmit queue of a device, waits in "
    "its qdisc, is taken from it and handed to the driver. The command measures the wait and the "
    "way to the driver, per device, transmit queue and root qdisc, and says of every packet that "
    "came to a queue how it left: dequeued, bypassed (there is no qdisc, or an idle one lets it "
    "pass), dropped, or split into segments. Without --interface and --netns all devices of all "
    "network namespaces are watched.",
    "OUTPUT": "Per queue and interval: how many packets were queued and how they left, which adds "
    "up; wait is from the arrival to the dequeue, driver from there to the driver, retry from the "
    "driver's refusal to the next attempt, in microseconds. Then how long the queue was that an "
    "arriving packet found (of lockless qdiscs such as pfifo_fast the kernel does not tell), how "
    "many packets were taken at once, segments of split packets, and drops by reason. requeued: a "
    "packet was taken again because the driver's queue was stopped or it refused. overtaken "
    "(--order): left behind a packet of its flow that came later. A packet's line has the same, "
    "and its place in the bulk it was taken with.",
    "FILTERS": options.FILTERS,
    "OVERHEAD": "Class low (summary) or variable (--details, --latency-*). Per packet, all "
    "programs together: 1.2 to 1.5 us in the summary, 2.0 to 2.2 us with a filter and --order, "
    "1.2 us if the filter rejects it (bpf_ns of 20000 datagrams to a veth device, kernel 6.18, "
    "with BPF statistics on). Maps: 4 MiB of kernel memory besides the channel, and 270 KiB per "
    "CPU.",
    "LIMITS": "Classes below the root qdisc are not told apart. What a split packet's segments "
    "waited is not known, for they were made in the queue. Packets sent past the queue (AF_XDP, "
    "AF_PACKET with PACKET_QDISC_BYPASS, XDP redirects) are not seen. Packets that were in the "
    "queue before the run are not followed. Kernels before 5.17 give no drop reasons.",
    "SEE ALSO": "ntools-drop(8), ntools-vm-latency(8), ntools(8)",
}
