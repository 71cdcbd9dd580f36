# SPDX-License-Identifier: GPL-2.0-only
"""ntools-softirq-latency: does network work wait because those who do it start late?"""

import argparse
from typing import Any, Dict, List, Optional, Tuple

from ntools.cli import app, options

EXAMPLES = """\
examples:
  ntools-softirq-latency
      net_rx and ksoftirqd of all CPUs, every 5 seconds; summary at Ctrl-C
  ntools-softirq-latency --cpu 1,5-8 --threads all --vector net_rx,net_tx
      only these CPUs; also NAPI threads, threads of the backlog and of RCU
  ntools-softirq-latency --cpu 1 --details --threshold-us 1000
      a line for each wait of 1 ms or more, with the task that held the CPU
"""

_THREADS = ("ksoftirqd", "napi", "backlog", "rcuc")
_VECTORS = ("hi", "timer", "net_tx", "net_rx", "block", "irq_poll", "tasklet", "sched", "hrtimer",
            "rcu")  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line; needs neither libbpf nor root."""
    made = app.Parser(
        prog="ntools-softirq-latency",
        description="Does network work wait because ksoftirqd, a NAPI thread or the softirq "
        "itself starts late?",
        epilog=EXAMPLES,
    )
    which = made.add_argument_group("what to watch")
    add = which.add_argument
    add("--cpu", type=_cpus, default=(), metavar="LIST",
        help="only these CPUs, such as 1,5-8 (default: all)")  # fmt: skip
    add("--vector", type=options.names(*_VECTORS, "all"), default=("net_rx",), metavar="NAMES",
        help="softirq vectors: net_rx (default), net_tx, timer, sched... as in /proc/softirqs, "
        "or all")  # fmt: skip
    add("--threads", type=options.names(*_THREADS, "all"), default=("ksoftirqd",),
        metavar="NAMES",
        help="kernel threads: ksoftirqd (default), napi, backlog, rcuc, or all")  # fmt: skip
    add("--threshold-us", type=options.number(0, 10**9), default=100, metavar="US",
        help="waits of so long are counted apart (default 100)")  # fmt: skip
    add("--details", action="store_true",
        help="a line per wait so long, with the task that held the CPU")  # fmt: skip
    options.add_common(made, interval_s=5.0)
    return made


def _cpus(text: str) -> Tuple[int, ...]:
    from ntools.host.cpus import parse_list

    try:
        return parse_list(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    """Watch the threads and vectors, report."""
    from ntools.cli import safety, session
    from ntools.cli.commands import COMMANDS
    from ntools.engine.run import Limits
    from ntools.engine.softirq import SoftirqEngine, SoftirqOptions
    from ntools.errors import UsageProblem
    from ntools.host.cpus import Cpus

    command = COMMANDS["softirq-latency"]
    mode = "details" if args.details else "summary"
    advice = "run without --details: the summary costs less"
    may_cost = safety.build(args, command.overhead[mode], advice)
    cpus = session.learn(args, "cpus", Cpus.now, Cpus.fields, Cpus.from_fields)
    missing = sorted(set(args.cpu) - set(cpus.possible))
    if missing:
        raise UsageProblem("this host has no CPU {}. See 'lscpu'.".format(missing[0]))
    chosen = SoftirqOptions(
        cpus=args.cpu,
        threads=_chosen(args.threads, _THREADS),
        vectors=_chosen(args.vector, cpus.vectors),
        threshold_ns=args.threshold_us * 1000,
        details=args.details,
        explain=args.explain,
    )
    with session.open_object(args, command.objects[0]) as obj:
        obj.need(*command.needed)
        obj.want(*command.wanted)
        said = {
            "cpu": list(args.cpu) or None,
            "vector": chosen.vectors,
            "threads": chosen.threads,
            "threshold_us": args.threshold_us,
        }
        engine = SoftirqEngine(obj, cpus, chosen, session.lookups(args, obj))
        if args.dry_run:
            from ntools.cli import plan

            plan.print_plan(obj, said, command.overhead[mode])
            return 0
        return session.run(
            args,
            engine,
            View(args.explain),
            Limits(args.interval, args.duration, args.count, args.strict),
            {"args": args.argv, "filters": said},
            may_cost,
        )


def _chosen(asked: Tuple[str, ...], known: Tuple[str, ...]) -> Tuple[str, ...]:
    return tuple(name for name in known if name in asked or "all" in asked)


class View:
    """Text: rows per CPU that has something to tell; waits one by one."""

    def __init__(self, explain: bool) -> None:
        self._explain = explain
        self._hists: List[Dict[str, Any]] = []
        self._titled = ""

    def header(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.text import attach_lines, wrap

        asked = rec["filters"]
        text = "Watching {} and threads {}".format(
            ", ".join(asked["vector"]), ", ".join(asked["threads"])
        )
        if asked.get("cpu"):
            text += " on CPUs " + ",".join(map(str, asked["cpu"]))
        return wrap(text + ".") + (attach_lines(rec) if self._explain else [])

    def interval(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.model.clock import wall_text

        self._titled = ""
        seconds = (rec["end_ns"] - rec["start_ns"]) / 1e9
        return ["", "{}  {:.1f} s".format(wall_text(rec["utc_ns"], 3), seconds)]

    def hist(self, rec: Dict[str, Any]) -> None:
        self._hists.append(rec)

    def softirq_stats(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.softirq import heading, stats_lines

        hists, self._hists = self._hists, []
        lines = stats_lines(rec, hists)
        if lines and self._titled != rec["agg"]:
            self._titled = rec["agg"]
            before = ["", "whole run"] if rec["agg"] == "total" else []
            lines = [*before, heading(rec["threshold_ns"]), *lines]
        return lines

    def softirq_event(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.softirq import event_lines

        return event_lines(rec)

    def summary(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.text import rejection_lines

        return ["", "{:.1f} s".format(rec["duration_ns"] / 1e9), *rejection_lines(rec)]


def main(argv: Optional[List[str]] = None) -> int:
    """Entry point of the command."""
    return app.run(parser, run, argv)


MANUAL = {
    "DESCRIPTION": "What interrupts leave for later is done in softirqs: at the end of an "
    "interrupt, when a task lets them in, or in ksoftirqd when they come too often; NAPI may be "
    "polled by threads. Each can start late. Waits of threads are counted from a wake-up, or from "
    "being taken off the CPU while runnable, until they run; those of a vector from its first "
    "raise since its last entry until its entry.",
    "OUTPUT": "A row per CPU and kind of wait: count, how many of at least --threshold-us (of a "
    "thread: of both kinds together), percentiles and maximum in microseconds. Below it how often "
    "and how long it ran and where: on an idle CPU, in ksoftirqd, or on top of another task; how "
    "often NAPI was polled, and how often its budget was used up. A thread that still waits is "
    "named. --details: the task that ran before, with its priority as the kernel has it (real "
    "time below 100; nice 0 is 120).",
    "OVERHEAD": "Class low (summary) or variable (--details). Works at every context switch: two "
    "loads and a test between tasks that are not watched. A vector that was not chosen costs one "
    "array lookup; one that was a clock, three array lookups and a histogram.",
    "LIMITS": "A vector raised anew while it was pending has no delay of its own: such entries are "
    "counted as unknown in the JSON records. On top of a task, the end of an interrupt and the "
    "task's own letting in cannot be told apart. 4096 threads at a time.",
    "SEE ALSO": "ntools-vm-latency(8), ntools-drop(8), ntools(8)",
}
