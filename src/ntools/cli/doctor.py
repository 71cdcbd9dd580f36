# SPDX-License-Identifier: GPL-2.0-only
"""What this host gives, found out by trying, and which commands can work on it.

Every object is loaded and every point attached for a moment: static checks say "possible" where a
kernel refuses all the same.
"""

import errno
import importlib
import os
import sys
from typing import Dict, List, NamedTuple, Optional, Tuple

from ntools import __version__
from ntools._loader import BpfObject, KernelFacts, PointReport, facts, library
from ntools.cli.commands import Command
from ntools.errors import EnvironmentProblem, NtoolsError
from ntools.model import stages

__all__ = ["NO", "REDUCED", "WORKS", "Fact", "Missing", "Verdict", "examine", "host_facts"]

WORKS, REDUCED, NO = "works", "reduced", "no"

#: Beginning of a point's name -> the module it is in, where that is no part of the kernel itself.
_MODULES = (("ovs_", "openvswitch"), ("br_", "bridge"), ("vm_kick", "vhost_net"), ("vm_", "tun"))
_CAPABILITIES = (
    ("CAP_SYS_ADMIN", 21),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
    ("CAP_SYSLOG", 34),
    ("CAP_NET_ADMIN", 12),
)
_MANY = 6


class Fact(NamedTuple):
    """One property of the host.

    :ivar name: for mechanisms and features the word ``NTOOLS_REFUSE`` knows.
    :ivar state: "ok", "no" (the commands do without it), "bad" (no command works) or "info".
    """

    name: str
    state: str
    value: str


class Missing(NamedTuple):
    """A point that is not observable here.

    :ivar stage: name of the point as in records.
    :ivar needed: the command cannot do without it.
    :ivar objects: those in which it is missing for this reason.
    """

    stage: str
    needed: bool
    why: str
    objects: Tuple[str, ...]


class Verdict(NamedTuple):
    """Whether a command can work on this host.

    :ivar verdict: "works", "reduced" or "no".
    :ivar cause: the reason when it is not about points, else None.
    :ivar attached: mechanism -> number of points that work by it.
    """

    command: str
    verdict: str
    cause: Optional[str]
    attached: Dict[str, int]
    missing: Tuple[Missing, ...]


def examine(command: Command, btf: Optional[str] = None, load: bool = True) -> Verdict:
    """Whether a command works: its objects are loaded, all its points attached and detached.

    :param load: False: only look at the type information, as root would find it.
    """
    found: Dict[str, str] = {}  # point -> mechanism
    lacking: Dict[Tuple[str, str], List[str]] = {}  # (point, why) -> objects
    absent = set(command.needed + command.wanted)
    try:
        for name in command.objects:
            with BpfObject(name, btf=btf) as obj:
                points = [p for p in command.needed + command.wanted if p in obj.points]
                absent.difference_update(points)
                obj.want(*points)
                for row in _started(obj) if load else obj.outlook():
                    if row.attach:
                        found[row.point] = row.attach
                    else:
                        lacking.setdefault((row.point, _why(row)), []).append(name)
    except NtoolsError as error:
        return Verdict(command.name, NO, str(error), {}, ())
    for point in sorted(absent):
        lacking[point, "no such point in this build"] = list(command.objects)
    missing = tuple(
        Missing(stages.from_symbol(point), point in command.needed, why, tuple(names))
        for (point, why), names in lacking.items()
    )
    attached: Dict[str, int] = {}
    for mechanism in found.values():
        attached[mechanism] = attached.get(mechanism, 0) + 1
    verdict = WORKS
    if missing:
        verdict = NO if any(row.needed for row in missing) else REDUCED
    return Verdict(command.name, verdict, None, attached, missing)


def host_facts(btf: Optional[str] = None) -> List[Fact]:
    """What decides which commands work here; mechanisms tried for real."""
    kernel = facts()
    found = [
        Fact("ntools", "info", __version__),
        Fact("python", "info", sys.version.split()[0]),
        _cffi(),
        _libbpf(),
        Fact("kernel", "info", "{} {}".format(kernel.release, kernel.machine)),
        _privilege(),
        _lockdown(),
        _btf(btf),
        _module_btf(),
    ]
    found += _tried(btf)
    found += [
        _setting("kernel.kptr_restrict", {"2": "stacks are shown without symbols"}),
        _setting("net.core.bpf_jit_enable", {"0": "BPF programs are interpreted, which is slow"}),
        Fact("tracefs", "info", "not needed"),
    ]
    return found


def _started(obj: BpfObject) -> List[PointReport]:
    obj.start()
    return obj.report


def _why(row: PointReport) -> str:
    reasons = ["{} {}: {}".format(r.mechanism, r.target, r.text) for r in row.failed]
    if all(refusal.errno in (0, errno.ENOENT) for refusal in row.failed):
        module = next((name for start, name in _MODULES if row.point.startswith(start)), None)
        if module and not facts().module_loaded(module):
            reasons.append("module '{}' is not loaded".format(module))
    return "; ".join(reasons) or "no candidate"


def _cffi() -> Fact:
    # Importing the loader needs it already, so there is one.
    return Fact("cffi", "ok", str(importlib.import_module("_cffi_backend").__version__))


def _libbpf() -> Fact:
    try:
        found = library()
    except EnvironmentProblem as error:
        return Fact("libbpf", "bad", str(error))
    return Fact("libbpf", "ok", "{} ({})".format(found.version_text, _mapped("libbpf.so")))


def _mapped(name: str) -> str:
    """Path of a loaded library; dlopen does not tell where it found it."""
    with open("/proc/self/maps", errors="surrogateescape") as file:
        for line in file:
            path = line.rstrip("\n").partition("/")
            if name in os.path.basename(path[2]):
                return "/" + path[2]
    return name


def _privilege() -> Fact:
    held = facts().capabilities
    names = [name for name, bit in _CAPABILITIES if held >> bit & 1]
    value = "uid {}; {}".format(os.geteuid(), ", ".join(names) or "no capability of use here")
    try:
        facts().check_privilege()
    except EnvironmentProblem as error:
        return Fact("privilege", "bad", "{}: {}".format(value, error))
    return Fact("privilege", "ok", value)


def _lockdown() -> Fact:
    level = facts().lockdown
    return Fact("lockdown", "bad" if level == "confidentiality" else "ok", level or "none")


def _btf(path: Optional[str]) -> Fact:
    kernel = KernelFacts(path)
    try:
        size = len(kernel.core_btf)
    except EnvironmentProblem as error:
        return Fact("btf", "bad", str(error))
    where = kernel.btf_path or "/sys/kernel/btf/vmlinux"
    origin = ", " + kernel.btf_origin if kernel.btf_origin else ""
    return Fact("btf", "ok", "{} ({} kB{})".format(where, size >> 10, origin))


def _module_btf() -> Fact:
    names = facts().btf_modules
    if not names:
        return Fact("module_btf", "no", "none: no module is loaded, or this kernel keeps none")
    shown = ", ".join(names[:_MANY]) + (", ..." if len(names) > _MANY else "")
    return Fact("module_btf", "ok", "{} ({})".format(len(names), shown))


def _tried(btf: Optional[str]) -> List[Fact]:
    """Mechanisms, channel and batches, by the object made for it."""
    try:
        with BpfObject("doctor", btf=btf) as obj:
            obj.want(*obj.points)
            obj.start()
            found = [_mechanism(row) for row in obj.report]
            obj.channel()
            if obj.kernel.has_ringbuf:
                found.append(Fact("ringbuf", "ok", "BPF ring buffer opened"))
            else:
                found.append(Fact("ringbuf", "no", "perf pages opened in its place"))
            tries = obj.map("tries")
            tries.update(1, 1)
            list(tries.items())
            if tries.reads_in_batches:
                found.append(Fact("batch", "ok", "maps are read in batches"))
            else:
                found.append(Fact("batch", "no", "maps are read one entry at a time"))
            return found
    except NtoolsError as error:
        return [Fact("attaching", "bad", str(error))]


def _mechanism(row: PointReport) -> Fact:
    if row.attach:
        return Fact(row.point, "ok", "attached to {}".format(row.target))
    return Fact(row.point, "no", "; ".join(refusal.text for refusal in row.failed))


def _setting(name: str, notes: Dict[str, str]) -> Fact:
    try:
        with open("/proc/sys/" + name.replace(".", "/")) as file:
            value = file.read().strip()
    except OSError as error:
        return Fact(name, "info", "unknown: {}".format(error.strerror))
    note = notes.get(value)
    return Fact(name, "no" if note else "info", "{}: {}".format(value, note) if note else value)
