# SPDX-License-Identifier: GPL-2.0-only
"""Traffic that takes one known path through our programs, and the runs it is meant for.

::

    E                      H, "the host"
    wire0 ==veth== phy0 --- br0 --- vnet0, tap; its reader is the traffic program itself

One process sends a packet and takes it out at the other end before it sends the next: no other
process runs in between, no queue fills, and every packet does the same work. Frames enter E's
device without a queue, so that every stage of the host is met exactly once.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import bpfsys, build, raw, topo  # noqa: E402
from lab.netns import Namespace  # noqa: E402
from lab.tool import Tool  # noqa: E402
from lab.topo import Topo, bridge_topo  # noqa: E402

__all__ = [
    "FIRINGS",
    "MECHANISMS",
    "RUNS",
    "Run",
    "Traffic",
    "attached_empty",
    "laboratory",
    "program",
    "programs_of",
    "runs_of",
    "start",
]

_HERE = Path(__file__).resolve().parent
_TUNSETIFF, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 2, 0x1000, 0x4000
_VNET_HDR_BYTES = 12
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20

PAYLOAD = b"n" * 64
#: The filter of all runs is for the first port; packets to the second are refused by it.
PORT, OTHER_PORT = 7001, 7002

#: What is taken away, by what then is left.
MECHANISMS = {
    "tp_btf+fentry": "",
    "tp_btf+kprobe": "fentry",
    "raw_tp+fentry": "tp_btf",
    "raw_tp+kprobe": "tp_btf,fentry",
}

#: Nothing but the programs may decide what happens to a packet, nobody else may switch statistics.
_PLAIN = ("--max-cpu", "100", "--max-overhead", "100", "--stats-duty", "0/1", "--force",
          "--format", "json")  # fmt: skip
_MANY_EVENTS = ("--max-events", "1000000", "--ring-size", "32M")


@dataclass(frozen=True)
class Run:
    """A command, and the kinds of traffic it is measured with: name of the path, and traffic."""

    command: str
    args: tuple[str, ...]
    paths: Mapping[str, str]


_DROP = (*_PLAIN, "--dst-port", str(PORT))
_LATENCY = ("--vm-interface", "vnet0", *_PLAIN, "--dst-port", str(PORT))
RUNS: Mapping[str, Run] = {
    "drop, other device": Run("ntools-drop", (*_DROP, "--interface", "phy0", "--mode", "summary"),
                              {"drop: rejected by device": "drop"}),
    "drop, summary": Run("ntools-drop", (*_DROP, "--mode", "summary"),
                         {"drop: rejected by filter": "drop, other port",
                          "drop: counted in the table": "drop"}),
    "drop, events": Run("ntools-drop", (*_DROP, *_MANY_EVENTS, "--no-stack-trace"),
                        {"drop: event": "drop"}),
    "drop, stacks": Run("ntools-drop", (*_DROP, *_MANY_EVENTS),
                        {"drop: event with stack": "drop"}),
    "latency, summary": Run("ntools-vm-latency", _LATENCY,
                            {"latency: other devices": "loopback",
                             "latency: a drop, not followed": "drop",
                             "latency: rejected by filter, to VM": "to VM, other port",
                             "latency: rejected by filter, from VM": "from VM, other port",
                             "latency: followed, to VM": "to VM",
                             "latency: followed, from VM": "from VM"}),
    "latency, events": Run("ntools-vm-latency", (*_LATENCY, *_MANY_EVENTS, "--details"),
                           {"latency: followed, to VM, event": "to VM",
                            "latency: followed, from VM, event": "from VM"}),
}  # fmt: skip

#: Single firings: path, point, and what the program of the point does there.
FIRINGS = (
    ("drop: rejected by device", "free_drop", "rejected by device"),
    ("drop: rejected by filter", "free_drop", "rejected by filter"),
    ("drop: counted in the table", "free_drop", "matched, table"),
    ("drop: event", "free_drop", "matched, event without stack"),
    ("drop: event with stack", "free_drop", "matched, event with stack"),
    ("latency: other devices", "dev_rx", "rejected by device"),
    ("latency: other devices", "dev_queue", "rejected by device"),
    ("latency: other devices", "dev_xmit", "not followed"),
    ("latency: a drop, not followed", "free_drop", "not followed"),
    ("latency: rejected by filter, to VM", "dev_rx", "rejected by filter"),
    ("latency: rejected by filter, to VM", "dev_queue", "came in elsewhere"),
    ("latency: rejected by filter, to VM", "vm_copied", "not followed"),
    ("latency: followed, to VM", "dev_rx", "matched, enters"),
    ("latency: followed, to VM", "dev_queue", "followed, one histogram"),
    ("latency: followed, to VM", "dev_xmit", "followed, one histogram"),
    ("latency: followed, to VM", "vm_copied", "ends, two histograms"),
    ("latency: followed, to VM, event", "dev_rx", "matched, enters"),
    ("latency: followed, to VM, event", "vm_copied", "ends, two histograms, event"),
)


def program() -> Path:
    """The compiled traffic program; a guest uses what is there, so call it before."""
    return build.binary("firing_traffic", home=_HERE)


class Traffic:
    """The traffic program with its sockets; :meth:`send` sends so many packets."""

    def __init__(self, ns: Namespace, frame: bytes, out: int, into: int = -1) -> None:
        with tempfile.NamedTemporaryFile(delete=False) as stream:
            stream.write(frame)
        self._file = Path(stream.name)
        self._process = ns.popen(
            [str(program()), stream.name, str(out), str(into)],
            pass_fds=[fd for fd in (out, into) if fd >= 0],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, packets: int) -> int:
        """Nanoseconds it took; under instruction counting, instructions."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{packets}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the traffic program ended")
        return int(answer)

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._file.unlink()


def _tap(h: Namespace) -> int:
    """The user side of vnet0, as QEMU opens it."""
    with h.entered():
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", b"vnet0", flags))
        fcntl.ioctl(tap, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HDR_BYTES))
    return tap


def _datagram(src: tuple[str, str], dst: tuple[str, str], port: int) -> bytes:
    """Frame of a datagram between (MAC, address) pairs."""
    packet = raw.ipv4(src[1], dst[1], 17, raw.udp_datagram(PORT - 1, port, PAYLOAD), ident=1)
    return raw.ethernet(dst[0], src[0], 0x0800, packet)


def _open(address: str, port: int, room: int = 0) -> socket.socket:
    """A socket that receives on a port; with little room it soon takes nothing more."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if room:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    sock.bind((address, port))
    return sock


class _Laboratory:
    """Sockets of all kinds of traffic."""

    def __init__(self, stack: contextlib.ExitStack, found: Topo) -> None:
        self._stack, self._topo = stack, found
        self._tap = _tap(found.h)
        stack.callback(os.close, self._tap)
        makers = {
            "drop": lambda: self._dropped(PORT),
            "drop, other port": lambda: self._dropped(OTHER_PORT),
            "loopback": self._loopback,
            "to VM": lambda: self._to_vm(PORT),
            "to VM, other port": lambda: self._to_vm(OTHER_PORT),
            "from VM": lambda: self._from_vm(PORT),
            "from VM, other port": lambda: self._from_vm(OTHER_PORT),
        }
        self.traffic = {kind: make() for kind, make in makers.items()}

    def _keep(self, *socks: socket.socket) -> None:
        for sock in socks:
            self._stack.callback(sock.close)

    def _start(self, ns: Namespace, frame: bytes, out: int, into: int = -1) -> Traffic:
        traffic = Traffic(ns, frame, out, into)
        self._stack.callback(traffic.close)
        return traffic

    def _dropped(self, port: int) -> Traffic:
        """Datagrams over lo of H to a socket that is full: the kernel frees each in the send."""
        with self._topo.h.entered():
            target = _open("127.0.0.1", port, room=1)
            source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        source.connect(("127.0.0.1", port))
        self._keep(target, source)
        for _ in range(64):
            source.send(PAYLOAD)
        return self._start(self._topo.h, PAYLOAD, source.fileno())

    def _loopback(self) -> Traffic:
        """Datagrams over lo of E: devices nobody asked for."""
        with self._topo.e.entered():
            target = _open("127.0.0.1", PORT)
            source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        source.connect(("127.0.0.1", PORT))
        self._keep(target, source)
        return self._start(self._topo.e, PAYLOAD, source.fileno(), target.fileno())

    def _to_vm(self, port: int) -> Traffic:
        frame = _datagram((topo.E_MAC, topo.E_IP), (topo.VM_MAC, topo.VM_IP), port)
        with self._topo.e.entered():
            source = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            source.bind((self._topo.wire, 0))
        source.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        self._keep(source)
        return self._start(self._topo.e, frame, source.fileno(), self._tap)

    def _from_vm(self, port: int) -> Traffic:
        frame = _datagram((topo.VM_MAC, topo.VM_IP), (topo.E_MAC, topo.E_IP), port)
        with self._topo.e.entered():
            target = _open(topo.E_IP, port)
        self._keep(target)
        head = bytes(_VNET_HDR_BYTES)
        return self._start(self._topo.e, head + frame, self._tap, target.fileno())


@contextlib.contextmanager
def laboratory() -> Iterator[tuple[Topo, dict[str, Traffic]]]:
    """The topology and every kind of traffic, started."""
    program()
    with bridge_topo(start_vms=False, static_neigh=True) as found:
        with contextlib.ExitStack() as stack:
            yield found, _Laboratory(stack, found).traffic


def start(found: Topo, run: Run, mechanism: str) -> Tool:
    """The command of a run, with what stands in the way of a mechanism taken away."""
    refused = MECHANISMS.get(mechanism, mechanism)
    return Tool(found.h, run.command, run.args, env={"NTOOLS_REFUSE": refused or None})


def programs_of(pid: int) -> dict[int, str]:
    """Programs of a process by id, with the names the kernel keeps (15 characters)."""
    names = bpfsys.bpf_snapshot().progs
    return {number: names[number] for number in bpfsys.objects_of(pid).progs if number in names}


def runs_of(numbers: Sequence[int]) -> dict[int, tuple[int, int]]:
    """(run time in ns, runs) of each program."""
    return {number: bpfsys.program_runs([number]) for number in numbers}


@contextlib.contextmanager
def attached_empty(*tracepoints: str) -> Iterator[list[int]]:
    """Programs that do nothing, attached: what the kernel's clock and switch cost by themselves.

    Gives the ids of the programs.
    """
    with contextlib.ExitStack() as stack:
        before = set(bpfsys.bpf_snapshot().progs)
        for tracepoint in tracepoints:
            descriptor = bpfsys.load_program(bpfsys.PROG_RAW_TRACEPOINT)
            stack.callback(os.close, descriptor)
            name = ctypes.create_string_buffer(tracepoint.encode())
            attribute = bytearray(struct.pack("=QI", ctypes.addressof(name), descriptor))
            stack.callback(os.close, bpfsys._bpf(bpfsys._RAW_OPEN, attribute))
        now = bpfsys.bpf_snapshot().progs
        yield [number for number in now if number not in before and now[number] == "ntcheck"]
