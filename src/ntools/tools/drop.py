# SPDX-License-Identifier: GPL-2.0-only
"""ntools-drop: which packets this kernel drops, why, where, and whose they are."""

import argparse
import sys
from typing import Any, Dict, List, Optional, Set, Tuple

from ntools.cli import app, options

EXAMPLES = """\
examples:
  ntools-drop
      every drop on this host, with reason, place and stack
  ntools-drop --interface vnet3 --dst-ip 10.0.0.7 --normal hide
      drops of one flow on one device, without the harmless ones
  ntools-drop --location nft_do_chain,nf_hook_slow --duration 60
      what the packet filter rejects in a minute
  ntools-drop --group-by reason,device,fivetuple --top 10 --interval 5
      a table every 5 seconds: counted in the kernel, for high rates
"""

_DIMENSIONS = ("reason", "location", "device", "class", "netns", "port", "fivetuple", "stack")
_DEFAULT = ("reason", "location", "device")
_INTERVAL_S, _TOP, _MAX_ENTRIES = 10.0, 5, 10240


def parser() -> argparse.ArgumentParser:
    """The command line; needs neither libbpf nor root."""
    made = app.Parser(
        prog="ntools-drop",
        description="Which packets does this kernel drop, why, in which function, and whose "
        "are they?",
        epilog=EXAMPLES,
    )
    which = made.add_argument_group("what to look for")
    add = which.add_argument
    add("--reason", type=_names, default=(), metavar="NAMES",
        help="only these drop reasons, as in records; 'openvswitch:*' for a subsystem")  # fmt: skip
    add("--not-reason", type=_names, default=(), metavar="NAMES", help="all but these")
    add("--location", type=_names, default=(), metavar="NAMES",
        help="only drops in these functions; * and ? are wild")  # fmt: skip
    add("--interface", "-n", "--name", dest="interface", metavar="NAMES",
        help="only packets of these devices, NETNS/NAME for other namespaces")  # fmt: skip
    add("--netns", metavar="NAME|PATH|PID",
        help="only this network namespace; devices are looked up there (default: all)")  # fmt: skip
    add("--type", "--eth-type", dest="eth_type", type=_eth_type, metavar="TYPE",
        help="only frames of this type: ipv4, ipv6, arp, lldp... or 0xXXXX")  # fmt: skip
    add("--normal", choices=("hide", "mark", "only", "show"), default="mark",
        help="frees that are no fault, such as queues emptied at close (default: mark)")  # fmt: skip
    options.add_filter(made)
    how = made.add_argument_group("how to show it")
    add = how.add_argument
    add("--mode", choices=("event", "summary"), help="one record per packet, or a table per interval")
    add("--group-by", type=_dimensions, metavar="NAMES",
        help="rows of the table: {}, or all (default {})".format(
            ", ".join(_DIMENSIONS), ",".join(_DEFAULT)))  # fmt: skip
    add("--top", "-t", type=options.positive, metavar="N", help="rows to show (default 5)")
    add("--max-entries", type=_entries, metavar="N",
        help="rows the kernel keeps (256 to 1048576, default 10240)")  # fmt: skip
    add("--stack", action="store_true", help="rows of the table by stack, too")
    add("--no-stack-trace", action="store_true", help="events without stack")
    add("--rate-limit", "--max-events", dest="rate_limit", type=options.positive, default=10000,
        metavar="N", help="events per second; more are counted, not shown (default 10000)")  # fmt: skip
    options.add_common(made, interval_s=_INTERVAL_S)
    made.set_defaults(interval=None)
    return made


def run(args: argparse.Namespace) -> int:
    """Attach to the free of dropped packets, and show them."""
    from ntools.cli import filters, session
    from ntools.engine.drop import DropEngine, DropOptions
    from ntools.engine.run import Limits, drive
    from ntools.host.netns import current_netns
    from ntools.tools import COMMANDS

    command = COMMANDS["drop"]
    criteria, shown = filters.build(args)
    if args.eth_type is not None:
        criteria.update(eth_proto=args.eth_type, used=(*criteria["used"], "NT_F_ETH_PROTO"))
    group_by = _group_by(args)
    netns, devices = _where(args)
    for name in ("reason", "not_reason", "location", "interface", "netns", "normal"):
        shown[name] = getattr(args, name) or None
    shown["netns_inum"] = netns or None
    shown["eth_type"] = None if args.eth_type is None else "0x{:04x}".format(args.eth_type)
    overhead = command.overhead["summary" if group_by else "events"]
    with session.open_object(args, "drop") as obj:
        obj.need(*command.needed)
        engine = DropEngine(obj, DropOptions(
            criteria=criteria, group_by=group_by, only=args.reason, without=args.not_reason,
            locations=args.location, netns=netns, devices=tuple(devices), normal=args.normal,
            stacks=not args.no_stack_trace, max_events=args.rate_limit,
            count=0 if group_by else args.count, top=args.top or _TOP,
            max_entries=args.max_entries or _MAX_ENTRIES, explain=args.explain,
        ))  # fmt: skip
        if args.dry_run:
            from ntools.cli import plan

            plan.print_plan(obj, shown, overhead)
            return 0
        for line in engine.warnings:
            print("{}: warning: {}, ignoring".format(args.command, line), file=sys.stderr)
        interval = args.interval if args.interval is not None else _INTERVAL_S * bool(group_by)
        view = View(current_netns(), args.normal == "mark", args.verbose > 0, args.explain)
        return drive(
            engine,
            session.writer(args, view),
            Limits(interval, args.duration, args.count, args.strict),
            {"args": args.argv, "filters": shown, "overhead_class": overhead},
        )


class View:
    """Text: two lines and a stack per packet, or a table per report."""

    def __init__(self, netns_inum: int, mark: bool, verbose: bool, explain: bool) -> None:
        self._netns_inum, self._mark, self._verbose = netns_inum, mark, verbose
        self._explain = explain
        self._explained: Set[Any] = set()
        self._title = ""
        self._rows: List[Dict[str, Any]] = []
        self._stacks: Dict[str, Any] = {}

    def header(self, rec: Dict[str, Any]) -> List[str]:
        lines = ["Watching for dropped packets. Ctrl-C ends and prints the totals."]
        for row in rec["degraded"]:
            lines.append("{}: {}".format(row["feature"], row["because"]))
        if self._explain:
            for row in rec["points"]:
                lines.append("{stage}: {attach} {target}".format(**row))
                lines += ["  not {attach} {target}: {text}".format(**failed)
                          for failed in row["candidates_failed"]]  # fmt: skip
        return lines

    def drop(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output import drop

        lines = drop.event_lines(rec, self._netns_inum, self._mark, self._verbose)
        key = (rec.get("reason"), rec["class"])
        if key not in self._explained:
            self._explained.add(key)
            lines += drop.why_lines(rec)
        return lines

    def interval(self, rec: Dict[str, Any]) -> None:
        from ntools.model.clock import wall_text

        seconds = (rec["end_ns"] - rec["start_ns"]) / 1e9
        self._title = "{}  {:.1f} s".format(wall_text(rec["utc_ns"], 3), seconds)

    def stack(self, rec: Dict[str, Any]) -> None:
        self._stacks[rec["id"]] = rec["frames"]

    def drop_group(self, rec: Dict[str, Any]) -> Optional[List[str]]:
        self._rows.append(rec)
        if not rec.get("other"):
            return None
        from ntools.output import drop

        rows, self._rows = self._rows, []
        title = "whole run" if rec["agg"] == "total" else self._title
        return drop.report_lines(title, rows, self._stacks, self._verbose)

    def summary(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output import drop

        return drop.summary_lines(rec)


def main(argv: Optional[List[str]] = None) -> int:
    """Entry point of the command."""
    return app.run(parser, run, argv)


def _group_by(args: argparse.Namespace) -> Tuple[str, ...]:
    """Dimensions of the table; empty: events."""
    from ntools.errors import UsageProblem

    implied = [o for o in ("group_by", "top", "max_entries", "stack") if getattr(args, o)]
    if args.mode == "event" and implied:
        raise UsageProblem(
            "--{} is for tables, not for --mode event.".format(implied[0].replace("_", "-"))
        )
    if args.mode != "summary" and not implied:
        return ()
    names = args.group_by or _DEFAULT
    return tuple(n for n in _DIMENSIONS if n in names or (n == "stack" and args.stack))


def _where(args: argparse.Namespace) -> Tuple[int, List[Any]]:
    """(inode number of the wanted namespace or 0, wanted devices)."""
    from ntools.host.devices import Devices

    if not args.interface and not args.netns:
        return 0, []
    devices = Devices.snapshot(args.netns)
    found = devices.find_list(args.interface) if args.interface else []
    return (devices.netns_inum if args.netns else 0), found


def _names(text: str) -> Tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("no name in '{}'".format(text))
    return names


def _dimensions(text: str) -> Tuple[str, ...]:
    names = _names(text)
    unknown = [name for name in names if name not in _DIMENSIONS + ("all",)]
    if unknown:
        raise argparse.ArgumentTypeError(
            "'{}' is none of {}, all".format(unknown[0], ", ".join(_DIMENSIONS))
        )
    return ("reason", "location", "device", "fivetuple", "stack") if "all" in names else names


def _entries(text: str) -> int:
    value = options.positive(text)
    if not 256 <= value <= 1 << 20:
        raise argparse.ArgumentTypeError("'{}' is not between 256 and 1048576".format(text))
    return value


def _eth_type(text: str) -> int:
    from ntools.model.flow import parse_eth_type

    try:
        return parse_eth_type(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error))
