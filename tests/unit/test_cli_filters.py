# SPDX-License-Identifier: GPL-2.0-only
"""Filter options of the command line and of files, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from ntools.cli import filters, vm
from ntools.errors import UsageProblem
from ntools.model.filter import PacketFilter, parse
from ntools.tools import drop, vm_latency


def build(*argv: str) -> PacketFilter:
    return filters.build(drop.parser().parse_args(argv))


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "rules"
    path.write_text(text)
    return str(path)


def test_nothing_asked_nothing_refused() -> None:
    assert build().is_empty
    assert build("--bidir").is_empty
    assert build("--protocol", "all").is_empty


def test_one_rule_of_the_command_line() -> None:
    (rule,) = build(
        "--src", "10.0.0.1,fd00::/8", "--l4-dst-port", "80,1000-2000", "--proto", "tcp",
        "--vlan-id", "none", "--tcp-flags", "syn+~ack", "--bidir", "--type", "ipv4,ipv6",
    ).rules  # fmt: skip
    assert rule.src_ip == parse("src_ip", "10.0.0.1,fd00::/8")
    assert rule.dst_port == ((80, 80), (1000, 2000))
    assert (rule.protocol, rule.eth_type, rule.bidir) == ((6,), (0x0800, 0x86DD), True)
    assert (rule.vlan, rule.tcp_flags) == (((0xFFFF, 0xFFFF),), ((0x12, 2),))


@pytest.mark.parametrize("argv, said", [
    (("--src-ip", "10.0.0.1", "--dst-ip", "fd00::1"), "different address families"),
    (("--src-ip", "10.0.0.1,10.0.0.2", "--dst-ip", "fd00::1"), "different address families"),
    (("-4", "--src-ip", "fd00::1"), "no packet fits --ipv4 and --src-ip 'fd00::1'"),
    (("-4", "--icmp-type", "packet-too-big"), "no packet fits --ipv4 and --icmp-type"),
    (("--dst-port", "80", "--protocol", "icmp"), "--dst-port needs a protocol with ports"),
    (("--icmp-type", "8", "--protocol", "tcp"), "--icmp-type needs a protocol with ICMP types"),
    (("--tcp-flags", "syn", "--protocol", "udp"), "--tcp-flags needs a protocol with TCP flags"),
    (("--eth-type", "arp", "--dst-port", "80"), "no packet of --eth-type 'arp' fits --dst-port"),
    (("--eth-type", "arp", "--src-ip", "fd00::1"), "no packet of --eth-type 'arp' fits --src-ip"),
    (("--eth-type", "ipv6", "-4"), "no packet of --eth-type 'ipv6' fits --ipv4"),
])  # fmt: skip
def test_contradictions(argv: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageProblem, match="^[^\n]*\\.$") as caught:
        build(*argv)
    assert said in str(caught.value)


def test_what_looks_like_a_contradiction() -> None:
    for argv in (
        ("--src-ip", "10.0.0.1,fd00::1", "--dst-ip", "fd00::2"),
        ("--dst-port", "80", "--protocol", "icmp,udp"),
        ("--eth-type", "arp", "--src-ip", "10.0.0.1"),
        ("-6", "--icmp-type", "packet-too-big", "--protocol", "icmp"),
    ):
        assert len(build(*argv).rules) == 1


def test_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "# web\n\n--dst-ip 10.0.0.0/24 --dst-port 80,443 --bidir   # both ways\n"
        "  -6 --proto icmp\n--tcp-flags ~ack --type ipv4\n",
    )
    flt = build("--filters-file", path)
    assert [str(rule) for rule in flt.rules] == [
        "--dst-ip 10.0.0.0/24 --dst-port 80,443 --bidir",
        "--ipv6 --protocol icmp",
        "--eth-type ipv4 --tcp-flags ~ack",
    ]
    assert build("--filters-file", write(tmp_path, "\n".join(map(str, flt.rules)))) == flt


@pytest.mark.parametrize("text, said", [
    ("--dst-port 80\n--dst-port 99999\n", "rules:2: argument --dst-port"),
    ("\n\n--colour red\n", "rules:3: unrecognized arguments: --colour red"),
    ("dst-port 80\n", "rules:1: unrecognized arguments: dst-port 80"),
    ("--dst-port\n", "rules:1: argument --dst-port"),
    ("--bidir\n", "rules:1: no criterion in this rule"),
    ("--src-ip '10.0.0.1\n", "rules:1: No closing quotation"),
    ("-4 -6\n", "rules:1: argument -6/--ipv6: not allowed with argument -4/--ipv4"),
    ("--interface eth0\n", "rules:1: unrecognized arguments"),
    ("--filters-file other\n", "rules:1: unrecognized arguments"),
    ("--help\n", "rules:1: unrecognized arguments"),
    ("-4 --src-ip fd00::1\n", "rules:1: no packet fits --ipv4"),
    ("--dst-port 80\n" * 65, "rules:65: more than 64 rules"),
    ("# nothing\n", "has no rule"),
    ("--vlan 1 " + "x" * (1 << 20), "larger than 1 MiB"),
])  # fmt: skip
def test_errors_of_files_name_the_line(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageProblem, match="^[^\n]*\\.$") as caught:
        build("--filters-file", path)
    assert said in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"--vlan \xff\xfe")
    for name, said in (("missing", "No such file"), ("", "directory"), ("binary", "not text")):
        with pytest.raises(UsageProblem, match=said):
            build("--filters-file", str(tmp_path / name))


def test_64_rules_are_possible(tmp_path: Path) -> None:
    path = write(tmp_path, "--vlan 5\n" * 64 + "# the end\n")
    assert len(build("--filters-file", path).rules) == 64


@pytest.mark.parametrize("argv, named", [
    (("--dst-port", "80"), "--dst-port"), (("--bidir",), "--bidir"), (("-6",), "--ipv6"),
    (("--vlan", "none"), "--vlan"), (("--min-len", "9"), "--min-len"),
])  # fmt: skip
def test_file_or_options(tmp_path: Path, argv: tuple[str, ...], named: str) -> None:
    path = write(tmp_path, "--vlan 5\n")
    with pytest.raises(UsageProblem, match=f"^{named} cannot be combined with --filters-file"):
        build("--filters-file", path, *argv)


def guest(*argv: str) -> PacketFilter:
    args = vm_latency.parser().parse_args(["--vm-interface", "vnet0", *argv])
    return vm.add_guest_address(args, filters.build(args))


def test_address_of_the_guest() -> None:
    (rule,) = guest("--vm-ip", "10.0.0.7").rules
    assert (str(rule), rule.bidir) == ("--src-ip 10.0.0.7 --bidir", True)
    (rule,) = guest("--vm-ip", "10.0.0.7", "--dst-port", "80").rules
    assert str(rule) == "--src-ip 10.0.0.7 --dst-port 80 --bidir"
    assert guest("--vlan", "5") == build("--vlan", "5")


def test_address_of_the_guest_stands_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "--vlan 5\n")
    for argv in (("--src-ip", "10.0.0.1"), ("--filters-file", path), ("-6",)):
        with pytest.raises(UsageProblem, match="--vm-ip"):
            guest("--vm-ip", "10.0.0.7", *argv)


class Tap(NamedTuple):
    name: str


def test_devices_of_a_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    """--vm of ntools-drop: its taps beside those of --interface, each once."""
    taps = [Tap("vnet0"), Tap("vnet1")]

    class Devices:
        netns_inum = 7

        @classmethod
        def snapshot(cls, netns: object) -> Devices:
            return cls()

        def find_list(self, names: str) -> list[object]:
            return [next(tap for tap in taps if tap.name == name) for name in names.split(",")]

    def find(name: str) -> object:
        assert name == "web"
        return "guest"

    monkeypatch.setattr("ntools.host.devices.Devices", Devices)
    monkeypatch.setattr(vm.guests, "find_guest", find)
    monkeypatch.setattr(vm.guests, "guest_devices", lambda guest, devices: taps)
    for argv, names in (
        (("--vm", "web"), ["vnet0", "vnet1"]),
        (("--vm", "web", "--interface", "vnet1"), ["vnet1", "vnet0"]),
        (("--interface", "vnet1"), ["vnet1"]),
    ):
        _, _, found = drop._where(drop.parser().parse_args(argv))
        assert [device.name for device in found] == names
    monkeypatch.setattr(vm.guests, "guest_devices", lambda guest, devices: [])
    with pytest.raises(UsageProblem, match="VM 'web' has no tap device"):
        drop._where(drop.parser().parse_args(["--vm", "web"]))
