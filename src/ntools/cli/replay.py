# SPDX-License-Identifier: GPL-2.0-only
"""``--replay``: the options of a recorded run, and what may be asked of it anew."""

import argparse
import contextlib
import io
import os
import struct
from typing import Any, Callable, Dict, List, Optional, Tuple

from ntools.cli import app
from ntools.errors import RecordingProblem, UsageProblem

__all__ = ["run", "window"]

#: Options that say how to show a run, not what the run does.
_VIEW = frozenset(("replay", "format", "verbose", "explain", "strict", "time_from", "time_to"))
#: Options that may ask for less than was recorded.
_NARROWER: Dict[str, Callable[[Any, Any], bool]] = {
    "direction": lambda asked, had: had in (asked, "both"),
    "latency_ms": lambda asked, had: bool(asked >= had),
}


def run(
    parser: Callable[[], argparse.ArgumentParser],
    body: Callable[[argparse.Namespace], int],
    args: argparse.Namespace,
) -> int:
    """Run the command on a recording.

    :param args: of this call, with ``argv``, ``command`` and ``replay``.
    :raises RecordingProblem: no recording, one of another command, or not what a run leaves.
    :raises UsageProblem: an option that would have had to be given when it was recorded.
    """
    try:
        options = _arguments(parser, args)
        app.say(_introduction(options.playback.header))
        return body(options)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
            struct.error) as error:  # fmt: skip
        if os.environ.get("NTOOLS_DEBUG"):
            raise
        raise RecordingProblem(
            "'{}' does not hold what a run of this command leaves ({}: {}).".format(
                args.replay, type(error).__name__, error
            )
        ) from None


def _arguments(
    parser: Callable[[], argparse.ArgumentParser], args: argparse.Namespace
) -> argparse.Namespace:
    """The options of the recorded run, with those of this call that concern the view."""
    from ntools.cli import filters
    from ntools.cli.commands import COMMANDS
    from ntools.engine.tape import Playback
    from ntools.output.recording import Recording

    playback = Playback(Recording(args.replay))
    tool = playback.header.get("tool")
    if tool != args.command:
        raise RecordingProblem(
            "'{}' was recorded by '{}'. Replay it with that command.".format(args.replay, tool)
        )
    found = _recorded(parser, playback.header, args.replay)
    given = _given(parser, args.argv)
    row = COMMANDS[args.command[len("ntools-") :]]
    narrow = filters.build(args) if set(given) & set(filters.OPTIONS) else None
    for name in set(given) - set(filters.OPTIONS):
        allowed = name in _VIEW or name in row.replay
        if name in _NARROWER:
            allowed = name in vars(found) and _NARROWER[name](given[name], getattr(found, name))
        if not allowed:
            raise UsageProblem(
                "--{} cannot be had from this recording, which was made with: {}.".format(
                    name.replace("_", "-"), " ".join(map(str, playback.header["args"])) or "none"
                )
            )
    values: Dict[str, Any] = dict(vars(found))
    values.update((name, getattr(args, name)) for name in _VIEW)
    values.update((name, given[name]) for name in given if name not in filters.OPTIONS)
    values.update(record=None, tape=None, dry_run=False, playback=playback, narrow=narrow)
    values.update(argv=args.argv, command=args.command)
    return argparse.Namespace(**values)


def window(args: argparse.Namespace) -> Optional[Tuple[int, int]]:
    """Monotonic times of the recording host that ``--from`` and ``--to`` mean, None for all."""
    if args.time_from is None and args.time_to is None:
        return None
    header = args.playback.header
    start, offset = int(header["start_ns"]), int(header["epoch_offset_ns"])

    def monotonic(moment: Any, otherwise: int) -> int:
        if moment is None:
            return otherwise
        return int(moment.ns + start if moment.is_offset else moment.ns - offset)

    return monotonic(args.time_from, 0), monotonic(args.time_to, 1 << 63)


def _introduction(header: Dict[str, Any]) -> str:
    """One line: whose run this is."""
    from ntools.model.clock import utc_text

    begun = int(header["start_ns"]) + int(header["epoch_offset_ns"])
    return "replay: recorded {} on '{}', kernel {}, by {} {}".format(
        utc_text(begun, 0), header.get("host", "?"), header.get("kernel", "?"),
        header["tool"], header.get("version", "?"),
    )  # fmt: skip


def _recorded(
    parser: Callable[[], argparse.ArgumentParser], header: Dict[str, Any], path: str
) -> argparse.Namespace:
    words: List[str] = [str(word) for word in header.get("args", ())]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            return parser().parse_args(words)
        except SystemExit:
            pass
    raise RecordingProblem(
        "'{}' was recorded with options this version does not know: {}.".format(
            path, " ".join(words)
        )
    )


def _given(parser: Callable[[], argparse.ArgumentParser], argv: List[str]) -> Dict[str, Any]:
    """Only the options that stand on the command line."""
    made = parser()
    made._defaults.clear()
    for action in made._actions:
        action.default = argparse.SUPPRESS
    return vars(made.parse_args(argv))
