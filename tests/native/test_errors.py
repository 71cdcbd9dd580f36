# SPDX-License-Identifier: GPL-2.0-only
"""Every command, started wrongly: one line on stderr, the right status, nothing attached."""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab.bpfsys import BpfObjects, bpf_leftovers, bpf_snapshot
from object.bpfrun import obstacle

import ntools
from ntools.cli.commands import COMMANDS, Command

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle())

#: Options that make a command look for a device, the first it has is used.
DEVICE_OPTIONS = ("--vm-interface", "--interface", "--phy-interface", "--rx-iface")
#: Commands that look at no packets, so they have neither filters nor devices.
WITHOUT_PACKETS = {"softirq-latency"}
EVERY = pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda row: row.name)
OF_PACKETS = pytest.mark.parametrize(
    "command",
    [row for row in COMMANDS.values() if row.name not in WITHOUT_PACKETS],
    ids=lambda row: row.name,
)


def options(command: Command) -> dict[str, argparse.Action]:
    return importlib.import_module(command.module).parser()._option_string_actions


def plain(command: Command) -> list[str]:
    """The shortest command line that would run; `lo` stands for any device."""
    words = ["--duration", "0.2"]
    if "--vm-interface" in options(command):
        words += ["--vm-interface", "lo"]
    if "--rx-iface" in options(command):
        words += ["--src-ip", "192.0.2.1", "--dst-ip", "192.0.2.2", "--rx-iface", "lo"]
        words += ["--tx-iface", _another()]
    return words


def _another() -> str:
    """A device that is not `lo`."""
    found = sorted(set(os.listdir("/sys/class/net")) - {"lo"})
    if not found:
        pytest.skip("no device but lo")
    return found[0]


@functools.lru_cache(maxsize=None)
def mine(name: str) -> tuple[str, ...]:
    """Names of the programs and maps of a command, as the kernel has them."""
    from object import objects

    arch = {"x86_64": "x86", "aarch64": "arm64"}[os.uname().machine]
    found = [objects.load(name, arch) for name in COMMANDS[name].objects]
    maps = {name for one in found for name in one.maps if not name.startswith("nt_")}
    return tuple(sorted({name for one in found for name in one.programs} | maps))


def run(command: Command, *words: str, held: str | None = None,
        **more: str) -> subprocess.CompletedProcess:  # fmt: skip
    """Run a command to its end.

    :param held: capabilities of a user without any others; None: as root.
    """
    if not list((Path(ntools.__file__).parent / "bpf").glob("*.bpf.o")):
        pytest.skip("the objects are not built ('make build')")
    prefix: list[str] = []
    if held is not None:
        if not shutil.which("setpriv"):
            pytest.skip("no setpriv")
        kept = "-all,+dac_read_search" + held  # to read the files of this user
        prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                  f"--inh-caps={kept}", f"--ambient-caps={kept}",
                  f"--bounding-set={kept}"]  # fmt: skip
    script = f"import sys; from {command.module} import main; sys.exit(main())"
    return subprocess.run(
        [*prefix, sys.executable, "-c", script, *words],
        env={**os.environ, "PYTHONPATH": str(Path(ntools.__file__).parents[1]),
             "PYTHONDONTWRITEBYTECODE": "1", **more},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def refused(command: Command, status: int, *words: str, held: str | None = None,
            **more: str) -> str:  # fmt: skip
    """The one line of a start that must fail, without the name of the command.

    Warnings about the devices may come before it.
    """
    before: BpfObjects = bpf_snapshot()
    done = run(command, *words, held=held, **more)
    assert not any(bpf_leftovers(before, mine(command.name)).counts().values())
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    warning = f"{command.program}: warning: "
    lines = [line for line in done.stderr.splitlines() if not line.startswith(warning)]
    assert len(lines) == 1 and done.stderr.endswith("\n"), done.stderr
    # A line "ready:" would mean that something was attached.
    assert lines[0].startswith(command.program + ": "), done.stderr
    return lines[0][len(command.program) + 2 :]


@EVERY
def test_it_runs_when_nothing_is_wrong(command):
    """Otherwise the refusals below say nothing."""
    done = run(command, *plain(command))
    assert done.returncode == 0, done.stderr
    assert "\nready: " in "\n" + done.stderr


@EVERY
@pytest.mark.parametrize(
    "held, missing",
    [("", "CAP_BPF and CAP_PERFMON"), (",+bpf", "CAP_PERFMON"), (",+perfmon", "CAP_BPF")],
    ids=["none", "only bpf", "only perfmon"],
)
def test_not_root(command, held, missing):
    line = refused(command, 3, *plain(command), held=held)
    assert line == (
        f"missing privilege: {missing}. Run as root, or with CAP_BPF and CAP_PERFMON "
        "(CAP_SYS_ADMIN for points in modules and on kernels before 5.8)."
    )


@OF_PACKETS
def test_unknown_device(command):
    option = next(name for name in DEVICE_OPTIONS if name in options(command))
    line = refused(command, 2, *plain(command), option, "ntnosuch0")
    assert "'ntnosuch0'" in line and "not found" in line


@OF_PACKETS
@pytest.mark.parametrize(
    "words",
    [
        ("--src-ip", "300.1.2.3"),
        ("--dst-ip", "10.0.0.0/33"),
        ("--src-ip", "fe80:::1"),
        ("--src-ip", "nosuchhost.example"),
        ("--src-port", "70000"),
        ("--protocol", "nosuchproto"),
        ("--vlan", "5000"),
        ("--netns", "ntnosuchns"),
    ],
    ids=" ".join,
)
def test_bad_value_of_a_filter(command, words):
    bad_value(command, words)


@EVERY
@pytest.mark.parametrize(
    "words", [("--duration", "-1"), ("--ring-size", "8"), ("--count", "0")], ids=" ".join
)
def test_bad_value(command, words):
    bad_value(command, words)


@pytest.mark.parametrize("name", sorted(WITHOUT_PACKETS))
def test_commands_without_packets_have_no_filter(name):
    assert not {"--src-ip", "--netns", *DEVICE_OPTIONS} & set(options(COMMANDS[name]))


def bad_value(command, words):
    option, value = words
    if option not in options(command):
        pytest.fail(f"{command.program} has no {option}")
    line = refused(command, 2, *plain(command), option, value)
    assert value in line


@OF_PACKETS
def test_addresses_of_two_families(command):
    line = refused(command, 2, *plain(command), "--src-ip", "10.0.0.1", "--dst-ip", "fd00::1")
    assert "different address families" in line


@EVERY
@pytest.mark.parametrize("words", [("--no-such-option",), ("--durat", "1"), ("stray",)])
def test_bad_option(command, words):
    line = refused(command, 2, *plain(command), *words)
    assert words[0] in line and f"'{command.program} --help'" in line


@EVERY
def test_no_libbpf(command):
    line = refused(command, 3, *plain(command), NTOOLS_LIBBPF="/nonexistent/libbpf.so.1")
    assert line.startswith("cannot open libbpf: ") and "NTOOLS_LIBBPF" in line


@EVERY
def test_no_type_information(command, tmp_path):
    line = refused(command, 3, *plain(command), "--btf", str(tmp_path / "none"))
    assert line == f"cannot read type information '{tmp_path}/none': No such file or directory."
    (tmp_path / "text").write_text("no BTF at all\n")
    line = refused(command, 3, *plain(command), "--btf", str(tmp_path / "text"))
    assert line.startswith(f"'{tmp_path}/text' is not a BTF file.")


@EVERY
def test_needed_point_refused_everywhere(command):
    every = "tp_btf,raw_tp,fentry,fexit,kprobe,kretprobe"
    line = refused(command, 3, *plain(command), NTOOLS_REFUSE=every)
    assert line.startswith(f"cannot attach to '{command.needed[0]}': ")
    assert "switched off by NTOOLS_REFUSE" in line


@EVERY
def test_unknown_switch(command):
    line = refused(command, 3, *plain(command), NTOOLS_REFUSE="magic")
    assert line.startswith("NTOOLS_REFUSE names 'magic'; known: ")
