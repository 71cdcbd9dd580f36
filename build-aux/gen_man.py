# SPDX-License-Identifier: GPL-2.0-only
"""Write one manual page per command, from its parser and its ``MANUAL``.

usage: gen_man.py SOURCES OUTDIR VERSION NAME=MODULE...

The first sentence of the parser's description says what the command is for, the epilog is
its EXAMPLES. ``MANUAL`` maps the heading of a section to its text; DESCRIPTION, EXAMPLES,
EXIT STATUS and SEE ALSO replace what is made here, headings not known here come before EXIT
STATUS. A text is paragraphs separated by empty lines:

* an indented paragraph is shown as it stands;
* one with only its first line not indented is an entry of a list: the first line is the term.
"""

import argparse
import inspect
import os
import re
import sys
import textwrap
import time
from typing import List, Optional

import commands

ORDER = ["OUTPUT", "EXAMPLES", "OVERHEAD", "LIMITS", "EXIT STATUS"]

SAFETY = """
Every mode has an overhead class, shown by --dry-run and in the header record. What costs per
packet (class variable or high) is refused with exit status 5 when a filter is missing, when another
such run of the same engine is going on (a lock in /run/ntools, gone with its process; containers
with a /run of their own have locks of their own), or when the admission test says so: for
--admit-s seconds the attached programs only count, then the rate is compared with the limits.
Short memory is a reason for every mode. --force overrides, and is noted in header and summary.

While it runs, events pass a bucket of tokens in the kernel: --max-events per second and a burst of
one second. Once a second BPF run time (--max-overhead), own CPU time (--max-cpu), demand for events
and losses are looked at. At half of a limit there is a warning; above it events are sampled by what
the packet is, 1/2, 1/4, 1/8; then events are switched off; then the run ends with exit status 6.
Tables and histograms count all packets meanwhile. Demand for events alone leads to sampling only.
After 30 calm seconds it goes one step back, three times at most. governor records tell each step.

The programs live by a heartbeat: when the command is stopped or hangs for more than 10 s they
return at once, and it says so when it goes on.
"""

EXIT_STATUS = [
    ("0", "Done; also after an interrupt, with the summary printed."),
    ("1", "Failed."),
    ("2", "The command line asks for something that cannot be."),
    ("3", "This host cannot do it: kernel, module, type information, library or privilege."),
    ("4", "Incomplete, and --strict was given."),
    ("5", "Refused by the safety model."),
    ("6", "Stopped by the governor."),
]


def escape(text: str) -> str:
    """Text as roff input that prints exactly this text."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


def bold(text: str) -> str:
    """Text as it is typed."""
    return "\\fB" + escape(text) + "\\fR"


def italic(text: str) -> str:
    """A word the user replaces."""
    return "\\fI" + escape(text) + "\\fR"


def paragraphs(text: str) -> List[str]:
    """Plain text as roff, see the head of this file."""
    lines = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        first, *rest = block.split("\n")
        indented = [line.startswith(" ") for line in rest]
        if first.startswith(" ") and all(indented):
            lines += [".PP", ".RS 4", ".nf", escape(textwrap.dedent(block)), ".fi", ".RE"]
        elif rest and all(indented):
            lines += term(bold(first), "\n".join(rest))
        else:
            lines += [".PP", escape(one_line(block))]
    return lines


def one_line(text: str) -> str:
    """Text with its line breaks made spaces; roff fills lines by itself."""
    return re.sub(r"\s*\n\s*", " ", text).strip()


def term(name: str, text: str) -> List[str]:
    """One entry of a list of definitions; the name is roff already."""
    return [".TP", name, escape(one_line(text)) or "\\&"]


def values(action: argparse.Action) -> str:
    """The values of an action, each preceded by a space that does not break."""
    return "".join("\\ " + italic(word) for word in commands.value_words(action))


def synopsis(name: str, parser: argparse.ArgumentParser) -> List[str]:
    """The call with all options, required ones without brackets."""
    lines = [".PP", ".nh", ".HP", bold(name)]
    for action in commands.visible(parser._actions):
        if isinstance(action, argparse._SubParsersAction):
            lines.append(italic("COMMAND") + " ...")
        elif not action.option_strings:
            lines.append(values(action)[2:])
        else:
            call = bold(commands.main_name(action)) + values(action)
            lines.append(call if action.required else "[" + call + "]")
    return [*lines, ".hy"]


def options(parser: argparse.ArgumentParser) -> List[str]:
    """Every option with its help, under the headings of the parser's groups."""
    lines = []
    usual = (parser._positionals, parser._optionals)
    for group in parser._action_groups:
        actions = [
            action
            for action in commands.visible(group._group_actions)
            if not isinstance(action, argparse._SubParsersAction)
        ]
        if actions and group not in usual:
            lines.append('.SS "{}"'.format(escape(group.title or "").capitalize()))
            if group.description:
                lines += paragraphs(group.description)
        for action in actions:
            names = ", ".join(bold(name) for name in action.option_strings)
            call = names + values(action) if names else values(action)[2:]
            lines += term(call, commands.help_text(parser, action))
    return lines


def filled_in(parser: argparse.ArgumentParser, text: Optional[str]) -> str:
    """A text of a parser, without the indentation of its source, program name filled in."""
    return textwrap.dedent(text or "").strip("\n").replace("%(prog)s", parser.prog)


def examples(epilog: str) -> str:
    """The epilog without the heading that ``--help`` needs and a section does not."""
    return re.sub(r"\A\s*examples?:\s*\n", "", epilog, flags=re.IGNORECASE)


def page(command: commands.Command, names: List[str], version: str, date: str) -> str:
    """The whole page as roff."""
    parser = command.parser
    sections = {head: inspect.cleandoc(text) for head, text in command.manual.items()}
    description = filled_in(parser, parser.description)
    purpose = re.split(r"\.(?:\s|$)|\n\n", description, maxsplit=1)[0]
    purpose = re.sub(r"\s+", " ", purpose)
    lines = [
        ".\\\" Generated from the command's parser; change that instead.",
        '.TH "{}" 8 "{}" "ntools {}" "System Administration"'.format(
            escape(command.name.upper()), date, version
        ),
        ".ad l",
        '.SH "NAME"',
        escape(command.name) + " \\- " + escape(purpose[:1].lower() + purpose[1:]),
        '.SH "SYNOPSIS"',
        *synopsis(command.name, parser),
        '.SH "DESCRIPTION"',
        *paragraphs(sections.get("DESCRIPTION", description)),
    ]
    for name, text, subparser in commands.subcommands(parser):
        if not any(line == '.SH "COMMANDS"' for line in lines):
            lines.append('.SH "COMMANDS"')
        lines += ['.SS "{}"'.format(escape(name)), *synopsis(command.name + " " + name, subparser)]
        lines += paragraphs(filled_in(subparser, subparser.description or text))
        lines += options(subparser)
    lines += ['.SH "OPTIONS"', *options(parser)]

    if any("--max-overhead" in action.option_strings for action in parser._actions):
        sections.setdefault("SAFETY", inspect.cleandoc(SAFETY))
    if parser.epilog:
        sections.setdefault("EXAMPLES", examples(filled_in(parser, parser.epilog)))
    further = [h for h in sections if h not in ["DESCRIPTION", *ORDER, "SEE ALSO"]]
    for heading in [*ORDER[:-1], *further]:
        if heading in sections:
            lines += ['.SH "{}"'.format(escape(heading)), *paragraphs(sections[heading])]
    lines.append('.SH "EXIT STATUS"')
    if "EXIT STATUS" in sections:
        lines += paragraphs(sections["EXIT STATUS"])
    else:
        for status, text in EXIT_STATUS:
            lines += term(bold(status), text)
    lines.append('.SH "SEE ALSO"')
    if "SEE ALSO" in sections:
        lines += paragraphs(sections["SEE ALSO"])
    else:
        others = [bold(name) + "(8)" for name in names if name != command.name]
        lines.append(",\n".join(others))
    return "\n".join(lines) + "\n"


def main() -> None:
    sources, outdir, version, *pairs = sys.argv[1:]
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    date = time.strftime("%Y-%m-%d", time.gmtime(epoch))
    every = commands.load(sources, pairs)
    names = [command.name for command in every]
    for command in every:
        commands.write(outdir, command.name + ".8", page(command, names, version, date))


if __name__ == "__main__":
    main()
