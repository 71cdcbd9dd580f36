# SPDX-License-Identifier: GPL-2.0-only
"""What every command opens and runs: its BPF object, its records; or a recording of them."""

import argparse
import functools
import os
import sys
from typing import TYPE_CHECKING, Any, Callable, Dict, TypeVar

from ntools import __version__
from ntools.cli import app
from ntools.errors import RecordingProblem, UsageProblem

if TYPE_CHECKING:
    from ntools.engine.guard import Safety
    from ntools.engine.lookups import Lookups
    from ntools.engine.run import Engine, Limits
    from ntools.model.filter import PacketFilter

__all__ = ["learn", "learn_filter", "lookups", "open_object", "run"]

T = TypeVar("T")


def open_object(args: argparse.Namespace, name: str) -> Any:
    """The object of the command, with the options that concern it applied.

    :return: a ``BpfObject``, or what looks like one: taped, or from a recording.
    :raises EnvironmentProblem: no libbpf, no object for this machine, no type information; unless
        only the plan is wanted, also when the privilege to load it is missing.
    :raises RecordingProblem: the recording is one of another object.
    """
    if args.playback is not None:
        from ntools.engine.tape import ReplayedObject

        return ReplayedObject(args.playback, name)
    from ntools._loader import BpfObject, facts

    if not args.dry_run:
        facts().check_privilege()
        _check_record(args)
    obj = BpfObject(name, btf=args.btf)
    if not args.dry_run:
        obj.kernel.core_btf  # noqa: B018  # says what is missing before anything else is said
    if args.ring_size and "events" in obj.manifest:
        obj.resize("events", args.ring_size)
    if args.tape is None:
        return obj
    from ntools.engine.tape import TapedObject

    return TapedObject(obj, args.tape)


def learn(
    args: argparse.Namespace,
    subject: str,
    ask: Callable[[], T],
    keep: Callable[[T], Any],
    restore: Callable[[Any], T],
) -> T:
    """Something the command asks the host before it starts; at replay, what was answered then.

    :param keep, restore: to what JSON can carry, and back.
    """
    if args.playback is not None:
        return restore(args.playback.fact(subject))
    answer = ask()
    if args.tape is not None:
        args.tape.fact(subject, 0, keep(answer))
    return answer


def learn_filter(args: argparse.Namespace, build: Callable[[], "PacketFilter"]) -> "PacketFilter":
    """The packet filter of the run.

    At replay the one it was recorded with; what is asked for in addition is in ``args.narrow``.

    :raises UsageProblem: the replay asks for packets that were not recorded.
    """
    from ntools.model.filter import PacketFilter

    flt = learn(args, "filter", build, PacketFilter.fields, PacketFilter.from_fields)
    if args.playback is not None and args.narrow is not None:
        for rule in args.narrow.rules if len(flt.rules) == 1 else ():
            asked = {name: getattr(rule, name) for name in rule.used}
            both = flt.rules[0]._replace(**asked)
            if not both.within(flt.rules[0]):
                raise UsageProblem(
                    "'{}' asks for more than was recorded with '{}'.".format(rule, flt.rules[0])
                )
    return flt


def lookups(args: argparse.Namespace, obj: Any) -> "Lookups":
    """Where the engine asks for names."""
    from ntools.engine.lookups import HostLookups, RecordedLookups

    if args.playback is not None:
        return RecordedLookups(args.playback)
    return HostLookups(obj.kernel, args.tape)


def run(
    args: argparse.Namespace,
    engine: "Engine",
    view: Any,
    limits: "Limits",
    header: Dict[str, Any],
    safety: "Safety",
) -> int:
    """Run the engine to its end, or replay what was recorded; the exit status.

    :param header: fields of the header record that the command knows.
    :param safety: what the run may cost.
    """
    from ntools.engine.run import drive, replay

    out = _writer(args, view)
    if args.playback is None:
        recorder = functools.partial(_recorder, args, engine)
        return drive(engine, out, limits, header, safety, args.tape, recorder)
    from ntools.cli.replay import window

    out.window = window(args)
    if args.narrow is not None:
        engine.narrow(args.narrow)
    status = replay(engine, out, args.playback, args.strict)
    if args.playback.cut:
        app.warn(args, ["the recording has no end: {}".format(args.playback.cut)])
    return status


def _writer(args: argparse.Namespace, view: Any) -> Any:
    """Writer of the records, as JSON lines or through a text view."""
    from ntools.output.jsonl import JsonSink, Writer
    from ntools.output.text import TextSink

    sink = JsonSink(sys.stdout) if args.format == "json" else TextSink(view)
    return Writer(sink, args.command, __version__)


def _check_record(args: argparse.Namespace) -> None:
    """Find out early what would end the run when it has just begun.

    :raises RecordingProblem: there is such a file already.
    """
    if args.record and os.path.lexists(args.record):
        raise RecordingProblem(
            "cannot record to '{0}': '{0}' exists. Give the name of a new file, or remove "
            "it.".format(args.record)
        )


def _recorder(args: argparse.Namespace, engine: "Engine", header: Dict[str, Any]) -> Any:
    from ntools.engine.tape import layouts
    from ntools.output.recording import Frame, Recorder

    tape = args.tape
    return Recorder(
        args.record,
        header,
        layouts(engine.obj),
        max_bytes=args.record_max_size,
        only_at_ticks=True,
        keep=args.record_keep,
        mode=args.record_mode,
        preamble=lambda: [Frame(kind, 0, at, body) for kind, at, body in tape.preamble()],
    )
