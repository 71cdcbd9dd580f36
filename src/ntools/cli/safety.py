# SPDX-License-Identifier: GPL-2.0-only
"""From the safety options of a command to what its run may cost, and the refusals before it."""

import argparse
from typing import TYPE_CHECKING

from ntools.errors import SafetyRefusal, UsageProblem
from ntools.model.filter import PacketFilter

if TYPE_CHECKING:
    from ntools.engine.guard import Safety

__all__ = ["build", "need_one_flow"]


def build(args: argparse.Namespace, overhead: str, advice: str = "") -> "Safety":
    """What a run may cost.

    :param overhead: class of the chosen mode, see :mod:`ntools.cli.commands`.
    :param advice: what else answers the question when the run is refused.
    :raises UsageProblem: no limit of events without ``--force``.
    """
    from ntools.engine.guard import Safety

    if not args.max_events and not args.force:
        raise UsageProblem("--max-events 0 takes the limit away: only with --force.")
    return Safety(
        overhead=overhead,
        max_events=args.max_events,
        max_overhead=args.max_overhead,
        max_cpu=args.max_cpu,
        sample_shift=args.sample,
        force=args.force,
        admit_s=args.admit_s,
        stats_duty=args.stats_duty,
        command=args.command,
        advice=advice,
    )


def need_one_flow(args: argparse.Namespace, flt: PacketFilter, mode: str, advice: str) -> None:
    """Refuse single packets of everybody: a flow or ``--latency-ms`` has to narrow them down.

    :raises SafetyRefusal: unless forced, or only the plan is wanted.
    """
    from ntools.engine.admission import is_one_flow

    if args.force or args.dry_run or args.latency_ms or is_one_flow(flt):
        return
    raise SafetyRefusal(
        "refused: {} would show every packet. Give --src-ip and --dst-ip (or one address and a "
        "port), or --latency-ms; {}. --force overrides.".format(mode, advice)
    )
