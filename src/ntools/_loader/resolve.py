# SPDX-License-Identifier: GPL-2.0-only
"""Whether a kernel's type information has what an object asks for, relocation by relocation.

What libbpf would find out at load, without a kernel: for type information of any kernel and both
architectures.
"""

import struct
from typing import Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from .btf import Relocation, Types, functions, relocations
from .elf import sections
from .kernel_types import ENUMS, RECORDS, TYPEDEFS, KernelTypes, Step

__all__ = ["Findings", "Lack", "Question", "examine"]

#: Numbers of ``enum bpf_core_relo_kind``.
_FIELD_READS, _FIELD_EXISTS, _TYPE_TARGET = (0, 1, 3, 4, 5), 2, 7
_TYPE_EXISTS, _TYPE_SIZE, _ENUM_EXISTS, _ENUM_VALUE = 8, 9, 10, 11
_NEEDS_ANSWER = _FIELD_READS + (_TYPE_TARGET, _TYPE_SIZE, _ENUM_VALUE)
_TESTS = (_FIELD_EXISTS, _TYPE_EXISTS, _ENUM_EXISTS)
#: Where functions are that programs call.
_CALLED = ".text"


class Question(NamedTuple):
    """What a relocation asks of the kernel.

    :ivar type_name: kernel type, without our flavour.
    :ivar path: members and indices; the enumerator of an enum; empty: the type itself.
    """

    type_name: str
    path: Tuple[Step, ...]

    def __str__(self) -> str:
        steps = ["[{}]".format(s) if isinstance(s, int) else "." + s for s in self.path]
        return self.type_name + "".join(steps)


class Lack(NamedTuple):
    """A question that has no answer.

    :ivar why: what was found instead.
    :ivar programs: who asks it.
    """

    question: Question
    why: str
    programs: Tuple[str, ...]


class Findings(NamedTuple):
    """What came of one object.

    :ivar asked: number of different questions.
    :ivar points: number of points.
    :ivar missing: points no candidate of which can be relocated.
    :ivar lacks: everything unanswered that no existence test of the same program guards.
    """

    asked: int
    points: int
    missing: Tuple[str, ...]
    lacks: Tuple[Lack, ...]

    @property
    def resolves(self) -> bool:
        """Whether every point of the object can be relocated."""
        return not self.missing


class _Object:
    """What an object file asks, and its points."""

    def __init__(self, data: bytes) -> None:
        content = sections(data)
        if ".BTF" not in content or ".BTF.ext" not in content:
            raise ValueError("no type information")
        types, local = Types(content[".BTF"]), KernelTypes(content[".BTF"])
        ext = content[".BTF.ext"]
        self.rows = [(row, _question(local, row)) for row in relocations(types, ext)]
        self.called = {name for section, name in functions(types, ext) if section == _CALLED}
        self.points: Dict[str, List[str]] = {}
        for section, name in functions(types, ext):
            if section != _CALLED:
                self.points.setdefault(name.split("__")[0], []).append(name)


def examine(data: bytes, kernel: KernelTypes) -> Findings:
    """Compare an object file with the type information of a kernel.

    :raises ValueError: the file is no object with type information, or is damaged; types of the
        kernel contain themselves.
    """
    try:
        obj = _Object(data)
    except (struct.error, IndexError, KeyError):
        raise ValueError("the object is damaged") from None
    answers: Dict[Tuple[Question, int], Optional[str]] = {}
    lacking: Dict[Tuple[Question, str], List[str]] = {}
    guarded = {(row.program, question) for row, question in obj.rows if row.kind in _TESTS}
    for row, question in obj.rows:
        if row.kind not in _NEEDS_ANSWER:
            continue
        if (question, row.kind) not in answers:
            answers[question, row.kind] = _why_not(kernel, question, row.kind)
        why = answers[question, row.kind]
        whole = question._replace(path=())
        if why and not guarded & {(row.program, question), (row.program, whole)}:
            lacking.setdefault((question, why), []).append(row.program)
    lacks = tuple(Lack(q, why, tuple(dict.fromkeys(who))) for (q, why), who in lacking.items())
    return Findings(
        len({question for _, question in obj.rows}),
        len(obj.points),
        _missing(obj, {name for lack in lacks for name in lack.programs}),
        lacks,
    )


def _missing(obj: _Object, broken: Set[str]) -> Tuple[str, ...]:
    """Points without a candidate; who calls a broken function is not looked up: all do."""
    if broken & obj.called:
        return tuple(sorted(obj.points))
    return tuple(sorted(point for point, names in obj.points.items() if not set(names) - broken))


def _question(local: KernelTypes, row: Relocation) -> Question:
    name = local.name(row.type_id).split("___")[0]
    if row.kind in (_ENUM_EXISTS, _ENUM_VALUE):
        names = local.enumerators(local.resolve(row.type_id))
        return Question(name, (names[int(row.access)].split("___")[0],))
    path: List[Step] = []
    at = local.resolve(row.type_id)
    for number in map(int, row.access.split(":")[1:]):
        if local.kind(at) in RECORDS:
            member = local.member(at, number)
            inner = member.type_id
            if member.name:
                path.append(member.name)
        else:
            inner = local.element(at)[0]
            path.append(number)
        at = local.resolve(inner)
    return Question(name, tuple(path))


def _why_not(kernel: KernelTypes, question: Question, kind: int) -> Optional[str]:
    """Why a question has no answer; None: it has one."""
    name, path = question
    if kind == _ENUM_VALUE:
        enums = kernel.find(name, ENUMS)
        if not enums:
            return "no such enum"
        known = any(path[0] in kernel.enumerators(one) for one in enums)
        return None if known else "no such value in the enum"
    if not path:
        return None if kernel.has(name) else "no such type"
    records = _records(kernel, name)
    if not records:
        return "no such type"
    places = [kernel.follow(one, path) for one in records]
    offsets = {place.bit_offset for place in places if place}
    if not offsets:
        return "no such field"
    return None if len(offsets) == 1 else "several types of this name that differ"


def _records(kernel: KernelTypes, name: str) -> Sequence[int]:
    """Structs and unions of a name, those behind a typedef of this name if there are no others."""
    found = kernel.find(name, RECORDS)
    if not found:
        behind = {kernel.resolve(one) for one in kernel.find(name, TYPEDEFS)}
        found = sorted(one for one in behind if kernel.kind(one) in RECORDS)
    return found
