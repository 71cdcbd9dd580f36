# SPDX-License-Identifier: GPL-2.0-only
"""ntools-drop: which packets this kernel drops, why, where, and whose they are."""

import argparse
from typing import Any, List, Optional, Tuple

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
    add("--reason", type=options.names(), default=(), metavar="NAMES",
        help="only these drop reasons, as in records; 'openvswitch:*' for a subsystem")  # fmt: skip
    add("--not-reason", type=options.names(), default=(), metavar="NAMES", help="all but these")
    add("--location", type=options.names(), default=(), metavar="NAMES",
        help="only drops in these functions; * and ? are wild")  # fmt: skip
    add("--interface", "-n", "--name", dest="interface", metavar="NAMES",
        help="only packets of these devices, NETNS/NAME for other namespaces")  # fmt: skip
    add("--netns", metavar="NAME|PATH|PID",
        help="only this network namespace; devices are looked up there (default: all)")  # fmt: skip
    add("--vm", metavar="NAME",
        help="only packets of the interfaces of this VM: its name, UUID or process id")  # fmt: skip
    add("--normal", choices=("hide", "mark", "only", "show"), default="mark",
        help="frees that are no fault, such as queues emptied at close (mark)")  # fmt: skip
    options.add_filter(made)
    how = made.add_argument_group("how to show it")
    add = how.add_argument
    add("--mode", choices=("event", "summary"), help="one record per packet or a table")
    add("--group-by", type=options.names(*_DIMENSIONS, "all"), metavar="NAMES",
        help="rows of the table: {}, or all (default {})".format(
            ", ".join(_DIMENSIONS), ",".join(_DEFAULT)))  # fmt: skip
    add("--top", "-t", type=options.positive, metavar="N", help="rows to show (default 5)")
    add("--max-entries", type=options.number(256, 1 << 20), metavar="N",
        help="rows the kernel keeps (256 to 1048576, default 10240)")  # fmt: skip
    add("--stack", action="store_true", help="rows of the table by stack, too")
    add("--no-stack-trace", action="store_true", help="events without stack")
    options.add_common(made, interval_s=_INTERVAL_S)
    made.set_defaults(interval=None)
    return made


def run(args: argparse.Namespace) -> int:
    """Attach to the free of dropped packets, and show them."""
    from ntools.cli import filters, safety, session
    from ntools.cli.commands import COMMANDS
    from ntools.engine.drop import DropEngine, DropOptions
    from ntools.engine.run import Limits
    from ntools.output.drop import DropView

    command = COMMANDS["drop"]
    flt = session.learn_filter(args, lambda: filters.build(args))
    shown = flt.shown()
    group_by = _group_by(args)
    here, netns, devices = session.learn(
        args, "where", lambda: _where(args), _where_fields, _where_from_fields
    )
    for name in (
        "reason", "not_reason", "location", "interface", "vm", "netns", "normal", "filters_file"
    ):  # fmt: skip
        if getattr(args, name):
            shown[name] = getattr(args, name)
    if netns:
        shown["netns_inum"] = netns
    overhead = command.overhead["summary" if group_by else "events"]
    may_cost = safety.build(args, overhead, "count in the kernel with --mode summary")
    with session.open_object(args, "drop") as obj:
        obj.need(*command.needed)
        engine = DropEngine(obj, DropOptions(
            filter=flt, group_by=group_by, only=args.reason, without=args.not_reason,
            locations=args.location, netns=netns, devices=tuple(devices), normal=args.normal,
            stacks=not args.no_stack_trace,
            count=0 if group_by else args.count, top=args.top or _TOP,
            max_entries=args.max_entries or _MAX_ENTRIES, explain=args.explain,
        ), session.lookups(args, obj))  # fmt: skip
        if args.dry_run:
            from ntools.cli import plan

            plan.print_plan(obj, shown, overhead)
            return 0
        app.warn(args, (line + ", ignoring" for line in engine.warnings))
        interval = args.interval if args.interval is not None else _INTERVAL_S * bool(group_by)
        view = DropView(here, args.normal == "mark", args.verbose > 0, args.explain)
        return session.run(
            args,
            engine,
            view,
            Limits(interval, args.duration, args.count, args.strict),
            {"args": args.argv, "filters": shown},
            may_cost,
        )


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
    names = set(args.group_by or _DEFAULT)
    if "all" in names:
        names.update(_DEFAULT, ("fivetuple", "stack"))
    if args.stack:
        names.add("stack")
    return tuple(name for name in _DIMENSIONS if name in names)


def _where(args: argparse.Namespace) -> Tuple[int, int, List[Any]]:
    """(own namespace, inode number of the wanted namespace or 0, wanted devices)."""
    from ntools.host.devices import MAX_DEVICES, Devices
    from ntools.host.netns import current_netns

    here = current_netns()
    if not args.interface and not args.netns and not args.vm:
        return here, 0, []
    devices = Devices.snapshot(args.netns)
    found = devices.find_list(args.interface) if args.interface else []
    if args.vm:
        from ntools.cli import vm
        from ntools.errors import UsageProblem

        found = list(dict.fromkeys(found + vm.named_devices(args, devices)))
        if len(found) > MAX_DEVICES:
            raise UsageProblem(
                "{} devices named, at most {} are possible.".format(len(found), MAX_DEVICES)
            )
    return here, (devices.netns_inum if args.netns else 0), found


def _where_fields(where: Tuple[int, int, List[Any]]) -> Any:
    return [where[0], where[1], [device.fields() for device in where[2]]]


def _where_from_fields(fields: Any) -> Tuple[int, int, List[Any]]:
    from ntools.host.devices import Device

    return int(fields[0]), int(fields[1]), [Device.from_fields(device) for device in fields[2]]


MANUAL = {
    "DESCRIPTION": "Shows every packet the kernel frees as dropped, with the kernel's reason, the "
    "function that dropped it and the stack; or counts them in the kernel, in a table grouped as "
    "asked. A table is chosen by --mode summary and implied by --group-by, --top, --max-entries "
    "and --stack. Filters work in the kernel, in this order: reason, location, namespace and "
    "device, packet. Without --netns all network namespaces are watched.",
    "OUTPUT": "An event has the time, the reason, the device, the flow and the length in bytes; "
    "below it, after 'at', the place and its callers (all of them with -v), and once per reason "
    "what it means and what to look at next. A reason after ~ is concluded from the function, "
    "because the kernel gives none there. In parentheses is the class of a free that usually is "
    "no fault, such as purge: a queue emptied at close; --normal hide leaves these out where "
    "they are harmless. A table has packets, bytes and the columns it is grouped by; its last "
    "line counts what has no row. The summary says how many drops matched the filters and how "
    "many of them were shown; the difference is in the loss line. Totals by reason are exact "
    "whatever was lost.",
    "FILTERS": options.FILTERS,
    "OVERHEAD": "Class low for tables, variable for events. Nothing runs for packets that are "
    "delivered; a drop costs the filter, then one record or one update of a map. Measure the cost "
    "per drop with kernel.bpf_stats_enabled=1 and the fields bpf_ns and runs of the summary. "
    "--max-events bounds the events per second; more are counted as governor_dropped.",
    "LIMITS": "Packets lost without being freed as a drop are not seen: ring overruns of a NIC, "
    "XDP_DROP, conntrack or Open vSwitch freeing them as consumed. What waits in a socket belongs "
    "to no device and no namespace any more: --netns and --interface leave its purge out. Kernels "
    "before 5.17 give no reasons. On kernels without reasons, answers to ping look like drops "
    "without socket although they were delivered. Rows of the table are never given back: with "
    "many short flows raise --max-entries, or group by port. Segments of one GSO packet count as "
    "one drop.",
    "SEE ALSO": "ntools-vm-latency(8), ntools(8)",
}
