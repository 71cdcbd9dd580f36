# SPDX-License-Identifier: GPL-2.0-only
"""Every object finds what it needs in every kernel of the matrix: targets, types, fields.

What the verifier says to the programs is for the guests; here it is names and types, for kernels
whose type information is in the cache of the VM runner, arm64 included.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from object import objects
from object.btfread import ARRAY, ENUM, ENUM64, FUNC, STRUCT, TYPEDEF, UNION, Btf
from vm.common import CACHE, kernels

from ntools.cli.commands import COMMANDS

# Kinds of CO-RE relocations.
FIELD_READS, FIELD_EXISTS = (0, 1, 3, 4, 5), 2
TYPE_EXISTS, TYPE_SIZE, ENUM_EXISTS, ENUM_VALUE = 8, 9, 10, 11
TRACEPOINTS = ("tp_btf", "raw_tp")

MACHINES = {"amd64": "x86", "arm64": "arm64"}

# Points that a kernel of the matrix is known not to have, and why.
ABSENT: dict[tuple[str, str], str] = {}


@dataclass(frozen=True)
class Kernel:
    """Types and function names of one kernel with its modules."""

    name: str
    core: Btf
    modules: dict[str, Btf]
    functions: dict[str, frozenset[str]]  # module -> names in its symbol table

    def everywhere(self) -> list[Btf]:
        return [self.core, *self.modules.values()]

    def has_function(self, name: str) -> bool:
        return any(name in names for names in self.functions.values())

    def types_function(self, name: str) -> bool:
        return any(btf.find(name, FUNC) for btf in self.everywhere())

    def has_tracepoint(self, name: str) -> bool:
        """By the function that calls its probes: 5.10 keeps no types of modules."""
        return self.has_function("__traceiter_" + name)

    def types_tracepoint(self, name: str) -> bool:
        return any(btf.find("btf_trace_" + name, TYPEDEF) for btf in self.everywhere())

    def can_attach(self, program: objects.Program) -> bool:
        """Whether the target exists in the form the mechanism needs."""
        if program.mechanism in TRACEPOINTS:
            known = self.has_tracepoint(program.target)
            return known and (
                program.mechanism == "raw_tp" or self.types_tracepoint(program.target)
            )
        known = self.has_function(program.target)
        return known and (
            program.mechanism not in ("fentry", "fexit") or self.types_function(program.target)
        )


@functools.lru_cache(maxsize=None)
def kernel(name: str) -> Kernel:
    place = CACHE / "kernels" / name
    if not (place / "btf" / "vmlinux").exists():
        pytest.skip(f"kernel {name} is not in the cache (tests/vm/fetch.py)")
    core = Btf.load(place / "btf" / "vmlinux")
    files = sorted((place / "btf").iterdir())
    modules = {f.name: Btf.load(f, core) for f in files if f.name != "vmlinux"}
    symbols = {f.name: frozenset(f.read_text().split()) for f in (place / "sym").iterdir()}
    return Kernel(name, core, modules, symbols)


@functools.lru_cache(maxsize=None)
def running() -> Kernel:
    """The kernel of this machine; function names as kallsyms has them."""
    place = Path("/sys/kernel/btf")
    if not (place / "vmlinux").exists():
        pytest.skip("the running kernel has no BTF")
    core = Btf.load(place / "vmlinux")
    modules = {f.name: Btf.load(f, core) for f in place.iterdir() if f.name != "vmlinux"}
    found: dict[str, set[str]] = {}
    for line in Path("/proc/kallsyms").read_text().splitlines():
        words = line.split()
        if words[1] in "tT":
            found.setdefault(words[3].strip("[]") if len(words) > 3 else "vmlinux", set()).add(
                words[2]
            )
    return Kernel("running", core, modules, {k: frozenset(v) for k, v in found.items()})


# -- one relocation ----------------------------------------------------------------------------


def root(name: str) -> str:
    """Name of a kernel type without the flavour that tells our versions of it apart."""
    return name.partition("___")[0]


def local_path(btf: Btf, type_id: int, access: str) -> list[str | int]:
    """Member names and array indices of a relocation, nameless members left out."""
    numbers = [int(number) for number in access.split(":")]
    assert numbers[0] == 0, "an index before the first member is not used here"
    path: list[str | int] = []
    at = btf.resolve(type_id)
    for number in numbers[1:]:
        kind = btf.kind(at)
        if kind in (STRUCT, UNION):
            name, inner, _ = btf._unpack(at, "<III", number * 12)
            if btf._string(name):
                path.append(btf._string(name))
        else:
            assert kind == ARRAY, kind
            inner = btf._unpack(at, "<III", 0)[0]
            path.append(number)
        at = btf.resolve(inner)
    return path


def follow(btf: Btf, type_id: int, path: list[str | int]) -> int | None:
    """The type at the end of a path, None when there is no such path."""
    at = btf.resolve(type_id)
    for step in path:
        if isinstance(step, int):
            if btf.kind(at) != ARRAY:
                return None
            at = btf.resolve(btf._unpack(at, "<III", 0)[0])
            continue
        member = next((m for m in btf.members(at) if m.name == step), None)
        if member is None:
            return None
        at = btf.resolve(member.type_id)
    return at


def resolves(relocation: objects.Relocation, obj: objects.Object, where: Kernel) -> bool:
    """Whether the kernel has what a relocation asks for."""
    name = root(obj.btf.name(relocation.type_id))
    kinds = (STRUCT, UNION, TYPEDEF, ENUM, ENUM64)
    found = [(btf, btf.find(name, *kinds)) for btf in where.everywhere()]
    targets = [(btf, type_id) for btf, type_id in found if type_id]
    if relocation.kind in (TYPE_EXISTS, TYPE_SIZE):
        return bool(targets)
    if relocation.kind in (ENUM_EXISTS, ENUM_VALUE):
        index = int(relocation.access)
        wanted = list(obj.btf.enum(relocation.type_id))[index]
        return any(
            wanted in btf.enum(type_id) for btf, type_id in targets
            if btf.kind(type_id) in (ENUM, ENUM64)
        )  # fmt: skip
    path = local_path(obj.btf, relocation.type_id, relocation.access)
    return any(follow(btf, type_id, path) is not None for btf, type_id in targets)


def question(relocation: objects.Relocation, obj: objects.Object) -> tuple:
    """What a relocation is about, to compare a read with the test that guards it."""
    name = obj.btf.name(relocation.type_id)
    if relocation.kind in (ENUM_EXISTS, ENUM_VALUE):
        return root(name), relocation.access
    return (root(name), *local_path(obj.btf, relocation.type_id, relocation.access))


def unresolved(obj: objects.Object, program: str, where: Kernel) -> list[tuple]:
    """Reads of a program that this kernel cannot serve and that no existence test guards."""
    mine = [r for r in obj.relocations if r.program == program]
    guards = {question(r, obj) for r in mine if r.kind in (FIELD_EXISTS, ENUM_EXISTS)}
    types = {root(obj.btf.name(r.type_id)) for r in mine if r.kind == TYPE_EXISTS}
    return [
        question(r, obj)
        for r in mine
        if r.kind in (*FIELD_READS, TYPE_SIZE, ENUM_VALUE)
        and not resolves(r, obj, where)
        and question(r, obj) not in guards
        and root(obj.btf.name(r.type_id)) not in types
    ]


def usable(obj: objects.Object, where: Kernel) -> dict[str, list[str]]:
    """Point -> mechanisms that find target and types on a kernel."""
    points: dict[str, list[str]] = {}
    for program in obj.programs.values():
        if program.section != ".text":
            mechanisms = points.setdefault(program.point, [])
            if where.can_attach(program) and not unresolved(obj, program.name, where):
                mechanisms.append(program.mechanism)
    return points


def matrix() -> list:
    return [
        pytest.param(name, one, id=f"{name}-{one}") for name in kernels() for one in objects.names()
    ]


def loaded(name: str, one: str) -> tuple[Kernel, objects.Object]:
    return kernel(name), objects.load(one, MACHINES[kernels()[name].arch])


@pytest.mark.parametrize("name, one", matrix())
def test_every_point_has_a_candidate(name, one):
    where, obj = loaded(name, one)
    without = {point for point, mechanisms in usable(obj, where).items() if not mechanisms}
    assert without == {point for kernel_name, point in ABSENT if kernel_name == name}


@pytest.mark.parametrize("name, one", matrix())
def test_reads_resolve_or_are_guarded(name, one):
    where, obj = loaded(name, one)
    problems = {
        program.name: unresolved(obj, program.name, where)
        for program in obj.programs.values()
        if program.section == ".text" or where.can_attach(program)
    }
    assert {program: reads for program, reads in problems.items() if reads} == {}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda row: row.name)
def test_needed_points_work_on_the_running_kernel(command):
    """By tracepoints alone if need be: the promise to kernels without kprobes and fentry."""
    arch = {"x86_64": "x86", "aarch64": "arm64"}.get(os.uname().machine)
    if arch is None:
        pytest.skip("no objects for this machine")
    where = running()
    for one in command.objects:
        obj = objects.load(one, arch)
        points: dict[str, list[str]] = {}
        for program in obj.programs.values():
            if program.mechanism in TRACEPOINTS and where.types_tracepoint(program.target):
                if not unresolved(obj, program.name, where):
                    points.setdefault(program.point, []).append(program.mechanism)
        for point in command.needed:
            assert points.get(point), point


def test_the_checker_finds_what_is_not_there(tmp_path):
    """The object of the loader's tests asks for things no kernel has."""
    bpfrun = pytest.importorskip("object.bpfrun")
    stored = [name for name in kernels() if (CACHE / "kernels" / name / "btf").exists()]
    where = kernel(stored[0]) if stored else running()
    source = objects.TOP / "tests" / "native" / "loader.bpf.c"
    obj = objects.Object(bpfrun.build(source, tmp_path / "loader.o", "x86"))
    points = usable(obj, where)
    assert points["sent"] == ["tp_btf", "raw_tp"]
    for point in ("missing", "nowhere", "typeless", "fieldless"):
        assert points[point] == []
    assert unresolved(obj, "typeless__raw_tp", where) == [("nt_no_such_type", "value")]
    assert unresolved(obj, "fieldless__raw_tp", where) == [("sk_buff", "nt_no_such_field")]
