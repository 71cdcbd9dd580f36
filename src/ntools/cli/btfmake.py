# SPDX-License-Identifier: GPL-2.0-only
"""The steps of ``ntools-btf make``: debug information to one BTF file for one kernel.

pahole turns debug information into BTF, ld joins modules before it, libbpf joins the results,
bpftool leaves out what the objects do not need. None of it needs root or the kernel in question.
"""

import contextlib
import mmap
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ntools._loader.elf import ElfFile
from ntools._loader.external import Note, difference
from ntools._loader.files import fingerprint, object_path
from ntools._loader.join import join, with_text
from ntools._loader.kernel_types import RECORDS, KernelTypes
from ntools._loader.resolve import examine
from ntools.errors import EnvironmentProblem, NtoolsError, UsageProblem

__all__ = ["Made", "Step", "TELLING", "Wish"]
__all__ += ["architecture", "fingerprints", "make", "read_btf", "types_of"]

#: ELF machine -> architecture as in the names of our objects, prefix of its tools.
_MACHINES = {62: ("x86", "x86_64-linux-gnu-"), 183: ("arm64", "aarch64-linux-gnu-")}
_PACKAGES = {
    "pahole": "dwarves (Debian: pahole)",
    "ld": "binutils",
    "bpftool": "bpftool",
    "zstd": "zstd",
}
#: Not in the path of other users than root.
_SBIN = "/usr/sbin:/sbin"
#: First bytes of compressed files.
_COMPRESSED = {b"\xfd7zXZ\0": "xz", b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst"}
#: Largest BTF file, and largest file after decompression, that are taken for what they say.
_MOST_BTF, _MOST = 1 << 28, 4 << 30
#: Structs that tell one kernel from another.
TELLING = ("sk_buff", "net_device", "task_struct", "sock", "module", "net")


class Wish(NamedTuple):
    """What to make.

    :ivar vmlinux, base: one of them; file with the types of the kernel itself.
    :ivar objects: reduce to what these objects need; empty: keep everything.
    :ivar release: "" to find it out.
    """

    output: str
    vmlinux: Optional[str]
    base: Optional[str]
    modules: Sequence[str]
    objects: Sequence[str]
    release: str
    force: bool


class Step(NamedTuple):
    """What a step gave."""

    name: str
    source: str
    types: int
    size_bytes: int
    duration_s: float


class Made(NamedTuple):
    """The finished file; ``release`` is "" if nothing told it."""

    release: str
    arch: str
    builds: Dict[str, str]
    steps: Tuple[Step, ...]


class _Input(NamedTuple):
    """An ELF file with debug information: where it was given, and where it can be read."""

    shown: str
    elf: ElfFile


def make(wish: Wish) -> Made:
    """Make the file; nothing is left behind but the file, and that only if it is whole.

    :raises UsageProblem: files that do not fit each other or are not what they should be.
    :raises EnvironmentProblem: a program is missing or too old.
    :raises NtoolsError: a step failed, or it was interrupted.
    """
    _check_output(wish)
    try:
        with _interruptible(), tempfile.TemporaryDirectory(prefix="ntools-btf-") as work:
            run = _Run(wish, work)
            blob, note = run.whole()
            _write(wish, blob)
    except KeyboardInterrupt:
        raise NtoolsError("interrupted, '{}' was not written.".format(wish.output)) from None
    except OSError as error:
        where = " '{}'".format(error.filename) if error.filename else ""
        raise NtoolsError(
            "cannot make '{}':{} {}.".format(wish.output, where, error.strerror or error)
        ) from None
    return Made(note.release, note.arch, note.builds, tuple(run.steps))


def read_btf(path: str) -> bytes:
    """Content of a file with raw BTF; its types are not looked at.

    :raises UsageProblem: it cannot be read, or begins like another kind of file.
    """
    try:
        with open(path, "rb") as file:
            blob = file.read(2)
            if blob == b"\x9f\xeb":
                blob += file.read(_MOST_BTF)
    except OSError as error:
        raise UsageProblem("cannot read '{}': {}.".format(path, error.strerror)) from None
    if blob[:2] != b"\x9f\xeb" or len(blob) > _MOST_BTF:
        raise UsageProblem("'{}' is not a BTF file (as /sys/kernel/btf/vmlinux is).".format(path))
    return blob


def types_of(path: str, blob: bytes) -> KernelTypes:
    """The types of a file.

    :raises UsageProblem: it is damaged.
    """
    try:
        return KernelTypes(blob)
    except ValueError as error:
        raise UsageProblem("'{}' is no usable BTF file: {}.".format(path, error)) from None


def architecture(types: KernelTypes) -> str:
    """Architecture of a kernel by its registers: "x86", "arm64", "" if they are not there."""
    names = {member.name for one in types.find("pt_regs", RECORDS) for member in types.members(one)}
    return "x86" if "orig_ax" in names else "arm64" if "pstate" in names else ""


def fingerprints(names: Sequence[str], arch: str) -> Dict[str, str]:
    """Name -> fingerprint of objects, as the loader compares them."""
    found = {}
    for name in names:
        path = object_path(name, arch)
        found[os.path.basename(path).split(".")[0]] = fingerprint(_read(path))
    return found


class _Run:
    """One run: the steps in their order, and what they gave."""

    def __init__(self, wish: Wish, work: str) -> None:
        self.wish = wish
        self.work = work
        self.steps: List[Step] = []
        self.arch = ""
        self.releases: Dict[str, str] = {}  # release -> file that says so

    def whole(self) -> Tuple[bytes, Note]:
        wish = self.wish
        vmlinux = self._input(wish.vmlinux) if wish.vmlinux else None
        modules = [self._input(path) for path in wish.modules]
        if wish.release:
            self._take_release(wish.release, "--release")
        for one in ([vmlinux] if vmlinux else []) + modules:
            self._take_machine(one)
            self._take_release(_release(one.elf), one.shown)
        base = self._of_vmlinux(vmlinux) if vmlinux else self._of_base(wish.base or "")
        parts = [base] + self._of_modules(modules)
        blob = base
        if len(parts) > 1:
            for part in parts[1:]:
                self._same_kernel(base, part)
            began = time.monotonic()
            blob = join(parts)
            self._note_step("joined", "libbpf", blob, began)
        note = Note(next(iter(self.releases), ""), self.arch, {})
        if wish.objects:
            blob = self._reduced(blob)
            note = note._replace(builds=fingerprints(wish.objects, self.arch))
        return with_text(blob, note.text), note

    # -- inputs --------------------------------------------------------------------------------

    def _input(self, path: str) -> _Input:
        try:
            with open(path, "rb") as file:
                head = file.read(8)
        except OSError as error:
            raise UsageProblem("cannot read '{}': {}.".format(path, error.strerror)) from None
        readable = path
        for magic, kind in _COMPRESSED.items():
            if head.startswith(magic):
                readable = _decompress(path, kind, self.work)
        if head.startswith(b"\x9f\xeb"):
            raise UsageProblem("'{}' is BTF already: give it with --base-btf.".format(path))
        try:
            found = _Input(path, ElfFile.from_path(readable))
        except ValueError as error:
            raise UsageProblem(
                "'{}': {}. Give vmlinux or a module of the kernel's debug package.".format(
                    path, error
                )
            ) from None
        if not {".debug_info", ".zdebug_info", ".BTF"} & set(found.elf.places):
            raise UsageProblem(
                "'{}' has no debug information. Give the file of the kernel's debug "
                "package.".format(path)
            )
        return found

    def _take_machine(self, one: _Input) -> None:
        if one.elf.machine not in _MACHINES:
            raise UsageProblem(
                "'{}' is for an architecture that ntools has no objects for (ELF machine "
                "{}).".format(one.shown, one.elf.machine)
            )
        self._take_arch(_MACHINES[one.elf.machine][0], one.shown)

    def _take_arch(self, arch: str, shown: str) -> None:
        if arch and self.arch and arch != self.arch:
            raise UsageProblem(
                "'{}' is for {}, the files before it are for {}.".format(shown, arch, self.arch)
            )
        self.arch = self.arch or arch

    def _take_release(self, release: str, shown: str) -> None:
        other = next(iter(self.releases), release)
        if release and release != other:
            raise UsageProblem(
                "'{}' is of kernel {}, '{}' of {}.".format(
                    shown, release, self.releases[other], other
                )
            )
        if release:
            self.releases.setdefault(release, shown)

    def _same_kernel(self, base: bytes, part: bytes) -> None:
        struct = difference(base, part, TELLING)
        if struct:
            raise UsageProblem(
                "the modules are of another kernel than '{}': struct {} differs.".format(
                    self.wish.vmlinux or self.wish.base, struct
                )
            )

    # -- steps ---------------------------------------------------------------------------------

    def _of_base(self, path: str) -> bytes:
        began = time.monotonic()
        blob = read_btf(path)
        types = types_of(path, blob)
        note = Note.from_btf(blob) or Note("", "", {})
        if note.builds:
            raise UsageProblem("'{}' has been reduced already: nothing fits on it.".format(path))
        self._take_arch(note.arch or architecture(types), path)
        running = os.uname().release if path.startswith("/sys/kernel/btf/") else ""
        self._take_release(note.release or running, path)
        self._note_step("base", path, blob, began)
        return blob

    def _of_vmlinux(self, vmlinux: _Input) -> bytes:
        began = time.monotonic()
        if ".BTF" in vmlinux.elf.places:
            blob, how = vmlinux.elf.read(".BTF"), "section .BTF"
            types_of(vmlinux.shown, blob)
        else:
            blob, how = self._pahole(vmlinux.elf.path, vmlinux.shown), "pahole"
        self._note_step("base", "{} ({})".format(vmlinux.shown, how), blob, began)
        return blob

    def _of_modules(self, modules: List[_Input]) -> List[bytes]:
        """BTF of the modules: one for all that ld can join, one for each of the others."""
        for one in modules:
            if not {".debug_info", ".zdebug_info"} & set(one.elf.places):
                raise UsageProblem(
                    "'{}' has no DWARF: the types of its own BTF cannot be joined.".format(
                        one.shown
                    )
                )
        joinable = [one for one in modules if _relocatable(one.elf)]
        groups = [joinable] if joinable else []
        groups += [[one] for one in modules if one not in joinable]
        blobs = []
        for group in groups:
            began = time.monotonic()
            path, how = group[0].elf.path, "pahole"
            if len(group) > 1:
                path, how = self._ld(group), "ld, pahole"
            shown = ", ".join(os.path.basename(one.shown).split(".ko")[0] for one in group)
            blobs.append(self._pahole(path, shown))
            self._note_step("modules", "{} ({})".format(shown, how), blobs[-1], began)
        return blobs

    def _ld(self, modules: List[_Input]) -> str:
        machine = modules[0].elf.machine
        target = os.path.join(self.work, "modules.o")
        linker = _linker(machine)
        # Common symbols (init_module, __this_module) are defined in each.
        _call([linker, "-r", "-z", "muldefs", "-o", target] + [one.elf.path for one in modules],
              "ld", "the modules")  # fmt: skip
        return target

    def _pahole(self, path: str, shown: str) -> bytes:
        program = _program("pahole")
        known = subprocess.run(
            [program, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, env=_environment(),
        ).stdout  # fmt: skip
        if b"--btf_encode_detached" not in known:
            raise EnvironmentProblem(
                "'{}' is too old: it has no --btf_encode_detached (1.22 has). Make the file on "
                "a newer machine: the kernel's files are all it takes.".format(program)
            )
        target = os.path.join(self.work, "pahole.btf")
        command = [program, "-F", "dwarf", "--btf_encode_detached=" + target]
        # libbpf before 1.0 reads no 64-bit enums, and none of ours are needed.
        if b"--skip_encoding_btf_enum64" in known:
            command.append("--skip_encoding_btf_enum64")
        said = _call(command + [path], "pahole", "'{}'".format(shown))
        try:
            blob = _read(target)
            KernelTypes(blob)
        except (OSError, ValueError):
            raise NtoolsError(
                "pahole made no usable type information of '{}'{}.".format(
                    shown, ": " + said if said else ""
                )
            ) from None
        os.unlink(target)
        return blob

    def _reduced(self, blob: bytes) -> bytes:
        began = time.monotonic()
        if not self.arch:
            raise UsageProblem(
                "'{}' does not say its architecture: no objects to reduce it to.".format(
                    self.wish.base
                )
            )
        program = _program("bpftool")
        source, target = (os.path.join(self.work, name) for name in ("whole.btf", "small.btf"))
        with open(source, "wb") as file:
            file.write(blob)
        paths = [object_path(name, self.arch) for name in self.wish.objects]
        _call([program, "gen", "min_core_btf", source, target] + paths, "bpftool", "'whole.btf'")
        small = _read(target)
        whole, types = KernelTypes(blob), KernelTypes(small)
        for path in paths:
            data = _read(path)
            if examine(data, whole).lacks != examine(data, types).lacks:
                raise NtoolsError(
                    "bpftool left out what '{}' needs. Please report it.".format(path)
                )
        self._note_step("reduced", "bpftool, for " + ", ".join(self.wish.objects), small, began)
        return small

    def _note_step(self, name: str, source: str, blob: bytes, began: float) -> None:
        self.steps.append(
            Step(name, source, KernelTypes(blob).count, len(blob), time.monotonic() - began)
        )


# -- programs ----------------------------------------------------------------------------------


def _program(name: str) -> str:
    """Path of a program.

    :raises EnvironmentProblem: it is missing; names the package.
    """
    found = shutil.which(name) or shutil.which(name, path=_SBIN)
    if not found:
        raise EnvironmentProblem(
            "'{}' is missing: install the package {}.".format(name, _PACKAGES[name])
        )
    return found


def _linker(machine: int) -> str:
    """A linker for an architecture.

    :raises EnvironmentProblem: there is none.
    """
    arch, prefix = _MACHINES[machine]
    native = {"x86_64": "x86", "aarch64": "arm64"}.get(os.uname().machine)
    if arch == native:
        return _program("ld")
    found = shutil.which(prefix + "ld") or shutil.which("ld.lld")
    if not found:
        raise EnvironmentProblem(
            "no linker for {}: install the package binutils-{} or lld.".format(arch, prefix[:-1])
        )
    return found


def _environment() -> Dict[str, str]:
    return dict(os.environ, LC_ALL="C")


def _call(command: List[str], name: str, about: str) -> str:
    """Run a program to its end; the last line it said.

    :raises NtoolsError: it failed.
    """
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=_environment(),
    )  # fmt: skip
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    said = lines[-1].strip() if lines else ""
    if done.returncode:
        raise NtoolsError(
            "{} failed with status {} on {}{}.".format(
                name, done.returncode, about, ": " + said.rstrip(".") if said else ""
            )
        )
    return said


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends like Ctrl-C: through the blocks that remove what was made."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- files -------------------------------------------------------------------------------------


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _relocatable(elf: ElfFile) -> bool:
    """Whether its debug information can be moved: some RPM debug files have lost that."""
    return bool({".rela.debug_info", ".rela.zdebug_info"} & set(elf.places))


def _release(elf: ElfFile) -> str:
    """Release a kernel or module says it is of, "" if it does not."""
    found = re.search(rb"(?:^|\0)vermagic=(\S+)", elf.read(".modinfo"))
    if found is None and ".rodata" in elf.places and elf.places[".rodata"][1]:
        start, size = elf.places[".rodata"]
        with open(elf.path, "rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                place = re.compile(rb"Linux version (\d\S*) \(").search(
                    content, start, start + size
                )
                return place.group(1).decode("ascii", "replace") if place else ""
    return found.group(1).decode("ascii", "replace") if found else ""


def _decompress(path: str, kind: str, work: str) -> str:
    """A copy of a compressed file that is not.

    :raises UsageProblem: it is damaged, or too large.
    """
    target = os.path.join(work, "{}-{}".format(len(os.listdir(work)), os.path.basename(path)))
    with open(target, "wb") as out:
        try:
            for chunk in _chunks(path, kind):
                out.write(chunk)
                if out.tell() > _MOST:
                    raise UsageProblem("'{}' is too large unpacked.".format(path))
        except (EOFError, ValueError, OSError) as error:
            raise UsageProblem("cannot unpack '{}': {}.".format(path, error)) from None
    return target


def _chunks(path: str, kind: str) -> Iterator[bytes]:
    if kind == "zst":  # the standard library learns it with Python 3.14
        done = subprocess.Popen(
            [_program("zstd"), "-dcq", "--", path], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with done:
            assert done.stdout is not None
            for chunk in iter(lambda: done.stdout.read(1 << 20), b""):  # type: ignore[union-attr]
                yield chunk
        if done.returncode:
            raise ValueError("zstd says it is damaged")
        return
    import gzip
    import lzma

    try:
        opened: Any = lzma.open(path) if kind == "xz" else gzip.open(path)
        with opened as file:
            for chunk in iter(lambda: file.read(1 << 20), b""):
                yield chunk
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from None


def _check_output(wish: Wish) -> None:
    """Before any work is done: nothing is overwritten, and the place exists."""
    if os.path.exists(wish.output) and not wish.force:
        raise UsageProblem("'{}' exists. Use --force to replace it.".format(wish.output))
    if os.path.isdir(wish.output):
        raise UsageProblem("'{}' is a directory.".format(wish.output))
    place = os.path.dirname(wish.output) or "."
    if not os.path.isdir(place):
        raise UsageProblem("there is no directory '{}'.".format(place))
    if not os.access(place, os.W_OK):
        raise UsageProblem("directory '{}' cannot be written to.".format(place))


def _write(wish: Wish, blob: bytes) -> None:
    """Under its name only when it is whole, and not over a file that came meanwhile."""
    place, name = os.path.split(wish.output)
    handle, temporary = tempfile.mkstemp(prefix="." + name + ".", dir=place or ".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(blob)
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(file.fileno(), 0o644 & ~mask)
            file.flush()
            os.fsync(file.fileno())
        if wish.force:
            os.replace(temporary, wish.output)
        else:
            _link(temporary, wish.output)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _link(temporary: str, output: str) -> None:
    try:
        os.link(temporary, output)
    except FileExistsError:
        raise UsageProblem(
            "'{}' has come to exist. Use --force to replace it.".format(output)
        ) from None
    except OSError:  # a file system without links
        os.rename(temporary, output)
