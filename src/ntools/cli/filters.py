# SPDX-License-Identifier: GPL-2.0-only
"""From parsed filter options to ``struct nt_filter`` (``bpf/include/nt_filter.h``)."""

import argparse
from typing import Any, Dict, Tuple

from ntools.errors import UsageProblem
from ntools.model import flow

__all__ = ["build"]

_WITH_PORTS = ("tcp", "udp", "udplite", "sctp", "dccp")


def build(args: argparse.Namespace) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """(criteria by field of ``struct nt_filter``, the same as text for the header record).

    The criteria hold the key ``used`` as names of ``enum nt_filter_use``: their numbers belong to
    the object in use.

    :raises UsageProblem: options that contradict each other.
    """
    fields: Dict[str, Any] = {}
    shown: Dict[str, Any] = {}
    used = []
    _check(args)
    for side in ("src", "dst"):
        network = getattr(args, side + "_ip")
        if network:
            fields[side + "_ip"] = network.address
            fields[side + "_mask"] = network.mask
            fields["family"] = network.family
            used.append("NT_F_{}_IP".format(side.upper()))
            shown[side + "_ip"] = str(network)
        port = getattr(args, side + "_port")
        if port:
            fields[side + "_port"] = port
            used.append("NT_F_{}_PORT".format(side.upper()))
            shown[side + "_port"] = port
    if args.protocol:
        fields["protocol"], fields["protocol_alt"] = args.protocol[0], args.protocol[-1]
        used.append("NT_F_PROTOCOL")
        shown["protocol"] = "/".join(flow.protocol_name(number) for number in args.protocol)
    if args.vlan is not None:
        fields["vlan_id"] = args.vlan
        used.append("NT_F_VLAN")
        shown["vlan_id"] = "none" if args.vlan == 0xFFFF else args.vlan
    if args.bidir and used:
        used.append("NT_F_BIDIR")
        shown["bidir"] = True
    fields["used"] = tuple(used)
    return fields, shown


def _check(args: argparse.Namespace) -> None:
    if args.src_ip and args.dst_ip and args.src_ip.family != args.dst_ip.family:
        raise UsageProblem(
            "--src-ip '{}' and --dst-ip '{}' are of different address families.".format(
                args.src_ip, args.dst_ip
            )
        )
    ports = [name for name in ("src_port", "dst_port") if getattr(args, name)]
    if ports and args.protocol:
        names = [flow.protocol_name(number) for number in args.protocol]
        if not set(names) & set(_WITH_PORTS):
            raise UsageProblem(
                "--{} needs a protocol with ports, not '{}'. Use --protocol tcp or udp.".format(
                    ports[0].replace("_", "-"), names[0]
                )
            )
