# SPDX-License-Identifier: GPL-2.0-only
"""Whatever stands behind an option: a value in its range, or status 2 and one printable line."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.hostile import flaws
from unit.hostile import ANY, NASTY, VALUE, few

from ntools.cli import app, commands, options, umbrella
from ntools.errors import EnvironmentProblem, LoadFailed, NtoolsError, UsageProblem
from ntools.model import flow, stages, units

MODULES = ["ntools.cli.umbrella", *[row.module for row in commands.COMMANDS.values()]]
#: What the help of each option promises; options not listed here only have to be taken or refused.
RANGES = {
    "interval": lambda v: v is None or 0.1 <= v <= 1e9,
    "duration": lambda v: 0 <= v <= 1e9,
    "count": lambda v: 0 <= v < 1 << 31,
    "ring_size": lambda v: v is None or 4096 <= v <= 1 << 30,
    "latency_ms": lambda v: 0 <= v <= 1e9,
    "timeout_ms": lambda v: 10 <= v <= 600000,
    "max_flights": lambda v: v is None or 0 < v < 1 << 31,
    "top": lambda v: v is None or 0 < v < 1 << 31,
    "max_events": lambda v: 0 <= v <= 1 << 31,
    "max_overhead": lambda v: 0 < v <= 100,
    "max_cpu": lambda v: 0 < v <= 100,
    "sample": lambda v: 0 <= v <= 16,
    "admit_s": lambda v: 0.1 <= v <= 1e9,
    "record_max_size": lambda v: 1 << 20 <= v <= 1 << 40,
    "record_keep": lambda v: 0 < v <= 1000,
    "record_mode": lambda v: 0 <= v <= 0o7777,
    "max_entries": lambda v: v is None or 256 <= v <= 1 << 20,
    "eth_type": lambda v: all(0 <= one <= 0xFFFF for one in v),
    "src_port": lambda v: all(0 < first <= last <= 0xFFFF for first, last in v),
    "min_len": lambda v: 0 < v <= 0xFFFF,
    "direction": lambda v: v in ("rx", "tx", "both"),
    "format": lambda v: v in ("text", "json"),
    "normal": lambda v: v in ("hide", "mark", "only", "show"),
}


def one_line(text: str) -> str:
    """The line a user is told; exactly one, and safe for a terminal."""
    assert text.endswith("\n") and text.count("\n") == 1, text
    assert flaws(text[:-1]) == [], text
    return text[:-1]


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace | None:
    """The values, or None when they were refused as they should be."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            args = parser.parse_args(argv)
        except SystemExit as stop:
            if stop.code == 0:  # a value that reads like --help
                assert err.getvalue() == ""
                return None
            assert stop.code == 2 and out.getvalue() == ""
            one_line(err.getvalue())
            return None
    assert err.getvalue() == out.getvalue() == ""
    return args


def with_value(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """(option string, dest) of everything that takes a value, aliases included."""
    return [
        (option, action.dest)
        for action in parser._actions
        if action.nargs is None and not isinstance(action, argparse._SubParsersAction)
        for option in action.option_strings
    ]


PARSERS = {name: importlib.import_module(name).parser() for name in MODULES}
PARSERS.update(
    ("ntools " + name, sub)
    for action in PARSERS["ntools.cli.umbrella"]._actions
    if isinstance(action, argparse._SubParsersAction)
    for name, sub in action.choices.items()
)
CASES = [(name, *pair) for name, parser in PARSERS.items() for pair in with_value(parser)]


def test_there_are_options():
    assert len(CASES) > 50
    assert set(RANGES) <= {dest for _, _, dest in CASES}


def check(case: tuple[str, str, str], text: str, apart: bool) -> None:
    name, option, dest = case
    joined = f"{option}={text}" if option.startswith("--") else option + text
    args = parse(PARSERS[name], [option, text] if apart else [joined])
    if args is not None and dest in RANGES:
        value = getattr(args, dest)
        assert RANGES[dest](value), (option, text, value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case[:2]))
def test_known_troublemakers(case):
    for text in NASTY:
        check(case, text, False)
        check(case, text, True)


@few(1500)
@given(case=st.sampled_from(CASES), text=VALUE, apart=st.booleans())
def test_any_value(case, text, apart):
    check(case, text, apart)


@pytest.mark.parametrize("name", PARSERS)
@given(words=st.lists(st.one_of(VALUE, st.sampled_from([c[1] for c in CASES])), max_size=5))
def test_any_command_line(name, words):
    if name != "ntools.cli.umbrella" or not words or words[0] not in ("doctor", "list"):
        parse(PARSERS[name], words)


@given(word=VALUE)
def test_umbrella_says_one_line(word):
    if word in umbrella._ACTIONS or word in commands.COMMANDS or word.startswith("-"):
        return
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = umbrella.main([word])
    assert (status, out.getvalue()) == (2, "")
    one_line(err.getvalue())


@given(word=VALUE, where=st.sampled_from(["list --family", "doctor", "schema"]))
def test_words_of_the_umbrella(word, where):
    if word in ("", "drop", "path", "vm-latency", "ntools-drop") or word.startswith("-"):
        return
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert umbrella.main([*where.split(), word]) == 2
    assert out.getvalue() == ""
    one_line(err.getvalue())


@given(
    text=st.one_of(VALUE, ANY),
    kind=st.sampled_from([NtoolsError, UsageProblem, EnvironmentProblem, LoadFailed, OSError]),
)
def test_an_error_is_one_line(text, kind):
    def body(args):
        app.warn(args, [text, text])
        raise kind(text)

    def parser():
        return app.Parser(prog="ntools-test")

    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.delenv("NTOOLS_DEBUG", raising=False)
        status = app.run(parser, body, [])
    assert status == getattr(kind, "exit_status", 1)
    lines = err.getvalue().split("\n")
    assert len(lines) == 4 and lines.pop() == ""
    for line in lines:
        assert line.startswith("ntools-test: ") and flaws(line) == []


def test_the_log_of_the_verifier_is_lines():
    def body(args):
        args.verbose = 2
        raise LoadFailed("no", log="0: (b7) r1 = 0\n\x1b[2Jbad\n")

    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        app.run(lambda: app.Parser(prog="p"), body, [])
    assert err.getvalue() == "p: no\n0: (b7) r1 = 0\n\\x1b[2Jbad\n"


# -- parsers by themselves ---------------------------------------------------------------------


def value_of(parser, text):
    """What a parser makes of a text; None: refused in the documented way."""
    try:
        return parser(text)
    except ValueError as error:
        assert type(error) is ValueError, repr(error)
    return None


@given(text=VALUE)
def test_model_parsers_take_or_refuse(text):
    network = value_of(flow.parse_network, text)
    if network is not None:
        assert len(network.address) == len(network.mask) in (4, 16)
        assert network.contains(network.address)
        assert flow.parse_network(str(network)) == network
    address = value_of(flow.parse_address, text)
    if address is not None:
        assert flow.parse_address(flow.address_text(address)) == address
    mac = value_of(flow.parse_mac, text)
    if mac is not None:
        assert len(mac) == 6 and flow.parse_mac(flow.mac_text(mac)) == mac
    protocol = value_of(flow.parse_protocol, text)
    if protocol is not None:
        assert isinstance(protocol, (tuple, frozenset))
        assert all(0 <= number <= 255 for number in protocol)
    eth_type = value_of(flow.parse_eth_type, text)
    if eth_type is not None:
        assert 0 <= eth_type <= 0xFFFF
        assert flow.parse_eth_type(flow.eth_type_name(eth_type)) == eth_type
    assert value_of(stages.direction_of, text) in (None, "rx", "tx")
    for parser in (units.parse_size, units.parse_time):
        value = value_of(parser, text)
        # What is no plain ASCII number with a unit is not guessed at.
        assert value is None or (value >= 0 and text.isascii() and text.strip() == text)


@given(data=st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)))
def test_addresses_survive_the_way_to_text_and_back(data):
    assert flow.parse_address(flow.address_text(data)) == data
    assert flow.parse_network(flow.address_text(data)).address == data


@given(st.binary(min_size=6, max_size=6), st.integers(0, 0xFFFF), st.integers(0, 255))
def test_names_survive_the_way_to_text_and_back(mac, eth_type, number):
    assert flow.parse_mac(flow.mac_text(mac)) == mac
    assert flow.parse_eth_type(flow.eth_type_name(eth_type)) == eth_type
    name = flow.protocol_name(number)
    if not name.startswith("unknown"):
        assert number in flow.parse_protocol(name)
    assert flow.parse_protocol(str(number)) == (number,)


@given(size=st.integers(0, 1 << 50), ns=st.integers(0, 1 << 60))
def test_sizes_and_times_in_their_smallest_unit(size, ns):
    assert units.parse_size(f"{size}B") == size
    assert units.parse_time(f"{ns}ns") == ns
    assert flaws(units.size_text(size) + units.time_text(ns)) == []


@given(text=VALUE)
def test_numbers_are_plain_decimal(text):
    """No digits of other scripts, no signs, no spaces: what is shown is what was typed."""
    for kind in (options.positive, options.number(0, 1 << 20)):
        try:
            value = kind(text)
        except argparse.ArgumentTypeError:
            continue
        assert str(value) == text.lstrip("0") or (value == 0 and set(text) == {"0"})
    for kind in (options.seconds(0), options.milliseconds, options.timeout_ms):
        try:
            value = kind(text)
        except argparse.ArgumentTypeError:
            continue
        assert text.isascii() and "_" not in text and text.strip() == text and value == value
    try:
        names = options.names()(text)
    except argparse.ArgumentTypeError:
        return
    assert names and all(names)
