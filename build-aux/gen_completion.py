# SPDX-License-Identifier: GPL-2.0-only
"""Write one bash completion per command, from its parser.

usage: gen_completion.py SOURCES OUTDIR NAME=MODULE...

What follows an option is completed by its choices, else network devices if its name or metavar
says so, else files if its metavar says so, else nothing.
"""

import argparse
import re
import shlex
import sys
from typing import Iterable, List

import commands

FILES = {"FILE", "PATH", "DIR"}
DEVICE = re.compile("interface|iface|dev|device", re.IGNORECASE)

HEAD = """\
# SPDX-License-Identifier: GPL-2.0-only
# bash completion for {name}, generated from the command's parser
{function}()
{{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}}
    COMPREPLY=()
"""

REPLY_WORDS = 'COMPREPLY=($(compgen -W {words} -- "$cur"))'
REPLY_FILES = 'compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur")'
REPLY_DEVICES = 'COMPREPLY=($(compgen -W "$(cd /sys/class/net && echo *)" -- "$cur"))'


def reply_words(words: Iterable[str]) -> str:
    """The line that offers a fixed set of words."""
    return REPLY_WORDS.format(words=shlex.quote(" ".join(words)))


def reply_values(action: argparse.Action) -> str:
    """The line that offers the values of an option."""
    if action.choices is not None:
        return reply_words(str(choice) for choice in action.choices)
    words = {word.strip("[]. ") for word in commands.value_words(action)}
    words.update(commands.main_name(action).split("-"))
    if any(DEVICE.fullmatch(word) for word in words):
        return REPLY_DEVICES
    return REPLY_FILES if words & FILES else ":"


def parser_cases(parser: argparse.ArgumentParser, indent: str) -> List[str]:
    """Completion of one parser: values after an option, else option names."""
    actions = list(commands.visible(parser._actions))
    lines = ["case $prev in"]
    for action in actions:
        if action.option_strings and commands.value_words(action):
            names = "|".join(action.option_strings)
            lines.append("{})".format(names))
            lines.append("    {}; return ;;".format(reply_values(action)))
    lines.append("esac")
    words = [name for action in actions for name in action.option_strings]
    for action in actions:
        if not action.option_strings and action.choices is not None:
            words += [str(choice) for choice in action.choices]
    lines.append(reply_words(words))
    return [indent + line for line in lines]


def completion(command: commands.Command) -> str:
    """The whole script."""
    function = "_" + command.name.replace("-", "_")
    lines = []
    subcommands = list(commands.subcommands(command.parser))
    if subcommands:
        lines += [
            "    local word",
            '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
            "        case $word in",
        ]
        for name, _, subparser in subcommands:
            lines.append("        {})".format(name))
            lines += parser_cases(subparser, " " * 12)
            lines.append("            return ;;")
        lines += ["        esac", "    done"]
    lines += parser_cases(command.parser, " " * 4)
    head = HEAD.format(name=command.name, function=function)
    tail = ["}", "complete -F {} {}".format(function, command.name)]
    return head + "\n".join(lines + tail) + "\n"


def main() -> None:
    sources, outdir, *pairs = sys.argv[1:]
    for command in commands.load(sources, pairs):
        commands.write(outdir, command.name, completion(command))


if __name__ == "__main__":
    main()
