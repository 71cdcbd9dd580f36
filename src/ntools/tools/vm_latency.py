# SPDX-License-Identifier: GPL-2.0-only
"""ntools-vm-latency: where packets of a VM spend their time on this host, and where they stop."""

import argparse
from typing import Any, Dict, List, Optional, Tuple

from ntools.cli import app, options

EXAMPLES = """\
examples:
  ntools-vm-latency --vm-interface vnet0
      both directions, a report every 5 seconds, summary at Ctrl-C
  ntools-vm-latency --vm-interface vnet0 --phy-interface eth2 --direction rx
      only what the VM sends, up to the uplink
  ntools-vm-latency --vm-interface vnet0 --details --src-ip 10.0.0.7 --latency-ms 5
      every packet of that address which took 5 ms or more, stage by stage
"""


def parser() -> argparse.ArgumentParser:
    """The command line; needs neither libbpf nor root."""
    made = app.Parser(
        prog="ntools-vm-latency",
        description="Where do packets of a virtual machine spend their time on this host, "
        "in which direction, and where do they stop?",
        epilog=EXAMPLES,
    )
    which = made.add_argument_group("what to follow")
    add = which.add_argument
    add("--vm-interface", metavar="NAMES", help="tap or macvtap of the VM, several with commas")
    add("--vm", metavar="NAME", help="the VM by name, UUID or process id: all its interfaces")
    add("--phy-interface", metavar="NAMES",
        help="the wire side (default: found through bridge, OVS, bond and VLAN)")  # fmt: skip
    add("--direction", type=options.direction, default="both", metavar="DIR",
        help="rx (from-vm), tx (to-vm) or both (default)")  # fmt: skip
    add("--vm-ip", type=options.network, metavar="ADDR",
        help="only packets from or to this address of the guest")  # fmt: skip
    add("--until", choices=("guest", "tap"), default="guest",
        help="end of packets to the VM: copied to its memory, or handed to the tap")  # fmt: skip
    add("--multicast", action="store_true", help="follow multicast and broadcast to the VM too")
    add("--details", action="store_true", help="one record per packet, stage by stage")
    add("--latency-ms", type=options.milliseconds, default=0.0, metavar="MS",
        help="with --details: only packets that took at least so long")  # fmt: skip
    add("--timeout-ms", type=options.timeout_ms, default=1000.0, metavar="MS",
        help="a packet not seen for so long is lost (10 to 600000, default 1000)")  # fmt: skip
    add("--max-flights", type=options.positive, metavar="N", help="packets under way at a time")
    add("--histogram", action="store_true", help="bars for the time in total")
    options.add_netns(which)
    options.add_filter(made)
    options.add_common(made, interval_s=5.0)
    return made


def run(args: argparse.Namespace) -> int:
    """Find the devices, follow their packets, report."""
    from ntools.cli import filters, safety, session, vm
    from ntools.cli.commands import COMMANDS
    from ntools.engine.flight import FlightEngine, FlightOptions
    from ntools.engine.run import Limits

    command = COMMANDS["vm-latency"]
    flt = session.learn_filter(args, lambda: vm.add_guest_address(args, filters.build(args)))
    mode = "details" if args.details else "summary"
    advice = "run without --details first: it tells which stage to look at"
    if args.details:
        safety.need_one_flow(args, flt, "--details", advice)
    may_cost = safety.build(args, command.overhead[mode], advice)
    place = session.learn(
        args, "place", lambda: vm.locate(args), vm.Place.fields, vm.Place.from_fields
    )
    with session.open_object(args, "flight_detail" if args.details else "flight") as obj:
        obj.need(*command.needed)
        obj.want(*command.wanted)
        if args.max_flights:
            obj.resize("flights", args.max_flights)
        shown = dict(flt.shown(), vm_interface=args.vm_interface, direction=args.direction)
        if args.vm_ip:
            shown["vm_ip"] = str(args.vm_ip)
        if args.filters_file is not None:
            shown["filters_file"] = args.filters_file
        chosen = FlightOptions(
            directions=("rx", "tx") if args.direction == "both" else (args.direction,),
            until=args.until,
            multicast=args.multicast,
            only_uplink=bool(args.phy_interface),
            threshold_ns=int(args.latency_ms * 1e6),
            timeout_s=args.timeout_ms / 1e3,
            explain=args.explain,
            filter=flt,
        )
        engine = FlightEngine(obj, place.topology, place.seeds, chosen, session.lookups(args, obj))
        if args.dry_run:
            from ntools.cli import plan

            plan.print_plan(obj, shown, command.overhead[mode])
            return 0
        app.warn(args, place.warnings)
        view = View(place.topology.description, args.histogram, args.explain)
        limits = Limits(args.interval, args.duration, args.count, args.strict)
        return session.run(
            args,
            engine,
            view,
            limits,
            {"args": args.argv, "filters": shown},
            may_cost,
        )


class View:
    """Text: one block per direction and interval, worst pair marked; packets one by one."""

    def __init__(self, description: Tuple[str, ...], bars: bool, explain: bool) -> None:
        self._description = description
        self._bars = bars
        self._explain = explain
        self._rows: Dict[str, List[Dict[str, Any]]] = {"rx": [], "tx": []}

    def header(self, rec: Dict[str, Any]) -> List[str]:
        lines = ["Following packets of the VM. Ctrl-C ends and prints the summary."]
        lines += list(self._description)
        from ntools.output.text import attach_lines, wrap

        missing = [row["feature"] for row in rec["degraded"]]
        if self._explain:
            lines += attach_lines(rec)
        elif missing:
            lines += wrap("not observable on this kernel: " + ", ".join(missing))
        return lines

    def interval(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.model.clock import wall_text

        seconds = (rec["end_ns"] - rec["start_ns"]) / 1e9
        return ["", "{}  {:.1f} s".format(wall_text(rec["utc_ns"], 3), seconds)]

    def hist(self, rec: Dict[str, Any]) -> None:
        self._rows[rec["labels"]["direction"]].append(rec)

    def ends(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output import flight

        rows, self._rows[rec["direction"]] = self._rows[rec["direction"]], []
        return flight.direction_block(rec, rows, self._bars)

    def packet(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output import flight

        return flight.packet_lines(rec)

    def summary(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output import flight

        return flight.summary_lines(rec)


def main(argv: Optional[List[str]] = None) -> int:
    """Entry point of the command."""
    return app.run(parser, run, argv)


MANUAL = {
    "DESCRIPTION": "Packets of the VM are recognized at several stages of the host's datapath, "
    "and the time between the stages is kept in histograms in the kernel. rx is what the host "
    "receives from the VM, tx is what it sends to the VM. The guest's addresses are learnt from "
    "what it sends; the wire side is found through bridge, Open vSwitch, bond and VLAN devices.",
    "OUTPUT": "Per direction and interval: how many packets started, completed and did not; a row "
    "per pair of stages with count and times in microseconds, the pair with the largest share of "
    "the total marked with *; for packets that did not complete, the last stage reached, the next "
    "one expected, and the free event seen as evidence. started is always the sum of all ends.",
    "FILTERS": options.FILTERS,
    "OVERHEAD": "Class low (summary) or variable (details). A packet that is not followed costs "
    "one map lookup per stage; a followed one a clock, one or two reads of its headers and two "
    "lookups. Start to ready: 0.21 s of CPU and 36 MiB at most (details 0.22 s "
    "and 40 MiB), "
    "median of interleaved runs of 'make bench' on a 6.18 kernel. Maps of the summary: 10 MiB of "
    "kernel memory, and 132 KiB per CPU.",
    "LIMITS": "Traffic that never passes the host's network stack is not seen: SR-IOV, vDPA, DPDK, "
    "flows offloaded to hardware. On kernels without kprobes and fentry the stages inside Open "
    "vSwitch, bridge, tap and vhost are missing and named in the header.",
    "SEE ALSO": "ntools-drop(8), ntools(8)",
}
