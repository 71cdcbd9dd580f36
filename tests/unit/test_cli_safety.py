# SPDX-License-Identifier: GPL-2.0-only
"""Safety options of every command: values, defaults, and what is refused before anything loads."""

from __future__ import annotations

import importlib

import pytest

from ntools.cli import safety
from ntools.cli.commands import COMMANDS
from ntools.errors import SafetyRefusal, UsageProblem
from ntools.model.filter import PacketFilter
from ntools.tools import vm_latency


def parsed(*argv, module=vm_latency):
    args = module.parser().parse_args(list(argv))
    args.command = "ntools-x"
    return args


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda row: row.name)
def test_every_command_has_them(command):
    args = parsed(module=importlib.import_module(command.module))
    made = safety.build(args, "variable", "advice")
    assert (made.max_events, made.max_overhead, made.max_cpu) == (2000, 1.0, 5.0)
    assert (made.sample_shift, made.force, made.admit_s) == (0, False, 1.0)
    assert (made.stats_duty, made.overhead, made.advice) == ((1.0, 15.0), "variable", "advice")


def test_values():
    args = parsed("--rate-limit", "7", "--sample", "1/64", "--stats-duty", "0.5/60", "--force")
    made = safety.build(args, "low")
    assert (made.max_events, made.sample_shift, made.stats_duty) == (7, 6, (0.5, 60.0))
    assert parsed("--sample", "1/1").sample == 0
    assert parsed("--stats-duty", "0/1").stats_duty == (0.0, 1.0)


@pytest.mark.parametrize(
    "argv",
    [
        ("--sample", "1/3"), ("--sample", "2/4"), ("--sample", "64"), ("--sample", "1/131072"),
        ("--max-overhead", "0"), ("--max-cpu", "101"), ("--max-cpu", "nan"),
        ("--stats-duty", "2/1"), ("--stats-duty", "15"), ("--stats-duty", "0.1/5"),
        ("--admit-s", "0"), ("--max-events", "-5"),
    ],
)  # fmt: skip
def test_bad_values_are_one_line(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(*argv)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_no_limit_of_events_only_by_force():
    with pytest.raises(UsageProblem, match="--force"):
        safety.build(parsed("--max-events", "0"), "low")
    assert safety.build(parsed("--max-events", "0", "--force"), "low").max_events == 0


def test_everybodys_packets_are_refused():
    with pytest.raises(SafetyRefusal, match="--latency-ms"):
        safety.need_one_flow(parsed("--details"), PacketFilter(), "--details", "advice")
    for argv in (("--force",), ("--latency-ms", "1"), ("--dry-run",)):
        safety.need_one_flow(parsed("--details", *argv), PacketFilter(), "--details", "advice")
    both = PacketFilter.from_fields({"rules": [{"src_ip": "10.0.0.1", "dst_ip": "10.0.0.2"}]})
    safety.need_one_flow(parsed(), both, "--details", "advice")
