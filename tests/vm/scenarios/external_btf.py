# SPDX-License-Identifier: GPL-2.0-only
"""Type information from a file: joined with modules, found for the kernel, and foreign."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Sequence

from lab.drops import checked, watch
from lab.expect import contains, equal
from lab.latency import check_records, complete, follow, hist, hists, stages_seen
from lab.netns import Namespace
from lab.scenario import Skip, scenario
from lab.tool import Result, Tool, bpf_leftovers, bpf_snapshot
from lab.topo import Topo, bridge_topo, ovs_topo
from lab.traffic import udp

_LO = "127.0.0.1"
_OWN = Path("/sys/kernel/btf/vmlinux")
# /sys without type information, and a file for this kernel where it is looked for.
_WITHOUT_BTF = """
mount -t tmpfs none /var/lib && mkdir -p /var/lib/ntools/btf &&
cp /sys/kernel/btf/vmlinux "/var/lib/ntools/btf/$(uname -r).btf" &&
mount -t tmpfs none /sys/kernel/btf && exec "$@"
"""


def _joined(lab: Any) -> str:
    """The file the runner has made of this kernel and the debug files of its modules."""
    return str(Path("/run/out") / "joined.btf")


def _program(name: str) -> str:
    return str(Path(os.environ.get("NTOOLS_BIN") or Path(sys.executable).parent) / name)


def _every_packet(topo: Topo, count: int, stages: Sequence[str], *words: str) -> Result:
    """Pings from outside: each has passed each of the stages on its way to the machine once."""
    with follow(topo, *words) as tool:
        pinged = topo.ping(count, 0.01)
        result = tool.stop()
    equal((pinged.sent, pinged.received), (count, count), "pings")
    complete(result, count)
    check_records(result)
    equal(set(stages) - set(stages_seen(result)), set(), "stages missing")
    for stage in stages[1:]:  # from wherever: a first packet may take the way of an upcall
        arrived = [rec["count"] for rec in hists(result, "tx") if rec["labels"]["to"] == stage]
        equal(sum(arrived), count, f"packets that reached {stage}")
    equal(hist(result, "tx", "dev.rx", "total")["count"], count, "total")
    equal(hist(result, "rx", "dev.rx", "total")["count"], count, "total")
    return result


def _no_socket(count: int, *words: str, **env: str) -> Result:
    """Datagrams to a closed port: as many drops, in the function that frees them."""
    with Namespace("h") as ns:
        with watch(ns, "--dst-port", "7777", *words, env=env) as tool:
            sent = udp(ns, _LO, 7777, count, wait_s=0.2).sent
            result = tool.stop()
    equal(sent, count, "sent")
    for rec in checked(result, count):
        equal((rec["caller"], rec["interface"]), ("__udp4_lib_rcv", "lo"), "place", rec)
    return result


@scenario(requires=("joined_btf",))
def the_file_is_for_this_kernel(lab: Any) -> None:
    done = subprocess.run(
        [_program("ntools-btf"), "check", _joined(lab)], capture_output=True, text=True
    )
    equal((done.returncode, done.stderr), (0, ""), "status", done.stdout)
    contains(" ".join(done.stdout.split()), f"{lab.release}: for this host", "check")


@scenario(requires=("tun", "bridge", "joined_btf"))
def pings_over_a_bridge(lab: Any) -> None:
    stages = ("dev.rx", "br.fwd", "dev.queue", "dev.xmit", "vm.xmit", "vm.copied")
    with bridge_topo(static_neigh=True) as topo:
        result = _every_packet(topo, 100, stages, "--btf", _joined(lab))
    attached = {point["attach"] for point in result.header["points"]}
    # The kernel's own type information serves these; functions of modules are not in it.
    equal(attached, {"tp_btf", "kprobe"}, "mechanisms")


@scenario(requires=("tun", "ovs", "vhost_net", "joined_btf"))
def pings_over_ovs_with_vhost(lab: Any) -> None:
    stages = ("dev.rx", "ovs.in", "ovs.lookup", "ovs.exec", "ovs.send", "dev.queue", "dev.xmit",
              "vm.xmit", "vm.take", "vm.copied")  # fmt: skip
    with ovs_topo(static_neigh=True, vm_options={"vhost": True}) as topo:
        _every_packet(topo, 100, stages, "--btf", _joined(lab))


@scenario(requires=("joined_btf",))
def drops(lab: Any) -> None:
    _no_socket(23, "--btf", _joined(lab))
    _no_socket(23, NTOOLS_BTF=_joined(lab))


@scenario(requires=("tun", "ovs", "vhost_net", "joined_btf"), timeout_s=150)
def fields_of_modules(lab: Any) -> None:
    """Structs of openvswitch, tun and vhost_net: the values are those user space has set."""
    from object import bpfrun

    from ntools._loader import BpfObject

    with tempfile.TemporaryDirectory() as place:
        source = Path(bpfrun.HERE) / "modules.bpf.c"
        path = str(bpfrun.build(source, Path(place) / "modules.o"))
        with BpfObject(path) as obj:
            obj.want("ovs_port", "tap", "ring")
            for row in obj.outlook():
                equal(row.attach, None, f"{row.point} by the kernel's own types", row)
        with ovs_topo(static_neigh=True, vm_options={"vhost": True}) as topo:
            with BpfObject(path, btf=_joined(lab)) as obj:
                obj.need("ovs_port", "tap", "ring")
                obj.start()
                pinged = topo.ping(10)
                ports, queues = dict(obj.map("ports").items()), dict(obj.map("queues").items())
            equal(pinged.received, 10, "pings")
            with topo.h.entered():
                index = {name: socket.if_nametoindex(name) for name in ("phy0", "vnet0")}
            shown = topo.ovs.appctl("dpctl/show")
    number = {name: int(port) for port, name in re.findall(r"port (\d+): (\S+)", shown)}
    for name in index:
        equal(ports.get(index[name]), number[name], f"port number of {name}", (ports, shown))
    equal(queues, {index["vnet0"]: 1, 0: 256}, "queues of the tap, entries of the ring")


def _hidden(ns: Namespace, command: str, *words: str) -> Tool:
    """A command for which the kernel brings no type information."""
    shell = ["--mount", "sh", "-c", _WITHOUT_BTF, "sh", _program(command), *words]
    return Tool(ns, "/usr/bin/unshare", shell)


@scenario(requires=("tun", "bridge", "btf"))
def a_file_is_found_for_a_kernel_without(lab: Any) -> None:
    """As on 4.19: types from /var/lib/ntools, points by raw tracepoint and kprobe; same counts."""
    if not Path("/usr/bin/unshare").exists():
        raise Skip("no unshare")
    words = ("--vm-interface", "vnet0", "--format", "json")
    with bridge_topo(static_neigh=True) as topo:
        with _hidden(topo.h, "ntools-vm-latency", *words) as tool:
            pinged = topo.ping(30)
            result = tool.stop()
    equal(pinged.received, 30, "pings")
    complete(result, 30)
    attached = {point["attach"] for point in result.header["points"] if point["attach"]}
    equal(attached - {"raw_tp", "kprobe"}, set(), "mechanisms")
    with Namespace("h") as ns:
        words = ("--netns", ns.name, "--format", "json", "--dst-port", "7777")
        with _hidden(ns, "ntools-drop", *words) as tool:
            udp(ns, _LO, 7777, 23, wait_s=0.2)
            result = tool.stop()
    checked(result, 23)
    equal({point["attach"] for point in result.header["points"]}, {"raw_tp"}, "mechanisms")


def _foreign(place: Path) -> Sequence[Any]:
    """Files that are not this kernel's, and what has to be said of each."""
    from ntools._loader.external import Note
    from ntools._loader.join import with_text
    from ntools._loader.kernel_types import RECORDS, KernelTypes

    own = _OWN.read_bytes()
    types = KernelTypes(own)
    grown = bytearray(own)
    for one in types.find("net_device", RECORDS):
        at = types._at[one] + 8
        grown[at : at + 4] = (types.size(one) + 64).to_bytes(4, "little")
    machine = os.uname().machine
    arch = {"x86_64": "x86", "aarch64": "arm64"}.get(machine, machine)
    other = "arm64" if arch == "x86" else "x86"
    rows = [
        (bytes(grown), "is of another kernel: struct net_device differs"),
        (with_text(own, Note("4.19.90-1.x86_64", arch, {}).text), "is of kernel 4.19.90-1.x86_64"),
        (with_text(own, Note("", other, {}).text), f"is for {other}, this machine is {arch}"),
        (with_text(own, Note("", arch, {"flight": "0", "drop": "0"}).text), "was reduced to what"),
        (own[: len(own) // 2], "is not a BTF file"),
        (own[:20], "is not a BTF file"),
        (b"\x7fELF" + own, "is not a BTF file"),
        (b"", "is not a BTF file"),
    ]
    found = []
    for number, (content, text) in enumerate(rows):
        path = place / f"{number}.btf"
        path.write_bytes(content)
        found.append((str(path), text))
    return found


@scenario(requires=("btf",), timeout_s=180)
def a_foreign_file_is_refused(lab: Any) -> None:
    """One line that says why, status 3, nothing in the kernel."""
    before = bpf_snapshot()
    with Namespace("h") as ns, tempfile.TemporaryDirectory() as place:
        for number, (path, text) in enumerate(_foreign(Path(place))):
            commands = [("ntools-drop", "--netns", ns.name)]
            if not number:
                commands.append(("ntools-vm-latency", "--vm-interface", "lo"))
            for command, *words in commands:
                with Tool(ns, command, [*words, "--btf", path], ready=False) as tool:
                    result = tool.wait()
                lines = [line for line in result.stderr.splitlines() if "warning:" not in line]
                equal((result.status, len(lines)), (3, 1), "status, lines", result.tail())
                contains(lines[0], text, command)
                equal(result.stdout, "", "stdout")
    equal(bpf_leftovers(before).counts(), {"progs": 0, "maps": 0, "links": 0}, "left")
