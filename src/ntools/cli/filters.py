# SPDX-License-Identifier: GPL-2.0-only
"""From parsed filter options, or a file of them, to the packet filter of a command."""

import argparse
from typing import Any, List, Tuple

from ntools.errors import UsageProblem
from ntools.model.filter import CRITERIA, MAX_RULES, PacketFilter, Rule

__all__ = ["OPTIONS", "build", "given"]

#: Names of all filter options.
OPTIONS = (*CRITERIA, "bidir", "filters_file")
#: Bytes of a file of rules at most.
_MAX_FILE = 1 << 20


def build(args: argparse.Namespace) -> PacketFilter:
    """The filter of a command line.

    :raises UsageProblem: options that contradict each other, or a file that cannot be used.
    """
    names = given(args)
    if args.filters_file is not None:
        if names:
            raise UsageProblem(
                "{} cannot be combined with --filters-file. Write it into '{}'.".format(
                    names[0], args.filters_file
                )
            )
        return PacketFilter(_read(args.filters_file))
    rule = _rule(args)
    if not rule.used:
        return PacketFilter()
    try:
        rule.check()
    except ValueError as error:
        raise UsageProblem("{}.".format(error)) from None
    return PacketFilter((rule,))


def given(args: argparse.Namespace) -> List[str]:
    """The filter options a command line has."""
    found = []
    for name in (*CRITERIA, "bidir"):
        value = getattr(args, name)
        if name == "family" and value:
            found.append("--ipv{}".format(value))
        elif value:
            found.append("--" + name.replace("_", "-"))
    return found


def _rule(args: argparse.Namespace) -> Rule:
    return Rule(**{name: getattr(args, name) for name in Rule._fields})


def _read(path: str) -> Tuple[Rule, ...]:
    """The rules of a file, one per line."""
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(_MAX_FILE + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        raise UsageProblem("cannot read --filters-file '{}': {}.".format(path, reason)) from None
    if len(text) > _MAX_FILE:
        raise UsageProblem("--filters-file '{}' is larger than 1 MiB.".format(path))
    rules: List[Rule] = []
    parser = _line_parser()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rule = _parse_line(parser, line)
            if rule and len(rules) == MAX_RULES:
                raise ValueError("more than {} rules".format(MAX_RULES))
        except ValueError as error:
            raise UsageProblem("{}:{}: {}.".format(path, number, str(error).rstrip("."))) from None
        if rule:
            rules.append(rule)
    if not rules:
        raise UsageProblem("--filters-file '{}' has no rule.".format(path))
    return tuple(rules)


def _parse_line(parser: argparse.ArgumentParser, line: str) -> Any:
    """The rule of a line, None if there is none."""
    import shlex

    words = shlex.split(line, comments=True)
    if not words:
        return None
    rule = _rule(parser.parse_args(words))
    if not rule.used:
        raise ValueError("no criterion in this rule")
    rule.check()
    return rule


class _LineParser(argparse.ArgumentParser):
    """Errors belong to a line of the file."""

    def error(self, message: str) -> Any:
        raise ValueError(message)


def _line_parser() -> argparse.ArgumentParser:
    from ntools.cli import options

    parser = _LineParser(add_help=False, allow_abbrev=False)
    options.add_rule(parser)
    return parser
