# SPDX-License-Identifier: GPL-2.0-only
"""The joined type information of a real kernel that keeps none of its modules (5.10).

It is made here by ntools-btf, of the kernel's own BTF and the distribution's debug modules.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from object import bpfrun, objects
from object.btfread import STRUCT, Btf
from vm import common, fetch

from ntools._loader.external import Note, difference
from ntools._loader.kernel_types import RECORDS, KernelTypes
from ntools._loader.resolve import examine

NAME = "5.10"
HERE = Path(__file__).resolve().parent

# Struct -> fields that the commands for OVS, tap and vhost need.
FIELDS = {
    "vport": (("dev",), ("dp",), ("port_no",)),
    "datapath": (("ports",), ("stats_percpu",)),
    "tun_struct": (("dev",), ("numqueues",), ("tfiles", 0)),
    "tun_file": (("tun",), ("queue_index",), ("tx_ring", "consumer_head")),
    "tap_queue": (("ring", "size"), ("vnet_hdr_sz",)),
    "vhost_virtqueue": (("num",), ("last_avail_idx",), ("last_used_idx",), ("dev",)),
    "vhost_net": (("vqs", 1, "vq", "num"), ("tx_packets",)),
    "kvm_kernel_irqfd": (("gsi",), ("eventfd",), ("kvm",)),
    "net_bridge_port": (("dev",), ("br",), ("state",)),
}


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> Path:
    """The file, made by the installed command."""
    if not (common.CACHE / "kernels" / NAME / "stamp.json").exists():
        pytest.skip(f"kernel {NAME} is not in the cache (tests/vm/fetch.py)")
    try:
        return fetch.make_joined_btf(NAME, tmp_path_factory.mktemp("joined") / "joined.btf")
    except common.VmProblem as problem:
        if "ntools-btf failed" in str(problem):
            raise
        pytest.skip(str(problem))


@pytest.fixture(scope="module")
def types(joined) -> KernelTypes:
    return KernelTypes(joined.read_bytes())


def test_fields_of_modules_are_where_the_modules_have_them(joined, types):
    """Compared with the debug information of each module, as pahole shows it."""
    for name, paths in FIELDS.items():
        places = [types.follow(one, path) for one in types.find(name, RECORDS) for path in paths]
        assert places and None not in places, name
    for module, name in (("tun", "tun_struct"), ("vhost", "vhost_virtqueue"),
                         ("openvswitch", "vport")):  # fmt: skip
        path = next(p for p in fetch.debug_modules(NAME) if p.stem == module)
        shown = pahole(path, name)
        (one,) = types.find(name, RECORDS)
        mine = {m.name: m.bit_offset // 8 for m in types.members(one)}
        assert len(shown) > 5
        assert {field: mine[field] for field in shown} == shown


def pahole(path: Path, name: str) -> dict[str, int]:
    """Offset of the plain members of a struct by its DWARF."""
    found = {}
    done = subprocess.run(
        ["pahole", "-F", "dwarf", "-C", name, str(path)], capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines():
        code, mark, numbers = line.partition("/*")
        words = code.strip().rstrip(";").split("[")[0].split()
        if mark and line.startswith("\t") and not line.startswith("\t\t") and len(words) > 1:
            offset = numbers.split()[0]
            label = words[-1].lstrip("*")
            if offset.isdigit() and label.isidentifier() and ":" not in code:
                found[label] = int(offset)
    return found


def test_another_reader_finds_the_same(joined, types):
    oracle = Btf.load(joined)
    for name in FIELDS:
        expected = {(m.name, m.bit_offset) for m in oracle.members(oracle.find(name, STRUCT))}
        assert expected in [{(m.name, m.bit_offset) for m in types.members(one)}
                            for one in types.find(name, RECORDS)]  # fmt: skip


def test_types_of_the_kernel_are_unchanged(joined):
    core = fetch.btf_files(NAME)["vmlinux"].read_bytes()
    names = ("sk_buff", "net_device", "task_struct", "sock", "net", "file", "page", "module")
    assert difference(joined.read_bytes(), core, names) is None
    assert Note.from_btf(joined.read_bytes()) == Note(fetch.tree(NAME).release, "x86", {})


def test_check_passes(joined):
    beside = Path(sys.executable).with_name("ntools-btf")
    command = [str(beside) if beside.exists() else "ntools-btf", "check", str(joined)]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert all(row["resolves"] and not row["lacks"] for row in document["objects"])
    assert len(document["objects"]) >= 3
    assert {name for name, row in document["modules"].items() if row["found"]} == {
        "openvswitch", "bridge", "tun", "tap", "vhost", "vhost_net", "kvm",
    }  # fmt: skip
    assert not any(row["absent"] for row in document["modules"].values())
    assert (document["release"], document["arch"]) == (fetch.tree(NAME).release, "x86")


@pytest.mark.parametrize("name", objects.names())
def test_objects_of_ours_resolve(name, types):
    found = examine(objects.load(name, "x86").path.read_bytes(), types)
    assert found.resolves and not found.lacks and found.points


def test_object_that_reads_modules_resolves_only_there(types, tmp_path):
    data = bpfrun.build(HERE / "modules.bpf.c", tmp_path / "modules.o", "x86").read_bytes()
    found = examine(data, types)
    assert (found.missing, found.lacks, found.points) == ((), (), 3)
    core = KernelTypes(fetch.btf_files(NAME)["vmlinux"].read_bytes())
    found = examine(data, core)
    assert found.missing == ("ovs_port", "ring", "tap")
    assert {lack.why for lack in found.lacks} == {"no such type"}
    assert {lack.question.type_name for lack in found.lacks} == {
        "vport", "tun_struct", "vhost_net",
    }  # fmt: skip


def test_libbpf_relocates_the_object(joined, tmp_path):
    """bpftool runs the relocation of libbpf: what it keeps is what the object read."""
    path = bpfrun.build(HERE / "modules.bpf.c", tmp_path / "modules.o", "x86")
    small = tmp_path / "small.btf"
    done = subprocess.run(
        ["bpftool", "-d", "gen", "min_core_btf", str(joined), str(small), str(path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no matching targets found" not in done.stdout + done.stderr
    types = KernelTypes(small.read_bytes())
    for name in ("vport", "tun_struct", "vhost_virtqueue"):
        assert types.find(name, RECORDS), name
