# SPDX-License-Identifier: GPL-2.0-only
"""What the generators read of a command: its parser and its ``MANUAL``.

Options come from ``parser()``, which imports argparse only, so nothing of what a command
needs at run time has to exist on the build host.
"""

import argparse
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple


@dataclass(frozen=True)
class Command:
    """One command: its name, argparse parser and the sections of its manual."""

    name: str
    parser: argparse.ArgumentParser
    manual: Dict[str, str]


def load(sources: str, pairs: List[str]) -> List[Command]:
    """Import the commands given as ``NAME=MODULE`` from the directory ``sources``."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, sources)
    commands = []
    for pair in pairs:
        name, module_name = pair.split("=")
        module = importlib.import_module(module_name)
        commands.append(Command(name, module.parser(), getattr(module, "MANUAL", {})))
    return commands


def write(directory: str, name: str, text: str) -> None:
    """Write one generated file."""
    (Path(directory) / name).write_text(text, encoding="utf-8")


def visible(actions: List[argparse.Action]) -> Iterator[argparse.Action]:
    """The actions that are not hidden from the user."""
    for action in actions:
        if action.help != argparse.SUPPRESS:
            yield action


def subcommands(
    parser: argparse.ArgumentParser,
) -> Iterator[Tuple[str, str, argparse.ArgumentParser]]:
    """``(name, help, parser)`` of each subcommand; nothing for a plain command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, parser in action.choices.items():
                if name in helps:
                    yield name, helps[name], parser


def main_name(action: argparse.Action) -> str:
    """The name of an option that the documents use: the first long one."""
    long_names = [name for name in action.option_strings if name.startswith("--")]
    return (long_names or action.option_strings)[0]


def help_text(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help of an action, with ``%(default)s`` and the like filled in."""
    values = dict(vars(action), prog=parser.prog)
    if action.choices is not None:
        values["choices"] = ", ".join(str(choice) for choice in action.choices)
    return (action.help or "") % values


def value_words(action: argparse.Action) -> List[str]:
    """The words a reader sees for the values of an action; empty for a flag."""
    if action.nargs == 0:
        return []
    word: Optional[str]
    if isinstance(action.metavar, tuple):
        return list(action.metavar)
    word = action.metavar
    if word is None and action.choices is not None:
        word = "|".join(str(choice) for choice in action.choices)
    if word is None:
        word = action.dest.upper() if action.option_strings else action.dest
    if action.nargs == "?":
        return ["[{}]".format(word)]
    if action.nargs == "*":
        return ["[{} ...]".format(word)]
    if action.nargs in ("+", argparse.REMAINDER):
        return ["{} ...".format(word)]
    return [word] * (action.nargs if isinstance(action.nargs, int) else 1)
