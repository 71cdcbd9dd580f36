# SPDX-License-Identifier: GPL-2.0-only
"""Options that mean the same in every command, and their values.

Imports argparse only: ``--help``, man pages and completion work without libbpf and root.
"""

import argparse
from typing import Any, Callable, Tuple

__all__ = [
    "FILTERS",
    "add_common",
    "add_filter",
    "add_netns",
    "add_recording",
    "add_rule",
    "add_safety",
    "direction",
    "milliseconds",
    "names",
    "network",
    "number",
    "positive",
    "ring_bytes",
    "seconds",
    "timeout_ms",
]


#: A section of the manual of commands with :func:`add_filter`.
FILTERS = """\
All criteria have to fit, and of the values of one, separated by commas, any will do. A packet
without a field does not fit: ports are only in first fragments, and behind up to 6 IPv6 extension
headers and two VLAN tags. An address also takes ARP, unless -4 is given. --bidir exchanges MAC
addresses, addresses and ports all at once.

A --filters-file has a rule per line:

    # web servers, both ways
    --dst-ip 10.0.0.0/24,fd00::/64 --dst-port 80,443 --bidir
    --vlan 100-199 --eth-type arp"""


def add_common(parser: argparse.ArgumentParser, interval_s: float) -> None:
    """Options of every command. ``interval_s``: its default report interval, 0 = none."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "-i", "--interval", "--stats-interval", type=seconds(0.1), default=interval_s, metavar="S",
        help="seconds between reports (default {})".format(
            "{:g}".format(interval_s) if interval_s else "one report at the end"
        ),
    )  # fmt: skip
    group.add_argument(
        "-d", "--duration", type=seconds(0), default=0.0, metavar="S",
        help="stop after S seconds (default: at Ctrl-C); the summary is printed on every way out",
    )  # fmt: skip
    group.add_argument(
        "-c", "--count", type=positive, default=0, metavar="N",
        help="stop after N reports, or after N events where the command lists events",
    )  # fmt: skip
    group.add_argument(
        "--format", choices=("text", "json"), default="text",
        help="text for people, json: one record per line ('ntools schema' describes them)",
    )  # fmt: skip
    group.add_argument(
        "--strict", action="store_true", help="exit with status 4 when anything was lost"
    )
    group.add_argument(
        "--ring-size", type=ring_bytes, default=None, metavar="SIZE",
        help="memory of the event channel, for example 8M",
    )  # fmt: skip
    group.add_argument(
        "--btf", default=None, metavar="FILE",
        help="type information of this kernel, where the kernel has none of its own",
    )  # fmt: skip
    group.add_argument(
        "--dry-run", "--probe-plan", "--list-stages", dest="dry_run", action="store_true",
        help="print points, candidates, filters and memory; load nothing",
    )  # fmt: skip
    group.add_argument(
        "--explain", action="store_true",
        help="say which candidate each point got, why others were refused, and how many packets "
        "each filter step rejected",
    )  # fmt: skip
    group.add_argument(
        "-v", "--verbose", action="count", default=0,
        help="more detail; twice: the loader's log too",
    )  # fmt: skip
    add_recording(parser)
    add_safety(parser)


def add_recording(parser: argparse.ArgumentParser) -> None:
    """``--record`` and ``--replay``."""
    group = parser.add_argument_group("recording")
    add: Callable[..., Any] = group.add_argument
    add("--record", metavar="FILE",
        help="keep everything the run sees, for --replay here or on another machine")  # fmt: skip
    add("--record-max-size", type=_file_bytes, default=0, metavar="SIZE",
        help="start another file at this size, for example 200M")  # fmt: skip
    add("--record-keep", type=number(1, 1000), default=2, metavar="N",
        help="files to keep with --record-max-size (default 2)")  # fmt: skip
    add("--record-mode", type=_file_mode, default=0o600, metavar="MODE",
        help="permissions of the file (default 0600)")  # fmt: skip
    add("--replay", metavar="FILE",
        help="show a recorded run again; needs no privilege and no BPF")  # fmt: skip
    add("--from", dest="time_from", type=_moment, metavar="TIME",
        help="with --replay: nothing before; +S seconds after the start, or UTC as in "
        "2026-01-31T08:15:00")  # fmt: skip
    add("--to", dest="time_to", type=_moment, metavar="TIME",
        help="with --replay: nothing after")  # fmt: skip


def add_safety(parser: argparse.ArgumentParser) -> None:
    """What a run may cost; part of :func:`add_common`, so that every command has it."""
    group = parser.add_argument_group("safety")
    add: Callable[..., Any] = group.add_argument
    add("--max-events", "--rate-limit", dest="max_events", type=number(0, 1 << 31),
        default=2000, metavar="N",
        help="events per second; more are counted, not shown (default 2000)")  # fmt: skip
    add("--max-overhead", type=percent, default=1.0, metavar="PCT",
        help="most BPF run time, of the time of all CPUs (default 1.0)")  # fmt: skip
    add("--max-cpu", type=percent, default=5.0, metavar="PCT",
        help="most CPU time of the command itself, of one CPU (default 5)")  # fmt: skip
    add("--sample", type=_sample, default=0, metavar="1/N",
        help="events of one packet in N, chosen by what it is; tables count all")  # fmt: skip
    add("--force", action="store_true",
        help="run what would be refused, without admission test; noted in the records")  # fmt: skip
    add("--admit-s", type=seconds(0.1), default=1.0, metavar="S",
        help="how long a run with events only counts before it begins (default 1)")  # fmt: skip
    add("--stats-duty", type=_duty, default=(1.0, 15.0), metavar="ON/OF",
        help="seconds with BPF statistics on, of so many (default 1/15; 0/1 never)")  # fmt: skip


def add_netns(parser: "argparse._ActionsContainer") -> None:
    """``--netns``: where device names are looked up."""
    parser.add_argument(
        "--netns", default=None, metavar="NAME|PATH|PID",
        help="network namespace of the devices (default: this one)",
    )  # fmt: skip


def add_path(parser: argparse.ArgumentParser) -> "argparse._ActionsContainer":
    """The two sides of a path through this host; returns the group, for what else belongs there."""
    group = parser.add_argument_group("the path")
    add: Callable[..., Any] = group.add_argument
    add("--rx-iface", metavar="NAMES", help="where packets come in; several with commas")
    add("--tx-iface", metavar="NAMES", help="where they leave")
    add("--timeout-ms", type=timeout_ms, default=1000.0, metavar="MS",
        help="longest wait for the next stage (10 to 600000, default 1000)")  # fmt: skip
    add("--exit-code", action="store_true", help="status 10 when anything was lost on the way")
    add_netns(group)
    return group


def add_flows(parser: argparse.ArgumentParser) -> None:
    """A path, and what to show of the packets on it."""
    group = add_path(parser)
    group.add_argument(
        "--direction", choices=("both", "forward", "reply"), default="both",
        help="forward is from --rx-iface to --tx-iface (default: both)",
    )  # fmt: skip
    group.add_argument("--stats-mode", action="store_true", help="totals per interval; the default")
    group.add_argument(
        "--drops", action="store_true",
        help="a line per packet that came in and did not leave; -v: a line per packet",
    )  # fmt: skip


def add_filter(parser: argparse.ArgumentParser) -> None:
    """Packet filter options, with the aliases older tools used."""
    group = parser.add_argument_group("packets")
    add_rule(group)
    group.add_argument(
        "--filters-file", metavar="FILE",
        help="instead of the options above: one rule of them per line, up to 64; a packet has to "
        "fit one of the rules; # begins a comment",
    )  # fmt: skip


def add_rule(group: "argparse._ActionsContainer") -> None:
    """The criteria of one rule; their names are those of :class:`ntools.model.filter.Rule`."""
    add: Callable[..., Any] = group.add_argument
    add("--src-ip", "--src", "--ip-src", dest="src_ip", type=_values("src_ip"),
        default=(), metavar="ADDR[/N],...",
        help="source addresses or prefixes, IPv4 or IPv6; also of ARP")  # fmt: skip
    add("--dst-ip", "--dst", "--ip-dst", dest="dst_ip", type=_values("dst_ip"),
        default=(), metavar="ADDR[/N],...", help="destination addresses or prefixes")  # fmt: skip
    add("--src-port", "--l4-src-port", dest="src_port", type=_values("src_port"),
        default=(), metavar="PORT[-PORT],...",
        help="source ports; packets without ports do not match")  # fmt: skip
    add("--dst-port", "--l4-dst-port", dest="dst_port", type=_values("dst_port"),
        default=(), metavar="PORT[-PORT],...", help="destination ports")  # fmt: skip
    add("--protocol", "--l4-protocol", "--proto", "--ip-proto", dest="protocol",
        type=_values("protocol"), default=(), metavar="NAME,...",
        help="tcp, udp, icmp (with ICMPv6)..., or numbers")  # fmt: skip
    add("--vlan", "--vlan-id", dest="vlan", type=_values("vlan"), default=(), metavar="ID[-ID],...",
        help="outer VLAN ids, or 'none' for untagged packets")  # fmt: skip
    add("--bidir", action="store_true",
        help="also packets with source and destination exchanged")  # fmt: skip
    family = group.add_mutually_exclusive_group()
    family.add_argument("-4", "--ipv4", dest="family", action="store_const", const=4, default=0,
                        help="only IPv4")  # fmt: skip
    family.add_argument("-6", "--ipv6", dest="family", action="store_const", const=6,
                        help="only IPv6")  # fmt: skip
    add("--eth-type", "--type", dest="eth_type", type=_values("eth_type"), default=(),
        metavar="TYPE,...",
        help="frames of these types: ipv4, ipv6, arp, lldp... or 0xXXXX")  # fmt: skip
    add("--src-mac", dest="src_mac", type=_values("src_mac"), default=(), metavar="MAC,...",
        help="source MAC addresses")  # fmt: skip
    add("--dst-mac", dest="dst_mac", type=_values("dst_mac"), default=(), metavar="MAC,...",
        help="destination MAC addresses")  # fmt: skip
    add("--icmp-type", dest="icmp_type", type=_values("icmp_type"), default=(), metavar="TYPE,...",
        help="ICMP types: echo-request, time-exceeded... of both versions, or numbers")  # fmt: skip
    add("--tcp-flags", dest="tcp_flags", type=_values("tcp_flags"), default=(), metavar="FLAGS,...",
        help="TCP flags that are set, joined by +; ~ before one that is not set: "
        "syn+~ack,rst is SYN without ACK, or RST")  # fmt: skip
    add("--min-len", dest="min_len", type=_values("min_len"), default=0, metavar="BYTES",
        help="packets of at least so many bytes, from the IP header on")  # fmt: skip


def direction(text: str) -> str:
    """``rx``, ``tx`` or ``both`` of an accepted word."""
    from ntools.model.stages import direction_of

    if text == "both":
        return text
    try:
        return direction_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("{}, both".format(error)) from None


def seconds(least: float) -> Callable[[str], float]:
    """Type of an option in seconds, at least ``least``."""

    def convert(text: str) -> float:
        value = _float(text)
        if not least <= value <= 1e9:
            raise argparse.ArgumentTypeError(
                "'{}' is not a number of seconds of at least {:g}".format(text, least)
            )
        return value

    return convert


def milliseconds(text: str) -> float:
    """Type of an option in milliseconds, 0 or more."""
    return _ms(text, 0.0, 1e9)


def timeout_ms(text: str) -> float:
    """Type of ``--timeout-ms``."""
    return _ms(text, 10.0, 600000.0)


def _ms(text: str, least: float, most: float) -> float:
    value = _float(text)
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(
            "'{}' is not a number of milliseconds from {:g} to {:g}".format(text, least, most)
        )
    return value


def _float(text: str) -> float:
    """A plain decimal number; -1 if it is none. float() also takes other scripts' digits."""
    try:
        return -1.0 if set(text) - set("0123456789.eE+-") else float(text)
    except ValueError:
        return -1.0


def _whole(text: str, least: int, most: int) -> bool:
    """Whether a text is a plain decimal number in a range."""
    return text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most


def positive(text: str) -> int:
    """Type of an option that counts."""
    if not _whole(text, 1, (1 << 31) - 1):
        raise argparse.ArgumentTypeError("'{}' is not a positive number".format(text))
    return int(text)


def number(least: int, most: int) -> Callable[[str], int]:
    """Type of an option with a whole number in a range."""

    def convert(text: str) -> int:
        if not _whole(text, least, most):
            raise argparse.ArgumentTypeError(
                "'{}' is not a number from {} to {}".format(text, least, most)
            )
        return int(text)

    return convert


def percent(text: str) -> float:
    """Type of a limit in percent: more than 0, up to 100."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError("'{}' is not a percentage above 0".format(text))
    return value


def _sample(text: str) -> int:
    """``1/N`` as the exponent of N."""
    one, slash, many = text.partition("/")
    size = int(many) if slash and one == "1" and many.isdecimal() and len(many) < 6 else 0
    if size < 1 or size > 1 << 16 or size & (size - 1):
        raise argparse.ArgumentTypeError(
            "'{}' is not 1/N with N a power of two up to 65536".format(text)
        )
    return size.bit_length() - 1


def _duty(text: str) -> Tuple[float, float]:
    """``ON/OF`` in seconds."""
    first, _, last = text.partition("/")
    try:
        on_s, period_s = float(first), float(last)
    except ValueError:
        on_s, period_s = 1.0, 0.0
    if not 0 <= on_s <= period_s <= 86400 or (on_s and on_s < 0.5):
        raise argparse.ArgumentTypeError(
            "'{}' is not ON/OF in seconds, such as 1/15 (ON 0 or from 0.5 to OF)".format(text)
        )
    return on_s, period_s


def names(*known: str) -> Callable[[str], Tuple[str, ...]]:
    """Type of an option with a comma separated list; ``known``: the only words it may have."""

    def convert(text: str) -> Tuple[str, ...]:
        found = tuple(name.strip() for name in text.split(",") if name.strip())
        if not found:
            raise argparse.ArgumentTypeError("no name in '{}'".format(text))
        unknown = [name for name in found if known and name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(
                "'{}' is none of {}".format(unknown[0], ", ".join(known))
            )
        return found

    return convert


def ring_bytes(text: str) -> int:
    """Type of ``--ring-size``: a size with its unit."""
    from ntools.model.units import parse_size

    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 4096 <= size <= 1 << 30:
        raise argparse.ArgumentTypeError("'{}' is not between 4K and 1G".format(text))
    return size


def _file_bytes(text: str) -> int:
    from ntools.model.units import parse_size

    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 1 << 20 <= size <= 1 << 40:
        raise argparse.ArgumentTypeError("'{}' is not between 1M and 1T".format(text))
    return size


def _moment(text: str) -> Any:
    from ntools.model.clock import parse_moment

    try:
        return parse_moment(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _file_mode(text: str) -> int:
    digits = text[1:] if len(text) == 4 and text[0] == "0" else text
    if len(digits) != 3 or not set(digits) <= set("01234567"):
        raise argparse.ArgumentTypeError("'{}' is not a mode such as 0640".format(text))
    return int(text, 8)


def _model(name: str) -> Callable[[str], Any]:
    """Type of an option parsed by a function of :mod:`ntools.model.flow`."""

    def convert(text: str) -> Any:
        from ntools.model import flow

        try:
            return getattr(flow, name)(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


network = _model("parse_network")


def _values(criterion: str) -> Callable[[str], Any]:
    """Type of a filter option, parsed by :func:`ntools.model.filter.parse`."""

    def convert(text: str) -> Any:
        from ntools.model import filter as packet_filter

        try:
            return packet_filter.parse(criterion, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
