# SPDX-License-Identifier: GPL-2.0-only
"""What passes unseen is said."""

from ntools.host import blind as module
from ntools.host.blind import blind_spots
from ntools.host.devices import Device, Devices
from ntools.host.ovs import OvsLayout


def device(name, ifindex, **changes):
    fields = {"kind": "physical", "has_bus_device": True, **changes}
    return Device(name, ifindex, netns_inum=1, mac=None, mtu=1500, qdisc=None, up=True, **fields)


def spots(chosen, tmp_path, layout=None, offloading=(), netns=None):
    devices = Devices(1, chosen, netns)
    before = module._offloading
    module._offloading = lambda hardware, devices: list(offloading)
    try:
        return blind_spots(chosen, devices, layout, tmp_path)
    finally:
        module._offloading = before


def make_nic(root, name, ifindex, functions=(), vdpa=None):
    nic = root / "devices/pci0/0000:01:00.0"
    nic.mkdir(parents=True)
    (root / "class/net" / name).mkdir(parents=True)
    (root / "class/net" / name / "ifindex").write_text(f"{ifindex}\n")
    (root / "class/net" / name / "device").symlink_to(nic)
    for index, function in enumerate(functions):
        path = root / "devices/pci0" / function
        path.mkdir()
        (nic / f"virtfn{index}").symlink_to(path)
    if vdpa is not None:
        path = root / "devices/pci0" / vdpa / "vdpa0"
        path.mkdir()
        (root / "bus/vdpa/devices").mkdir(parents=True)
        (root / "bus/vdpa/devices/vdpa0").symlink_to(path)


def test_nothing_to_say(tmp_path):
    make_nic(tmp_path, "eth0", 2)
    chosen = [device("eth0", 2), device("vnet0", 3, kind="tap", has_bus_device=False)]
    assert spots(chosen, tmp_path, OvsLayout(())) == []


def test_xdp_and_representor(tmp_path):
    chosen = [
        device("eth0", 2, xdp_prog_ids=(17, 18)),
        device("eth0_3", 3, phys_port_name="pf0vf3"),
    ]
    assert spots(chosen, tmp_path) == [
        "eth0 has XDP program 17, 18: packets it drops, sends back, redirects "
        "or hands to AF_XDP are not seen",
        "eth0_3 stands for a virtual function (pf0vf3): packets the NIC switches itself "
        "are not seen",
    ]


def test_virtual_functions_and_vdpa(tmp_path):
    make_nic(tmp_path, "eth0", 2, ["0000:01:00.1", "0000:01:00.2"], "0000:01:00.2")
    chosen = [device("eth0", 2)]
    assert spots(chosen, tmp_path) == [
        "eth0 has 2 SR-IOV virtual function(s): traffic of guests that own one is not seen",
        "eth0 has 1 vDPA device(s): traffic of guests that use one is not seen",
    ]
    # The same name in another namespace, or a /sys that shows another one.
    assert spots(chosen, tmp_path, netns="blue") == []
    assert spots([device("eth0", 9)], tmp_path) == []


def test_vdpa_of_another_card(tmp_path):
    make_nic(tmp_path, "eth0", 2)
    other = tmp_path / "devices/pci0/0000:01:00.00/vdpa3"
    other.mkdir(parents=True)
    (tmp_path / "bus/vdpa/devices").mkdir(parents=True)
    (tmp_path / "bus/vdpa/devices/vdpa3").symlink_to(other)
    assert spots([device("eth0", 2)], tmp_path) == []


def test_offload(tmp_path):
    chosen = [device("eth0", 2)]
    layout = OvsLayout((), hw_offload=True)
    assert spots(chosen, tmp_path, layout, ["eth0"]) == [
        "OVS offloads flows to hardware (hw-offload): their packets are not seen"
    ]
    assert spots(chosen, tmp_path, None, ["eth0"]) == [
        "eth0: hw-tc-offload is on, packets of tc rules in hardware are not seen"
    ]
    taps = [device("vnet0", 3, kind="tap", has_bus_device=False)]
    assert spots(taps, tmp_path, layout) == []
