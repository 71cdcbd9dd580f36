# SPDX-License-Identifier: GPL-2.0-only
"""Frames by hand: tagged traffic on kernels without 8021q, and frames no stack would send."""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import Optional, Tuple

from lab.netns import Namespace
from lab.traffic import Ping

__all__ = [
    "RawSocket",
    "arp_request",
    "checksum",
    "ethernet",
    "icmp_echo",
    "ipv4",
    "mac_bytes",
    "raw_ping",
    "udp_datagram",
]

_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_TP_STATUS_VLAN_VALID = 1 << 4
_BROADCAST = "ff:ff:ff:ff:ff:ff"


def mac_bytes(text: str) -> bytes:
    """Link address from its text."""
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    """Internet checksum."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(dst: str, src: str, proto: int, payload: bytes, vlan: Optional[int] = None) -> bytes:
    """Ethernet frame, tagged when ``vlan`` is given."""
    tag = b"" if vlan is None else struct.pack("!HH", 0x8100, vlan)
    return mac_bytes(dst) + mac_bytes(src) + tag + struct.pack("!H", proto) + payload


def ipv4(
    src: str,
    dst: str,
    protocol: int,
    payload: bytes,
    ident: int = 0,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    """IPv4 packet; ``fragment`` is the flags and offset word."""
    words = 5 + len(options) // 4
    head = (
        struct.pack(
            "!BBHHHBBH4s4s",
            0x40 | words,
            0,
            words * 4 + len(payload),
            ident,
            fragment,
            64,
            protocol,
            0,
            socket.inet_aton(src),
            socket.inet_aton(dst),
        )
        + options
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def icmp_echo(ident: int, sequence: int, payload: bytes) -> bytes:
    """ICMP echo request."""
    body = struct.pack("!BBHHH", 8, 0, 0, ident, sequence) + payload
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


def udp_datagram(src_port: int, dst_port: int, payload: bytes) -> bytes:
    """UDP over IPv4 without a checksum."""
    return struct.pack("!HHHH", src_port, dst_port, 8 + len(payload), 0) + payload


def arp_request(src_mac: str, src_ip: str, dst_ip: str) -> bytes:
    """Body of an ARP request."""
    return struct.pack(
        "!HHBBH6s4s6s4s",
        1,
        0x0800,
        6,
        4,
        1,
        mac_bytes(src_mac),
        socket.inet_aton(src_ip),
        b"\0" * 6,
        socket.inet_aton(dst_ip),
    )


class RawSocket:
    """Packet socket on one device of a namespace."""

    def __init__(self, ns: Namespace, dev: str) -> None:
        with ns.entered():
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self._sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            self._sock.bind((dev, 3))

    def __enter__(self) -> "RawSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, frame: bytes) -> None:
        """Puts one frame on the wire."""
        self._sock.send(frame)

    def receive(self, timeout_s: float) -> Tuple[Optional[int], bytes]:
        """Next incoming frame as (VLAN id or None, frame without the tag); b"" at the limit."""
        deadline = time.monotonic() + timeout_s
        while select.select([self._sock], [], [], max(0.0, deadline - time.monotonic()))[0]:
            frame, ancillary, _, address = self._sock.recvmsg(65536, 256)
            if address[2] == socket.PACKET_OUTGOING:
                continue
            if frame[12:14] == b"\x81\x00":
                return struct.unpack("!H", frame[14:16])[0] & 0xFFF, frame[:12] + frame[16:]
            for level, kind, data in ancillary:
                if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
                    # struct tpacket_auxdata: status, len, snaplen, mac, net, vlan_tci
                    status, tci = struct.unpack("=I8x4xH", data[:18])
                    if status & _TP_STATUS_VLAN_VALID:
                        return tci & 0xFFF, frame
            return None, frame
        return None, b""


def _resolve(sock: RawSocket, vlan: Optional[int], src: Tuple[str, str], dst_ip: str) -> str:
    for _ in range(5):
        body = arp_request(src[0], src[1], dst_ip)
        sock.send(ethernet(_BROADCAST, src[0], 0x0806, body, vlan))
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            tag, frame = sock.receive(deadline - time.monotonic())
            if (
                tag == vlan
                and frame[12:14] == b"\x08\x06"
                and frame[20:22] == b"\0\x02"
                and frame[28:32] == socket.inet_aton(dst_ip)
            ):
                return frame[22:28].hex(":")
    raise RuntimeError(f"no ARP answer from {dst_ip} on VLAN {vlan}")


def raw_ping(
    ns: Namespace,
    dev: str,
    src: Tuple[str, str],
    dst_ip: str,
    count: int = 10,
    interval_s: float = 0.05,
    size: int = 56,
    vlan: Optional[int] = None,
    wait_s: float = 5,
    dst_mac: Optional[str] = None,
) -> Ping:
    """Echo requests as frames; an answer counts only when it carries the same tag.

    :param src: link address and IPv4 address of the sender.
    """
    result = Ping(0, 0)
    ident = time.monotonic_ns() & 0xFFFF
    sent_at = {}
    with RawSocket(ns, dev) as sock:
        mac = dst_mac or _resolve(sock, vlan, src, dst_ip)
        for sequence in range(1, count + 1):
            packet = ipv4(src[1], dst_ip, 1, icmp_echo(ident, sequence, b"Z" * size), sequence)
            sent_at[sequence] = time.monotonic()
            sock.send(ethernet(mac, src[0], 0x0800, packet, vlan))
            result.sent += 1
            last = sequence == count
            deadline = sent_at[sequence] + (wait_s if last else interval_s)
            while time.monotonic() < deadline and not (last and result.received == count):
                tag, frame = sock.receive(deadline - time.monotonic())
                if tag != vlan or frame[12:14] != b"\x08\x00" or frame[23:24] != b"\x01":
                    continue
                kind, got_ident, got = struct.unpack("!BxxxHH", frame[34:42])
                if kind == 0 and got_ident == ident and got in sent_at:
                    result.received += 1
                    result.rtts_ms.append((time.monotonic() - sent_at[got]) * 1000)
    return result
