# SPDX-License-Identifier: GPL-2.0-only
"""Real skbs: frames over a veth pair, seen where they are queued, sent, received and freed.

Every frame has a mark of its own, by which the programs know it again at each place.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any, Iterator

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.netns import Namespace  # noqa: E402
from object import packets as p  # noqa: E402
from object.bpfrun import Record, RunObject, index  # noqa: E402
from object.btfread import ENUM  # noqa: E402
from object.parsing import flags_of, harness_fixture  # noqa: E402

__all__ = ["harness_fixture"]

MARK = 0x6E740000
TEXT = bytes(range(64))
POINTS = ["queue_net", "queue_eth", "xmit_net", "rx_data", "rx_any", "free_any"]
IP4, IP6 = 0x0800, 0x86DD
FRAMES = {
    "tcp": p.eth(p.ip4(p.tcp(TEXT), 6, ident=3)),
    "udp": p.eth(p.ip4(p.udp(TEXT), 17)),
    "udp 1 byte": p.eth(p.ip4(p.udp(b"x"), 17)),
    "ping": p.eth(p.ip4(p.icmp(TEXT), 1)),
    "options": p.eth(p.ip4(p.udp(TEXT), 17, options=b"\x94\x04\0\0")),
    "fragment": p.eth(p.ip4(TEXT, 17, ident=9, frag=64)),
    "esp": p.eth(p.ip4(TEXT, 50, ident=9)),
    "udp6": p.eth(p.ip6(p.udp(TEXT), 17), IP6),
    "ping6": p.eth(p.ip6(p.ext(p.icmp(TEXT, kind=128), "hop", 58), 0), IP6),
    "arp": p.eth(p.arp(), 0x0806),
    "lldp": p.eth(TEXT, 0x88CC),
    "length field": p.eth(b"\x42\x42\x03" + TEXT[3:], 64),
    "tag": p.eth(p.vlan(p.ip4(p.udp(TEXT), 17), 0x6064, IP4), 0x8100),
    "qinq": p.eth(p.vlan(p.vlan(p.ip4(p.udp(TEXT), 17), 20, IP4), 10, 0x8100), 0x88A8),
    "tag arp": p.eth(p.vlan(p.arp(), 7, 0x0806), 0x8100),
    "tag 6": p.eth(p.vlan(p.ip6(p.tcp(TEXT), 6), 7, IP6), 0x8100),
}


@pytest.fixture(scope="module")
def pair() -> Iterator[Namespace]:
    """Both ends in one namespace: between two the kernel takes the mark off."""
    with Namespace("p") as namespace:
        namespace.ip("link add va type veth peer name vb", "link set va up", "link set vb up",
                     "address add 192.0.2.1/24 dev va",
                     "neighbour add 192.0.2.7 lladdr 52:54:00:09:00:bb dev va")  # fmt: skip
        yield namespace


class Watch:
    """The programs of all points, attached one way."""

    def __init__(self, path: Path, way: str) -> None:
        self._programs = [f"{name}__{way}" for name in POINTS]
        self.object = RunObject(path, self._programs)
        btf = self.object.btf
        self._key, self._output = Record(btf, "test_key"), Record(btf, "test_output")
        point = btf.find("test_point", ENUM)
        assert point
        self._points = btf.enum(point)
        size = Record(btf, "test_input").size
        self.object.update("input", index(0), bytes(size))

    def __enter__(self) -> Watch:
        self.object.attach(*self._programs)
        return self

    def __exit__(self, *_error: object) -> None:
        self.object.__exit__(None, None, None)

    def get(self, point: str, mark: int, limit_s: float = 3) -> dict[str, Any]:
        """What a point saw of a packet."""
        number = self._points[f"TEST_{point.upper()}"]
        key = self._key.pack({"point": number, "mark": mark})
        deadline = time.monotonic() + limit_s
        while True:
            try:
                return self._output.unpack(self.object.lookup("seen", key, self._output.size))
            except OSError:
                assert time.monotonic() < deadline, f"{point} has not seen {mark:#x}"
                time.sleep(0.01)


@pytest.fixture(scope="module", params=["tp_btf", "raw_tp"])
def watch(request: pytest.FixtureRequest, harness: Path, pair: Namespace) -> Iterator[Watch]:
    with Watch(harness, request.param) as running:
        yield running


def send(pair: Namespace, frame: bytes, mark: int) -> None:
    proto = int.from_bytes(frame[12:14], "big")
    with pair.entered():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        # A length field is 0x0004 to the kernel.
        sock.sendto(frame, ("va", proto if proto >= 0x600 else 4))


@pytest.mark.parametrize("name", FRAMES)
def test_frame(pair: Namespace, watch: Watch, name: str) -> None:
    """The same packet at every place: all that is known of it, digest and key."""
    mark = MARK + list(FRAMES).index(name)
    send(pair, FRAMES[name], mark)
    first = watch.get("queue_eth", mark)
    assert first["result"] == 0 and first["digest"] and first["key"]
    assert (first["pkt"]["smac"], first["pkt"]["dmac"]) == (p.MAC_A, p.MAC_B)
    for point in POINTS:
        if point == "free_any" and "arp" in name:
            continue  # not a drop to the kernel
        found = watch.get(point, mark)
        assert found["result"] == 0, point
        assert flags_of(found) - {"VLAN_ACC"} == flags_of(first), point
        for field in first["pkt"]:
            # A tag nobody takes is removed before the packet is freed.
            taken = point == "free_any" and "vlan" in field
            if not field.endswith("_off") and field != "flags" and not taken:
                assert found["pkt"][field] == first["pkt"][field], (point, field)
        assert (found["digest"], found["key"]) == (first["digest"], first["key"]), point


def test_tags_are_found(pair: Namespace, watch: Watch) -> None:
    mark = MARK + 0x100
    send(pair, FRAMES["qinq"], mark)
    for point in POINTS[:-1]:
        pkt = watch.get(point, mark)["pkt"]
        assert (pkt["vlan_proto"], pkt["vlan_id"], pkt["inner_vlan_id"]) == (0x88A8, 10, 20)
        assert pkt["tuple"]["dst_port"] == 53


def test_sent_by_the_stack(pair: Namespace, watch: Watch) -> None:
    """A datagram of a socket; no IP id, other payload each time."""
    seen = set()
    with pair.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        for i in range(20):
            mark = MARK + 0x200 + i
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sock.sendto(b"datagram %02d" % i, ("192.0.2.7", 7777))
            found = [watch.get(point, mark) for point in POINTS]
            assert len({(one["digest"], one["key"]) for one in found}) == 1
            assert all(one["pkt"]["tuple"]["dst_port"] == 7777 for one in found)
            seen.add(found[0]["digest"])
    assert len(seen) == 20


def test_large_datagram_is_sent_in_fragments(pair: Namespace, watch: Watch) -> None:
    """Later fragments have no ports; all have the id."""
    mark = MARK + 0x300
    with pair.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.sendto(TEXT * 47, ("192.0.2.7", 7777))
    # The last of three replaces the others under the same mark.
    deadline = time.monotonic() + 3
    while "MF" in flags_of(watch.get("rx_data", mark)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for point in POINTS:
        found = watch.get(point, mark)
        assert flags_of(found) == {"L2", "L3", "FRAG"}, point
        assert found["pkt"]["frag_off"] == 2960 and found["pkt"]["ip_id"], point
        assert found["pkt"]["tuple"]["dst_port"] == 0
