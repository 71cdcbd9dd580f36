# SPDX-License-Identifier: GPL-2.0-only
"""Links as a 6.12 kernel sends them, and the devices made of them.

One namespace with bond, VLAN, bridge, taps, macvtap, veth pairs and an OVS datapath. Of each
message only the attributes that are read and a few others are kept.
"""

import struct

import pytest

from ntools.errors import EnvironmentProblem, UsageProblem
from ntools.host import devices as module
from ntools.host import rtnl
from ntools.host.devices import KINDS, MAX_DEVICES, Device, Devices, from_links
from ntools.host.rtnl import Link, parse_link

RECORDED = (
    # lo
    "00000403010000004900010000000000070003006c6f00000500100000000000080004000000010008001e000000"
    "00000a00010000000000000000000c002b0005000200000000000c0006006e6f717565756500",
    # phy0
    "00000100020000000310000000000000090003007068793000000000050010000200000008000400dc0500000800"
    "1e000100000008000a00160000000a000100bae597794d0500000c002b0005000200000000002000120009000100"
    "7665746800000000100004006f70656e7673776974636800080025000000000008000500020000000c0006006e6f"
    "717565756500",
    # d0
    "0000010003000000c3080100000000000700030064300000050010000000000008000400dc05000008001e000100"
    "000008000a00050000000a000100a23429e15b9900000c002b0005000200000000001c0012000a00010064756d6d"
    "7900000009000400626f6e64000000000c0006006e6f717565756500",
    # bond0
    "000001000500000043140100000000000a000300626f6e6430000000050010000600000008000400dc0500000800"
    "1e00010000000a000100a23429e15b9900000c002b0005000200000000001000120009000100626f6e6400000000"
    "0c0006006e6f717565756500",
    # bond0.100
    "000001000600000002100000000000000e000300626f6e64302e313030000000050010000200000008000400dc05"
    "000008001e000100000008000a00070000000a000100a23429e15b9900000c002b0005000200000000003c001200"
    "09000100766c616e0000000020000200060005008100000006000100640000000c00020001000000ffffffff0b00"
    "040062726964676500000800050005000000090006006e6f6f7000000000",
    # br1
    "000001000700000002100000000000000800030062723100050010000200000008000400dc05000008001e000000"
    "00000a0001009acbae4c479b00000c002b000500020000000000100012000b000100627269646765000009000600"
    "6e6f6f7000000000",
    # vnet5
    "000001000800000002100000000000000a000300766e657435000000050010000200000008000400dc0500000800"
    "1e000100000008000a00070000000a0001009acbae4c479b00000c002b0005000200000000004400120008000100"
    "74756e002c0002000500030002000000050004000000000005000500000000000500060001000000050007000000"
    "00000b0004006272696467650000090006006e6f6f7000000000",
    # tun7
    "0000feff0900000090100000000000000900030074756e3700000000050010000200000008000400dc0500000800"
    "1e00000000000c002b000500020000000000380012000800010074756e002c000200050003000100000005000400"
    "00000000050005000000000005000600010000000500070000000000090006006e6f6f7000000000",
    # mt0
    "000001000c0000000210000000000000080003006d743000050010000200000008000400dc05000008001e000000"
    "00000a0001001eb444f11abe00000c002b0005000200000000003c0012000c0001006d616376746170002c000200"
    "08000100040000000600020000000000080006000000000008000700e803000008000800e8030000080005000b00"
    "0000090006006e6f6f7000000000",
    # vrf0
    "000001000e0000008004000000000000090003007672663000000000050010000200000008000400270001000800"
    "1e00000000000a00010052723ad9c5b500000c002b0005000200000000000c001200080001007672660009000600"
    "6e6f6f7000000000",
    # vx0
    "000001000f00000002100000000000000800030076783000050010000200000008000400dc05000008001e000000"
    "00000a000100faeed9c75e2c00000c002b000500020000000000100012000a00010076786c616e00000009000600"
    "6e6f6f7000000000",
    # qvb
    "000001001000000043100100000000000800030071766200050010000600000008000400dc05000008001e000100"
    "000008000a00120000000a000100cac935e89aa000000c002b0005000200000000001c0012000900010076657468"
    "000000000b000400627269646765000008000500110000000c0006006e6f717565756500",
    # qvo
    "000001001100000043100100000000000800030071766f00050010000600000008000400dc05000008001e000100"
    "000008000a00160000000a0001007adbcf68951500000c002b000500020000000000200012000900010076657468"
    "00000000100004006f70656e767377697463680008000500100000000c0006006e6f717565756500",
    # vnet0
    "000001001400000003100000000000000a000300766e657430000000050010000200000008000400dc0500000800"
    "1e000100000008000a00160000000a000100e683fbc211a200000c002b0005000200000000004800120008000100"
    "74756e002c0002000500030002000000050004000000000005000500000000000500060001000000050007000000"
    "0000100004006f70656e76737769746368000d00060066715f636f64656c00000000",
    # ovs-system
    "000001001600000002100000000000000f0003006f76732d73797374656d0000050010000200000008000400dc05"
    "000008001e00010000000a00010042f7ec266bab00000c002b00050002000000000014001200100001006f70656e"
    "7673776974636800090006006e6f6f7000000000",
    # mgmt0
    "000001001a00000043100100000000000a0003006d676d7430000000050010000000000008000400dc0500000800"
    "1e00010000000a0001003a9e74effc3000000c002b00050002000000000014001200100001006f70656e76737769"
    "746368000c0006006e6f717565756500",
)


def recorded():
    return [parse_link(bytes.fromhex(text)) for text in RECORDED]


def by_name(devices):
    return {device.name: device for device in devices}


def link(**changes):
    fields = dict.fromkeys(Link.__dataclass_fields__)
    fields.update(ifindex=2, name="x0", hardware_type=1, flags=0, mtu=1500, has_parent=False)
    fields.update(xdp_prog_ids=(), altnames=())
    fields.update(changes)
    return Link(**fields)


def device(name, ifindex=2, **changes):
    fields = {
        "netns_inum": 1,
        "kind": "tap",
        "mac": None,
        "mtu": 1500,
        "qdisc": None,
        "up": True,
        "has_bus_device": False,
    }
    fields.update(changes)
    return Device(name, ifindex, **fields)


def test_recorded_kinds():
    found = {d.name: d.kind for d in from_links(recorded(), 7, sysfs=False)}
    assert found == {
        "lo": "loopback",
        "phy0": "veth",
        "d0": "dummy",
        "bond0": "bond",
        "bond0.100": "vlan",
        "br1": "bridge",
        "vnet5": "tap",
        "tun7": "tun",
        "mt0": "macvtap",
        "vrf0": "other",
        "vx0": "vxlan",
        "qvb": "veth",
        "qvo": "veth",
        "vnet0": "tap",
        "ovs-system": "ovs-system",
        "mgmt0": "ovs-internal",
    }
    assert set(found.values()) <= set(KINDS)


def test_recorded_relations():
    found = by_name(from_links(recorded(), 7, sysfs=False))
    assert found["bond0.100"].vlan_id == 100
    assert found["bond0.100"].lower == (found["bond0"].ifindex,)
    assert found["d0"].master == found["bond0"].ifindex
    assert found["d0"].ifindex in found["bond0"].lower
    assert found["br1"].lower == (found["bond0.100"].ifindex, found["vnet5"].ifindex)
    assert found["qvb"].peer == found["qvo"].ifindex
    assert found["qvo"].peer == found["qvb"].ifindex
    assert found["qvo"].lower == ()
    assert found["mt0"].lower == (11,)
    assert set(found["ovs-system"].lower) == {2, found["qvo"].ifindex, found["vnet0"].ifindex}
    assert all(d.netns_inum == 7 and not d.has_bus_device for d in found.values())


def test_veth_end_in_another_namespace():
    links = by_name(recorded())
    assert links["phy0"].link == 2 and links["phy0"].link_netnsid == 0
    found = by_name(from_links(recorded(), 7, sysfs=False))
    assert found["phy0"].peer is None and found["phy0"].lower == ()


def test_recorded_values():
    links = by_name(recorded())
    assert links["vnet5"].mac.count(":") == 5
    assert links["tun7"].mac is None
    assert links["tun7"].tun_type == 1 and links["vnet5"].tun_type == 2
    assert links["d0"].slave_kind == "bond"
    assert links["lo"].qdisc == "noqueue" and links["lo"].mtu == 65536
    found = by_name(from_links(recorded(), 7, sysfs=False))
    assert found["lo"].up and not found["vnet5"].up


def test_truncated_attributes_are_left_out():
    whole = bytes.fromhex(RECORDED[0])
    for length in range(16, len(whole)):
        assert parse_link(whole[:length]).ifindex == 1


@pytest.mark.parametrize(
    "facts, kind, bus",
    [
        ({"has_parent": True}, "physical", True),
        ({"has_parent": True, "kind": "netdevsim"}, "physical", True),
        ({"kind": "tun", "tun_type": None, "hardware_type": 0xFFFE}, "tun", False),
        ({"kind": "tun", "tun_type": None}, "tap", False),
        ({"kind": "openvswitch"}, "ovs-internal", False),
        ({"kind": "openvswitch", "name": "ovs-system"}, "ovs-system", False),
        ({"kind": "ifb"}, "other", False),
        ({"flags": 8}, "loopback", False),
        # Before 5.14, another namespace: no parent told, no /sys to ask.
        ({}, "physical", True),
        ({"hardware_type": 778}, "other", False),
    ],
)
def test_kind_and_hardware(facts, kind, bus):
    found = from_links([link(**facts)], 1, sysfs=False)[0]
    assert (found.kind, found.has_bus_device) == (kind, bus)


def test_house_form_of_an_unknown_device():
    devices = Devices(1, [device(f"vnet{i}", i) for i in (1, 8)] + [device("lo", 9)])
    with pytest.raises(UsageProblem) as caught:
        devices.find("vnet9")
    assert str(caught.value) == (
        "device 'vnet9' not found in this network namespace. Did you mean 'vnet8'? See 'ip link'."
    )
    with pytest.raises(UsageProblem) as caught:
        devices.find("zzz")
    assert str(caught.value) == ("device 'zzz' not found in this network namespace. See 'ip link'.")


def test_find_list():
    devices = Devices(1, [device(f"n{i}", i) for i in range(1, MAX_DEVICES + 2)])
    assert [d.ifindex for d in devices.find_list(" n3, n1,n3,")] == [3, 1]
    assert len(devices.find_list(",".join(f"n{i}" for i in range(1, MAX_DEVICES + 1)))) == 512
    with pytest.raises(UsageProblem, match="513 devices named, at most 512"):
        devices.find_list(",".join(d.name for d in devices))
    with pytest.raises(UsageProblem, match="no device named"):
        devices.find_list(" , ")


def test_alternative_names_never_hide_a_name():
    devices = Devices(1, [device("a", 1), device("b", 2, altnames=("a", "long-name"))])
    assert devices.find("long-name").ifindex == 2
    assert devices.find("a").ifindex == 1


def test_name_in_another_namespace(monkeypatch):
    here = Devices(1, [device("eth0", 2)])
    there = Devices(5, [device("eth0", 2, netns_inum=5)], "blue")
    asked = []

    def snapshot(netns=None):
        asked.append(netns)
        return there

    monkeypatch.setattr(Devices, "snapshot", staticmethod(snapshot))
    found = here.find_list("eth0,blue/eth0,/var/run/netns/blue/eth0")
    assert [d.netns_inum for d in found] == [1, 5]
    assert here.of(found[1]) is there
    assert asked == ["blue", "/var/run/netns/blue"]
    with pytest.raises(UsageProblem, match="not found in network namespace 'blue'"):
        here.find("blue/eth1")


def test_device_names_reads_a_namespace_once_per_second(monkeypatch):
    reads = []

    def snapshot(netns=None):
        reads.append(netns)
        return Devices(4, [device("vnet0", 3, netns_inum=4)])

    clock = [100.0]
    monkeypatch.setattr(Devices, "snapshot", staticmethod(snapshot))
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module._netns, "current_netns", lambda: 4)
    names = module.DeviceNames()
    assert names.name(4, 3) == "vnet0"
    assert [names.name(4, index) for index in (9, 9, 3)] == [None, None, "vnet0"]
    assert len(reads) == 1
    clock[0] += 1.5
    assert names.name(4, 9) is None
    assert len(reads) == 2


class Channel:
    """A netlink socket whose answers are known: one list of datagrams per request."""

    def __init__(self, *rounds):
        self.rounds = list(rounds)
        self.answers = []

    def __call__(self, *_):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def settimeout(self, seconds):
        assert seconds > 0

    def send(self, request):
        assert len(request) == struct.unpack_from("=I", request)[0]
        self.answers = list(self.rounds.pop(0))

    def recvfrom(self, size):
        if not self.answers:
            raise TimeoutError("timed out")
        return self.answers.pop(0), (0, 0)


def message(kind, sequence, body=b"", flags=0):
    size = 16 + len(body)
    return struct.pack("=IHHII", size, kind, flags, sequence, 0) + body + bytes(-size % 4)


DONE = struct.pack("=i", 0)


def test_dump_in_several_datagrams(monkeypatch):
    first, second, third = (bytes.fromhex(text) for text in RECORDED[:3])
    channel = Channel(
        [
            message(16, 1, first) + message(16, 1, second),
            message(16, 77, second),  # an answer to somebody else
            message(16, 1, third),
            message(3, 1, DONE),
        ]
    )
    monkeypatch.setattr(rtnl.socket, "socket", channel)
    assert [link.ifindex for link in rtnl.read_links()] == [1, 2, 3]


def test_torn_dump_is_read_again(monkeypatch):
    first, second = (bytes.fromhex(text) for text in RECORDED[:2])
    channel = Channel(
        [message(16, 1, first, flags=0x10), message(3, 1, DONE)],
        [message(16, 2, first) + message(16, 2, second) + message(3, 2, DONE)],
    )
    monkeypatch.setattr(rtnl.socket, "socket", channel)
    assert [link.ifindex for link in rtnl.read_links()] == [1, 2]
    assert channel.rounds == []


@pytest.mark.parametrize(
    "answers, text",
    [
        ([message(2, 1, struct.pack("=i", -1) + bytes(16))], "Operation not permitted"),
        ([], "timed out"),
    ],
)
def test_refused_dump(monkeypatch, answers, text):
    monkeypatch.setattr(rtnl.socket, "socket", Channel(answers))
    with pytest.raises(EnvironmentProblem, match=f"cannot list network devices: .*{text}"):
        rtnl.read_links()
