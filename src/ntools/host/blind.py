# SPDX-License-Identifier: GPL-2.0-only
"""Traffic that never meets our stages: said at the start instead of shown as zeros."""

import array
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import List, Optional, Sequence

from ntools.host.devices import Device, Devices
from ntools.host.netns import open_netns
from ntools.host.ovs import OvsLayout
from ntools.host.uplink import is_representor

__all__ = ["blind_spots"]

_SYS = Path("/sys")
_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES = 0x1B, 0x37, 0x3A
_FEATURE_STRINGS = 4
_STRING_BYTES = 32
_MAX_FEATURES = 4096
_TC_OFFLOAD = b"hw-tc-offload"


def blind_spots(
    chosen: Sequence[Device],
    devices: Devices,
    layout: Optional[OvsLayout] = None,
    sys_root: Path = _SYS,
) -> List[str]:
    """One line per reason why packets of the chosen devices may pass unseen.

    :param devices: the namespace of the chosen devices. /sys is asked for the own one only.
    :param layout: OVS, when its bridges are involved.
    """
    found = []
    for device in chosen:
        if device.xdp_prog_ids:
            ids = ", ".join(str(number) for number in device.xdp_prog_ids)
            found.append(
                f"{device.name} has XDP program {ids}: packets it drops, sends back, redirects "
                "or hands to AF_XDP are not seen"
            )
        if is_representor(device):
            found.append(
                f"{device.name} stands for a virtual function ({device.phys_port_name}): packets "
                "the NIC switches itself are not seen"
            )
        if device.has_bus_device and devices.netns is None:
            found.extend(_virtual_functions(device, sys_root))
    hardware = [device for device in chosen if device.has_bus_device]
    offloading = _offloading(hardware, devices)
    if layout is not None and layout.hw_offload and hardware:
        found.append("OVS offloads flows to hardware (hw-offload): their packets are not seen")
    elif offloading:
        found.append(
            f"{', '.join(offloading)}: hw-tc-offload is on, packets of tc rules in hardware "
            "are not seen"
        )
    return found


def _virtual_functions(device: Device, sys_root: Path) -> List[str]:
    directory = sys_root / "class/net" / device.name
    try:
        if int((directory / "ifindex").read_bytes()) != device.ifindex:
            return []  # /sys of another namespace
        parent = directory / "device"
        here = os.path.realpath(str(parent))
        functions = [os.path.realpath(str(path)) for path in parent.glob("virtfn*")]
        vdpa = [os.path.realpath(str(path)) for path in (sys_root / "bus/vdpa/devices").glob("*")]
    except (OSError, ValueError):
        return []
    found = []
    if functions:
        found.append(
            f"{device.name} has {len(functions)} SR-IOV virtual function(s): traffic of guests "
            "that own one is not seen"
        )
    behind = [path for path in vdpa if path.startswith(tuple(f"{p}/" for p in [here, *functions]))]
    if behind:
        found.append(
            f"{device.name} has {len(behind)} vDPA device(s): traffic of guests that use one is "
            "not seen"
        )
    return found


def _offloading(hardware: Sequence[Device], devices: Devices) -> List[str]:
    """Names of the devices whose tc rules may live in hardware."""
    if not hardware:
        return []
    with open_netns(devices.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        return [
            device.name for device in hardware if _has_feature(channel, device.name, _TC_OFFLOAD)
        ]


def _has_feature(channel: socket.socket, name: str, feature: bytes) -> bool:
    """Whether the feature is on; False when the driver or the kernel does not tell."""
    try:
        answer = _ethtool(channel, name, struct.pack("=IIQI", _GSSET_INFO, 0, 1 << 4, 0))
        count = min(struct.unpack_from("=I", answer, 16)[0], _MAX_FEATURES)
        head = struct.pack("=III", _GSTRINGS, _FEATURE_STRINGS, count)
        answer = _ethtool(channel, name, head + bytes(count * _STRING_BYTES))
        names = [
            answer[at : at + _STRING_BYTES].split(b"\0", 1)[0]
            for at in range(len(head), len(head) + count * _STRING_BYTES, _STRING_BYTES)
        ]
        bit = names.index(feature)
        blocks = (count + 31) // 32
        answer = _ethtool(
            channel, name, struct.pack("=II", _GFEATURES, blocks) + bytes(blocks * 16)
        )
        active = struct.unpack_from("=I", answer, 8 + bit // 32 * 16 + 8)[0]
        return bool(active >> bit % 32 & 1)
    except (OSError, ValueError, struct.error):
        return False


def _ethtool(channel: socket.socket, name: str, command: bytes) -> bytes:
    """Run one ethtool command; the kernel answers in the buffer the request points to."""
    buffer = array.array("B", command)
    address, _ = buffer.buffer_info()
    fcntl.ioctl(channel, _SIOCETHTOOL, struct.pack("@16sP16x", os.fsencode(name), address))
    return buffer.tobytes()
