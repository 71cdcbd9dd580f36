# SPDX-License-Identifier: GPL-2.0-only
"""What the host tells, by whoever may write there: netlink, OVS, /proc, command lines, symbols."""

from __future__ import annotations

import fnmatch
import os
import socket
import struct
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit.hostile import COMM, DEVICE, VALUE, few, hang_guard

from ntools.errors import EnvironmentProblem, NtoolsError, UsageProblem
from ntools.host import about, guests, netns, ovs, rtnl, uplink
from ntools.host.devices import KINDS, Device, Devices, from_links
from ntools.host.symbols import Symbols
from ntools.model.flow import parse_mac

# -- rtnetlink ---------------------------------------------------------------------------------


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


ATTRIBUTES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([1, 3, 4, 5, 6, 10, 18, 37, 38, 43, 52, 56]),
                  st.binary(max_size=40)).map(lambda pair: attribute(*pair)),
        DEVICE.map(lambda name: attribute(3, name + b"\0")),
        st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(
            lambda pair: struct.pack("=HH", *pair)),
        st.binary(max_size=8),
    ), max_size=8,
).map(b"".join)  # fmt: skip
LINK = st.tuples(st.binary(min_size=16, max_size=16), ATTRIBUTES).map(b"".join)


@given(body=st.one_of(LINK, st.binary(max_size=64)))
@example(body=bytes(16) + attribute(4, b"\xff" * 60000))  # a number of 60000 bytes
def test_any_link_message(body):
    try:
        link = rtnl.parse_link(body)
    except ValueError as error:
        assert type(error) is ValueError and len(body) < 16
        return
    (device,) = from_links([link], 1, sysfs=False)
    assert device.kind in KINDS and device.mtu < 1 << 64
    str(device.mtu)


class Channel:
    """A netlink socket on which anybody answers."""

    def __init__(self, *datagrams: tuple[bytes, int]) -> None:
        self.datagrams = list(datagrams)

    def __call__(self, *_):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def settimeout(self, seconds):
        assert seconds > 0

    def send(self, request):
        pass

    def recvfrom(self, size):
        if not self.datagrams:
            raise socket.timeout("timed out")
        data, pid = self.datagrams.pop(0)
        return data, (pid, 0)


def message(kind: int, sequence: int, body: bytes, size: int | None = None) -> bytes:
    size = 16 + len(body) if size is None else size
    return struct.pack("=IHHII", size, kind, 2, sequence, 0) + body + bytes(-len(body) % 4)


DONE = message(3, 1, bytes(4))
GOOD = struct.pack("=BxHiII", 0, 1, 7, 1, 0) + attribute(3, b"good0\0")
DATAGRAM = st.one_of(
    st.binary(max_size=48),
    st.builds(message, st.sampled_from([2, 3, 16, 28]), st.integers(0, 2), LINK,
              st.one_of(st.none(), st.integers(0, 2**32 - 1))),
    st.builds(message, st.sampled_from([2, 16]), st.just(1), st.binary(max_size=6)),
)  # fmt: skip


@given(datagrams=st.lists(DATAGRAM, max_size=4))
def test_any_answer_over_netlink(datagrams):
    channel = Channel(*[(data, 0) for data in datagrams])
    with pytest.MonkeyPatch.context() as patch, hang_guard():
        patch.setattr(rtnl.socket, "socket", channel)
        for ask in (rtnl.read_links, lambda: rtnl.read_fdb(1, 2)):
            try:
                ask()
            except EnvironmentProblem as problem:
                assert "cannot list network devices" in str(problem)


@given(forged=st.lists(DATAGRAM, max_size=4))
def test_only_the_kernel_is_believed(forged):
    """Whoever rules a network namespace may send to our port while we look into it."""
    channel = Channel(*[(data, 4711) for data in [*forged, DONE]], (message(16, 1, GOOD), 0),
                      (message(16, 1, GOOD), 4711), (DONE, 0))  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rtnl.socket, "socket", channel)
        assert [link.name for link in rtnl.read_links()] == ["good0"]


def test_a_flood_of_foreign_messages_ends():
    class Flood(Channel):
        def recvfrom(self, size):
            return b"x", (4711, 0)

    with pytest.MonkeyPatch.context() as patch, hang_guard():
        patch.setattr(rtnl.socket, "socket", Flood())
        patch.setattr(rtnl, "_TIMEOUT_S", 0.05)
        with pytest.raises(EnvironmentProblem, match="timed out"):
            rtnl.read_links()


@given(name=DEVICE)
def test_a_device_is_found_by_what_is_typed(name):
    """The shell hands the bytes of the name to us; the kernel tells the same bytes."""
    link = rtnl.parse_link(bytes(16) + attribute(3, name + b"\0"))
    typed = os.fsdecode(name)
    found = Devices(1, from_links([link], 1, sysfs=False))
    assert found.find(typed).name == typed
    assert [device.name for device in found.find_list(typed)] == [typed]


@given(text=VALUE, names=st.lists(DEVICE.map(os.fsdecode), max_size=5, unique=True))
def test_lists_of_devices(text, names):
    devices = Devices(1, [device(name, number) for number, name in enumerate(names, 1)])
    if "/" in text:  # another namespace
        return
    try:
        found = devices.find_list(text)
    except UsageProblem:
        return
    assert found and all(one.name in names for one in found)


# -- network namespaces ------------------------------------------------------------------------


@given(text=VALUE)
@example(text="²")
@example(text="9" * 5000)
@example(text="a" * 300)
@few(60)
def test_namespaces_by_any_text(text):
    if text in (".", "..") or text.startswith("/") or "\0" in text:
        return
    try:
        assert os.path.exists(netns.netns_path(text))
    except UsageProblem:
        pass


def test_a_pipe_is_no_namespace(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with hang_guard(), pytest.raises(NtoolsError), netns.open_netns(str(tmp_path / "pipe")):
        pass


# -- guests ------------------------------------------------------------------------------------

ARGUMENT = st.one_of(
    st.sampled_from(["-name", "-uuid", "-netdev", "-device", "-nic", "-net", "--", "-"]),
    st.sampled_from([
        "tap,id=a,fd=²", "tap,id=a,fds=1:x:٣:99999999999", "virtio,netdev=a,mac=\x1b[2J",
        "virtio,netdev=a,mac=52:54:00:0:0:1", "guest=\x1b,,x", '{"id":"a","fd":"²"}', "{",
        '{"netdev":"a","mac":5}', '{"a":' * 3000 + "1" + "}" * 3000, '{"mac":' + "1" * 5000 + "}",
    ]),
    VALUE,
)  # fmt: skip


@given(arguments=st.lists(ARGUMENT, max_size=10))
@example(arguments=["-netdev", "tap,id=a,fd=²", "-device", "virtio,netdev=a,mac=52:54:00:0:0:1"])
@example(arguments=["-device", "virtio,mac=nonsense"])
@example(arguments=["-netdev", '{"a":' * 3000 + "1" + "}" * 3000])
def test_any_command_line_of_a_vmm(arguments):
    line = guests._command_line(arguments)
    for mac in (*line.macs, *line.mac_of_fd.values(), *line.mac_of_interface.values()):
        assert len(parse_mac(mac)) == 6 and len(mac) == 17


@given(which=VALUE, name=COMM)
@example(which="²", name=b"x")
@example(which="9" * 5000, name=b"x")
@example(which="3", name=b"77")
def test_guests_by_any_text(which, name):
    known = [guests.Guest(3, os.fsdecode(name), None, 1, ())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guests, "list_guests", lambda: known)
        assert guests.find_guest(os.fsdecode(name)).pid == 3
        try:
            guests.find_guest(which)
        except UsageProblem:
            pass


@given(name=DEVICE, rest=st.binary(max_size=20))
def test_taps_by_the_files_of_a_process(name, rest):
    """fdinfo holds the name as it is; what Python takes for line ends may be part of it."""
    text = os.fsdecode(b"pos:\t0\nflags:\t02\niff:\t" + name + b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guests.os, "listdir", lambda path: ["7"])
        patch.setattr(guests.os, "readlink", lambda path: "/dev/net/tun")
        patch.setattr(guests, "_text", lambda path: text)
        assert guests._held_taps(1) == {(os.fsdecode(name), None): [7]}


@given(mac=st.one_of(st.none(), st.binary(max_size=20)))
@example(mac=b"\xfe\x80" + bytes(18))  # of an InfiniBand device
def test_addresses_guessed_from_the_tap(mac):
    one = device("t", 1, mac=None if mac is None else ":".join(f"{byte:02x}" for byte in mac))
    for seed in guests.seed_macs(one, Devices(1, [one])):
        assert len(parse_mac(seed.mac)) == 6


def test_files_without_end(monkeypatch):
    with hang_guard():
        assert len(guests._text("/dev/zero")) == len(ovs._read("/dev/zero")) == 1 << 20


# -- what stands around a VM -------------------------------------------------------------------


def device(name: str, number: int, kind: str = "tap", **more) -> Device:
    fields = {"mac": None, "mtu": 1500, "qdisc": None, "up": True, "has_bus_device": False, **more}
    return Device(name=name, ifindex=number, netns_inum=1, kind=kind, **fields)


NUMBER = st.one_of(st.none(), st.integers(1, 9))
GRAPH = st.lists(
    st.tuples(st.sampled_from(KINDS), NUMBER, st.lists(st.integers(1, 9), max_size=4), NUMBER,
              st.booleans()), min_size=1, max_size=9,
)  # fmt: skip


@given(rows=GRAPH)
@example(rows=[("tap", 2, [], None, False), ("bridge", None, [1, 3], None, False),
               ("vlan", 2, [2], None, False)])  # fmt: skip  # a VLAN of a bridge in that bridge
def test_any_graph_of_devices(rows):
    """Torn snapshots and foreign namespaces may show circles."""
    found = [
        device(f"d{number}", number, kind, master=master, lower=tuple(lower), peer=peer,
               has_bus_device=bus)
        for number, (kind, master, lower, peer, bus) in enumerate(rows, 1)
    ]  # fmt: skip
    with hang_guard():
        topology = uplink.discover(found[:1], Devices(1, found), read_layout=lambda: None)
        assert set(topology.uplinks) <= set(found)
        for one in found:
            assert uplink.expand(one, Devices(1, found)) or one.lower


def test_a_chain_of_many_switches():
    """Bridge after bridge, joined by veth pairs; the wire is at the end."""
    rows = [device("vm", 1, master=2), device("br0", 2, "bridge", lower=(1, 3))]
    for step in range(1500):
        here, there, bridge = 3 + 3 * step, 4 + 3 * step, 5 + 3 * step
        rows.append(device(f"v{step}", here, "veth", master=bridge - 3, peer=there))
        rows.append(device(f"w{step}", there, "veth", master=bridge, peer=here))
        rows.append(device(f"br{step + 1}", bridge, "bridge", lower=(there, bridge + 1)))
    rows.append(device("phy", 3 + 3 * 1500, "physical", master=rows[-1].ifindex,
                       has_bus_device=True))  # fmt: skip
    with hang_guard():
        topology = uplink.discover(rows[:1], Devices(1, rows), read_layout=lambda: None)
    assert [one.name for one in topology.uplinks] == ["phy"]


def test_a_stack_with_many_ways_through_it():
    """Eight bonds on top of each other, by twelve VLAN devices each: 12 ** 8 ways."""
    rows = [device("wire", 1, "physical", has_bus_device=True)]
    below = 1
    for _ in range(8):
        first = len(rows) + 1
        rows += [device(f"v{n}", n, "vlan", lower=(below,), vlan_id=n % 9)
                 for n in range(first, first + 12)]  # fmt: skip
        below = len(rows) + 1
        rows.append(device(f"b{below}", below, "bond", lower=tuple(range(first, first + 12))))
    rows.append(device("vm", len(rows) + 1, master=len(rows) + 2))
    rows.append(device("br", len(rows) + 1, "bridge", lower=(below, len(rows))))
    with hang_guard():
        topology = uplink.discover(rows[-2:-1], Devices(1, rows), read_layout=lambda: None)
        assert uplink.expand(rows[below - 1], Devices(1, rows))
    assert len(topology.entry_ports) <= len(rows)


# -- files of /proc, /sys and /etc -------------------------------------------------------------

FILES = ["etc/machine-id", "etc/os-release", "proc/sys/kernel/random/boot_id", "proc/cpuinfo",
         "sys/devices/system/node/online", "sys/class/dmi/id/sys_vendor"]  # fmt: skip


@given(texts=st.lists(st.one_of(
    st.binary(max_size=40), st.just(b"0-"), st.just(b"0-999999999999\n"), st.just(b"5-1,\xd9\xa3"),
    st.just(b"ID=\x1b[2J\nVERSION_ID=\xff\n"), st.just(b"1" * 5000),
), min_size=6, max_size=6))  # fmt: skip
@few(60)
def test_any_facts(tmp_path_factory, texts):
    root = tmp_path_factory.mktemp("root")
    for path, text in zip(FILES, texts):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(text)
    found = about.about(root)
    assert found.numa_nodes is None or 0 < found.numa_nodes < 65536


LINE = st.one_of(
    st.binary(max_size=50),
    st.tuples(st.integers(0, 2**64 - 1), st.sampled_from("tTwWdA"), st.binary(max_size=12)).map(
        lambda row: b"%016x %s %s" % (row[0], row[1].encode(), row[2])),
    st.just(b"f" * 17 + b" t much"), st.just(b"ffffffff81000000 T \xff\t[\x1b]"),
)  # fmt: skip


@given(lines=st.lists(LINE, max_size=8), pattern=VALUE, address=st.integers(-1, 2**64))
@example(lines=[b"f" * 17 + b" t much"], pattern="\udc80*", address=0)
@few(60)
def test_any_symbols(tmp_path_factory, lines, pattern, address):
    path = tmp_path_factory.mktemp("symbols") / "kallsyms"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    symbols = Symbols(path)
    found = symbols.lookup(address)
    assert found is None or found.offset >= 0
    for _, first, behind in symbols.matching(pattern):
        assert first <= behind
    symbols.range(pattern)
    assert symbols.note is None or "\n" not in symbols.note


@given(
    names=st.lists(st.text("ab_.", min_size=1, max_size=8), min_size=1, max_size=4),
    pattern=st.text("ab_*?", max_size=8),
)
def test_patterns_mean_what_they_mean_elsewhere(tmp_path_factory, names, pattern):
    path = tmp_path_factory.mktemp("symbols") / "kallsyms"
    rows = [f"{0x1000 * at:016x} T {name}" for at, name in enumerate(names, 1)]
    path.write_text("\n".join(rows) + "\n")
    bare = [name.partition(".")[0] for name in names]
    found = [name for name, _, _ in Symbols(path).matching(pattern)]
    assert found == [name for name in bare if fnmatch.fnmatchcase(name, pattern)]


@given(
    rows=st.lists(st.tuples(
        st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1)), st.sampled_from("tTWdA"),
        st.text("ab_.", min_size=1, max_size=6), st.sampled_from(["", "", "", "\t[m]"])),
        max_size=12),
    ordered=st.booleans(),
    patterns=st.lists(st.text("ab_*", max_size=4), min_size=1, max_size=3, unique=True),
    chunk=st.integers(1, 200),
)  # fmt: skip
@few(300)
def test_one_pass_finds_what_the_table_has(tmp_path_factory, rows, ordered, patterns, chunk):
    path = tmp_path_factory.mktemp("symbols") / "kallsyms"
    rows = sorted(rows, key=lambda row: (bool(row[3]), row[0])) if ordered else rows
    path.write_text("".join(f"{at:016x} {kind} {name}{of}\n" for at, kind, name, of in rows))
    one, other = Symbols(path), Symbols(path)
    one.expect(patterns)
    with mock.patch("ntools.host.symbols._CHUNK_BYTES", chunk):
        for pattern in patterns:
            assert one.matching(pattern) == other.matching(pattern)


@pytest.mark.parametrize("part, times", [("*", 40), ("*a", 60), ("*?", 30), ("*a*", 110)])
def test_no_pattern_takes_for_ever(tmp_path, part, times):
    (tmp_path / "kallsyms").write_text(f"0000000000001000 T {'a' * 120}\n" * 50)
    with hang_guard():
        assert Symbols(tmp_path / "kallsyms").matching(part * times + "z") == []
