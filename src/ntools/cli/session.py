# SPDX-License-Identifier: GPL-2.0-only
"""What every command opens: its BPF object and the writer of its records."""

import argparse
import sys
from typing import TYPE_CHECKING, Any, Iterable

from ntools import __version__

if TYPE_CHECKING:
    from ntools._loader import BpfObject
    from ntools.output.jsonl import Writer

__all__ = ["open_object", "warn", "writer"]


def open_object(args: argparse.Namespace, name: str) -> "BpfObject":
    """The object of the command, with the options that concern it applied.

    :raises EnvironmentProblem: no libbpf, no object for this machine, no type information; unless
        only the plan is wanted, also when the privilege to load it is missing.
    """
    from ntools._loader import BpfObject, facts

    if not args.dry_run:
        facts().check_privilege()
    obj = BpfObject(name, btf=args.btf)
    if not args.dry_run:
        obj.kernel.core_btf  # noqa: B018  # says what is missing before anything else is said
    if args.ring_size and "events" in obj.manifest:
        obj.resize("events", args.ring_size)
    return obj


def writer(args: argparse.Namespace, view: Any) -> "Writer":
    """Writer of the records, as JSON lines or through a text view."""
    from ntools.output.jsonl import JsonSink, Writer
    from ntools.output.text import TextSink

    sink = JsonSink(sys.stdout) if args.format == "json" else TextSink(view)
    return Writer(sink, args.command, __version__)


def warn(args: argparse.Namespace, lines: Iterable[str]) -> None:
    """Tell on stderr what does not end the run."""
    for line in lines:
        print("{}: warning: {}".format(args.command, line), file=sys.stderr)
