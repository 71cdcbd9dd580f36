#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Nanoseconds the packet filter takes to refuse a packet: constants against sets of rules.

Runs the harness of tests/object with the kernel's own statistics on, each filter interleaved with
an empty program whose time is subtracted; median and spread of the rounds. Needs root.
"""

from __future__ import annotations

import statistics
import struct
import sys
from pathlib import Path

import cffi

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from object import packets as p  # noqa: E402
from object.filtering import Bench, filter_of, forced_sets  # noqa: E402
from object.parsing import Parser, compiled  # noqa: E402

ROUNDS, RUNS = 15, 20000

_ffi = cffi.FFI()
_ffi.cdef("""
    int bpf_enable_stats(int type);
    int bpf_obj_get_info_by_fd(int fd, void *info, uint32_t *length);
""")
_lib = _ffi.dlopen("libbpf.so.1")

UDP = p.eth(p.ip4(p.udp(b"payload!", sport=1000, dport=53), 17))
NETS = ",".join(f"10.{n}.0.0/16" for n in range(200))
PORTS = ",".join(str(2000 + 3 * n) for n in range(200))
#: What refuses the packet, and options.
CASES = (
    ("protocol", "--protocol tcp"),
    ("port", "--dst-port 80"),
    ("source address", "--src-ip 10.0.0.0/8"),
    ("address and port, both directions", "--src-ip 192.0.2.1 --dst-port 80 --bidir"),
    ("200 source prefixes", f"--src-ip {NETS}"),
    ("200 ports", f"--dst-port {PORTS}"),
    ("64 rules by VLAN", "\n".join(f"--vlan {n + 1} --dst-port 53" for n in range(64))),
    ("64 rules by address", "\n".join(f"--src-ip 10.0.{n}.0/24 --dst-port 53" for n in range(64))),
    ("64 rules by port, both directions",
     "\n".join(f"--src-ip 192.0.2.0/24 --dst-port {8000 + n} --bidir" for n in range(64))),
)  # fmt: skip


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


def measure(bench: Bench, text: str) -> list[float]:
    flt = filter_of(text)
    assert not any(one == "NONE" for one in bench.judge(flt))
    return sorted(spent(bench, "judge") - spent(bench, "idle") for _ in range(ROUNDS))


def main() -> None:
    statistic = _lib.bpf_enable_stats(0)
    assert statistic >= 0, "no statistics"
    with Parser(compiled()) as parser:
        packet = parser.skb("eth", UDP, 0)["pkt"]
    with Bench() as bench:
        bench.load([packet] * 8192)
        for name, text in CASES:
            for kind, found in (("", measure(bench, text)), *_as_sets(bench, text)):
                low, high = found[ROUNDS // 4], found[-1 - ROUNDS // 4]
                print(f"{name + kind:<50} {statistics.median(found):6.1f} ns"
                      f"  ({low:.1f} to {high:.1f})")  # fmt: skip


def _as_sets(bench: Bench, text: str) -> list[tuple[str, list[float]]]:
    """The same in sets, where constants could do."""
    from ntools.engine import filter as engine_filter

    if engine_filter.has_sets(filter_of(text)):
        return []
    with forced_sets():
        return [(", as a set", measure(bench, text))]


if __name__ == "__main__":
    main()
