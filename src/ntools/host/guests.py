# SPDX-License-Identifier: GPL-2.0-only
"""Virtual machines of this host: which process holds which tap, and the guests' addresses.

Everything is read from /proc, rtnetlink and OVS when asked for; nothing asks libvirt.
"""

import json
import os
import re
from dataclasses import dataclass
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ntools.errors import NtoolsError, UsageProblem
from ntools.host import ovs as _ovs
from ntools.host.devices import Device, Devices
from ntools.host.netns import open_netns, process_netns
from ntools.host.rtnl import read_fdb
from ntools.model.flow import mac_text, parse_mac

__all__ = [
    "Guest",
    "Holders",
    "MacSeed",
    "Tap",
    "find_guest",
    "guest_devices",
    "guest_of",
    "list_guests",
    "seed_macs",
    "vhost_tids",
]

_MAX_FILE_BYTES = 1 << 20  # a process may point its command line at all of its memory

_MACVTAP = re.compile(r"/dev/tap([0-9]{1,9})$")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.IGNORECASE)

# libvirt gives the tap the guest's address with fe in front, so that a bridge never takes it
# for its own. The first octet of the guest is known for the usual address ranges only.
_TAP_OCTET = "fe"
_FIRST_OCTET = {"54:00": "52", "16:3e": "fa"}


@dataclass(frozen=True)
class Tap:
    """A tap device a process holds open.

    :ivar interface: name, None for a macvtap, which is known by ``ifindex``.
    :ivar fds: one file descriptor per queue.
    :ivar mac: the guest's address behind it, from the command line.
    """

    interface: Optional[str]
    ifindex: Optional[int]
    fds: Tuple[int, ...]
    mac: Optional[str] = None

    def is_for(self, device: Device) -> bool:
        """Whether this is the device, as far as name and index tell."""
        if self.interface is not None:
            return self.interface == device.name
        return self.ifindex == device.ifindex


@dataclass(frozen=True)
class Guest:
    """A process that holds taps: QEMU or another VMM.

    :ivar name: the guest's name as given to QEMU, else the command name of the process.
    """

    pid: int
    name: str
    uuid: Optional[str]
    netns_inum: Optional[int]
    taps: Tuple[Tap, ...]


@dataclass(frozen=True)
class MacSeed:
    """An address the guest probably uses.

    :ivar source: ``fdb``, ``ovs``, ``qemu`` or ``tap``.
    :ivar exact: False: derived from the tap's own address, only the last five octets are sure.
    """

    mac: str
    source: str
    exact: bool = True


@dataclass(frozen=True)
class _CommandLine:
    name: Optional[str]
    uuid: Optional[str]
    macs: Tuple[str, ...]
    mac_of_fd: Mapping[int, str]
    mac_of_interface: Mapping[str, str]


def list_guests() -> List[Guest]:
    """All processes of this host that hold a tap.

    Costs one link per open file of every process: tens of milliseconds on a busy host.
    """
    return [guest for pid in _pids() for guest in _guest(pid)]


class Holders:
    """The processes that hold taps, each looked at once, QEMU first, and only as far as needed."""

    def __init__(self) -> None:
        self._found: List[Guest] = []
        self._rest: Optional[Iterator[int]] = None

    def of(self, device: Device) -> Optional[Guest]:
        """The process that holds this tap."""
        elsewhere = None
        for guest in self._all():
            if any(tap.is_for(device) for tap in guest.taps):
                if guest.netns_inum == device.netns_inum:
                    return guest
                elsewhere = elsewhere or guest  # a VMM may have got its tap from another one
        return elsewhere

    def _all(self) -> Iterator[Guest]:
        yield from self._found
        if self._rest is None:
            self._rest = iter(sorted(_pids(), key=lambda pid: not _comm(pid).startswith("qemu")))
        for pid in self._rest:
            found = list(_guest(pid))
            self._found += found
            yield from found


def guest_of(device: Device) -> Optional[Guest]:
    """The process that holds this tap; for many taps ask :class:`Holders`."""
    return Holders().of(device)


def find_guest(which: str) -> Guest:
    """The VM a user means by name, UUID or process id of its VMM.

    :raises UsageProblem: none or several.
    """
    guests = list_guests()
    found: List[Guest] = []
    if which.isascii() and which.isdigit() and len(which) < 10:
        found = [guest for guest in guests if guest.pid == int(which)]
    elif _UUID.match(which):
        found = [guest for guest in guests if (guest.uuid or "").lower() == which.lower()]
    if not found:  # a name may look like either
        found = [guest for guest in guests if guest.name == which]
    if len(found) == 1:
        return found[0]
    if found:
        pids = ", ".join(str(guest.pid) for guest in found)
        raise UsageProblem(f"VM '{which}' is not unique: processes {pids}. Give the process id.")
    known = ", ".join(sorted({guest.name for guest in guests})[:16])
    raise UsageProblem(
        f"VM '{which}' not found. " + (f"Known: {known}." if known else "No process holds a tap.")
    )


def guest_devices(guest: Guest, devices: Devices) -> List[Device]:
    """The taps of a guest among the devices of one namespace.

    :raises UsageProblem: none of them is there.
    """
    found = [device for device in devices if any(tap.is_for(device) for tap in guest.taps)]
    if not found:
        raise UsageProblem(
            f"VM '{guest.name}' (process {guest.pid}) has no tap in this network namespace."
        )
    return found


def vhost_tids(pid: int) -> Tuple[int, ...]:
    """Threads that run vhost for the VMM ``pid``; () without vhost.

    They are threads of the VMM since Linux 6.4, kernel threads before and where the module
    is told so; the name is ``vhost-PID`` in both forms.
    """
    name = f"vhost-{pid}"
    try:
        threads = [int(tid) for tid in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return ()
    found = [tid for tid in threads if _comm(tid, pid) == name]
    if not found:
        found = [tid for tid in _pids() if _comm(tid) == name and _parent(tid) == 2]
    return tuple(sorted(found))


def seed_macs(
    device: Device,
    devices: Devices,
    guest: Optional[Guest] = None,
    layout: Optional[_ovs.OvsLayout] = None,
) -> List[MacSeed]:
    """Addresses of the guest behind a tap, best known first, each once.

    What the switch has learned on the port, what QEMU was told, and when neither says
    anything what the tap's own address suggests.

    :param layout: OVS, when the tap is one of its ports.
    """
    learned: List[MacSeed] = []
    master = devices.by_index(device.master)
    if master is not None and master.kind == "bridge":
        try:
            with open_netns(devices.netns):
                entries = read_fdb(master.ifindex, device.ifindex)
        except NtoolsError:
            entries = []
        learned = [MacSeed(entry.mac, "fdb") for entry in entries if not entry.own]
    elif layout is not None:
        learned = [MacSeed(mac, "ovs") for mac in _ovs.fdb_macs(layout, device.name)]
    taps = guest.taps if guest is not None else ()
    told = [MacSeed(tap.mac, "qemu") for tap in taps if tap.mac and tap.is_for(device)]
    seeds: Dict[str, MacSeed] = {}
    for seed in learned + told:
        seeds.setdefault(seed.mac, seed)
    return list(seeds.values()) or _from_tap(device)


def _command_line(arguments: Sequence[str]) -> _CommandLine:
    """Name, UUID and network cards from the arguments of a QEMU process."""
    name = uuid = None
    netdevs: Dict[str, Dict[str, str]] = {}
    cards: List[Dict[str, str]] = []
    for option, value in zip(arguments, arguments[1:]):
        option = option.lstrip("-") if option.startswith("-") else ""
        if option == "name":
            fields = _fields(value)
            name = fields.get("guest") or fields.get("")
        elif option == "uuid":
            uuid = value
        elif option == "netdev":
            fields = _fields(value)
            netdevs[fields.get("id", "")] = fields
        elif option in ("device", "nic", "net"):
            fields = _fields(value)
            if "mac" in fields or "macaddr" in fields:
                cards.append(fields)
    by_fd: Dict[int, str] = {}
    by_interface: Dict[str, str] = {}
    macs = []
    for card in cards:
        try:
            mac = mac_text(parse_mac(card.get("mac", card.get("macaddr", ""))))
        except ValueError:  # whoever starts a VM may write there what he likes
            continue
        macs.append(mac)
        end = netdevs.get(card.get("netdev", ""), card)
        for number in (end.get("fds") or end.get("fd") or "").split(":"):
            if number.isascii() and number.isdigit() and len(number) < 10:
                by_fd[int(number)] = mac
        if "ifname" in end:
            by_interface[end["ifname"]] = mac
    return _CommandLine(name, uuid, tuple(macs), by_fd, by_interface)


def _fields(value: str) -> Dict[str, str]:
    """``first,key=value,...`` (first under "") or the JSON object newer libvirt writes."""
    if value.startswith("{"):
        try:
            return {str(key): str(item) for key, item in json.loads(value).items()}
        except (ValueError, RecursionError):
            return {}
    fields: Dict[str, str] = {}
    for part in value.replace(",,", "\0").split(","):
        key, equals, item = part.partition("=")
        if equals:
            fields[key] = item.replace("\0", ",")
        else:
            fields.setdefault("", key.replace("\0", ","))
    return fields


def _guest(pid: int) -> Iterator[Guest]:
    """The guest of one process, if it holds a tap."""
    held = _held_taps(pid)
    if not held:
        return
    told = _command_line(_arguments(pid))
    taps = []
    for (interface, ifindex), fds in held.items():
        mac = told.mac_of_interface.get(interface or "")
        for number in fds:
            mac = mac or told.mac_of_fd.get(number)
        if mac is None and len(held) == 1 and len(told.macs) == 1:
            mac = told.macs[0]
        taps.append(Tap(interface, ifindex, tuple(fds), mac))
    yield Guest(pid, told.name or _comm(pid), told.uuid, process_netns(pid), tuple(taps))


def _held_taps(pid: int) -> Dict[Tuple[Optional[str], Optional[int]], List[int]]:
    """File descriptors of each tap: (name, None), or (None, ifindex) for a macvtap."""
    held: Dict[Tuple[Optional[str], Optional[int]], List[int]] = {}
    try:
        numbers = sorted(int(number) for number in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return held
    for number in numbers:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
        except OSError:
            continue
        macvtap = _MACVTAP.match(target)
        if macvtap:
            held.setdefault((None, int(macvtap.group(1))), []).append(number)
        elif target == "/dev/net/tun":
            # splitlines() and strip() know more separators, and a name may hold them.
            for line in _text(f"/proc/{pid}/fdinfo/{number}").split("\n"):
                key, _, name = line.partition(":")
                name = name.strip(" \t")
                if key == "iff" and name:
                    held.setdefault((name, None), []).append(number)
    return held


def _from_tap(device: Device) -> List[MacSeed]:
    if device.mac is None or len(device.mac) != 17 or not device.mac.startswith(_TAP_OCTET + ":"):
        return []
    first = _FIRST_OCTET.get(device.mac[3:8], _TAP_OCTET)
    return [MacSeed(first + device.mac[2:], "tap", exact=False)]


def _pids() -> List[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _comm(tid: int, pid: Optional[int] = None) -> str:
    path = f"/proc/{tid}/comm" if pid is None else f"/proc/{pid}/task/{tid}/comm"
    return _text(path).rstrip("\n")


def _parent(pid: int) -> Optional[int]:
    after_comm = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(after_comm[1]) if len(after_comm) > 1 else None


def _arguments(pid: int) -> List[str]:
    return _text(f"/proc/{pid}/cmdline").split("\0")


def _text(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return os.fsdecode(stream.read(_MAX_FILE_BYTES))
    except OSError:
        return ""
