# SPDX-License-Identifier: GPL-2.0-only
"""Devices and processes with names that should break a terminal, a line or a record."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any, List

from lab.drops import checked, watch
from lab.expect import at_least, contains, equal
from lab.hostile import COMMS, DEVICES, flaws, shown
from lab.latency import check_records, complete, hists
from lab.netns import Namespace
from lab.scenario import scenario
from lab.tool import PATIENT, Result, Tool, side_by_side
from lab.topo import bridge_topo
from lab.traffic import udp

_LO = "127.0.0.1"
_EACH = 3

# Takes a name and sends datagrams under it.
_SENDER = """
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[1]), 0, 0, 0)
for _ in range(int(sys.argv[3])):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", int(sys.argv[2])))
"""


def _is_safe(result: Result) -> None:
    """Nothing on either stream but lines of printable characters; records are ASCII."""
    for line in [*result.stdout.split("\n"), *result.stderr.split("\n")]:
        equal(flaws(line), [], "unsafe characters", line)
    equal("\ufffd" in result.stdout, False, "bytes that are no UTF-8 in the text")
    if result.records:
        equal(result.stdout.isascii(), True, "records are ASCII")
        equal(result.stdout.count("\n"), len(result.records), "lines and records")
        check_records(result)


def _links(host: Namespace, peer: Namespace) -> List[int]:
    """A veth pair per name, hostile on the side of the host; the indexes there."""
    for number, name in enumerate(DEVICES, 1):
        peer.ip(f"link add w{number} type veth peer name v{number} netns {host.name}")
        host.run(["ip", "link", "set", f"v{number}", "name", os.fsdecode(name)])
        for ns, device, end in ((peer, f"w{number}", 2), (host, os.fsdecode(name), 1)):
            ns.run(["ip", "addr", "add", f"10.8.{number}.{end}/24", "dev", device])
            ns.run(["ip", "link", "set", device, "up"])
    for number in range(1, len(DEVICES) + 1):
        # A new link takes packets with a delay: the first that is answered says it does.
        tries = (udp(peer, f"10.8.{number}.1", 7776, 1, wait_s=1).refused for _ in range(30))
        equal(any(tries), True, f"link {number} works")
    with host.entered():
        return [socket.if_nametoindex(os.fsdecode(name)) for name in DEVICES]


_PACKETS = ("--details", "--force", "--explain")


@scenario(requires=("veth",), timeout_s=240)
def drops_on_devices(lab: Any) -> None:
    """Each device is named by what its name is made of, and found by the name itself."""
    with Namespace("h") as host, Namespace("e") as peer:
        indexes = _links(host, peer)
        chosen = os.fsdecode(DEVICES[2])
        odd = os.fsdecode(DEVICES[8])  # no UTF-8; the next one is made to look like it
        with (
            side_by_side(
                watch(host, "--dst-port", "7777"),
                watch(host, "--dst-port", "7777", "--interface", chosen),
                watch(host, "--dst-port", "7777", "--interface", odd),
                Tool(
                    host,
                    "ntools-drop",
                    ["--netns", host.name, "--dst-port", "7777", "-v", *PATIENT],
                ),
            ) as (every, one, other, text),
            Tool(
                host,
                "ntools-drop",
                ["--netns", host.name, "--dst-port", "7777", "--group-by", "device,fivetuple"]
                + ["--top", "99", *PATIENT],
            ) as table,
        ):
            for number in range(1, len(DEVICES) + 1):
                udp(peer, f"10.8.{number}.1", 7777, _EACH, wait_s=0.5)
            results = [tool.stop() for tool in (every, one, other, text, table)]
    found = checked(results[0], _EACH * len(DEVICES))
    for index, name in zip(indexes, DEVICES):
        names = {rec["interface"] for rec in found if rec["ifindex"] == index}
        equal(names, {shown(name)}, f"name of device {index}")
        equal(sum(rec["ifindex"] == index for rec in found), _EACH, f"drops on device {index}")
        for result in results[3:]:
            equal(result.stdout.count(shown(name)) >= 1, True, f"{shown(name)!r} in the text")
    for result, place in ((results[1], 2), (results[2], 8)):
        equal({rec["ifindex"] for rec in checked(result, _EACH)}, {indexes[place]}, "chosen device")
        equal(result.header["filters"]["interface"], shown(DEVICES[place]), "filter in the header")
    for result in results:
        equal(result.status, 0, "exit status", result.stderr)
        _is_safe(result)


@scenario()
def drops_of_processes(lab: Any) -> None:
    """The name of the process that sent, byte by byte."""
    with Namespace("h") as host:
        with (
            side_by_side(
                watch(host, "--dst-port", "7778"),
                Tool(
                    host,
                    "ntools-drop",
                    ["--netns", host.name, "--dst-port", "7778", "-v", *PATIENT],
                ),
            ) as (tool, text),
        ):
            for comm in COMMS:
                host.run([sys.executable, "-c", _SENDER, comm.hex(), "7778", str(_EACH)])
            results = [tool.stop(), text.stop()]
    found = checked(results[0], _EACH * len(COMMS))
    seen = {rec["comm"] for rec in found}
    for comm in COMMS:
        escaped = "".join(
            chr(byte) if 32 <= byte < 127 and byte != 92 else f"\\x{byte:02x}" for byte in comm
        )
        # The drop is made while the sender runs, unless the kernel's own thread takes over.
        contains(seen, escaped, "names of processes")
    for result in results:
        _is_safe(result)
    equal(results[1].text.count("while cpu"), _EACH * len(COMMS), "lines with a process")


@scenario()
def refusals(lab: Any) -> None:
    """What is not there is named in one line that does no harm; the plan, too."""
    bad = "a\x1b[2J\u202eb\n\udcff"
    with Namespace("h") as host:
        for command, option in (
            ("ntools-drop", "--interface"),
            ("ntools-drop", "--netns"),
            ("ntools-drop", "--reason"),
            ("ntools-drop", "--location"),
            ("ntools-drop", "--src-ip"),
            ("ntools-drop", "--btf"),
            ("ntools-vm-latency", "--vm-interface"),
            ("ntools-vm-latency", "--vm"),
            ("ntools-vm-latency", "--direction"),
        ):
            with Tool(host, command, [option, bad], ready=False) as tool:
                result = tool.wait()
            contains((2, 3), result.status, f"exit status of {option}")
            equal(result.stderr.count("\n"), 1, f"lines about {option}", result.stderr)
            equal(result.stdout, "", f"stdout of {option}")
            # Without reasons in the kernel there is nothing to compare the name with.
            unnamed = option == "--reason" and lab.kernel < (5, 17)
            told = "gives no drop reasons" if unnamed else "\\x1b[2J"
            contains(result.stderr, told, f"message about {option}")
            _is_safe(result)
        with Tool(host, "ntools-drop", ["--dry-run", "--normal", "mark", "--reason", bad],
                  ready=False) as tool:  # fmt: skip
            _is_safe(tool.wait())


@scenario(requires=("tun", "bridge"))
def interface_of_a_vm(lab: Any) -> None:
    """A tap whose name holds escape sequences, bidi overrides and bytes that are no UTF-8."""
    raw = b"t\x1b[31m\xe2\x80\xae\xff\x9b"
    name = os.fsdecode(raw)
    with bridge_topo(static_neigh=True, start_vms=False) as topo:
        topo.h.ip("link set vnet0 down")
        topo.h.run(["ip", "link", "set", "vnet0", "name", name])
        topo.h.run(["ip", "link", "set", name, "up"])
        topo.taps[0] = name
        topo.start_vm(0)
        topo.wait_ready()
        arguments = ["--vm-interface", name]
        with (
            Tool(
                topo.h, "ntools-vm-latency", [*arguments, *PATIENT, "--format", "json"]
            ) as summary,
            Tool(
                topo.h,
                "ntools-vm-latency",
                [*arguments, *PATIENT, "--details", "--force", "--explain"],
            ) as text,
        ):
            topo.ping(5)
            results = [summary.stop(), text.stop()]
        with Tool(topo.h, "ntools-vm-latency", ["--vm-interface", name + "x"], ready=False) as tool:
            refused = tool.wait()
    complete(results[0], 5)
    equal(results[0].header["devices"][0]["interface"], shown(raw), "device of the VM")
    devices = {rec["labels"].get("interface") for rec in hists(results[0])}
    contains(devices, shown(raw), "devices of the stages")
    at_least(results[1].text.count(shown(raw)), 10, "the name in the text")
    equal(refused.status, 2, "exit status", refused.stderr)
    contains(refused.stderr, shown(raw) + "x", "message")
    for result in (*results, refused):
        _is_safe(result)
