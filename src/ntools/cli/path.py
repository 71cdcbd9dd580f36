# SPDX-License-Identifier: GPL-2.0-only
"""What the path commands do alike: who talks to whom, and by which devices of this host."""

import argparse
from typing import TYPE_CHECKING, Any, Callable, Type

from ntools.errors import UsageProblem

if TYPE_CHECKING:
    from ntools.engine.path import PathEngine
    from ntools.engine.path_flow import FlowEngine
    from ntools.host.sides import Sides
    from ntools.model.filter import PacketFilter

__all__ = ["LOSS", "one_way", "run", "run_flows", "sides"]

#: Exit status with --exit-code where packets were lost.
LOSS = 10


def one_way(args: argparse.Namespace, protocol: str = "") -> "PacketFilter":
    """The filter of the forward direction.

    :param protocol: the only one it may have, put in where it has none.
    :raises UsageProblem: it does not say who talks to whom.
    """
    from ntools.cli import filters
    from ntools.model.filter import PacketFilter
    from ntools.model.flow import parse_protocol

    flt = filters.build(args)
    if not flt.rules or not all(rule.src_ip and rule.dst_ip for rule in flt.rules):
        raise UsageProblem("name both ends: --src-ip of who begins, and --dst-ip of who answers.")
    if any(rule.bidir for rule in flt.rules):
        raise UsageProblem("--bidir is not for a path: replies are followed anyway.")
    if not protocol:
        return flt
    wanted = parse_protocol(protocol)
    if any(rule.protocol not in ((), wanted) for rule in flt.rules):
        raise UsageProblem("this command follows {} only.".format(protocol))
    return PacketFilter(tuple(rule._replace(protocol=wanted) for rule in flt.rules))


def sides(args: argparse.Namespace) -> "Sides":
    """The devices of both sides; at replay those of the recording.

    :raises UsageProblem: not named, not there, or the same on both sides.
    """
    from ntools.cli import session
    from ntools.host.sides import Sides

    return session.learn(args, "sides", lambda: _locate(args), Sides.fields, Sides.from_fields)


def _locate(args: argparse.Namespace) -> "Sides":
    from ntools.host.devices import Devices
    from ntools.host.sides import locate

    if not args.rx_iface or not args.tx_iface:
        raise UsageProblem(
            "name both sides of this host: --rx-iface, where packets come in, and --tx-iface."
        )
    return locate(args.rx_iface, args.tx_iface, Devices.snapshot(args.netns))


def run(args: argparse.Namespace, engine: "PathEngine", *rest: Any) -> int:
    """As :func:`ntools.cli.session.run`; with --exit-code the status tells whether any was lost."""
    from ntools.cli import session

    status = session.run(args, engine, *rest)
    return LOSS if args.exit_code and not status and engine.lost() else status


def run_flows(
    args: argparse.Namespace,
    name: str,
    protocol: str,
    view: Callable[[bool], Any],
    make_engine: "Type[FlowEngine]",
) -> int:
    """A command that follows packets of one protocol."""
    from ntools.cli import safety, session
    from ntools.cli.commands import COMMANDS
    from ntools.engine.path_flow import DIRECTIONS, FlowOptions
    from ntools.engine.run import Limits

    command = COMMANDS[name]
    flt = session.learn_filter(args, lambda: one_way(args, protocol))
    shown = "all" if args.verbose else "lost" if args.drops else "none"
    mode = "totals" if shown == "none" else "packets"
    advice = "run without --verbose and --drops: the totals cost less"
    may_cost = safety.build(args, command.overhead[mode], advice)
    place = sides(args)
    directions = DIRECTIONS if args.direction == "both" else (args.direction,)
    with session.open_object(args, command.objects[mode == "packets"]) as obj:
        obj.need(*command.needed)
        obj.want(*command.wanted)
        said = dict(
            flt.shown(), rx_iface=args.rx_iface, tx_iface=args.tx_iface, directions=directions
        )
        chosen = FlowOptions(flt, directions, args.timeout_ms / 1e3, shown, args.explain)
        engine = make_engine(obj, place, chosen, session.lookups(args, obj))
        if args.dry_run:
            from ntools.cli import plan

            plan.print_plan(obj, said, command.overhead[mode])
            return 0
        return run(
            args,
            engine,
            view(args.explain),
            Limits(args.interval, args.duration, args.count, args.strict),
            {"args": args.argv, "filters": said},
            may_cost,
        )
