# SPDX-License-Identifier: GPL-2.0-only
"""Traffic with an answer that does not come from a tool: ping and UDP."""

from __future__ import annotations

import re
import select
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import List, Sequence, Union

from lab.netns import Namespace

__all__ = ["Ping", "Udp", "ping", "udp"]

_REPLY = re.compile(r"icmp_seq=(\d+) .*?time[=<]([\d.]+) ms")
_TOTAL = re.compile(r"(\d+) packets transmitted, (\d+) received")


@dataclass
class Ping:
    """Echo requests as their sender saw them."""

    sent: int
    received: int
    rtts_ms: List[float] = field(default_factory=list)
    text: str = ""

    @property
    def min_ms(self) -> float:
        """Shortest round trip."""
        return min(self.rtts_ms)

    @property
    def max_ms(self) -> float:
        """Longest round trip."""
        return max(self.rtts_ms)


@dataclass
class Udp:
    """Datagrams as their sender saw them; ``refused`` counts port-unreachable answers."""

    sent: int
    received: int
    refused: int
    src_ports: List[int]
    rtts_ms: List[float] = field(default_factory=list)


def ping(
    ns: Namespace,
    dst: str,
    count: int = 10,
    interval_s: float = 0.05,
    size: int = 56,
    wait_s: float = 5,
    options: Sequence[str] = (),
) -> Ping:
    """Runs ping(8); losses are a result, not an error.

    :param size: payload bytes; the IPv4 packet is 28 longer, the IPv6 packet 48.
    """
    command = [
        "ping",
        "-n",
        "-c",
        str(count),
        "-i",
        str(interval_s),
        "-s",
        str(size),
        "-W",
        str(wait_s),
        *options,
        dst,
    ]
    done = ns.run(command, check=False, timeout_s=count * (interval_s + 1) + wait_s + 60)
    total = _TOTAL.search(done.stdout)
    if not total:
        raise RuntimeError(f"ping to {dst}: {done.stdout}{done.stderr}")
    rtts = [float(found.group(2)) for found in _REPLY.finditer(done.stdout)]
    return Ping(int(total.group(1)), int(total.group(2)), rtts, done.stdout)


def _collect(sock: socket.socket, result: Udp, sent_at: List[float]) -> None:
    while True:
        try:
            data = sock.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionRefusedError:
            result.refused += 1
            continue
        result.received += 1
        if len(data) >= 8:
            number = struct.unpack("!Q", data[:8])[0]
            result.rtts_ms.append((time.monotonic() - sent_at[number]) * 1000)


def _make_socket(family: int, dst: str, port: int, src_port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if src_port:
            sock.bind(("", src_port))
        sock.connect((dst, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _send(sock: socket.socket, payload: bytes) -> int:
    """Send it; how many answers to earlier datagrams were in the way: each refuses one attempt."""
    for refused in range(100):
        try:
            sock.send(payload)
        except ConnectionRefusedError:
            continue
        return refused
    raise ConnectionRefusedError("more than 100 answers to one datagram")


def udp(
    ns: Namespace,
    dst: str,
    port: int = 9000,
    count: int = 1,
    size: int = 64,
    gap_s: float = 0.0,
    src_port: int = 0,
    new_port_each: bool = False,
    wait_s: float = 2.0,
) -> Udp:
    """Sends datagrams from a namespace and collects what comes back.

    :param size: payload bytes; the first 8 are the number of the datagram.
    :param new_port_each: another source port, and so another flow, for every datagram.
    :param wait_s: how long to wait for answers after the last datagram; ends with the last one.
    """
    family = socket.AF_INET6 if ":" in dst else socket.AF_INET
    result = Udp(0, 0, 0, [])
    sent_at: List[float] = []
    socks: List[socket.socket] = []
    waiter: Union[select.epoll, None] = None
    try:
        waiter = select.epoll()
        with ns.entered():
            for index in range(count if new_port_each else 1):
                sock = _make_socket(family, dst, port, src_port + index if src_port else 0)
                socks.append(sock)
                result.src_ports.append(sock.getsockname()[1])
                waiter.register(sock, select.EPOLLIN | select.EPOLLERR)
        by_number = {sock.fileno(): sock for sock in socks}
        for index in range(count):
            sent_at.append(time.monotonic())
            payload = struct.pack("!Q", index).ljust(size, b"Z")[: max(size, 0)]
            sock = socks[index % len(socks)]
            result.refused += _send(sock, payload)
            result.sent += 1
            if gap_s:
                deadline = sent_at[-1] + gap_s
                while deadline > time.monotonic():
                    for number, _ in waiter.poll(max(0.0, deadline - time.monotonic())):
                        _collect(by_number[number], result, sent_at)
        deadline = time.monotonic() + wait_s
        while result.received + result.refused < count and time.monotonic() < deadline:
            for number, _ in waiter.poll(max(0.0, deadline - time.monotonic())):
                _collect(by_number[number], result, sent_at)
    finally:
        if waiter is not None:
            waiter.close()
        for sock in socks:
            sock.close()
    return result
