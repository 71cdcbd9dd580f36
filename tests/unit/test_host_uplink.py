# SPDX-License-Identifier: GPL-2.0-only
"""What stands around a VM, for the switches and stacks of real hosts."""

import json

import pytest

from ntools.errors import UsageProblem
from ntools.host.devices import Device, Devices
from ntools.host.ovs import OvsBridge, OvsLayout, OvsPort, fdb_macs, layout_from_rows
from ntools.host.uplink import discover, expand, is_representor

# Rows of the four tables as ovsdb-server 3.1 sent them, uuids shortened.
RECORDED = """
{"Open_vSwitch": [{"other_config": ["map", []]}], "Bridge": [{"name": "br-ex", "ports": ["set",
[["uuid", "u00"], ["uuid", "u01"], ["uuid", "u02"]]], "datapath_type": ""}, {"name": "br-int",
"ports": ["set", [["uuid", "u03"], ["uuid", "u04"], ["uuid", "u05"], ["uuid", "u06"], ["uuid",
"u07"], ["uuid", "u08"], ["uuid", "u09"]]], "datapath_type": "system"}, {"name": "br-other",
"ports": ["set", [["uuid", "u10"], ["uuid", "u11"]]], "datapath_type": ""}, {"name": "br-tun",
"ports": ["set", [["uuid", "u12"], ["uuid", "u13"]]], "datapath_type": ""}], "Port": [{"_uuid":
["uuid", "u01"], "interfaces": ["uuid", "u14"]}, {"_uuid": ["uuid", "u06"], "interfaces": ["uuid",
"u15"]}, {"_uuid": ["uuid", "u11"], "interfaces": ["uuid", "u16"]}, {"_uuid": ["uuid", "u12"],
"interfaces": ["uuid", "u17"]}, {"_uuid": ["uuid", "u03"], "interfaces": ["uuid", "u18"]},
{"_uuid": ["uuid", "u10"], "interfaces": ["uuid", "u19"]}, {"_uuid": ["uuid", "u04"],
"interfaces": ["uuid", "u20"]}, {"_uuid": ["uuid", "u02"], "interfaces": ["uuid", "u21"]},
{"_uuid": ["uuid", "u00"], "interfaces": ["uuid", "u22"]}, {"_uuid": ["uuid", "u09"],
"interfaces": ["uuid", "u23"]}, {"_uuid": ["uuid", "u05"], "interfaces": ["uuid", "u24"]},
{"_uuid": ["uuid", "u07"], "interfaces": ["uuid", "u25"]}, {"_uuid": ["uuid", "u08"],
"interfaces": ["uuid", "u26"]}, {"_uuid": ["uuid", "u13"], "interfaces": ["uuid", "u27"]}],
"Interface": [{"name": "p-int", "ofport": 1, "_uuid": ["uuid", "u21"], "options": ["map",
[["peer", "p-ex"]]], "type": "patch"}, {"name": "p-ex", "ofport": 6, "_uuid": ["uuid", "u20"],
"options": ["map", [["peer", "p-int"]]], "type": "patch"}, {"name": "vxp", "ofport": 1, "_uuid":
["uuid", "u27"], "options": ["map", [["remote_ip", "192.0.2.9"]]], "type": "vxlan"}, {"name":
"vxi", "ofport": 3, "_uuid": ["uuid", "u26"], "options": ["map", [["key", "4"], ["remote_ip",
"192.0.2.8"]]], "type": "vxlan"}, {"name": "oth0", "ofport": 1, "_uuid": ["uuid", "u19"],
"options": ["map", []], "type": "internal"}, {"name": "vnet0", "ofport": 1, "_uuid": ["uuid",
"u24"], "options": ["map", []], "type": ""}, {"name": "phy0", "ofport": 2, "_uuid": ["uuid",
"u22"], "options": ["map", []], "type": ""}, {"name": "vnet1", "ofport": 4, "_uuid": ["uuid",
"u25"], "options": ["map", []], "type": ""}, {"name": "mgmt0", "ofport": 5, "_uuid": ["uuid",
"u18"], "options": ["map", []], "type": "internal"}, {"name": "br-other", "ofport": 65534,
"_uuid": ["uuid", "u16"], "options": ["map", []], "type": "internal"}, {"name": "br-tun",
"ofport": 65534, "_uuid": ["uuid", "u17"], "options": ["map", []], "type": "internal"}, {"name":
"br-ex", "ofport": 65534, "_uuid": ["uuid", "u14"], "options": ["map", []], "type": "internal"},
{"name": "br-int", "ofport": 65534, "_uuid": ["uuid", "u15"], "options": ["map", []], "type":
"internal"}, {"name": "qvo", "ofport": 2, "_uuid": ["uuid", "u23"], "options": ["map", []],
"type": ""}]}
"""


def make(*rows):
    """Devices from (name, kind, {changes}); lower and master are names, indexes count from 1."""
    number = {row[0]: index for index, row in enumerate(rows, 1)}
    masters = {}
    for name, _, *rest in rows:
        master = (rest[0] if rest else {}).get("master")
        masters.setdefault(master, []).append(number[name])
    found = []
    for name, kind, *rest in rows:
        more = dict(rest[0]) if rest else {}
        lower = [number[below] for below in more.pop("lower", ())] + masters.get(name, [])
        more["master"] = number.get(more.get("master"))
        more["peer"] = number.get(more.get("peer"))
        bus = more.pop("bus", kind == "physical")
        found.append(
            Device(
                name,
                number[name],
                netns_inum=1,
                kind=kind,
                mac=None,
                mtu=1500,
                qdisc=None,
                up=True,
                has_bus_device=bus,
                lower=tuple(lower),
                **more,
            )
        )
    return Devices(1, found)


def names(devices):
    return [device.name for device in devices]


def around(devices, vm, phy="", layout=None):
    chosen = devices.find_list(phy) if phy else []
    return discover(devices.find_list(vm), devices, chosen, lambda: layout)


BRIDGE = make(
    ("lo", "loopback"),
    ("br0", "bridge"),
    ("eth0", "physical", {"master": "br0"}),
    ("eth1", "physical"),
    ("vnet0", "tap", {"master": "br0"}),
    ("vnet1", "tap", {"master": "br0"}),
)


def test_linux_bridge():
    top = around(BRIDGE, "vnet0")
    assert names(top.vm) == ["vnet0"]
    assert names(top.uplinks) == ["eth0"]
    assert names(top.entry_ports) == ["eth0", "vnet1"]
    assert names(top.others) == ["vnet1"]
    assert names(top.host_ports) == ["br0"]
    assert names(top.pass_through) == ["br0"]
    assert (top.bridge_kind, top.warnings, top.vlan_ids) == ("bridge", (), ())
    assert top.description == (
        "VM     vnet0",
        "switch br0 (bridge)",
        "uplink eth0",
        "host   br0",
        "other  vnet1",
    )


def test_two_interfaces_of_one_vm_are_not_each_others_neighbours():
    top = around(BRIDGE, "vnet0,vnet1")
    assert names(top.vm) == ["vnet0", "vnet1"]
    assert names(top.entry_ports) == ["eth0"]
    assert top.others == ()


def test_user_chooses_the_uplink():
    top = around(BRIDGE, "vnet0", phy="eth1")
    assert names(top.uplinks) == ["eth1"]
    assert names(top.entry_ports) == ["eth1", "vnet1"]
    assert top.warnings == ()
    top = around(BRIDGE, "vnet0", phy="vnet1")
    assert (names(top.uplinks), names(top.others)) == (["vnet1"], [])


def test_no_master():
    devices = make(("eth0", "physical"), ("eth1", "physical"), ("vnet0", "tap"))
    top = around(devices, "vnet0")
    assert names(top.uplinks) == ["eth0", "eth1"]
    assert names(top.entry_ports) == ["eth0", "eth1"]
    assert top.bridge_kind is None
    assert top.warnings == (
        "vnet0 is in no bridge",
        "no uplink found, taking all devices with hardware: eth0, eth1",
    )


def test_routed_bridge_takes_all_hardware_and_passes_what_is_stacked_on_it():
    devices = make(
        ("eth0", "physical", {"master": "bond0"}),
        ("bond0", "bond"),
        ("bond0.7", "vlan", {"lower": ["bond0"], "vlan_id": 7}),
        ("virbr0", "bridge"),
        ("virbr9", "bridge"),
        ("vnet0", "tap", {"master": "virbr0"}),
        ("vnet9", "tap", {"master": "virbr9"}),
    )
    top = around(devices, "vnet0")
    assert names(top.uplinks) == ["eth0"]
    assert sorted(names(top.pass_through)) == ["bond0", "bond0.7", "virbr0"]


def test_nothing_with_hardware():
    top = around(make(("br0", "bridge"), ("vnet0", "tap", {"master": "br0"})), "vnet0")
    assert (top.uplinks, top.entry_ports) == ((), ())
    assert top.warnings == (
        "no uplink found and no device with hardware in this network namespace",
    )


def test_master_that_is_no_switch():
    devices = make(("vrf0", "other"), ("vnet0", "tap", {"master": "vrf0"}))
    assert "vnet0 is in 'vrf0' (other), which is no switch" in around(devices, "vnet0").warnings


STACK = (
    ("eth2", "physical", {"master": "bond0"}),
    ("eth3", "physical", {"master": "bond0"}),
    ("bond0", "bond"),
    ("bond0.100", "vlan", {"lower": ["bond0"], "vlan_id": 100, "master": "br0"}),
    ("br0", "bridge"),
    ("vnet0", "tap", {"master": "br0"}),
)


def test_vlan_on_bond():
    top = around(make(*STACK), "vnet0")
    assert names(top.uplinks) == ["eth2", "eth3"]
    assert top.vlan_ids == ((1, 100), (2, 100))
    assert sorted(names(top.pass_through)) == ["bond0", "bond0.100", "br0"]
    assert "uplink eth2, eth3 of bond0" in top.description


def test_two_vlans_of_one_device_narrow_nothing():
    second = ("bond0.200", "vlan", {"lower": ["bond0"], "vlan_id": 200, "master": "br0"})
    top = around(make(*STACK, second), "vnet0")
    assert names(top.uplinks) == ["eth2", "eth3"]
    assert top.vlan_ids == ()


def test_expand():
    inner = ("bond0.100.5", "vlan", {"lower": ["bond0.100"], "vlan_id": 5})
    devices = make(*STACK, inner)
    leaves = [(d.name, vlan) for d, vlan in expand(devices.find("bond0.100.5"), devices)]
    assert leaves == [("eth2", 100), ("eth3", 100)]
    assert [(d.name, v) for d, v in expand(devices.find("bond0"), devices)] == [
        ("eth2", None),
        ("eth3", None),
    ]
    assert [d.name for d, _ in expand(devices.find("vnet0"), devices)] == ["vnet0"]
    empty = make(("team0", "team"))
    assert [d.name for d, _ in expand(empty.find("team0"), empty)] == ["team0"]


def test_chosen_bond_is_its_slaves():
    extra = (("br1", "bridge"), ("vnet1", "tap", {"master": "br1"}))
    top = around(make(*STACK, *extra), "vnet1", phy="bond0.100")
    assert names(top.uplinks) == ["eth2", "eth3"]
    assert top.vlan_ids == ((1, 100), (2, 100))
    assert {"bond0", "bond0.100"} <= set(names(top.pass_through))


def test_macvtap():
    devices = make(
        ("eth0", "physical"), ("eth1", "physical"), ("mt0", "macvtap", {"lower": ["eth0"]})
    )
    top = around(devices, "mt0")
    assert names(top.uplinks) == ["eth0"]
    assert top.warnings == ()


OVS = make(
    ("lo", "loopback"),
    ("phy0", "veth", {"master": "ovs-system"}),
    ("qvb", "veth", {"master": "qbr", "peer": "qvo"}),
    ("qvo", "veth", {"master": "ovs-system", "peer": "qvb"}),
    ("qbr", "bridge"),
    ("vnet2", "tap", {"master": "qbr"}),
    ("vnet0", "tap", {"master": "ovs-system"}),
    ("vnet1", "tap", {"master": "ovs-system"}),
    ("ovs-system", "ovs-system"),
    ("br-ex", "ovs-internal"),
    ("br-int", "ovs-internal"),
    ("vxlan_sys_4789", "vxlan", {"master": "ovs-system"}),
    ("mgmt0", "ovs-internal"),
    ("br-tun", "ovs-internal"),
    ("oth0", "ovs-internal"),
    ("br-other", "ovs-internal"),
)


def recorded():
    return layout_from_rows(json.loads(RECORDED))


def test_recorded_layout():
    layout = recorded()
    assert [bridge.name for bridge in layout.bridges] == ["br-ex", "br-int", "br-other", "br-tun"]
    assert all(bridge.in_kernel for bridge in layout.bridges)
    home = layout.bridge_of("vnet0")
    assert home is not None and home.name == "br-int"
    assert {port.name for port in home.ports} == {
        "mgmt0", "p-ex", "vnet0", "br-int", "vnet1", "vxi", "qvo",
    }  # fmt: skip
    assert [bridge.name for bridge in layout.connected(home)] == ["br-int", "br-ex"]
    assert layout.bridge_of("nope") is None
    assert not layout.hw_offload


def test_ovs_over_patch_ports_and_a_veth_pair():
    top = around(OVS, "vnet0", layout=recorded())
    assert names(top.others) == ["vnet1", "vxlan_sys_4789", "phy0", "vnet2"]
    assert names(top.entry_ports) == names(top.others)
    assert names(top.host_ports) == ["br-int", "mgmt0", "br-ex", "qbr"]
    assert {"qvo", "qvb", "br-int", "mgmt0"} <= set(names(top.pass_through))
    assert top.bridge_kind == "openvswitch"
    assert top.description[1] == "switch br-int (openvswitch), br-ex (openvswitch), qbr (bridge)"
    assert top.warnings == ()  # the tunnel is the way out
    assert top.ovs == recorded()


def test_vm_behind_its_own_bridge_reaches_ovs():
    top = around(OVS, "vnet2", layout=recorded())
    assert top.bridge_kind == "bridge"
    assert set(names(top.entry_ports)) == {"vnet0", "vnet1", "vxlan_sys_4789", "phy0"}


def test_other_bridges_stay_out():
    top = around(OVS, "vnet0", layout=recorded())
    assert not {"oth0", "br-other", "br-tun"} & set(names(top.host_ports + top.others))


def test_without_the_database_the_whole_datapath():
    top = around(OVS, "vnet0")
    assert set(names(top.entry_ports)) == {"phy0", "vnet1", "vnet2", "vxlan_sys_4789"}
    assert "oth0" in names(top.host_ports)
    assert top.warnings == (
        "no answer from the OVS database about vnet0: all ports of the datapath are taken",
    )


def test_port_ovs_could_not_add():
    ports = tuple(OvsPort(name, "", None, 1) for name in ("vnet0", "eth0", "eth1"))
    layout = OvsLayout((OvsBridge("br0", True, ports),))
    devices = make(
        ("ovs-system", "ovs-system"),
        ("eth0", "physical", {"master": "ovs-system"}),
        ("eth1", "physical"),
        ("vnet0", "tap", {"master": "ovs-system"}),
    )
    assert names(around(devices, "vnet0", layout=layout).uplinks) == ["eth0"]


def test_bond_of_ovs_and_user_space_datapath():
    tables = {
        "Open_vSwitch": [{"other_config": ["map", [["hw-offload", "true"]]]}],
        "Bridge": [{"name": "br0", "ports": ["uuid", "p"], "datapath_type": "netdev"}],
        "Port": [{"_uuid": ["uuid", "p"], "interfaces": ["set", [["uuid", "a"], ["uuid", "b"]]]}],
        "Interface": [
            {
                "_uuid": ["uuid", name],
                "name": name,
                "type": "dpdk",
                "options": ["map", []],
                "ofport": ofport,
            }
            for name, ofport in (("a", 3), ("b", ["set", []]))
        ],
    }
    layout = layout_from_rows(tables)
    assert layout.hw_offload
    assert [(port.name, port.number) for port in layout.bridges[0].ports] == [("a", 3), ("b", None)]
    devices = make(("eth0", "physical"), ("b", "tap"))
    top = around(devices, "b", layout=layout)
    assert top.warnings[0] == (
        "b is in OVS bridge 'br0' with the user-space datapath: "
        "its packets do not pass the kernel's switch"
    )


def test_representor_is_no_uplink():
    devices = make(
        ("br0", "bridge"),
        ("eth0", "physical", {"master": "br0", "phys_port_name": "p0"}),
        ("eth0_3", "physical", {"master": "br0", "phys_port_name": "pf0vf3"}),
        ("vnet0", "tap", {"master": "br0"}),
    )
    top = around(devices, "vnet0")
    assert (names(top.uplinks), names(top.others)) == (["eth0"], ["eth0_3"])
    told = {"pf0": False, "p0": False, "c1pf0vf12": True, "pf1sf88": True, "pf0vf3s": False}
    for text, expected in told.items():
        device = make(("x", "physical", {"phys_port_name": text})).find("x")
        assert is_representor(device) is expected


def test_devices_of_two_namespaces():
    other = Devices(2, [])
    with pytest.raises(UsageProblem, match="another network namespace"):
        discover([BRIDGE.find("vnet0")], other, read_layout=lambda: None)


def test_many_ports_are_quick():
    import time

    rows = [("br0", "bridge"), ("eth0", "physical", {"master": "br0"})]
    rows += [(f"vnet{i}", "tap", {"master": "br0"}) for i in range(500)]
    devices = make(*rows)
    start = time.process_time()
    top = around(devices, "vnet0")
    assert time.process_time() - start < 0.5
    assert len(top.entry_ports) == 500
    assert top.description[-1].endswith(" and 491 more")


def test_learned_addresses(monkeypatch, tmp_path):
    table = (
        " port  VLAN  MAC                Age\n"
        "    5     0  2a:1b:f2:04:e9:b7    3\n"
        "    1     0  52:54:00:09:00:02    1\n"
        "LOCAL     0  52:54:00:09:00:03    1\n"
    )
    from ntools.host import ovs

    calls = []

    def call(path, method, params, timeout_s):
        calls.append((method, params))
        return table

    (tmp_path / "ovs-vswitchd.12.ctl").touch()
    monkeypatch.setattr(ovs, "_call", call)
    layout = OvsLayout(recorded().bridges, rundir=str(tmp_path))
    assert fdb_macs(layout, "vnet0") == ["52:54:00:09:00:02"]
    assert calls == [("fdb/show", ["br-int"])]
    assert fdb_macs(layout, "elsewhere") == []
