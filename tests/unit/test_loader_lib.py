# SPDX-License-Identifier: GPL-2.0-only
"""What libbpf says, read: names of failing programs, error numbers, the verifier's last word."""

from __future__ import annotations

import errno

import pytest

from ntools._loader.lib import Library, error_text, failed, ffi
from ntools._loader.obj import _load_text

# As libbpf 0.8, 1.1 and 1.7 write them.
LOGS = (
    [
        "libbpf: prog 'ip_rx__fentry': BPF program load failed: Operation not permitted",
        "libbpf: failed to load program 'ip_rx__fentry'",
        "libbpf: failed to load object 't'",
    ],
    [
        "libbpf: prog 'ip_rx__fentry': BPF program load failed: Operation not permitted",
        "libbpf: prog 'ip_rx__fentry': failed to load: -1",
        "libbpf: failed to load object 't'",
    ],
    [
        "libbpf: prog 'ip_rx__fentry': BPF program load failed: -EPERM",
        "libbpf: prog 'ip_rx__fentry': failed to load: -EPERM",
        "libbpf: failed to load object 't'",
    ],
    ["libbpf: prog 'ip_rx__fentry': failed to find kernel BTF type ID of 'ip_rx': -3"],
)


@pytest.mark.parametrize("lines", LOGS)
def test_the_failing_program_is_named(lines):
    library = Library.__new__(Library)
    library.log = ["libbpf: sec '?fentry/x': found program 'other' at insn offset 0", *lines]
    assert library.failing_programs() == ["ip_rx__fentry"]
    library.forget()
    assert library.failing_programs() == []


def test_error_text():
    assert error_text(errno.ENOENT) == "ENOENT (No such file or directory)"
    assert error_text(524) == "ENOTSUPP (not supported by this kernel)"
    assert error_text(4000).startswith("4000 (")


@pytest.mark.parametrize("value, is_failure", [(0, True), (-1, True), (-4095, True),
                                               (-4096, False), (0x5555_0000, False)])  # fmt: skip
def test_pointers_that_mean_failure(value, is_failure):
    assert failed(ffi.cast("void *", value)) is is_failure


def test_last_word_of_the_verifier():
    log = (
        "reg type unsupported for arg#0 function x#1\n"
        "0: R1=ctx(off=0,imm=0) R10=fp0\n"
        "; return *(int *)ctx[0];\n"
        "1: (61) r0 = *(u32 *)(r1 +0)\n"
        "R1 invalid mem access 'scalar'\n"
        "processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0\n"
    )
    assert _load_text(errno.EACCES, log) == (
        "refused by the verifier: EACCES (Permission denied): R1 invalid mem access 'scalar'"
    )
    assert _load_text(errno.EPERM, "") == "refused at load: EPERM (Operation not permitted)"


def test_relocation_that_failed():
    log = (
        "0: <invalid CO-RE relocation>\n"
        "failed to resolve CO-RE relocation <byte_off> [9] struct vhost_virtqueue.last_avail_idx "
        "(0:4 @ offset 8)\n"
        "processed 0 insns (limit 1000000)\n"
    )
    assert _load_text(errno.EINVAL, log) == (
        "the kernel's type information has no vhost_virtqueue.last_avail_idx"
    )
