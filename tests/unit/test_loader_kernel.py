# SPDX-License-Identifier: GPL-2.0-only
"""Facts about a kernel, from type information of the running and of stored kernels."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from vm.common import CACHE, kernels

from ntools._loader import KernelFacts, kernel
from ntools._loader.kernel import refused_by_environment
from ntools.errors import EnvironmentProblem

RUNNING = "running"


def btf_directory(name: str) -> Path:
    """A directory like /sys/kernel/btf: the running kernel's, or from the VM runner's cache."""
    if name == RUNNING:
        place = Path("/sys/kernel/btf")
        if not (place / "vmlinux").exists():
            pytest.skip("the running kernel has no BTF")
    else:
        place = CACHE / "kernels" / name / "btf"
        if not place.exists():
            pytest.skip(f"kernel {name} is not in the cache (tests/vm/fetch.py)")
    return place


def dumped(path: Path, base: Path | None = None) -> dict[str, dict[int, str]]:
    """Named enums as bpftool reads them: value -> first name. Without names in use twice."""
    if not shutil.which("bpftool"):
        pytest.skip("no bpftool")
    command = ["bpftool", "-j", *(["-B", str(base)] if base else [])]
    command += ["btf", "dump", "file", str(path), "format", "raw"]
    done = subprocess.run(command, check=True, capture_output=True)
    found: dict[str, dict[int, str]] = {}
    twice = set()
    for row in json.loads(done.stdout)["types"]:
        if row["kind"] in ("ENUM", "ENUM64") and row["name"] != "(anon)" and row["vlen"]:
            twice |= {row["name"]} & set(found)
            # bpftool 7.1 shows unsigned values of 32 bits with the sign of their highest bit.
            unsigned = row["kind"] == "ENUM" and row["encoding"] == "UNSIGNED"
            names: dict[int, str] = {}
            for entry in row["values"]:
                value = entry["val"] & 0xFFFFFFFF if unsigned else entry["val"]
                names.setdefault(value, entry["name"])
            found[row["name"]] = names
    return {name: names for name, names in found.items() if name not in twice}


@pytest.mark.parametrize("name", [RUNNING, *kernels()])
def test_enums_of_the_kernel_agree_with_bpftool(name, monkeypatch):
    place = btf_directory(name)
    monkeypatch.setattr(kernel, "_BTF_DIR", str(place))
    expected = dumped(place / "vmlinux")
    assert len(expected) > 500
    facts = KernelFacts()
    chosen = sorted(expected)[::12]
    wanted = ("skb_drop_reason", "tcp_ca_state", "bpf_prog_type", "perf_event_state",
              "perf_callchain_context", "netdev_tx", "bpf_func_id")  # fmt: skip
    chosen += [enum for enum in wanted if enum in expected]
    for enum in chosen:
        assert facts.enum_names(enum) == expected[enum], enum
    assert facts.enum_names("nt_no_such_enum") == {}
    # The name of a struct and the beginning of an enum's name are none.
    assert facts.enum_names("sk_buff") == {}
    assert facts.enum_names("bpf_prog_typ") == {}


def with_modules() -> list[tuple[str, str]]:
    """Kernel and module; 5.10 has no BTF of modules, and not every build has kvm as one."""
    pairs = [(k, m) for k in kernels() for m in ("openvswitch", "nf_conntrack", "kvm")]
    return [
        (k, m)
        for k, m in pairs
        if (CACHE / "kernels" / k / "btf" / m).exists() or not (CACHE / "kernels" / k).exists()
    ]


@pytest.mark.parametrize("name, module", with_modules())
def test_enums_of_a_module_agree_with_bpftool(name, module, tmp_path, monkeypatch):
    """Split BTF: names may be in the strings of the base, the enum's own name included."""
    place = btf_directory(name)
    for part in ("vmlinux", module):
        (tmp_path / part).symlink_to(place / part)
    monkeypatch.setattr(kernel, "_BTF_DIR", str(tmp_path))
    facts = KernelFacts()
    of_core = dumped(place / "vmlinux")
    mine = {enum: names for enum, names in dumped(place / module, place / "vmlinux").items()
            if enum not in of_core}  # fmt: skip
    assert mine
    for enum, names in mine.items():
        assert facts.enum_names(enum) == names, enum
    assert facts.btf_modules == [module]


def blob(text: bytes, *records: bytes) -> bytes:
    types = b"".join(records)
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(text))
    return head + types + text


def enum(name: int, *members: tuple[int, int]) -> bytes:
    record = struct.pack("<III", name, 6 << 24 | len(members), 4)
    return record + b"".join(struct.pack("<Ii", *member) for member in members)


def test_enum_of_a_module_with_names_of_the_kernel(tmp_path, monkeypatch):
    """Its own name and a member's are strings of the kernel, the other member's is its own."""
    core = b"\0color\0RED\0other\0ONE\0"
    (tmp_path / "vmlinux").write_bytes(blob(core, enum(11, (17, 1))))
    mine = len(core)
    module = blob(b"\0GREEN\0shade\0DARK\0", enum(1, (7, 5), (mine + 1, 6)),
                  enum(mine + 7, (mine + 13, 9)))  # fmt: skip
    (tmp_path / "paint").write_bytes(module)
    monkeypatch.setattr(kernel, "_BTF_DIR", str(tmp_path))
    facts = KernelFacts()
    assert facts.enum_names("other") == {1: "ONE"}
    assert facts.enum_names("color") == {5: "RED", 6: "GREEN"}
    assert facts.enum_names("shade") == {9: "DARK"}
    assert facts.enum_names("RED") == {}


def test_drop_reasons_of_modules(tmp_path, monkeypatch):
    place = btf_directory("6.12")
    for part in ("vmlinux", "openvswitch"):
        (tmp_path / part).symlink_to(place / part)
    monkeypatch.setattr(kernel, "_BTF_DIR", str(tmp_path))
    names = KernelFacts().enum_names("ovs_drop_reason")
    assert names[0x30001] == "OVS_DROP_LAST_ACTION"
    assert KernelFacts().enum_names("skb_drop_reason")[2] == "SKB_DROP_REASON_NOT_SPECIFIED"


@pytest.mark.parametrize("name", kernels())
def test_names_of_a_stored_kernel(name, monkeypatch):
    monkeypatch.setattr(kernel, "_BTF_DIR", str(btf_directory(name)))
    facts = KernelFacts()
    assert facts.has_btf and facts.has_own_btf and facts.has_ringbuf
    assert facts.has_name("sk_buff") and facts.has_name("ip_rcv")
    assert facts.has_tracepoint("kfree_skb") and facts.has_tracepoint("net_dev_start_xmit")
    assert not facts.has_name("sk_buf") and not facts.has_name("k_buff")
    assert not facts.has_tracepoint("nt_no_such_tracepoint")
    assert facts.has_name("ovs_vport_receive") == ("openvswitch" in facts.btf_modules)
    facts.forget()
    assert facts.has_name("sk_buff")


def test_kernel_before_the_ring_buffer(monkeypatch):
    place = btf_directory(RUNNING)
    with KernelFacts().without_ringbuf() as file:
        old = KernelFacts(file.name)
        assert not old.has_ringbuf
        assert old.has_name("sk_buff") and old.has_own_btf
        assert os.path.getsize(file.name) == (place / "vmlinux").stat().st_size


def test_kernel_without_type_information(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel, "_BTF_DIR", str(tmp_path / "btf"))
    facts = KernelFacts()
    assert not facts.has_btf and not facts.has_own_btf
    assert facts.btf_modules == []
    with pytest.raises(EnvironmentProblem) as caught:
        facts.has_name("sk_buff")
    assert str(caught.value).startswith(
        f"kernel {os.uname().release} has no type information ('{tmp_path}/btf/vmlinux'), "
    )
    given = tmp_path / "given.btf"
    given.write_bytes(blob(b"\0sk_buff\0"))
    facts = KernelFacts(str(given))
    assert facts.has_btf and not facts.has_own_btf
    assert facts.has_name("sk_buff")
    given.write_bytes(b"MZ" + bytes(60))
    with pytest.raises(EnvironmentProblem, match=f"'{given}' is not a BTF file"):
        KernelFacts(str(given)).has_name("sk_buff")


def hold(monkeypatch, tmp_path, *bits: int) -> None:
    monkeypatch.setattr(KernelFacts, "capabilities", sum(1 << bit for bit in bits))
    monkeypatch.setattr(kernel, "_LOCKDOWN", str(tmp_path / "lockdown"))


@pytest.mark.parametrize(
    "bits, missing",
    [((), "CAP_BPF and CAP_PERFMON"), ((39,), "CAP_PERFMON"), ((38, 12), "CAP_BPF")],
)
def test_missing_privilege(bits, missing, tmp_path, monkeypatch):
    hold(monkeypatch, tmp_path, *bits)
    with pytest.raises(EnvironmentProblem) as caught:
        KernelFacts().check_privilege()
    assert str(caught.value) == (
        f"missing privilege: {missing}. Run as root, or with CAP_BPF and CAP_PERFMON "
        "(CAP_SYS_ADMIN for points in modules and on kernels before 5.8)."
    )


@pytest.mark.parametrize("bits", [(21,), (38, 39)])
def test_privilege_and_lockdown(bits, tmp_path, monkeypatch):
    hold(monkeypatch, tmp_path, *bits)
    facts = KernelFacts()
    assert facts.lockdown is None
    facts.check_privilege()
    for text, level in (
        ("[none] integrity confidentiality\n", "none"),
        ("none [integrity] confidentiality\n", "integrity"),
    ):
        (tmp_path / "lockdown").write_text(text)
        assert facts.lockdown == level
        facts.check_privilege()
    (tmp_path / "lockdown").write_text("none integrity [confidentiality]\n")
    with pytest.raises(EnvironmentProblem) as caught:
        facts.check_privilege()
    assert str(caught.value) == (
        "kernel lockdown is 'confidentiality': it forbids reading kernel memory from BPF. Boot "
        "with lockdown=integrity or none."
    )


def test_capabilities_are_those_of_this_process():
    line = next(row for row in Path("/proc/self/status").read_text().splitlines()
                if row.startswith("CapEff"))  # fmt: skip
    assert KernelFacts().capabilities == int(line.split()[1], 16)


def test_switch_for_tests(monkeypatch):
    monkeypatch.delenv("NTOOLS_REFUSE", raising=False)
    assert refused_by_environment() == frozenset()
    monkeypatch.setenv("NTOOLS_REFUSE", "fentry,kprobe,ringbuf,")
    assert refused_by_environment() == {"fentry", "kprobe", "ringbuf"}
    monkeypatch.setenv("NTOOLS_REFUSE", "fentry,kprobes")
    with pytest.raises(EnvironmentProblem, match="NTOOLS_REFUSE names 'kprobes'; known: "):
        refused_by_environment()
