# SPDX-License-Identifier: GPL-2.0-only
"""Manual pages and completions made from a parser."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

GENERATORS = Path(__file__).resolve().parents[2] / "build-aux"


@pytest.fixture(scope="module", autouse=True)
def generators():
    """The generators find each other beside themselves, as when meson runs them."""
    sys.path.insert(0, str(GENERATORS))
    yield
    sys.path.remove(str(GENERATORS))


def make_command(**manual):
    import commands

    parser = argparse.ArgumentParser(
        prog="ntools-example",
        description="What is it about. It goes on.\n\nAnd on.",
        epilog="Examples:\n  %(prog)s --count 3",
    )
    parser.add_argument("target", metavar="TARGET", help="where to look")
    parser.add_argument("--format", choices=["text", "json"], default="text", help="%(default)s")
    parser.add_argument("--record", metavar="FILE", help="50%% of it")
    parser.add_argument("-i", "--interface", metavar="DEV", required=True, help="a device")
    parser.add_argument("--count", type=int, help="how many")
    parser.add_argument("--phy-interface", "--pnic", metavar="NAMES", help="other devices")
    parser.add_argument("--hidden", help=argparse.SUPPRESS)
    return commands.Command("ntools-example", parser, manual)


def page(**manual):
    import gen_man

    return gen_man.page(make_command(**manual), ["ntools", "ntools-example"], "1.0", "2024-01-02")


def section(text, heading):
    return text.split(f'.SH "{heading}"\n')[1].split("\n.SH")[0]


def test_name_is_the_first_sentence():
    assert section(page(), "NAME") == "ntools\\-example \\- what is it about"


def test_options_have_their_values_and_help():
    options = section(page(), "OPTIONS")
    assert ".TP\n\\fITARGET\\fR\nwhere to look\n" in options
    assert ".TP\n\\fB\\-\\-format\\fR\\ \\fItext|json\\fR\ntext\n" in options
    assert "\n50% of it\n" in options
    assert "\\-i\\fR, \\fB\\-\\-interface" in options
    assert "hidden" not in page()


def test_only_optional_options_are_in_brackets():
    synopsis = section(page(), "SYNOPSIS").split("\n")
    assert "\\fB\\-\\-interface\\fR\\ \\fIDEV\\fR" in synopsis
    assert "[\\fB\\-\\-phy\\-interface\\fR\\ \\fINAMES\\fR]" in synopsis
    assert "[\\fB\\-\\-count\\fR\\ \\fICOUNT\\fR]" in synopsis


def test_epilog_becomes_the_examples_as_it_stands():
    examples = section(page(), "EXAMPLES")
    assert examples == ".PP\n.RS 4\n.nf\nntools\\-example \\-\\-count 3\n.fi\n.RE"


def test_manual_text_is_shown_literally():
    text = """\
        One line
        and .another \\ here.

        .dot
        'quote

        term
            its meaning
    """
    output = section(page(OUTPUT=text), "OUTPUT")
    assert ".PP\nOne line and .another \\e here.\n" in output
    assert ".PP\n\\&.dot 'quote\n" in output
    assert output.endswith(".TP\n\\fBterm\\fR\nits meaning")


def test_sections_come_in_the_usual_order():
    text = page(LIMITS="l", OVERHEAD="o", OUTPUT="u", FILES="f")
    headings = [line[5:-1] for line in text.split("\n") if line.startswith(".SH")]
    assert headings == (
        "NAME SYNOPSIS DESCRIPTION OPTIONS OUTPUT EXAMPLES OVERHEAD LIMITS FILES".split()
        + ["EXIT STATUS", "SEE ALSO"]
    )


def test_date_and_version_are_in_the_title():
    assert '"2024-01-02" "ntools 1.0"' in page()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["--f"], {"--format"}),
        (["--format", ""], {"text", "json"}),
        (["--format", "j"], {"json"}),
        (["--count", ""], set()),
        (["--interface", "l"], {"lo"}),
        (["--pnic", "l"], {"lo"}),
        (["--record", "/proc/versio"], {"/proc/version"}),
        (["--hid"], set()),
    ],
)
def test_completion_offers(words, offered):
    import gen_completion

    script = gen_completion.completion(make_command()) + (
        "compopt() { :; }\n"
        'COMP_WORDS=(ntools-example "$@"); COMP_CWORD=$#\n'
        "_ntools_example\n"
        "printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    done = subprocess.run(["bash", "-c", script, "x", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == offered


def test_completion_of_subcommands():
    import commands
    import gen_completion

    parser = argparse.ArgumentParser(prog="ntools")
    choices = parser.add_subparsers(metavar="COMMAND")
    choices.add_parser("list", help="names")
    choices.add_parser("doctor", help="checks").add_argument("--deep", action="store_true")
    script = gen_completion.completion(commands.Command("ntools", parser, {}))
    for words, offered in [
        (["d"], "doctor"),
        (["doctor", "--d"], "--deep"),
        (["list", "--d"], ""),
    ]:
        ask = 'COMP_WORDS=(ntools "$@"); COMP_CWORD=$#; _ntools; echo "${COMPREPLY[*]}"\n'
        done = subprocess.run(
            ["bash", "-c", script + ask, "x", *words], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == offered
