# SPDX-License-Identifier: GPL-2.0-only
"""Where impact.py measures: the topology with a guest that has TCP, and a command beside it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import build  # noqa: E402
from lab.netns import Namespace, stop_process  # noqa: E402
from lab.topo import E_IP, E_MAC, VM_IP, VM_MAC, Topo, bridge_topo  # noqa: E402

#: Ports; the next one of each is that of the few packets in between.
ECHO, SINK = 7000, 7100
#: One transaction, or one batch of packets, in so many is one of the few.
EVERY = 64
NOBODY = "203.0.113.9"
#: For what compiles at its start, in a guest.
_PATIENCE_S = 600
FEW = f"{ECHO + 1},{SINK + 1}"


def program(name: str) -> str:
    """Path of a compiled helper of this directory."""
    return str(build.binary(name, home=Path(__file__).resolve().parent))


def cpu_ns(pid: int) -> int:
    """User and system time of all threads of a process so far."""
    total = 0
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    return total


class Site:
    """The topology with a guest that has a network stack, servers on both sides, and the loads.

    :param cpus: two; the first for senders and servers, the second for the relay. Transactions
        are all on the second: one after the other, so that every nanosecond is in the figure.
    """

    def __init__(self, topo: Topo, guest: Namespace, cpus: Sequence[int]) -> None:
        self.topo, self.guest, self.cpus = topo, guest, cpus

    @contextlib.contextmanager
    def running(self) -> Iterator["Site"]:
        """Relay and servers are up inside."""
        self._relay = self._start(
            self.topo.h,
            [program("impact_relay"), str(self.cpus[1]), "vnet0", self.guest.path, "eth0"],
        )
        self.guest.ip(
            f"link set eth0 address {VM_MAC} up",
            f"addr add {VM_IP}/24 dev eth0",
            f"neigh replace {E_IP} lladdr {E_MAC} dev eth0 nud permanent",
        )
        servers = self._servers = [self._relay]
        for ns in (self.topo.e, self.guest):
            for kind, port, cpu in (("echo", ECHO, 1), ("sink", SINK, 0)):
                for protocol in ("tcp", "udp"):
                    job = [str(self.cpus[cpu]), kind, protocol, str(port)]
                    servers.append(self._start(ns, [program("impact_traffic"), *job]))
        try:
            yield self
        finally:
            for server in reversed(servers):
                stop_process(server)

    def _start(self, ns: Namespace, command: List[str]) -> "subprocess.Popen[bytes]":
        process = ns.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if not process.stdout.readline():
            raise RuntimeError(f"{' '.join(command)} ended")
        return process

    def ask_relay(self, command: str) -> Dict[str, int]:
        """Its answer to a command."""
        self._relay.stdin.write(command.encode() + b"\n")
        self._relay.stdin.flush()
        return json.loads(self._relay.stdout.readline())

    def _traffic(self, to_vm: bool, cpu: int, *job: object) -> Dict[str, int]:
        ns = self.topo.e if to_vm else self.guest
        command = [program("impact_traffic"), str(self.cpus[cpu]), *map(str, job)]
        before = self.cpu_ns()
        found = json.loads(ns.run(command).stdout)
        found["cpu_ns"] += self.cpu_ns() - before
        return found

    def cpu_ns(self) -> int:
        """CPU time so far of relay and servers; with that of the sender it is that of the load."""
        return sum(cpu_ns(server.pid) for server in self._servers)

    def transactions(self, protocol: str, slice_ms: int) -> Dict[str, int]:
        """Requests from E, one after the other."""
        return self._traffic(True, 1, "rr", protocol, VM_IP, ECHO, slice_ms, EVERY)

    def streams(self, to_vm: bool, count: int, slice_ms: int) -> Dict[str, int]:
        """TCP streams towards the VM, or from it."""
        where = VM_IP if to_vm else E_IP
        return self._traffic(to_vm, 0, "stream", where, SINK, count, slice_ms)

    def flood(self, to_vm: bool, slice_ms: int) -> Dict[str, int]:
        """Frames of 64 bytes; the VM sends and receives without a network stack."""
        if not to_vm:
            before = self.cpu_ns()
            sent = self.ask_relay(f"flood {slice_ms} {EVERY} {SINK}")
            self._wait_quiet()
            return {**sent, "cpu_ns": self.cpu_ns() - before}
        self.ask_relay("sink")
        before = self.ask_relay("counters")["to_vm"]
        sent = self._traffic(True, 0, "flood", VM_IP, SINK, slice_ms, EVERY)
        self._wait_quiet()
        sent["copied"] = self.ask_relay("counters")["to_vm"] - before
        self.ask_relay("pass")
        return sent

    def _wait_quiet(self) -> None:
        """Nothing moves through the relay any more."""
        counters: Dict[str, int] = {}
        while counters != (now := self.ask_relay("counters")):
            counters = now
            time.sleep(0.02)

    def oracle(self) -> Dict[str, int]:
        """Packets so far: at the uplink both ways, and across the relay."""
        self._wait_quiet()
        uplink, counters = self.topo.link("phy0"), self.ask_relay("counters")
        return {"arrived": uplink["rx_packets"], "copied": counters["to_vm"],
                "sent": counters["from_vm"], "left": uplink["tx_packets"]}  # fmt: skip


@contextlib.contextmanager
def site(cpus: Sequence[int]) -> Iterator[Site]:
    """A topology with everything running, and known addresses everywhere."""
    with bridge_topo(start_vms=False, static_neigh=True) as topo, Namespace("g") as guest:
        with Site(topo, guest, cpus).running() as made:
            yield made


class Command:
    """Context manager: a command measures inside; after it there is what it left.

    :param ready: what it says when it measures; "": it is given two seconds.
    :param env: added to the environment.
    """

    def __init__(
        self,
        ns: Namespace,
        command: Sequence[str],
        ready: str,
        env: Optional[Mapping[str, str]] = None,
    ) -> None:
        self._ns, self._command, self._ready = ns, list(command), ready
        self._env = env or {}
        self.status: Optional[int] = None
        self._said: List[str] = []
        self._told = threading.Event()

    def __enter__(self) -> "Command":
        self._home = tempfile.TemporaryDirectory(prefix="ntools-impact-")
        self._out = Path(self._home.name) / "out"
        with self._out.open("wb") as out:
            environment = {**os.environ, "NTOOLS_RUN_DIR": self._home.name, **self._env}
            # Tools of others look for their kernel's files below /sys.
            self._process = self._ns.popen(
                self._command, own_sys=not self._env, stdout=out, stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL, env=environment,
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready:
            time.sleep(2)
        elif not self._wait_ready(time.monotonic() + _PATIENCE_S):
            self.__exit__()
            raise RuntimeError(f"{' '.join(self._command)}: {''.join(self._said)}")
        time.sleep(0.2)
        return self

    def _wait_ready(self, deadline: float) -> bool:
        """Whether it says so, on stderr or stdout, before the deadline or its end."""
        while time.monotonic() < deadline:
            ended = self._told.wait(0.2)
            if self._ready in self.said or self._ready.encode() in self._out.read_bytes():
                return True
            if ended:
                return False
        return False

    def _read(self) -> None:
        for line in self._process.stderr:
            self._said.append(line.decode(errors="replace"))
            if self._ready and self._ready in self._said[-1]:
                self._told.set()
        self._told.set()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._home.cleanup()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def said(self) -> str:
        """Its stderr so far."""
        return "".join(self._said)

    def cpu_s(self) -> float:
        """User and system time so far."""
        return cpu_ns(self.pid) / 1e9

    def stop(self) -> List[dict]:
        """Ends it as Ctrl-C does; its records, if it makes such."""
        if self.status is None:
            self.status = stop_process(self._process, signal.SIGINT)
            self._reader.join(5)
        with self._out.open(errors="replace") as lines:
            return [json.loads(line) for line in lines if line.startswith("{")]
