# SPDX-License-Identifier: GPL-2.0-only
"""The frame around every command: parse, run, one line per error, exit status."""

import argparse
import os
import sys
from typing import Any, Callable, Iterable, List, Optional

from ntools.errors import NtoolsError, UsageProblem

__all__ = ["Parser", "run", "warn"]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose help keeps the layout of its examples."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)

    def error(self, message: str) -> Any:
        """Print the one line and leave with status 2."""
        self.exit(2, "{0}: {1}. See '{0} --help'.\n".format(self.prog, message.rstrip(".")))


def warn(args: argparse.Namespace, lines: Iterable[str]) -> None:
    """One warning per line on stderr."""
    for line in lines:
        print("{}: warning: {}".format(args.command, line), file=sys.stderr)


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

            args.tape = Tape()
        return body(args)
    except NtoolsError as error:
        print("{}: {}".format(options.prog, error), file=sys.stderr)
        log = getattr(error, "log", "")
        if log and args.verbose > 1:
            print(log, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 0
    except Exception as error:  # the one place: a bug must not show a traceback to an operator
        if os.environ.get("NTOOLS_DEBUG"):
            raise
        print(
            "{}: internal error: {}: {}. Please report it; NTOOLS_DEBUG=1 shows where.".format(
                options.prog, type(error).__name__, error
            ),
            file=sys.stderr,
        )
        return 1


def _records(args: argparse.Namespace) -> bool:
    if getattr(args, "time_from", None) or getattr(args, "time_to", None):
        raise UsageProblem("--from and --to go with --replay.")
    return bool(getattr(args, "record", None)) and not args.dry_run
