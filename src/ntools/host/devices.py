# SPDX-License-Identifier: GPL-2.0-only
"""Network devices by name, index and kind, in this and in other network namespaces."""

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Sequence, Tuple

from ntools.errors import NtoolsError, UsageProblem
from ntools.host import netns as _netns

if TYPE_CHECKING:
    from ntools.host.rtnl import Link

__all__ = [
    "Device",
    "DeviceNames",
    "Devices",
    "KINDS",
    "MAX_DEVICES",
    "all_devices",
    "from_links",
]

#: Most devices one option may name.
MAX_DEVICES = 512

#: Every value of :attr:`Device.kind`.
KINDS = (
    "physical", "veth", "tap", "tun", "macvtap", "bridge", "bond", "vlan", "ovs-internal",
    "ovs-system", "vxlan", "geneve", "team", "dummy", "loopback", "other",
)  # fmt: skip

_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_ARPHRD_ETHER = 1
_TUN_TYPE_TUN = 1
_SAME_NAME = frozenset(
    ("veth", "macvtap", "bridge", "bond", "vlan", "vxlan", "geneve", "team", "dummy")
)


@dataclass(frozen=True)
class Device:
    """One network device at the moment of the snapshot.

    :ivar kind: one of :data:`KINDS`.
    :ivar lower: ifindexes of the devices below: slaves, ports, or the one a VLAN device or
        macvtap sits on; devices below in another namespace are not listed.
    :ivar peer: ifindex of the other end of a veth pair, None when it is in another namespace.
    :ivar has_bus_device: PCI, virtio, USB...: hardware, or what passes for it in a guest.
    :ivar xdp_prog_ids: XDP programs attached in any mode.
    """

    name: str
    ifindex: int
    netns_inum: int
    kind: str
    mac: Optional[str]
    mtu: int
    qdisc: Optional[str]
    up: bool
    has_bus_device: bool
    master: Optional[int] = None
    lower: Tuple[int, ...] = ()
    peer: Optional[int] = None
    vlan_id: Optional[int] = None
    phys_port_name: Optional[str] = None
    xdp_prog_ids: Tuple[int, ...] = ()
    altnames: Tuple[str, ...] = ()

    def fields(self) -> Dict[str, Any]:
        """The device as JSON can carry it."""
        return dict(vars(self))

    @classmethod
    def from_fields(cls, fields: Dict[str, Any]) -> "Device":
        """The inverse of :meth:`fields`.

        :raises TypeError: these are not the fields of a device.
        """
        values: Dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        return cls(**values)


class Devices:
    """All devices of one network namespace; others are read when a name asks for them."""

    def __init__(self, netns_inum: int, devices: Sequence[Device], netns: Optional[str] = None):
        self.netns_inum = netns_inum
        self.netns = netns
        self._by_index = {device.ifindex: device for device in devices}
        self._by_name = {name: d for d in devices for name in d.altnames}
        self._by_name.update((device.name, device) for device in devices)
        self._others: Dict[str, Devices] = {}

    @classmethod
    def snapshot(cls, netns: Optional[str] = None) -> "Devices":
        """Read the devices of a namespace.

        :param netns: name, path or process id; None: the namespace of the caller.
        :raises UsageProblem: no such namespace.
        :raises EnvironmentProblem: the namespace cannot be entered or rtnetlink refused.
        """
        from ntools.host.rtnl import read_links

        with _netns.open_netns(netns) as inum:
            links = read_links()
        return cls(inum, from_links(links, inum, sysfs=netns is None), netns)

    def __iter__(self) -> Iterator[Device]:
        return iter(self._by_index.values())

    def __len__(self) -> int:
        return len(self._by_index)

    def by_index(self, ifindex: Optional[int]) -> Optional[Device]:
        """The device with this index in this namespace; None for None."""
        return None if ifindex is None else self._by_index.get(ifindex)

    def by_name(self, name: str) -> Optional[Device]:
        """The device with this name or alternative name in this namespace."""
        return self._by_name.get(name)

    def find(self, name: str) -> Device:
        """The device a user means by ``NAME`` or ``NETNS/NAME``.

        :raises UsageProblem: not there; the text proposes what is.
        """
        netns, _, short = name.rpartition("/")
        if netns:
            return self._in(netns).find(short)
        device = self._by_name.get(short)
        if device is None:
            raise UsageProblem(self._not_found(short))
        return device

    def find_list(self, names: str) -> List[Device]:
        """The devices of a comma separated list, each once, in order.

        :raises UsageProblem: empty list, unknown device, more than :data:`MAX_DEVICES`.
        """
        # A comma may be part of a name; what str.strip() takes for white space, too.
        wanted = [names] if names in self._by_name else names.split(",")
        wanted = [name.strip(" \t\n") for name in wanted if name.strip(" \t\n")]
        if not wanted:
            raise UsageProblem(f"no device named in '{names}'.")
        found = list(dict.fromkeys(self.find(name) for name in wanted))
        if len(found) > MAX_DEVICES:
            raise UsageProblem(f"{len(found)} devices named, at most {MAX_DEVICES} are possible.")
        return found

    def of(self, device: Device) -> "Devices":
        """The snapshot of the namespace a found device is in: this one or a neighbour's.

        :raises UsageProblem: the device was not found through this object.
        """
        for devices in (self, *self._others.values()):
            if devices.netns_inum == device.netns_inum:
                return devices
        raise UsageProblem(f"device '{device.name}' is in a network namespace not read yet.")

    def _in(self, netns: str) -> "Devices":
        if netns not in self._others:
            self._others[netns] = Devices.snapshot(netns)
        return self._others[netns]

    def _not_found(self, name: str) -> str:
        import difflib

        place = f"network namespace '{self.netns}'" if self.netns else "this network namespace"
        near = difflib.get_close_matches(name, self._by_name, 1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return f"device '{name}' not found in {place}.{hint} See 'ip link'."


def from_links(links: "Sequence[Link]", netns_inum: int, sysfs: bool) -> List[Device]:
    """Devices made of the links of one namespace.

    :param sysfs: /sys/class/net may be asked about them; it shows the namespace of whoever
        mounted it, so it is no use for another one.
    """
    ports: Dict[int, List[int]] = {}
    for link in links:
        if link.master is not None:
            ports.setdefault(link.master, []).append(link.ifindex)
    return [_device(link, netns_inum, sysfs, tuple(ports.get(link.ifindex, ()))) for link in links]


def _device(link: "Link", netns_inum: int, sysfs: bool, ports: Tuple[int, ...]) -> Device:
    bus = _has_bus_device(link, sysfs)
    kind = _kind(link, bus, bool(ports))
    beside = link.link if link.link and link.link_netnsid is None else None
    lower = ports
    if beside is not None and beside != link.ifindex and kind != "veth":
        lower = (*ports, beside)
    return Device(
        name=link.name,
        ifindex=link.ifindex,
        netns_inum=netns_inum,
        kind=kind,
        mac=link.mac,
        mtu=link.mtu,
        qdisc=link.qdisc,
        up=bool(link.flags & _IFF_UP),
        has_bus_device=bus,
        master=link.master,
        lower=lower,
        peer=beside if kind == "veth" else None,
        vlan_id=link.vlan_id,
        phys_port_name=link.phys_port_name,
        xdp_prog_ids=link.xdp_prog_ids,
        altnames=link.altnames,
    )


def _kind(link: "Link", has_bus_device: bool, has_ports: bool) -> str:
    if link.kind in _SAME_NAME:
        return link.kind or ""
    if link.kind == "tun":
        by_type = link.hardware_type != _ARPHRD_ETHER
        is_tun = by_type if link.tun_type is None else link.tun_type == _TUN_TYPE_TUN
        return "tun" if is_tun else "tap"
    if link.kind == "openvswitch":
        return "ovs-system" if has_ports or link.name == "ovs-system" else "ovs-internal"
    if link.flags & _IFF_LOOPBACK:
        return "loopback"
    return "physical" if has_bus_device else "other"


def _has_bus_device(link: "Link", sysfs: bool) -> bool:
    """Kernels before 5.14 do not tell the parent over rtnetlink.

    There /sys knows for the own namespace. For another one a device that no rtnetlink kind
    created, with Ethernet framing, is a driver's.
    """
    if link.has_parent:
        return True
    if link.kind is not None or link.flags & _IFF_LOOPBACK:
        return False
    directory = f"/sys/class/net/{link.name}"
    if sysfs:
        try:
            with open(f"{directory}/ifindex", "rb") as stream:
                if int(stream.read()) == link.ifindex:
                    return os.path.exists(f"{directory}/device")
        except (OSError, ValueError):
            pass
    return link.hardware_type == _ARPHRD_ETHER


def all_devices() -> List[Device]:
    """The devices of every reachable network namespace; those that vanish meanwhile are skipped."""
    found: List[Device] = []
    for space in _netns.list_netns():
        try:
            found.extend(Devices.snapshot(space.path))
        except NtoolsError:
            continue
    return found


class DeviceNames:
    """Names for the (namespace, index) pairs of kernel records, read when first asked for.

    A pair not known leads to one new look at its namespace, at most once a second.
    """

    _PAUSE_S = 1.0
    _MAX_NAMESPACES = 4096

    def __init__(self) -> None:
        self._names: Dict[int, Dict[int, str]] = {}
        self._read_at: Dict[int, float] = {}
        self._paths: Dict[int, str] = {}
        self._listed_at = float("-inf")

    def name(self, netns_inum: int, ifindex: int) -> Optional[str]:
        """The device's name, None when the namespace or the device is out of reach."""
        known = self._names.get(netns_inum, {}).get(ifindex)
        if known is None and self._may_read(netns_inum):
            self._read(netns_inum)
            known = self._names.get(netns_inum, {}).get(ifindex)
        return known

    def _may_read(self, netns_inum: int) -> bool:
        now = time.monotonic()
        if now - self._read_at.get(netns_inum, float("-inf")) < self._PAUSE_S:
            return False
        if len(self._read_at) >= self._MAX_NAMESPACES:
            self._names.clear()
            self._read_at.clear()
        self._read_at[netns_inum] = now
        return True

    def _read(self, netns_inum: int) -> None:
        path = self._path(netns_inum)
        if path is None:
            return
        try:
            devices = Devices.snapshot(path)
        except NtoolsError:
            self._paths.pop(netns_inum, None)
            return
        if devices.netns_inum == netns_inum:
            self._names[netns_inum] = {d.ifindex: d.name for d in devices}
        else:  # the process or the name behind the path stands for another namespace by now
            self._paths.pop(netns_inum, None)

    def _path(self, netns_inum: int) -> Optional[str]:
        if netns_inum == _netns.current_netns():
            return "/proc/thread-self/ns/net"
        now = time.monotonic()
        if netns_inum not in self._paths and now - self._listed_at >= self._PAUSE_S:
            self._listed_at = now
            self._paths = {space.inum: space.path for space in _netns.list_netns()}
        return self._paths.get(netns_inum)
