# SPDX-License-Identifier: GPL-2.0-only
"""``ntools``: what there is, what works here, what the records mean, and a way to each command.

Of ``cli``, this module and ``btf`` know the table of commands (:mod:`ntools.cli.commands`).
"""

import argparse
import importlib
import sys
from typing import Any, Dict, Iterable, List, Optional

from ntools import __version__
from ntools.cli import app, commands
from ntools.errors import EnvironmentProblem, NtoolsError, UsageProblem

__all__ = ["MANUAL", "main", "parser"]

#: Sections of the manual page which the parser cannot know.
MANUAL: Dict[str, str] = {
    "OUTPUT": """
        list: one line per command: whether it can work on this host as root, as far as the
        kernel's type information tells (yes, reduced, no), its overhead class per mode, and the
        question it answers.

        doctor: the facts about the host which decide what works, one per line (ok; no: the
        commands do without it; bad: no command works). Then one line per command: works; reduced:
        it runs without some stages; no: it cannot run. Below it every missing stage with what was
        tried and what the kernel said.
        """,
    "OVERHEAD": """
        list, schema and version load nothing. doctor loads the objects of the commands one after
        the other and attaches their points for some milliseconds without following any packet.
        """,
    "LIMITS": """
        doctor without root can only say what is missing for it: nothing can be tried.
        """,
}

_EXAMPLES = """\
examples:
  ntools list                      what is there, and what can work here
  ntools doctor                    try everything; the first thing a bug report contains
  ntools doctor vm-latency         one command, why is it reduced?
  ntools schema packet             fields of a record type
  ntools drop --duration 10        the same as ntools-drop --duration 10
  ntools btf check FILE            the same as ntools-btf check FILE
"""


def parser() -> argparse.ArgumentParser:
    """Command line of ``ntools``."""
    top = app.Parser(
        prog="ntools",
        description="Find out which ntools command answers a question and works on this host.",
        epilog=_EXAMPLES,
        usage="%(prog)s [-h] COMMAND ...",
    )
    top.set_defaults(verbose=0)
    commands = top.add_subparsers(
        dest="subcommand", metavar="COMMAND", parser_class=app.Parser, prog=top.prog
    )
    add = commands.add_parser("list", help="commands, their cost, and whether they work here")
    add.add_argument("--family", default=None, metavar="NAME", help="only this family of commands")
    _add_format(add)
    _add_btf(add)
    add = commands.add_parser("doctor", help="try what works on this host, and why the rest not")
    add.add_argument("tool", nargs="*", metavar="TOOL", help="commands to try (default: all)")
    _add_format(add)
    _add_btf(add)
    add = commands.add_parser("schema", help="describe the records as JSON Schema")
    add.add_argument(
        "type", nargs="?", default=None, metavar="TYPE", help="record type (default: list them)"
    )
    add = commands.add_parser("version", help="versions of everything that matters")
    _add_format(add)
    return top


def main(argv: Optional[List[str]] = None) -> int:
    """Run ``ntools``; the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in commands.COMMANDS:
        command = commands.COMMANDS[words[0]]
        return _run_command(command.module, command.program, words[1:])
    if words and words[0] in commands.OFFLINE:
        return _run_command(commands.OFFLINE[words[0]], "ntools-" + words[0], words[1:])
    if words and not words[0].startswith("-") and words[0] not in _ACTIONS:
        app.say("ntools: {}".format(_unknown(words[0])))
        return UsageProblem.exit_status
    return app.run(parser, _body, argv)


def _body(args: argparse.Namespace) -> int:
    if args.subcommand is None:
        parser().print_help()
        return 0
    return _ACTIONS[args.subcommand](args)


def _run_command(name: str, program: str, words: List[str]) -> int:
    module = importlib.import_module(name)
    # Commands read the command line like any program, and name themselves in messages.
    sys.argv = [program] + words
    status: int = module.main()
    return status


def _list(args: argparse.Namespace) -> int:
    from ntools.cli import doctor

    families = {row.family for row in commands.COMMANDS.values()}
    if args.family and args.family not in families:
        raise UsageProblem(
            "no family '{}'. Families: {}.".format(args.family, ", ".join(sorted(families)))
        )
    rows = [
        (command, doctor.examine(command, args.btf, load=False))
        for command in commands.COMMANDS.values()
        if args.family in (None, command.family)
    ]
    if args.format == "json":
        return _print_json(
            [
                {
                    "command": command.program,
                    "family": command.family,
                    "question": command.question,
                    "overhead": command.overhead,
                    "usable": _USABLE[verdict.verdict],
                    "cause": verdict.cause,
                }
                for command, verdict in rows
            ]
        )
    lines = ["{:<20} {:<8} {}".format("command", "usable", "overhead class")]
    for command, verdict in rows:
        modes = ", ".join("{} {}".format(mode, of) for mode, of in command.overhead.items())
        lines.append("{:<20} {:<8} {}".format(command.program, _USABLE[verdict.verdict], modes))
        lines.append("    " + command.question)
        if verdict.cause:
            lines += _hint("why", verdict.cause)
    return _print(lines)


def _doctor(args: argparse.Namespace) -> int:
    from ntools.cli import doctor

    chosen = []
    for name in args.tool or commands.COMMANDS:
        name = name[len("ntools-") :] if name.startswith("ntools-") else name
        if name not in commands.COMMANDS:
            raise UsageProblem(_unknown(name))
        chosen.append(commands.COMMANDS[name])
    found = doctor.host_facts(args.btf)
    verdicts = [doctor.examine(command, args.btf) for command in chosen]
    if args.format == "json":
        _print_json(
            {
                "facts": [fact._asdict() for fact in found],
                "commands": [_verdict_fields(verdict) for verdict in verdicts],
            }
        )
    else:
        _print(_doctor_lines(found, verdicts))
    failed = any(verdict.verdict == doctor.NO for verdict in verdicts)
    return EnvironmentProblem.exit_status if failed else 0


def _verdict_fields(verdict: Any) -> Dict[str, Any]:
    fields: Dict[str, Any] = verdict._asdict()
    fields["command"] = commands.COMMANDS[verdict.command].program
    fields["missing"] = [row._asdict() for row in verdict.missing]
    return fields


def _doctor_lines(found: List[Any], verdicts: List[Any]) -> List[str]:
    lines = []
    for fact in found:
        state = "" if fact.state == "info" else fact.state
        head = "{:<26} {:<4} ".format(fact.name, state)
        lines += _wrapped(head, fact.value)
    for verdict in verdicts:
        of = len(commands.COMMANDS[verdict.command].objects)
        lines.append("")
        counts = ", ".join("{} {}".format(n, how) for how, n in sorted(verdict.attached.items()))
        head = "{:<26} {}".format(commands.COMMANDS[verdict.command].program, verdict.verdict)
        lines.append("{} ({})".format(head, counts) if counts else head)
        if verdict.cause:
            lines += _hint("why", verdict.cause)
        for row in verdict.missing:
            where = " in {}".format(", ".join(row.objects)) if len(row.objects) < of else ""
            label = "needs" if row.needed else "no"
            lines += _hint(label, "{}{}: {}".format(row.stage, where, row.why))
    return lines


def _schema(args: argparse.Namespace) -> int:
    from ntools.output import schema

    if args.type is None:
        return _print(schema.names())
    if args.type not in schema.names():
        raise UsageProblem(
            "no record type '{}'.{} See 'ntools schema'.".format(
                args.type, _guess(args.type, schema.names())
            )
        )
    return _print_json(schema.load(args.type))


def _version(args: argparse.Namespace) -> int:
    from ntools._loader import build_id, library
    from ntools.output.jsonl import SCHEMA

    fields: Dict[str, Any] = {
        "ntools": __version__,
        "schema": SCHEMA,
        "python": sys.version.split()[0],
    }
    problems = {}
    try:
        fields["libbpf"] = library().version_text
    except NtoolsError as error:
        problems["libbpf"] = str(error)
    builds = {}
    for name in commands.objects():
        try:
            builds[name] = build_id(name)
        except NtoolsError as error:
            problems[name] = str(error)
    if args.format == "json":
        return _print_json(dict(fields, objects=builds, problems=problems))
    lines = ["{:<20} {}".format(name, value) for name, value in fields.items()]
    lines += ["{:<20} {}".format("object " + name, value) for name, value in builds.items()]
    for name, problem in problems.items():
        lines += _wrapped("{:<20} ".format(name), problem)
    return _print(lines)


def _unknown(name: str) -> str:
    bare = name[len("ntools-") :] if name.startswith("ntools-") else name
    guess = _guess(bare, [*_ACTIONS, *commands.OFFLINE, *commands.COMMANDS])
    return "unknown command '{}'.{} See 'ntools list'.".format(name, guess)


def _guess(name: str, known: List[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, 1)
    return " Did you mean '{}'?".format(close[0]) if close else ""


def _add_format(add: argparse.ArgumentParser) -> None:
    add.add_argument(
        "--format", choices=("text", "json"), default="text", help="text, or one JSON document"
    )


def _add_btf(add: argparse.ArgumentParser) -> None:
    add.add_argument(
        "--btf", default=None, metavar="FILE",
        help="type information of this kernel, where the kernel has none of its own",
    )  # fmt: skip


def _hint(label: str, text: str) -> List[str]:
    from ntools.output.text import hint_lines

    return hint_lines(label, text)


def _wrapped(head: str, text: str) -> List[str]:
    from ntools.output.text import wrap

    lines = wrap(text, indent=len(head))
    return [head + lines[0].lstrip()] + lines[1:] if lines else [head.rstrip()]


def _print_json(document: Any) -> int:
    import json

    return _print(json.dumps(document, indent=2).split("\n"))


def _print(lines: Iterable[str]) -> int:
    from ntools.output.stream import LineStream, printable

    LineStream(sys.stdout).write([printable(line) for line in lines])
    return 0


_USABLE = {"works": "yes", "reduced": "reduced", "no": "no"}
_ACTIONS = {"list": _list, "doctor": _doctor, "schema": _schema, "version": _version}
