#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Nanoseconds the packet filter takes to refuse a packet: constants against sets of rules.

Runs the harness of tests/object with the kernel's own statistics on, each filter beside an empty
program whose time is subtracted. Needs root. Writes build/bench/filters.json.
"""

from __future__ import annotations

import contextlib
import functools
import struct
import sys
from pathlib import Path
from typing import Callable, Iterator

import cffi

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Report, Sample, in_turn, options  # noqa: E402
from object import packets as p  # noqa: E402
from object.filtering import Bench, filter_of, forced_sets  # noqa: E402
from object.parsing import Parser, compiled  # noqa: E402

RUNS = 20000

_ffi = cffi.FFI()
_ffi.cdef("""
    int bpf_enable_stats(int type);
    int bpf_obj_get_info_by_fd(int fd, void *info, uint32_t *length);
""")
_lib = _ffi.dlopen("libbpf.so.1")

UDP = p.eth(p.ip4(p.udp(b"payload!", sport=1000, dport=53), 17))
PORTS = ",".join(str(2000 + 3 * n) for n in range(200))


def prefixes(count: int) -> str:
    """So many source prefixes, none of which covers the packet."""
    return "--src-ip " + ",".join(f"10.{n}.0.0/16" for n in range(count))


def by_address(count: int) -> str:
    """So many rules that the source address refuses."""
    return "\n".join(f"--src-ip 10.0.{n}.0/24 --dst-port 53" for n in range(count))


def by_port(count: int) -> str:
    """So many rules that the port refuses, either way."""
    return "\n".join(f"--src-ip 192.0.2.0/24 --dst-port {8000 + n} --bidir" for n in range(count))


#: What refuses the packet, and options.
CASES = (
    ("protocol", "--protocol tcp"),
    ("port", "--dst-port 80"),
    ("source address", "--src-ip 10.0.0.0/8"),
    ("address and port, both directions", "--src-ip 192.0.2.1 --dst-port 80 --bidir"),
    *((f"{n} source prefixes", prefixes(n)) for n in (2, 20, 200)),
    ("200 ports", f"--dst-port {PORTS}"),
    ("64 rules by VLAN", "\n".join(f"--vlan {n + 1} --dst-port 53" for n in range(64))),
    *((f"{n} rules by address", by_address(n)) for n in (2, 8, 64)),
    *((f"{n} rules by port, both directions", by_port(n)) for n in (2, 8, 64)),
)


def spent(bench: Bench, program: str) -> float:
    """Nanoseconds per run of a program, over one round."""
    before = _statistics(bench.run.fd(program))
    bench.run.run(program, RUNS)
    after = _statistics(bench.run.fd(program))
    return (after[0] - before[0]) / (after[1] - before[1])


def _statistics(fd: int) -> tuple[int, int]:
    """(run time, runs) of struct bpf_prog_info."""
    info, length = _ffi.new("char[256]"), _ffi.new("uint32_t *", 256)
    if _lib.bpf_obj_get_info_by_fd(fd, info, length):
        raise OSError(_ffi.errno, "no information")
    found = struct.unpack_from("<QQ", bytes(_ffi.buffer(info)), 192)
    return found[0], found[1]


def measure(bench: Bench, text: str, as_set: bool) -> Sample:
    """One filter and the empty program, one after the other."""
    with forced_sets() if as_set else contextlib.nullcontext():
        bench.set_filter(filter_of(text))
    return {"refuse_ns": spent(bench, "judge") - spent(bench, "idle")}


def cases(bench: Bench) -> Iterator[tuple[str, Callable[[], Sample]]]:
    """Every filter; in sets too where constants could do. Each refuses all packets."""
    from ntools.engine import filter as engine_filter

    for name, text in CASES:
        assert "NONE" not in bench.judge(filter_of(text)), name
        yield name, functools.partial(measure, bench, text, False)
        if not engine_filter.has_sets(filter_of(text)):
            yield name + ", as a set", functools.partial(measure, bench, text, True)


def main() -> int:
    """Measures and prints; no figure makes it fail."""
    args = options(__doc__.splitlines()[0], rounds=15).parse_args()
    statistic = _lib.bpf_enable_stats(0)
    assert statistic >= 0, "no statistics"
    report = Report("filters", args.rounds)
    with Parser(compiled()) as parser:
        packet = parser.skb("eth", UDP, 0)["pkt"]
    with Bench() as bench:
        bench.load([packet] * 8192)
        found = in_turn(dict(cases(bench)), args.rounds)
    for name, samples in found.items():
        report.add(name, samples)
    print(report.write())
    return 0


if __name__ == "__main__":
    sys.exit(main())
