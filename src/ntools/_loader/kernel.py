# SPDX-License-Identifier: GPL-2.0-only
"""Facts about the running kernel: type information, mechanisms, privileges. All lazy.

BTF is kept as bytes and searched: a set of its names would cost more memory than the rest of the
process.
"""

import os
import struct
from typing import Any, Dict, FrozenSet, Iterable, List, Optional, Tuple

from ntools.errors import EnvironmentProblem

from .external import Note, difference, find_name, find_text, records, text_section

__all__ = ["KernelFacts", "facts", "refused_by_environment", "MECHANISMS", "FEATURES"]

#: Ways to attach, in order of preference.
MECHANISMS = ("tp_btf", "fexit", "fentry", "raw_tp", "kprobe", "kretprobe")
#: What the test switch ``NTOOLS_REFUSE`` can take away besides mechanisms.
FEATURES = ("ringbuf", "batch", "stats")

_BTF_DIR = "/sys/kernel/btf"
#: Where type information of a kernel that has none is looked for.
_STORED = ("/var/lib/ntools/btf/{release}.btf", "/usr/share/ntools/btf/{arch}/{release}.btf")
_LOCKDOWN = "/sys/kernel/security/lockdown"
_BTF_MAGIC = b"\x9f\xeb"
_BTF_HEADER_BYTES = 24
_MAX_BTF_BYTES = 256 << 20
_CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 21, 38, 39


class KernelFacts:
    """What the running kernel says of itself.

    :ivar release: as ``uname -r``.
    :ivar arch: "x86" or "arm64", as in the names of our objects.
    :ivar btf_path: file with type information in use; None: the kernel's own.
    :ivar btf_origin: who named that file.
    :param btf: file with type information to use instead of the kernel's own (default: the one
        ``NTOOLS_BTF`` names; for a kernel without any, one in the places of :data:`_STORED`).
    """

    def __init__(self, btf: Optional[str] = None) -> None:
        uname = os.uname()
        self.release = uname.release
        self.machine = uname.machine
        self.arch = {"x86_64": "x86", "aarch64": "arm64"}.get(uname.machine, uname.machine)
        self.btf_path, self.btf_origin = self._external(btf)
        self._core: Optional[bytes] = None
        self._own: Optional[bytes] = None
        self._modules: Optional[bytes] = None
        self._names: Dict[str, bool] = {}

    @property
    def has_btf(self) -> bool:
        """Whether any type information is at hand."""
        return os.path.exists(self.btf_path or _BTF_DIR + "/vmlinux")

    @property
    def has_own_btf(self) -> bool:
        """Whether the kernel brings type information: tp_btf and fentry need that one."""
        return os.path.exists(_BTF_DIR + "/vmlinux")

    @property
    def stores(self) -> List[str]:
        """Where a file for this kernel is looked for."""
        return [place.format(release=self.release, arch=self.arch) for place in _STORED]

    def _external(self, given: Optional[str]) -> Tuple[Optional[str], str]:
        if given:
            return given, "given with --btf"
        named = os.environ.get("NTOOLS_BTF")
        if named:
            return named, "named by NTOOLS_BTF"
        if not self.has_own_btf:
            for place in self.stores:
                if os.path.exists(place):
                    return place, "found for this kernel"
        return None, ""

    @property
    def core_btf(self) -> bytes:
        """Type information that relocates objects: the given file's or the kernel's.

        :raises EnvironmentProblem: there is none, or the file is something else.
        """
        if self._core is None:
            path = self.btf_path or _BTF_DIR + "/vmlinux"
            try:
                core = _read_btf(path)
            except OSError as error:
                if self.btf_path:
                    raise EnvironmentProblem(
                        "cannot read type information '{}': {}.".format(path, error.strerror)
                    ) from None
                raise EnvironmentProblem(
                    "kernel {} has no type information ('{}'), and there is none in '{}'. Make "
                    "it with ntools-btf(8), or give it with --btf FILE.".format(
                        self.release, path, "' or '".join(self.stores)
                    )
                ) from None
            if not core:
                raise EnvironmentProblem(
                    "'{}' is not a BTF file. Give raw BTF, as in {}/vmlinux.".format(path, _BTF_DIR)
                )
            self._core = core
        return self._core

    @property
    def own_btf(self) -> bytes:
        """The kernel's own type information, whatever file was given; empty if there is none."""
        if not self.btf_path and self.has_own_btf:
            return self.core_btf
        if self._own is None:
            try:
                self._own = _read_btf(_BTF_DIR + "/vmlinux")
            except OSError:
                self._own = b""
        return self._own

    def check_fit(self, structs: Iterable[str], name: str, build: str) -> None:
        """Refuse a file that is not for this kernel: every offset in it would be wrong.

        :param structs: kernel structs to compare where the kernel has type information, too.
        :param name, build: object to be relocated, and its fingerprint.
        :raises EnvironmentProblem: another release, architecture, layout, or a file reduced to
            other objects.
        """
        if not self.btf_path:
            return
        note = Note.from_btf(self.core_btf)
        problem = ""
        if note and note.arch not in ("", self.arch):
            problem = "is for {}, this machine is {}".format(note.arch, self.arch)
        elif note and note.release not in ("", self.release):
            problem = "is of kernel {}, this is {}".format(note.release, self.release)
        elif note and note.builds and note.builds.get(name) != build:
            problem = "was reduced to what other objects need than '{}' of this build".format(name)
        else:
            differs = difference(self.core_btf, self.own_btf, structs) if self.own_btf else None
            if differs:
                problem = "is of another kernel: struct {} differs".format(differs)
        if problem:
            raise EnvironmentProblem(
                "type information '{}' {}. Make it for this kernel with ntools-btf(8).".format(
                    self.btf_path, problem
                )
            )

    def module_path(self, name: str) -> str:
        """File with the type information of a loaded module."""
        return os.path.join(_BTF_DIR, name)

    @property
    def module_names(self) -> bytes:
        """Every name in the type information of the loaded modules; each ends in a zero."""
        if self._modules is None:
            blobs = []
            for name in self.btf_modules:
                try:
                    blob = _read_btf(self.module_path(name))
                except OSError:  # unloaded meanwhile
                    continue
                blobs.append(blob[slice(*text_section(blob))] if blob else b"")
            self._modules = b"\0".join(blobs)
        return self._modules

    def forget(self) -> None:
        """Free the type information read so far (some MiB)."""
        self._core = self._own = self._modules = None

    def has_name(self, name: str) -> bool:
        """Whether a type or function of this name is in what relocates objects.

        With a file that is the file alone: libbpf then looks at no module.
        """
        known = self._names.get(name)
        if known is None:
            known = find_text(self.core_btf, name) >= 0
            if not known and not self.btf_path:
                known = find_name(self.module_names, name) >= 0
            self._names[name] = known
        return known

    def has_function(self, name: str) -> bool:
        """Whether the kernel itself describes this function: fentry looks nowhere else."""
        if not self.btf_path:
            return self.has_name(name)
        return find_text(self.own_btf, name) >= 0 or find_name(self.module_names, name) >= 0

    def has_tracepoint(self, name: str) -> bool:
        """Whether the kernel's own type information describes a tracepoint of this name."""
        return self.has_function("btf_trace_" + name)

    @property
    def has_kprobes(self) -> bool:
        """Whether the kernel can probe functions at all (CONFIG_KPROBE_EVENTS)."""
        return os.path.exists("/sys/bus/event_source/devices/kprobe/type")

    @property
    def has_ringbuf(self) -> bool:
        """Whether objects relocated by this type information use the BPF ring buffer (v5.8)."""
        return find_text(self.core_btf, "bpf_ringbuf") >= 0

    def without_ringbuf(self) -> Any:
        """A file of this type information in which the ring buffer has another name.

        What an object sees that is relocated on a kernel before 5.8. For the test switch.
        """
        import tempfile

        file = tempfile.NamedTemporaryFile(prefix="ntools-", suffix=".btf")
        file.write(self.core_btf.replace(b"\0bpf_ringbuf\0", b"\0bpf_noringb\0"))
        file.flush()
        return file

    def enum_names(self, enum: str) -> Dict[int, str]:
        """Value -> enumerator of a kernel enum; empty when the kernel has no such enum.

        The record is found by its bytes: walking the type information record by record takes
        Python a tenth of a second.
        """
        found = _enum_in(self.core_btf, enum)
        if not found and self.btf_path and self.own_btf:  # a file may be reduced to structs
            found = _enum_in(self.own_btf, enum)
        return found or self._enum_in_modules(enum)

    def _enum_in_modules(self, enum: str) -> Dict[int, str]:
        for name in self.btf_modules:
            try:
                with open(self.module_path(name), "rb") as file:
                    blob = file.read()
            except OSError:
                continue
            found = _enum_in(blob, enum, self.own_btf)
            if found:
                return found
        return {}

    def module_loaded(self, name: str) -> bool:
        """Whether a module (or the built-in of that name) is there."""
        return os.path.isdir("/sys/module/" + name)

    @property
    def btf_modules(self) -> List[str]:
        """Modules whose type information the kernel shows."""
        try:
            return sorted(name for name in os.listdir(_BTF_DIR) if name != "vmlinux")
        except OSError:
            return []

    @property
    def capabilities(self) -> int:
        """Effective capabilities of this process, bit by bit."""
        with open("/proc/self/status", "rb") as file:  # its first line is the name of the process
            for line in file:
                if line.startswith(b"CapEff:"):
                    return int(line.split()[1], 16)
        return 0

    @property
    def lockdown(self) -> Optional[str]:
        """Level of kernel lockdown: none, integrity, confidentiality; None: no such thing here."""
        try:
            with open(_LOCKDOWN) as file:
                levels = file.read()
        except OSError:
            return None
        return levels.partition("[")[2].partition("]")[0] or None

    def check_privilege(self) -> None:
        """Refuse early what the kernel would refuse with a misleading message.

        :raises EnvironmentProblem: capabilities missing, or lockdown forbids tracing.
        """
        held = self.capabilities
        admin = bool(held >> _CAP_SYS_ADMIN & 1)
        missing = [
            name
            for name, bit in (("CAP_BPF", _CAP_BPF), ("CAP_PERFMON", _CAP_PERFMON))
            if not admin and not held >> bit & 1
        ]
        if missing:
            raise EnvironmentProblem(
                "missing privilege: {}. Run as root, or with CAP_BPF and CAP_PERFMON "
                "(CAP_SYS_ADMIN for points in modules and on kernels before 5.8).".format(
                    " and ".join(missing)
                )
            )
        if self.lockdown == "confidentiality":
            raise EnvironmentProblem(
                "kernel lockdown is 'confidentiality': it forbids reading kernel memory "
                "from BPF. Boot with lockdown=integrity or none."
            )


_facts: Optional[KernelFacts] = None


def facts() -> KernelFacts:
    """Facts of the running kernel with its own type information (one object per process)."""
    global _facts
    if _facts is None:
        _facts = KernelFacts()
    return _facts


def refused_by_environment() -> FrozenSet[str]:
    """Mechanisms and features the test switch ``NTOOLS_REFUSE`` takes away.

    :raises EnvironmentProblem: it names something unknown.
    """
    wished = [w for w in os.environ.get("NTOOLS_REFUSE", "").split(",") if w]
    unknown = [w for w in wished if w not in MECHANISMS + FEATURES]
    if unknown:
        raise EnvironmentProblem(
            "NTOOLS_REFUSE names '{}'; known: {}.".format(
                unknown[0], ", ".join(MECHANISMS + FEATURES)
            )
        )
    return frozenset(wished)


def _read_btf(path: str) -> bytes:
    """Contents of a file of type information; empty if it is something else.

    A name may stand for a device without end: nothing is read that does not begin like BTF.
    """
    with open(path, "rb") as file:
        head = file.read(_BTF_HEADER_BYTES)
        if head[:2] != _BTF_MAGIC or len(head) < _BTF_HEADER_BYTES:
            return b""
        blob = head + file.read(_MAX_BTF_BYTES)
    return blob if text_section(blob)[1] <= len(blob) else b""


def _enum_in(blob: bytes, enum: str, base: bytes = b"") -> Dict[int, str]:
    """Enumerators of ``enum`` in a BTF blob; ``base``: the BTF it is split from.

    Split BTF continues the string offsets of its base, and uses the strings of the base too.
    Of a damaged blob the answer is as likely to be empty as wrong.
    """
    if len(blob) < _BTF_HEADER_BYTES:
        return {}
    start, end = text_section(blob)
    base_start, base_end = text_section(base) if base else (0, 0)
    shift = base_end - base_start
    at, base_at = find_text(blob, enum), find_text(base, enum)
    names = ([at - start + shift] if at >= 0 else []) + (
        [base_at - base_start] if base_at >= 0 else []
    )
    for name in names:
        for place in records(blob, name):
            found = _members(blob, place, (start - shift, end), base, (base_start, base_end))
            if found:
                return found
    return {}


def _members(
    blob: bytes, position: int, own: Tuple[int, int], base: bytes, other: Tuple[int, int]
) -> Dict[int, str]:
    """Value -> name if an enum record begins at a position; empty if these bytes are no enum.

    :param own, other: where string 0 would lie, and the end of the strings, in blob and base.
    """
    info, size = struct.unpack_from("<II", blob, position + 4)
    kind, count, signed = info >> 24 & 0x1F, info & 0xFFFF, info >> 31
    if kind not in (6, 19) or size not in (1, 2, 4, 8) or not count:
        return {}
    form = {6: "<Ii" if signed else "<II", 19: "<Iq" if signed else "<IQ"}[kind]
    names: Dict[int, str] = {}
    if position + 12 + count * struct.calcsize(form) > len(blob):
        return {}
    for index in range(count):
        offset, value = struct.unpack_from(
            form, blob, position + 12 + index * struct.calcsize(form)
        )
        text, (zero, end) = (base, other) if offset < other[1] - other[0] else (blob, own)
        at = zero + offset
        if not offset or not 0 < at < min(end, len(text)) or text[at - 1]:
            return {}
        names.setdefault(value, text[at : text.find(b"\0", at)].decode("utf-8", "replace"))
    return names
