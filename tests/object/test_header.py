# SPDX-License-Identifier: GPL-2.0-only
"""vmlinux/ntools_kernel.h says of every field what the kernels say.

CO-RE looks fields up by name when a program is loaded; a misspelt name or another width is found
here, for each kernel of the matrix whose BTF is in the cache, and for the running one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

import pytest

TOP = Path(__file__).resolve().parents[2]
HEADER = TOP / "vmlinux" / "ntools_kernel.h"
sys.path.insert(0, str(TOP / "tests"))

from object.btfread import FWD, PTR, STRUCT, TYPEDEF, UNION, Btf, Member  # noqa: E402
from vm import common, fetch  # noqa: E402

RUNNING = "running"
MACHINES = {"x86_64": "x86", "aarch64": "arm64"}
REGISTERS = {"pt_regs": "x86", "user_pt_regs": "arm64"}
RANGE = re.compile(r"(\d+\.\d+)?-(\d+\.\d+)?")
OPENING = re.compile(r"(?:typedef )?struct (\w+)? ?\{(?:\s*/\* (.+) \*/)?$")
CLOSING = re.compile(r"\} ?(\w+)?;$")
FIELD = re.compile(r"\t[^/]*?(\w+)(?:\[\d+\])?(?: : \d+)?;(?:\s*/\* (.+) \*/)?$")


@dataclass(frozen=True)
class Note:
    """Which kernels have something: a range of versions, or all that have a module loaded."""

    first: tuple[int, ...] = (0,)
    last: tuple[int, ...] = (999,)
    module: Optional[str] = None

    @classmethod
    def parse(cls, text: Optional[str]) -> Note:
        module = re.fullmatch(r"module (\w+)", text or "")
        if module:
            return cls(module=module[1])
        match = RANGE.fullmatch(text or "")
        if not match:
            return cls()
        return cls(version(match[1]) or (0,), version(match[2]) or (999,))

    def covers(self, release: tuple[int, ...]) -> bool:
        return self.first <= release <= self.last


@dataclass
class Kernel:
    """A kernel's types: vmlinux first, then modules by name."""

    arch: str
    release: tuple[int, ...]
    parts: dict[str, Btf]

    def find(self, name: str) -> tuple[Btf, Optional[int]]:
        for btf in self.parts.values():
            found = btf.find(name, STRUCT, TYPEDEF)
            if found:
                return btf, found
        return btf, None


def version(text: Optional[str]) -> tuple[int, ...]:
    return tuple(int(part) for part in (text or "").split(".")[:2] if part.isdigit())


def notes(text: str) -> dict[str, tuple[Note, dict[str, Note]]]:
    """What the comments say of each record of the header and of its members."""
    found: dict[str, tuple[Note, dict[str, Note]]] = {}
    opening = None
    members: dict[str, Note] = {}
    for line in text.splitlines():
        if OPENING.match(line):
            opening, members = OPENING.match(line), {}
        elif opening and CLOSING.match(line):
            name = opening[1] or CLOSING.match(line)[1]
            found[name], opening = (Note.parse(opening[2]), members), None
        elif opening and FIELD.match(line):
            members[FIELD.match(line)[1]] = Note.parse(FIELD.match(line)[2])
    return found


NOTES = notes(HEADER.read_text())


def compile_header(arch: str, target: Path) -> Btf:
    """BTF of an object that holds every record the header has for this architecture."""
    tagged = set(re.findall(r"^struct (\w+) \{", HEADER.read_text(), re.M))
    names = [name for name in NOTES if REGISTERS.get(name, arch) == arch]
    members = "".join(
        f"\t{'struct ' if name in tagged else ''}{name} m{i};\n" for i, name in enumerate(names)
    )
    source = (
        '#include "ntools_kernel.h"\n#include <bpf/bpf_helpers.h>\n'
        f"struct all {{\n{members}}};\n"
        'const struct all all SEC(".ntools") = {};\n'
    )
    command = ["clang", "-g", "-O2", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-mcpu=v2",
               f"-D__TARGET_ARCH_{arch}", f"-I{HEADER.parent}", "-x", "c", "-", "-c", "-o",
               str(target)]  # fmt: skip
    subprocess.run(command, input=source, text=True, check=True)
    return Btf.load(target)


def kernels() -> Iterator[str]:
    """The running kernel, if it has BTF, and what is in the cache; nothing is fetched here."""
    if Path("/sys/kernel/btf/vmlinux").exists():
        yield RUNNING
    for name in common.kernels():
        if (common.CACHE / "kernels" / name / "stamp.json").exists():
            yield name


def load(name: str) -> Kernel:
    """Types of a kernel, those of its modules included."""
    if name == RUNNING:
        arch = MACHINES[os.uname().machine]
        release = os.uname().release
        files = {path.name: path for path in Path("/sys/kernel/btf").iterdir()}
    else:
        arch = "arm64" if common.kernel(name).arch == "arm64" else "x86"
        release = fetch.tree(name).release
        files = fetch.btf_files(name)
    base = Btf.load(files.pop("vmlinux"))
    parts = {"vmlinux": base}
    parts.update((module, Btf.load(path, base)) for module, path in files.items())
    return Kernel(arch, version(release), parts)


def pointee(btf: Btf, type_id: int) -> str:
    """Name of the record a pointer points to, empty for anything else."""
    target = btf.pointee(type_id)
    return btf.name(target) if btf.kind(target) in (STRUCT, UNION, FWD) else ""


def difference(ours: Btf, mine: Member, theirs: Btf, its: Member) -> str:
    """What is not the same about a member, empty if all is."""
    kinds = ours.kind(mine.type_id), theirs.kind(its.type_id)
    if (kinds[0] == PTR) != (kinds[1] == PTR):
        return "is a pointer on one side only"
    if kinds[0] == PTR:
        names = pointee(ours, mine.type_id), pointee(theirs, its.type_id)
        return "" if names[0] == names[1] else f"points to '{names[0]}', kernel '{names[1]}'"
    if kinds[0] != kinds[1] and (STRUCT in kinds or UNION in kinds):
        return f"is a record {'here' if kinds[0] in (STRUCT, UNION) else 'there'} only"
    if kinds[0] in (STRUCT, UNION):
        names = ours.name(mine.type_id), theirs.name(its.type_id)
        if names[0] != names[1]:
            return f"is of type '{names[0]}', kernel '{names[1]}'"
        # A record with a name is in the header itself; one without is compared here.
        return "" if names[0] else "; ".join(compare(ours, mine.type_id, theirs, its.type_id, {}))
    return "" if mine.bits == its.bits else f"has {mine.bits} bits, kernel {its.bits}"


def compare(
    ours: Btf, our_id: int, theirs: Btf, their_id: int, expected: dict[str, bool]
) -> Iterator[str]:
    """What is wrong with the members of one record; expected: is the member there at all?"""
    members = {member.name: member for member in theirs.members(their_id)}
    for mine in ours.members(our_id):
        its = members.get(mine.name)
        wrong = "does not exist" if its is None else difference(ours, mine, theirs, its)
        if wrong and expected.get(mine.name, True):
            yield f"{mine.name} {wrong}"
        elif not wrong and not expected.get(mine.name, True):
            yield f"{mine.name} is there, against its note"


def check(ours: Btf, kernel: Kernel) -> tuple[list[str], set[str]]:
    """What is wrong for a kernel, and the records it has no types of."""
    problems, absent = [], set()
    for name, (whole, members) in NOTES.items():
        our_id = ours.find(name, STRUCT, TYPEDEF)
        if our_id is None:
            continue
        theirs, their_id = kernel.find(name.split("___")[0])
        if their_id is None:
            absent.add(name)
            if whole.covers(kernel.release) and not whole.module:
                problems.append(f"{name} does not exist")
            elif whole.module in kernel.parts:
                problems.append(f"{name} is not in module {whole.module}")
            continue
        expected = {key: note.covers(kernel.release) for key, note in members.items()}
        for problem in compare(ours, our_id, theirs, their_id, expected):
            problems.append(f"{name}.{problem}")
    return problems, absent


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Btf]:
    if not shutil.which("clang"):
        pytest.skip("needs clang")
    directory = tmp_path_factory.mktemp("header")
    return {arch: compile_header(arch, directory / f"{arch}.o") for arch in MACHINES.values()}


@pytest.mark.parametrize("name", kernels())
def test_kernel(name: str, objects: dict[str, Btf]) -> None:
    kernel = load(name)
    problems, absent = check(objects[kernel.arch], kernel)
    assert problems == []
    # Only module types may be missing, and only where the module's BTF is.
    assert {NOTES[record][0].module for record in absent} <= {"openvswitch"}, absent


def test_every_record_is_compared(objects: dict[str, Btf]) -> None:
    for arch, btf in objects.items():
        missing = [n for n in NOTES if not btf.find(n, STRUCT, TYPEDEF)]
        assert missing == [n for n in NOTES if REGISTERS.get(n, arch) != arch]


def test_every_note_is_understood() -> None:
    text = HEADER.read_text()
    comments = re.findall(r"^(?:\t.*;|.*\{)\s*/\* (.+) \*/$", text, re.M)
    assert comments and all(Note.parse(c) != Note() for c in comments), comments


def test_mistakes_are_found(tmp_path: Path, objects: dict[str, Btf]) -> None:
    """The checker itself: a wrong width, name, kind and note, against the header's own types."""
    source = tmp_path / "wrong.c"
    source.write_text(
        "struct net_device { char name[15]; int ifindx; unsigned long nd_net; int ifindex; };\n"
        "struct net_device device;\n"
    )
    target = tmp_path / "wrong.o"
    subprocess.run(["clang", "-g", "-target", "bpf", "-c", source, "-o", target], check=True)
    wrong = Btf.load(target)
    right = objects["x86"]
    ids = wrong.find("net_device", STRUCT), right.find("net_device", STRUCT)
    assert ids[0] and ids[1]
    assert list(compare(wrong, ids[0], right, ids[1], {"ifindex": False})) == [
        "name has 120 bits, kernel 128",
        "ifindx does not exist",
        "nd_net is a record there only",
        "ifindex is there, against its note",
    ]
