# SPDX-License-Identifier: GPL-2.0-only
"""The frame around every command: parse, run, one line per error, exit status."""

import argparse
import os
import sys
from typing import Any, Callable, Iterable, List, Optional

from ntools.errors import NtoolsError, UsageProblem

__all__ = ["Parser", "run", "say", "warn"]


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Knows the width of the terminal without shutil and its compressors: 3 ms of every start."""

    def __init__(self, prog: str) -> None:
        try:
            columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size(1).columns
        except (OSError, ValueError):
            columns = 80
        super().__init__(prog, width=(columns or 80) - 2)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose help keeps the layout of its examples."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _Formatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)

    def error(self, message: str) -> Any:
        """Print the one line and leave with status 2."""
        say("{0}: {1}. See '{0} --help'.".format(self.prog, message.rstrip(".")))
        self.exit(2)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # An option such as -4 would make argparse take every negative number for an option.
        self._has_negative_number_optionals.clear()
        return super().parse_known_args(args, namespace)

    def _get_values(self, action: argparse.Action, arg_strings: List[str]) -> Any:
        # Python before 3.13 makes an empty list of the value in '--count=--'.
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            raise argparse.ArgumentError(action, "'--' is not a value")
        return super()._get_values(action, arg_strings)


def say(line: str) -> None:
    """A line on stderr. Names and values in it may hold anything: none moves the cursor."""
    from ntools.output.stream import printable

    print(printable(line), file=sys.stderr)


def warn(args: argparse.Namespace, lines: Iterable[str]) -> None:
    """One warning per line on stderr."""
    for line in lines:
        say("{}: warning: {}".format(args.command, line))


def run(
    parser: Callable[[], argparse.ArgumentParser],
    body: Callable[[argparse.Namespace], int],
    argv: Optional[List[str]] = None,
) -> int:
    """Parse the command line, run the command, return its exit status."""
    options = parser()
    args = options.parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    args.command = options.prog
    try:
        args.tape = args.playback = None
        if getattr(args, "replay", None):
            from ntools.cli import replay

            return replay.run(parser, body, args)
        if _records(args):
            from ntools.engine.tape import Tape

            args.tape = Tape(lambda text: warn(args, [text]))
        return body(args)
    except NtoolsError as error:
        say("{}: {}".format(options.prog, error))
        log = getattr(error, "log", "")
        if log and args.verbose > 1:
            for line in log.splitlines():
                say(line)
        return error.exit_status
    except KeyboardInterrupt:
        return 0
    except Exception as error:  # the one place: a bug must not show a traceback to an operator
        if os.environ.get("NTOOLS_DEBUG"):
            raise
        say(
            "{}: internal error: {}: {}. Please report it; NTOOLS_DEBUG=1 shows where.".format(
                options.prog, type(error).__name__, error
            )
        )
        return 1


def _records(args: argparse.Namespace) -> bool:
    if getattr(args, "time_from", None) or getattr(args, "time_to", None):
        raise UsageProblem("--from and --to go with --replay.")
    return bool(getattr(args, "record", None)) and not args.dry_run
