# SPDX-License-Identifier: GPL-2.0-only
"""ntools-icmp-path: is a ping lost inside this host, and which half of it, or outside?"""

import argparse
from typing import Any, Dict, List, Optional

from ntools.cli import app, options

EXAMPLES = """\
examples:
  ntools-icmp-path --src-ip 192.0.2.1 --dst-ip 192.0.2.2 --rx-iface eth2 --tx-iface vnet0
      pings of 192.0.2.1 to a VM on this host; a line per echo that is lost, summary at Ctrl-C
  ntools-icmp-path --src-ip 192.0.2.2 --dst-ip 192.0.2.1 --rx-iface vnet0 --tx-iface bond0 -v
      the other way round, the VM pings; complete echoes too; bond0 stands for its slaves
"""


def parser() -> argparse.ArgumentParser:
    """The command line; needs neither libbpf nor root."""
    made = app.Parser(
        prog="ntools-icmp-path",
        description="Is a ping lost inside this host, the request or the reply, or outside?",
        epilog=EXAMPLES,
    )
    options.add_path(made).add_argument(
        "--icmp-id", type=options.number(0, 65535), metavar="N",
        help="only the echoes of one ping process",
    )  # fmt: skip
    options.add_filter(made)
    options.add_common(made, interval_s=0.0)
    return made


def run(args: argparse.Namespace) -> int:
    """Find the devices, follow the echoes between them, report."""
    from ntools.cli import path, safety, session
    from ntools.cli.commands import COMMANDS
    from ntools.engine.echo import EchoEngine, EchoOptions
    from ntools.engine.run import Limits

    command = COMMANDS["icmp-path"]
    flt = session.learn_filter(args, lambda: path.one_way(args))
    may_cost = safety.build(args, command.overhead["echoes"], "name --icmp-id")
    sides = path.sides(args)
    with session.open_object(args, "path_echo") as obj:
        obj.need(*command.needed)
        obj.want(*command.wanted)
        shown = dict(flt.shown(), rx_iface=args.rx_iface, tx_iface=args.tx_iface)
        if args.icmp_id is not None:
            shown["icmp_id"] = args.icmp_id
        chosen = EchoOptions(
            flt, args.timeout_ms / 1e3, args.icmp_id, args.verbose > 0, args.explain
        )
        engine = EchoEngine(obj, sides, chosen, session.lookups(args, obj))
        if args.dry_run:
            from ntools.cli import plan

            plan.print_plan(obj, shown, command.overhead["echoes"])
            return 0
        return path.run(
            args,
            engine,
            View(args.explain),
            Limits(args.interval, args.duration, args.count, args.strict),
            {"args": args.argv, "filters": shown},
            may_cost,
        )


class View:
    """Text: a line per echo, counts and times at the end."""

    def __init__(self, explain: bool) -> None:
        self._explain = explain
        self._hists: List[Dict[str, Any]] = []

    def header(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.path import header_lines

        return header_lines(rec, self._explain)

    def echo(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.echo import echo_lines

        return echo_lines(rec)

    def path_stats(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.echo import stats_lines

        hists, self._hists = self._hists, []
        return stats_lines(rec, hists)

    def hist(self, rec: Dict[str, Any]) -> None:
        self._hists.append(rec)

    def summary(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.text import rejection_lines

        return ["", "{:.1f} s".format(rec["duration_ns"] / 1e9), *rejection_lines(rec)]


def main(argv: Optional[List[str]] = None) -> int:
    """Entry point of the command."""
    return app.run(parser, run, argv)


MANUAL = {
    "DESCRIPTION": "An echo request and its reply pass this host at four stages: the request comes "
    "in (REQ_RX) and leaves (REQ_TX), the reply comes in (REP_RX) and leaves (REP_TX). What the "
    "last stage was tells where the ping was lost. It runs for hours; a host where nothing is "
    "wrong gets no line. Bonds stand for their slaves, VLAN devices for what is below them; of a "
    "bridge device or an internal port of Open vSwitch the other end is the host itself "
    "(NAME@stack, NAME@wire say otherwise). Addresses may be translated on the way.",
    "OUTPUT": "COMPLETE: the reply left (only with -v). INTERNAL_DROP_REQ, INTERNAL_DROP_REP: the "
    "request, or the reply, came in and did not leave in time; if its buffer was freed as a drop, "
    "function and reason are told. EXTERNAL_DROP: the request left, no reply came. TIMEOUT: not "
    "to be told, because the run ended before or records were lost. unpaired: seen at a stage "
    "without the one before; duplicate: twice at one stage.",
    "FILTERS": options.FILTERS,
    "OVERHEAD": "Class low. A packet on other devices costs a lookup and the comparison of a bit, "
    "one on the two sides the reading of its headers.",
    "LIMITS": "A reply that takes another way back, past --tx-iface, is an EXTERNAL_DROP.",
    "SEE ALSO": "ntools-drop(8), ntools-vm-latency(8), ntools(8)",
}
