#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Packets as fast as the machine makes them, and commands that watch them.

Frames go out of a packet socket, a thousand per system call, so that the kernel is what limits the
rate and the sender's own count is exact. Run as a program it is the sender, in a process and on a
CPU of its own, and prints what it sent as JSON.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.netns import Namespace  # noqa: E402

__all__ = ["NO_BUDGET", "Watched", "build_frames", "ended", "flood", "start_flood", "tracing"]

_BATCH = 1024
_STRIDE = 64
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
#: Most flows: 16 bits in the source address, the rest in the source port.
MAX_FLOWS = 1 << 20

#: Options that take every budget away: nothing is sampled, cut or stopped.
NO_BUDGET = ("--max-cpu", "100", "--max-overhead", "100", "--max-events", "0", "--force")
_TICKS = os.sysconf("SC_CLK_TCK")


# -- the sender ------------------------------------------------------------------------------------


def build_frames(
    flows: int, src_mac: str, dst_mac: str, dst_ip: str, port: int, size: int
) -> bytes:
    """UDP frames of so many flows, each in 64 bytes of room; at least a batch of them.

    The source address carries the low 16 bits of the flow's number and the IP id their complement,
    so one header checksum fits all. UDP goes without checksum.
    """
    length = max(size, 28 + 14) - 14
    head = bytes.fromhex((dst_mac + src_mac).replace(":", "")) + b"\x08\x00"
    fixed = struct.pack(
        "!BBHHHBBH2sH4s", 0x45, 0, length, 0xFFFF, 0, 64, 17, 0, b"\xac\x10", 0,
        socket.inet_aton(dst_ip),
    )  # fmt: skip
    total = sum(struct.unpack("!10H", fixed))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    before = head + struct.pack("!BBH", 0x45, 0, length)
    middle = struct.pack("!HBBH2s", 0, 64, 17, ~total & 0xFFFF, b"\xac\x10")
    destination = socket.inet_aton(dst_ip)
    rest = _STRIDE - len(before) - 2 - len(middle) - 2 - 4 - 2
    frames = []
    for number in range(flows):
        low = number & 0xFFFF
        frames.append(
            b"%b%b%b%b%b%b%b" % (
                before, (0xFFFF - low).to_bytes(2, "big"), middle, low.to_bytes(2, "big"),
                destination, (1024 + (number >> 16)).to_bytes(2, "big"),
                struct.pack("!HHH", port, length - 20, 0).ljust(rest, b"Z"),
            )
        )  # fmt: skip
    return b"".join(frames) * (1 if flows >= _BATCH else -(-_BATCH // flows))


class _Messages:
    """An array of ``struct mmsghdr`` over frames."""

    def __init__(self, frames: bytes, size: int) -> None:
        self.count = len(frames) // _STRIDE
        self._frames = ctypes.create_string_buffer(frames, len(frames))
        base = ctypes.addressof(self._frames)
        vectors = array.array("Q", bytes(16 * self.count))
        vectors[0::2] = array.array("Q", range(base, base + len(frames), _STRIDE))
        vectors[1::2] = array.array("Q", [size]) * self.count
        self._vectors = (ctypes.c_uint64 * (2 * self.count)).from_buffer(vectors)
        at = ctypes.addressof(self._vectors)
        # name, its length, vector, number of vectors, control, its length, flags, bytes sent
        words = array.array("Q", bytes(64 * self.count))
        words[2::8] = array.array("Q", range(at, at + 16 * self.count, 16))
        words[3::8] = array.array("Q", [1]) * self.count
        self._words = (ctypes.c_uint64 * (8 * self.count)).from_buffer(words)
        self.address = ctypes.addressof(self._words)


def send(
    dev: str, frames: bytes, size: int, rate: float, seconds: float, count: int = 0
) -> Dict[str, float]:
    """Send from a device of this namespace until the time is over, or so many frames are out.

    :param rate: frames per second, in bursts of a millisecond; 0: as fast as possible.
    :return: sent, seconds, refused (frames the device had no room for; not part of sent).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    messages = _Messages(frames, size)
    sent = refused = place = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        sock.bind((dev, 0))
        begun = time.monotonic()
        end = begun + seconds if seconds else float("inf")
        now = begun
        while now < end and (not count or sent < count):
            want = min(_BATCH, messages.count - place)
            if count:
                want = min(want, count - sent)
            if rate:
                due = int((now - begun) * rate) + 1 - sent
                if due <= 0:
                    time.sleep(max(0.0, (sent + 1) / rate - (now - begun), 0.001))
                    now = time.monotonic()
                    continue
                want = min(want, due)
            done = libc.sendmmsg(
                sock.fileno(), ctypes.c_void_p(messages.address + 64 * place), want, 0
            )
            if done < 0:
                error = ctypes.get_errno()
                if error not in (11, 105):  # EAGAIN, ENOBUFS
                    raise OSError(error, os.strerror(error))
                refused += 1
                done = 0
            sent += done
            place = (place + done) % messages.count
            now = time.monotonic()
    return {"sent": sent, "seconds": now - begun, "refused": refused}


def send_own(dst_ip: str, port: int, seconds: float) -> Dict[str, float]:
    """Send datagrams through the stack of this namespace, whose filter refuses them or not."""
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((dst_ip, port))
        begun = now = time.monotonic()
        while now - begun < seconds:
            for _ in range(64):
                with contextlib.suppress(PermissionError):
                    sock.send(b"Z" * 18)
            sent += 64
            now = time.monotonic()
    return {"sent": sent, "seconds": now - begun, "refused": 0}


# -- from the benchmark ----------------------------------------------------------------------------


def start_flood(
    ns: Namespace,
    dev: str,
    src_mac: str,
    dst_mac: str,
    dst_ip: str,
    port: int,
    seconds: float = 0.0,
    count: int = 0,
    rate: float = 0.0,
    flows: int = 1,
    size: int = 60,
    cpu: int = 0,
) -> "subprocess.Popen[Any]":
    """Start a sender in a namespace; its standard output is the result.

    :param dev: device to send from; "-": through the stack of the namespace.
    """  # fmt: skip
    command = [
        sys.executable, str(Path(__file__).resolve()), dev, src_mac, dst_mac, dst_ip, str(port),
        "--seconds", str(seconds), "--count", str(count), "--rate", str(rate),
        "--flows", str(flows), "--size", str(size), "--cpu", str(cpu),
    ]  # fmt: skip
    return ns.popen(command, stdout=subprocess.PIPE)


def flood(ns: Namespace, *where: Any, **how: Any) -> Dict[str, float]:
    """Send and wait for the end: sent, seconds, rate_per_s. See :func:`start_flood`."""
    return ended(start_flood(ns, *where, **how))


def ended(process: "subprocess.Popen[Any]") -> Dict[str, float]:
    """What a sender has sent, as soon as it has."""
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the sender ended with {process.returncode}")
    found: Dict[str, float] = json.loads(out)
    found["rate_per_s"] = found["sent"] / found["seconds"]
    return found


def tracing() -> Sequence[str]:
    """What goes before a command that needs tracefs, where nothing is mounted: a mount of its own.

    The command comes after ``--`` and the mounts vanish with it.
    """
    if Path("/sys/kernel/tracing/events").is_dir() and Path("/sys/kernel/debug/tracing").is_dir():
        return ()
    script = (
        "mount -t debugfs none /sys/kernel/debug 2>/dev/null; "
        "mount -t tracefs none /sys/kernel/tracing 2>/dev/null; "
        'exec "$@"'
    )
    return ("unshare", "-m", "sh", "-c", script, "sh")


class Watched:
    """A command that watches: ready inside, its output in a file, its CPU time and memory.

    Nobody reads its output while it runs: on a machine with few CPUs a reader would be measured.

    :param ready: how the line of stderr (or of stdout, for ``ready_on_stdout``) begins that says
        it measures.
    :param cpu: where it runs, None: anywhere.
    """

    def __init__(
        self, ns: Optional[Namespace], command: Sequence[str], cpu: Optional[int] = 1,
        env: Mapping[str, str] = {}, ready: str = "ready:", ready_on_stdout: bool = False,
        keep: bool = True,
    ) -> None:  # fmt: skip
        self._ns, self._command, self._cpu = ns, list(command), cpu
        self._ready, self._on_stdout, self._keep = ready, ready_on_stdout, keep
        self._place = tempfile.TemporaryDirectory(prefix="nt-bench-", dir=_memory())
        self._env = {**os.environ, "NTOOLS_RUN_DIR": self._place.name, **env}
        self.out = Path(self._place.name) / "out"
        self.err = Path(self._place.name) / "err"
        self.process: Optional["subprocess.Popen[Any]"] = None

    def __enter__(self) -> "Watched":
        with (
            (self.out if self._keep else Path(os.devnull)).open("wb") as out,
            self.err.open("wb") as err,
        ):
            how: Dict[str, Any] = {"stdout": out, "stderr": err, "stdin": subprocess.DEVNULL}
            how["env"] = self._env
            if self._ns is None:
                self.process = subprocess.Popen(self._command, **how)
            else:
                self.process = self._ns.popen(self._command, own_sys=True, **how)
        try:
            if self._cpu is not None:
                os.sched_setaffinity(self.process.pid, {self._cpu % (os.cpu_count() or 1)})
            self._await_ready(90)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._place.cleanup()

    def _await_ready(self, limit_s: float) -> None:
        assert self.process is not None
        deadline = time.monotonic() + limit_s
        watched = self.out if self._on_stdout else self.err
        while not any(line.startswith(self._ready) for line in _lines(watched)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self._command[0]} is not ready: {self.err.read_text()[-2000:]}"
                )
            time.sleep(0.02)

    def cpu_s(self) -> float:
        """User and system time so far, of the process and those it has waited for."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks = (int(fields[11]) + int(fields[12])) / _TICKS
        try:
            return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9
        except (OSError, ValueError):
            return ticks

    def memory_mib(self, field: str = "VmRSS") -> float:
        """Memory in use, or at its peak with VmHWM."""
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
        return 0.0

    def stop(self, limit_s: float = 120) -> int:
        """Ctrl-C, and wait for its end; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(limit_s)

    def records(self, *kinds: str) -> List[Dict[str, Any]]:
        """Records of some types; the others are not even parsed."""
        wanted = tuple(f'"type":"{kind}"' for kind in kinds)
        found = []
        for line in _lines(self.out):
            if any(one in line[:60] for one in wanted):
                found.append(json.loads(line))
        return found

    def count(self, begin: str) -> int:
        """Lines of the output that begin so."""
        return sum(line.startswith(begin) for line in _lines(self.out))


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open(errors="replace") as file:
            yield from file


def _memory() -> Optional[str]:
    """A file system without a disk, if there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main() -> int:
    """The sender."""
    parser = argparse.ArgumentParser(description="Sends UDP frames out of a device.")
    for name in ("dev", "src_mac", "dst_mac", "dst_ip"):
        parser.add_argument(name)
    parser.add_argument("port", type=int)
    for name, kind in (("seconds", float), ("rate", float), ("count", int), ("cpu", int)):
        parser.add_argument("--" + name, type=kind, default=0)
    parser.add_argument("--flows", type=int, default=1)
    parser.add_argument("--size", type=int, default=60)
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.cpu % (os.cpu_count() or 1)})
    if args.dev == "-":
        print(json.dumps(send_own(args.dst_ip, args.port, args.seconds)))
        return 0
    frames = build_frames(
        min(args.flows, MAX_FLOWS), args.src_mac, args.dst_mac, args.dst_ip, args.port, args.size
    )
    print(json.dumps(send(args.dev, frames, args.size, args.rate, args.seconds, args.count)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
