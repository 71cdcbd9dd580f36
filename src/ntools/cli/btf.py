# SPDX-License-Identifier: GPL-2.0-only
"""``ntools-btf``: type information (BTF) for kernels that bring none, or none of their modules."""

import argparse
import re
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from ntools.cli import app
from ntools.errors import EnvironmentProblem, UsageProblem

__all__ = ["MANUAL", "main", "parser"]

#: Sections of the manual page which the parser cannot know.
MANUAL: Dict[str, str] = {
    "OUTPUT": """
        make: one line per step with the types and bytes it gave and how long it took, then what
        was written and for which kernel and architecture.

        check: what the file says of itself, then one line per object: resolves, or which of its
        points cannot work with this file and what they lack. Then the modules whose types the
        file has. --format json gives the same as one document.
        """,
    "FILES": """
        A command takes the type information that relocates it from the first of these:

        --btf FILE, else NTOOLS_BTF
            Also on a kernel that has its own; use it there for a joined file.

        /sys/kernel/btf/vmlinux
            The kernel's own, with those of its modules beside it.

        /var/lib/ntools/btf/RELEASE.btf
            Where a file made on this host belongs. RELEASE is what 'uname -r' prints.

        /usr/share/ntools/btf/ARCH/RELEASE.btf
            From a package. ARCH is x86 or arm64.

        'ntools doctor' shows which one is used.
        """,
    "OVERHEAD": """
        None on the host that is observed: the file is made on any machine, and read once when a
        command starts. For Debian's 5.10 (vmlinux of 676 MB, seven modules of 46 MB) pahole took
        11 s of CPU and 414 MB of memory for vmlinux, ld and pahole 1 s for the modules, joining
        0.3 s; the file has 4 MB, reduced to all objects 1.3 kB.
        """,
    "LIMITS": """
        A file serves to find fields in kernel structs. fentry and tp_btf need the kernel's own
        type information; without it commands attach by kprobe and raw tracepoint.

        A file made by this command names its kernel, and a command refuses it on another one. So
        it does with a file that says nothing if it disagrees with the kernel's own types. On a
        kernel that has none, a file of unknown origin is believed.

        A reduced file serves only the objects it was made for: make it again after an update.

        Debug files reduced by dwz cannot be read by every pahole.
        """,
}

_EXAMPLES = """\
examples:
  # openEuler 20.03 (4.19): a kernel without BTF
  %(prog)s make --vmlinux /usr/lib/debug/lib/modules/$(uname -r)/vmlinux \\
      --module openvswitch.ko tun.ko vhost.ko vhost_net.ko kvm.ko \\
      -o /var/lib/ntools/btf/$(uname -r).btf
  # Debian 11 (5.10): BTF of the kernel, none of its modules
  %(prog)s make --base-btf /sys/kernel/btf/vmlinux --module *.ko -o joined.btf
  %(prog)s check joined.btf
"""

#: Module -> structs that commands read or that packets and machines are told apart by.
_MODULE_TYPES = (
    ("openvswitch", ("vport", "datapath", "dp_upcall_info", "sw_flow_key")),
    ("bridge", ("net_bridge", "net_bridge_port")),
    ("tun", ("tun_struct", "tun_file")),
    ("tap", ("tap_queue", "tap_dev")),
    ("vhost", ("vhost_dev", "vhost_virtqueue")),
    ("vhost_net", ("vhost_net", "vhost_net_virtqueue")),
    ("kvm", ("kvm", "kvm_kernel_irqfd")),
)


def parser() -> argparse.ArgumentParser:
    """Command line of ``ntools-btf``."""
    top = app.Parser(
        prog="ntools-btf",
        description="Make and check type information (BTF) for kernels without it. Commands need "
        "it to find fields in kernel structs. It is made of the kernel's debug package, on any "
        "machine and without root.",
        epilog=_EXAMPLES,
        usage="%(prog)s [-h] COMMAND ...",
    )
    top.set_defaults(verbose=0)
    commands = top.add_subparsers(
        dest="subcommand", metavar="COMMAND", parser_class=app.Parser, prog=top.prog
    )
    _add_make(commands.add_parser("make", help="make the file for one kernel"))
    _add_check(commands.add_parser("check", help="say what a file lacks for the objects"))
    return top


def _add_make(add: argparse.ArgumentParser) -> None:
    base = add.add_mutually_exclusive_group(required=True)
    base.add_argument(
        "--vmlinux", default=None, metavar="FILE",
        help="uncompressed kernel with debug information, of the kernel's debug package",
    )  # fmt: skip
    base.add_argument(
        "--base-btf", default=None, metavar="FILE",
        help="BTF of the kernel itself where it has one, such as /sys/kernel/btf/vmlinux",
    )  # fmt: skip
    add.add_argument(
        "--module", action="append", nargs="+", default=[], metavar="FILE",
        help="modules with debug information, or their debug files; .xz, .gz and .zst are unpacked",
    )  # fmt: skip
    add.add_argument(
        "--min", nargs="+", default=[], metavar="OBJECT",
        help="keep only what these objects need (some kB); 'ntools version' names them",
    )  # fmt: skip
    add.add_argument("--min-all", action="store_true", help="keep only what all objects need")
    add.add_argument(
        "--release", type=_release, default=None, metavar="NAME",
        help="release of the kernel ('uname -r'), where the files do not tell",
    )  # fmt: skip
    add.add_argument("-o", "--output", required=True, metavar="FILE", help="file to write")
    add.add_argument("--force", action="store_true", help="replace the file if it exists")
    _add_format(add)


def _add_check(add: argparse.ArgumentParser) -> None:
    add.add_argument("file", metavar="FILE", help="raw BTF of a kernel")
    add.add_argument(
        "--object", nargs="+", default=[], metavar="NAME", dest="objects",
        help="objects to check (default: those of all commands)",
    )  # fmt: skip
    add.add_argument(
        "--arch", choices=("x86", "arm64"), default=None,
        help="architecture the file is wanted for (default: of this machine)",
    )  # fmt: skip
    _add_format(add)


def _add_format(add: argparse.ArgumentParser) -> None:
    add.add_argument(
        "--format", choices=("text", "json"), default="text", help="text, or one JSON document"
    )


def _release(text: str) -> str:
    if not re.match(r"[\w.+~-]+\Z", text):
        raise argparse.ArgumentTypeError("'{}' is not the release of a kernel".format(text))
    return text


def main(argv: Optional[List[str]] = None) -> int:
    """Run ``ntools-btf``; the exit status."""
    return app.run(parser, _body, argv)


def _body(args: argparse.Namespace) -> int:
    if args.subcommand is None:
        parser().print_help()
        return 0
    return {"make": _make, "check": _check}[args.subcommand](args)


def _known_objects(names: Iterable[str]) -> Tuple[str, ...]:
    """The names, if there are such objects; a path of an object file stands for itself.

    :raises UsageProblem: there is none.
    """
    from ntools.cli import commands

    known = commands.objects() + ("doctor",)
    for name in names:
        if name not in known and not name.endswith(".o"):
            raise UsageProblem("no object '{}'. There are: {}.".format(name, ", ".join(known)))
    return tuple(dict.fromkeys(names))


# -- make --------------------------------------------------------------------------------------


def _make(args: argparse.Namespace) -> int:
    from ntools.cli import btfmake, commands

    objects = _known_objects(args.min)
    if args.min_all:
        objects = tuple(dict.fromkeys(commands.objects() + ("doctor",) + objects))
    modules = [path for paths in args.module for path in paths]
    if args.base_btf and not modules and not objects:
        raise UsageProblem("nothing to make of '{}': give --module or --min.".format(args.base_btf))
    wish = btfmake.Wish(
        args.output,
        args.vmlinux,
        args.base_btf,
        modules,
        objects,
        args.release or "",
        args.force,
    )
    made = btfmake.make(wish)
    if args.format == "json":
        document = dict(made._asdict(), output=args.output)
        document["steps"] = [step._asdict() for step in made.steps]
        return _print_json(document)
    return _print(_made_lines(args.output, made))


def _made_lines(output: str, made: Any) -> List[str]:
    from ntools.output.text import hint_lines

    lines = ["{:<9}{:>8}{:>10}{:>7}  of".format("step", "types", "bytes", "s")]
    for one in made.steps:
        head = "{:<9}{:>8}{:>10}{:>7.1f} ".format(
            one.name, one.types, one.size_bytes, one.duration_s
        )
        lines += hint_lines(head, one.source, indent=0)
    what = "'{}' for kernel {} on {}".format(
        output, made.release or "(unknown, say --release)", made.arch or "(unknown)"
    )
    return lines + hint_lines("wrote", what, indent=0)


# -- check -------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """What came of one object; ``problem`` when it could not be examined."""

    name: str
    problem: Optional[str]
    findings: Any

    @property
    def resolves(self) -> bool:
        return self.problem is None and bool(self.findings.resolves)


class _Report(NamedTuple):
    """What came of a file.

    :ivar fits: whether it is for the running kernel; None: not known.
    :ivar why: how that was found out.
    :ivar modules: module -> (types the file has, types it lacks).
    """

    file: str
    size_bytes: int
    types: int
    arch: str
    release: str
    fits: Optional[bool]
    why: str
    wrong_arch: bool
    objects: Tuple[_Row, ...]
    modules: Dict[str, Tuple[List[str], List[str]]]


def _check(args: argparse.Namespace) -> int:
    from ntools.cli import commands

    report = _examined(args.file, _known_objects(args.objects) or commands.objects(), args.arch)
    if args.format == "json":
        _print_json(_document(report))
    else:
        _print(_check_lines(report))
    good = not report.wrong_arch and all(row.resolves for row in report.objects)
    return 0 if good else EnvironmentProblem.exit_status


def _examined(path: str, objects: Sequence[str], wanted: Optional[str]) -> _Report:
    from ntools._loader import facts
    from ntools._loader.external import Note
    from ntools._loader.kernel_types import RECORDS
    from ntools.cli import btfmake

    blob = btfmake.read_btf(path)
    types = btfmake.types_of(path, blob)
    note = Note.from_btf(blob) or Note("", "", {})
    try:
        arch = note.arch or btfmake.architecture(types)
        target = wanted or facts().arch
        rows = tuple(_examine(name, arch or target, types, note) for name in objects)
    except ValueError as error:
        raise UsageProblem("'{}' is no usable BTF file: {}.".format(path, error)) from None
    fits, why = _fits(blob, note, arch)
    modules = {}
    for module, names in _MODULE_TYPES:
        found = [name for name in names if types.find(name, RECORDS)]
        modules[module] = (found, [name for name in names if name not in found])
    return _Report(
        path, len(blob), types.count, arch, note.release, fits, why,
        bool(arch) and arch != target, rows, modules,
    )  # fmt: skip


def _examine(name: str, arch: str, types: Any, note: Any) -> _Row:
    from ntools._loader.files import fingerprint, object_path
    from ntools._loader.resolve import examine

    try:
        with open(object_path(name, arch), "rb") as file:
            data = file.read()
    except OSError as error:
        raise UsageProblem("cannot read '{}': {}.".format(name, error.strerror)) from None
    if note.builds and note.builds.get(name) != fingerprint(data):
        return _Row(name, "the file was reduced to what other objects need", None)
    try:
        return _Row(name, None, examine(data, types))
    except ValueError as error:
        if name.endswith(".o"):
            raise UsageProblem("'{}' is no BPF object: {}.".format(name, error)) from None
        raise


def _fits(blob: bytes, note: Any, arch: str) -> Tuple[Optional[bool], str]:
    """Whether a file is for the running kernel, and how one knows."""
    from ntools._loader import KernelFacts
    from ntools._loader.external import difference
    from ntools.cli import btfmake

    kernel = KernelFacts()
    if arch and arch != kernel.arch:
        return False, "this machine is {}".format(kernel.arch)
    if note.release:
        return note.release == kernel.release, "this host runs {}".format(kernel.release)
    if not kernel.own_btf:
        return None, "it does not say of which kernel it is, and this one has no BTF to compare"
    struct = difference(blob, kernel.own_btf, btfmake.TELLING)
    if struct:
        return False, "struct {} differs from that of the running kernel".format(struct)
    return True, "its structs are those of the running kernel"


def _document(report: _Report) -> Dict[str, Any]:
    fields: Dict[str, Any] = report._asdict()
    fields["objects"] = [
        {
            "object": row.name,
            "resolves": row.resolves,
            "problem": row.problem,
            "questions": row.findings.asked if row.findings else None,
            "points": row.findings.points if row.findings else None,
            "missing": list(row.findings.missing) if row.findings else None,
            "lacks": [
                {"field": str(lack.question), "why": lack.why, "programs": list(lack.programs)}
                for lack in (row.findings.lacks if row.findings else ())
            ],
        }
        for row in report.objects
    ]
    fields["modules"] = {
        name: {"found": found, "absent": absent} for name, (found, absent) in report.modules.items()
    }
    return fields


def _check_lines(report: _Report) -> List[str]:
    from ntools.output.text import hint_lines

    told = {True: "for this host", False: "not for this host", None: "not known"}[report.fits]
    lines = _labelled("file", "{} ({} types, {} kB)".format(
        report.file, report.types, report.size_bytes >> 10))  # fmt: skip
    lines += _labelled("architecture", report.arch or "not told by the file")
    lines += _labelled("kernel", "{}: {} ({})".format(
        report.release or "release not noted", told, report.why))  # fmt: skip
    if report.wrong_arch:
        lines += hint_lines("why", "wrong architecture; --arch {} checks it for such "
                            "machines".format(report.arch))  # fmt: skip
    lines.append("")
    for row in report.objects:
        lines += _object_lines(row)
    lines.append("")
    for module, (found, absent) in report.modules.items():
        text = ", ".join(found) or "no types"
        lines += _labelled(module, text + (" (not {})".format(", ".join(absent)) if found and absent
                                           else ""))  # fmt: skip
    return lines


def _object_lines(row: _Row) -> List[str]:
    from ntools.output.text import hint_lines

    if row.problem is not None:
        return _labelled(row.name, "no") + hint_lines("why", row.problem)
    found = row.findings
    if found.resolves:
        lines = _labelled(row.name, "resolves ({} points, {} questions)".format(
            found.points, found.asked))  # fmt: skip
    else:
        lines = _labelled(row.name, "no: {} of {} points have no program that resolves".format(
            len(found.missing), found.points))  # fmt: skip
        lines += hint_lines("no", ", ".join(found.missing))
    for lack in found.lacks:
        lines += hint_lines(
            "lacks", "{}: {}, for {}".format(lack.question, lack.why, ", ".join(lack.programs))
        )
    return lines


def _labelled(label: str, text: str) -> List[str]:
    from ntools.output.text import hint_lines

    return hint_lines("{:<15}".format(label), text, indent=0)


def _print_json(document: Any) -> int:
    import json

    return _print(json.dumps(document, indent=2).split("\n"))


def _print(lines: Iterable[str]) -> int:
    import sys

    from ntools.output.stream import LineStream, printable

    LineStream(sys.stdout).write([printable(line) for line in lines])
    return 0
