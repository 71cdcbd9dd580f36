# SPDX-License-Identifier: GPL-2.0-only
"""The fake virtual machine behind a tap (fakevm.c), driven through its standard input."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from typing import Any, Dict, List, Optional, Sequence

from lab.build import binary
from lab.netns import Namespace, stop_process

__all__ = ["FakeVm", "FakeVmFailed"]


class FakeVmFailed(RuntimeError):
    """The fake virtual machine ended or did not answer in time."""


class FakeVm:
    """Context manager: started in a namespace and ready, stopped at the end.

    :param number: 2 is 10.9.0.2, fd09::2, 52:54:00:09:00:02; 3 accordingly.
    :param vhost: user-space virtio driver over /dev/vhost-net instead of reading the tap.
    :param delay_ms: sleep before each frame is read. Plain tap: it waits in the tun ring.
    :param stall_s: does not read for so long; None reads, 0 does not read until :meth:`resume`.
    :param rx_buffers: vhost only, buffers posted on the receive ring (1..256).
    :param vlan: tag of frames it starts by itself; answers carry the tag they came with.
    """

    def __init__(
        self,
        ns: Namespace,
        tap: str = "vnet0",
        number: int = 2,
        vhost: bool = False,
        delay_ms: int = 0,
        stall_s: Optional[int] = None,
        rx_buffers: int = 256,
        vlan: Optional[int] = None,
        closed_ports: Sequence[int] = (),
        sink_ports: Sequence[int] = (),
    ) -> None:
        self.ns, self.tap, self.vhost = ns, tap, vhost
        self.ip, self.ip6 = f"10.9.0.{number}", f"fd09::{number}"
        self.mac = f"52:54:00:09:00:{number:02x}"
        self.final: Dict[str, int] = {}
        self._arguments = ["--tap", tap, "--mac", self.mac, "--ip", self.ip, "--ip6", self.ip6]
        self._arguments += ["--rx-buffers", str(rx_buffers), "--delay-ms", str(delay_ms)]
        self._arguments += ["--vhost"] if vhost else []
        if stall_s is not None:
            self._arguments += ["--stall-s", str(stall_s)] if stall_s else ["--stall"]
        self._arguments += [] if vlan is None else ["--vlan", str(vlan)]
        for option, ports in (("--closed-port", closed_ports), ("--sink-port", sink_ports)):
            for port in ports:
                self._arguments += [option, str(port)]
        self._process: Optional["subprocess.Popen[bytes]"] = None
        self._buffer = b""
        self._waiting: List[Dict[str, Any]] = []

    def __enter__(self) -> "FakeVm":
        program = str(binary("fakevm"))
        self._stderr = tempfile.TemporaryFile()
        self._process = self.ns.popen(
            [program, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        try:
            self._expect("ready", 30)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id; the vhost worker is named ``vhost-<pid>``."""
        assert self._process is not None
        return self._process.pid

    def _read(self, timeout_s: float) -> None:
        assert self._process is not None and self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        if not select.select([descriptor], [], [], max(0.0, timeout_s))[0]:
            return
        data = os.read(descriptor, 65536)
        if not data:
            self._stderr.seek(0)
            text = self._stderr.read().decode(errors="replace").strip()
            raise FakeVmFailed(f"fakevm on '{self.tap}' ended with {self._process.wait()}: {text}")
        *complete, self._buffer = (self._buffer + data).split(b"\n")
        self._waiting += [_decoded(line) for line in complete]

    def _expect(self, kind: str, timeout_s: float) -> Dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            for index, record in enumerate(self._waiting):
                if record["type"] == kind:
                    return self._waiting.pop(index)
                if record["type"] == "error":
                    del self._waiting[index]
                    raise FakeVmFailed(f"fakevm refused '{record['command']}'")
            if time.monotonic() > deadline:
                raise FakeVmFailed(f"fakevm on '{self.tap}': no '{kind}' in {timeout_s:g} s")
            self._read(deadline - time.monotonic())

    def _command(self, line: str, answer: str = "ok", timeout_s: float = 20) -> Dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()
        return self._expect(answer, timeout_s)

    def counters(self) -> Dict[str, int]:
        """Counters now, or those of the end when it was stopped."""
        if self._process is None:
            return self.final
        record = self._command("counters", "counters")
        del record["type"]
        return record

    def stall(self) -> None:
        """Stops reading; vhost still fills the posted buffers."""
        self._command("stall")

    def resume(self) -> None:
        """Reads again."""
        self._command("resume")

    def delay(self, delay_ms: int) -> None:
        """Changes the sleep before each read."""
        self._command(f"delay {delay_ms}")

    def hush(self) -> None:
        """Ends what it sends in the background."""
        self._command("hush")

    def send_udp(
        self,
        dst: str = "10.9.0.1",
        port: int = 9000,
        count: int = 1,
        size: int = 64,
        gap_us: int = 1000,
        src_port: int = 40000,
        src_port_step: int = 0,
        wait_s: float = 60,
    ) -> int:
        """Datagrams from the machine; returns how many were sent. ``wait_s`` 0: do not wait."""
        self._command(f"udp {dst} {port} {count} {size} {gap_us} {src_port} {src_port_step}")
        return self.wait_sent(wait_s) if wait_s else 0

    def ping(
        self,
        dst: str = "10.9.0.1",
        count: int = 1,
        size: int = 56,
        gap_us: int = 10000,
        wait_s: float = 60,
    ) -> int:
        """Echo requests from the machine; answers are counted as icmp_reply or icmp6_reply."""
        self._command(f"ping {dst} {count} {size} {gap_us}")
        return self.wait_sent(wait_s) if wait_s else 0

    def wait_sent(self, timeout_s: float = 60) -> int:
        """Waits for the end of a job; fails when the target has no link address."""
        record = self._expect("sent", timeout_s)
        if not record["resolved"]:
            raise FakeVmFailed("fakevm: nobody answered for the target address")
        return int(record["count"])

    def wait_counter(self, name: str, value: int, timeout_s: float = 30) -> Dict[str, int]:
        """Counters as soon as one of them has reached a value; the caller judges them."""
        deadline = time.monotonic() + timeout_s
        while True:
            counters = self.counters()
            if counters[name] >= value or time.monotonic() > deadline:
                return counters
            time.sleep(0.05)

    def stop(self) -> Dict[str, int]:
        """Ends it; returns and keeps the final counters."""
        process, self._process = self._process, None
        if process is None:
            return self.final
        stop_process(process, signal.SIGTERM)
        assert process.stdin is not None and process.stdout is not None
        rest = self._buffer + process.stdout.read()
        process.stdout.close()
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass
        self._stderr.close()
        for line in rest.splitlines():
            record = json.loads(line)
            if record.pop("type") == "counters":
                self.final = record
        return self.final


def _decoded(line: bytes) -> Dict[str, Any]:
    """An answer; it repeats the name of the tap, which may be made of any bytes."""
    answer: Dict[str, Any] = json.loads(line.decode("utf-8", "replace"), strict=False)
    return answer
