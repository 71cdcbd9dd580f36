#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Fetch the kernels of the matrix, unpack them and cut out what the tests need.

    fetch.py [KERNEL...] [--libbpf]      default: every x86 kernel and the libbpf versions

For other tests: btf_files(), symbol_files(), debug_modules(), make_joined_btf(),
libbpf_files(), tree(). Everything is kept in NTOOLS_VM_CACHE (default ~/.cache/ntools-vm); a
second call only looks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vm import aptstate, elf, initramfs  # noqa: E402
from vm.common import CACHE, Kernel, VmProblem, kernel, kernels  # noqa: E402

# Raised when the shape of an unpacked tree changes: older ones are unpacked again.
LAYOUT = 1

# Modules whose BTF and function names the object tests look at (those a kernel has).
BTF_MODULES = (
    "8021q act_ct act_mirred bonding bridge br_netfilter cls_bpf cls_flower dummy e1000e geneve "
    "i40e ice ifb ip_gre ip_tables ip_tunnel ip6_tables ipvlan irqbypass ixgbe kvm kvm_amd "
    "kvm_intel macvlan macvtap mlx5_core net_failover nf_conncount nf_conntrack nf_flow_table "
    "nf_nat nf_tables nft_compat nsh openvswitch sch_fq sch_fq_codel sch_htb sch_ingress "
    "sch_netem sch_tbf tap team tun udp_tunnel veth vhost vhost_iotlb vhost_net vhost_vsock "
    "virtio_net virtio_pci virtio_ring vport_geneve vport_gre vport_vxlan vxlan x_tables "
    "xt_conntrack"
).split()

# Version -> (pinned packages, suites). The loader is tested against each. A libbpf which is
# newer than the machine's C library comes with the libraries it was built for.
LIBBPF = {
    "0.3": ({"libbpf0": "1:0.3-2+deb11u1"}, ("bullseye", "bullseye-security")),
    "1.1": ({"libbpf1": "1:1.1.2-0+deb12u1"}, ("bookworm", "bookworm-security")),
    "1.5": (
        {"libbpf1": "1:1.5.0-3", "libc6": "", "libelf1t64": "", "zlib1g": "", "libzstd1": ""},
        ("trixie", "trixie-security"),
    ),
}
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
# A debug package and the modules taken out of it.
_DEBUG_SPACE = 1 << 30


@dataclass(frozen=True)
class Tree:
    """An unpacked kernel."""

    root: Path
    release: str

    @property
    def modules(self) -> Path:
        """Directory which holds the directory named after the release."""
        return self.root / "usr/lib/modules"

    @property
    def config(self) -> Path:
        return self.root / f"boot/config-{self.release}"

    @property
    def boot_image(self) -> Path:
        """What QEMU boots: the ELF kernel on x86, the raw image on arm64."""
        image = self.root / f"boot/vmlinux-{self.release}"
        return image if image.exists() else self.root / f"boot/vmlinuz-{self.release}"


_said: set[str] = set()


def say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)


def say_once(text: str) -> None:
    """A notice, the first time only."""
    if text not in _said:
        _said.add(text)
        say(text)


def natural(text: str) -> list:
    """Sort key which orders numbers inside text by value."""
    return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", text)]


def _choose_release(k: Kernel, apt: aptstate.AptState) -> str:
    """The pinned release when the mirror still has it, else the newest of its series."""
    probe = k.packages[0]
    prefix = probe.split("{")[0]
    names = set(apt.names(prefix))
    if probe.format(release=k.release) in names:
        return k.release
    matches = [n[len(prefix) :] for n in names if re.fullmatch(k.series, n[len(prefix) :])]
    if not matches:
        raise VmProblem(
            f"no package '{probe}' for kernel {k.name} on the mirror; set NTOOLS_VM_MIRROR"
        )
    return max(matches, key=natural)


def _download(k: Kernel) -> tuple[str, str, list[Path]]:
    """(release, notice, package files)."""
    names = [p.format(release=k.release) for p in k.packages]
    have = [aptstate.cached_deb(n, k.version, k.arch) for n in names]
    if all(have):
        return k.release, "", have
    with aptstate.AptState(k.suites, k.arch) as apt:
        release = _choose_release(k, apt)
        names = [p.format(release=release) for p in k.packages]
        version = apt.newest(names[0], k.version)
        notice = ""
        if (release, version) != (k.release, k.version):
            notice = f"{k.name}: pinned {k.pin} is gone, using {release}={version}"
        return release, notice, [apt.download(n, version) for n in names]


def _unpack(debs, root: Path, release: str) -> None:
    for deb in debs:
        subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], check=True)
    # One shape for all: modules under usr/lib with a link, kernel files under boot.
    if (root / "lib").is_dir() and not (root / "lib").is_symlink():
        shutil.copytree(root / "lib", root / "usr/lib", symlinks=True, dirs_exist_ok=True,
                        copy_function=shutil.move)  # fmt: skip
        shutil.rmtree(root / "lib")
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    (root / "boot").mkdir(exist_ok=True)
    for name in ("vmlinuz", "config"):
        inner = root / "usr/lib/modules" / release / name
        link = root / "boot" / f"{name}-{release}"
        if inner.exists() and not link.exists():
            link.symlink_to(os.path.relpath(inner, link.parent))
    subprocess.run(["depmod", "-b", str(root), release], check=True)


def _cut_btf(tree: Tree, arch: str) -> None:
    vmlinuz = (tree.root / f"boot/vmlinuz-{tree.release}").read_bytes()
    if arch == "amd64":
        image = elf.vmlinux_of(vmlinuz)
        (tree.root / f"boot/vmlinux-{tree.release}").write_bytes(image)
        btf = elf.Elf(image).section(".BTF")
    else:
        btf = elf.btf_in_image(vmlinuz)
    for name in ("btf", "sym"):
        (tree.root / name).mkdir(exist_ok=True)
    if btf is None:
        raise VmProblem(f"kernel {tree.release} has no .BTF section")
    (tree.root / "btf/vmlinux").write_bytes(btf)
    directory = tree.modules / tree.release
    for path in initramfs.module_paths(directory, BTF_MODULES):
        name = Path(path).name.split(".ko")[0].replace("-", "_")
        module = elf.Elf(elf.read_module(directory / path))
        btf = module.section(".BTF")
        if btf:
            (tree.root / "btf" / name).write_bytes(btf)
        (tree.root / "sym" / name).write_text("".join(f"{f}\n" for f in module.functions()))
    # The System.map of the packages is a stub.
    names = elf.btf_functions((tree.root / "btf/vmlinux").read_bytes())
    (tree.root / "sym/vmlinux").write_text("".join(f"{n}\n" for n in names))


def tree(name: str) -> Tree:
    """The unpacked kernel of that name in kernels.txt, fetched when needed."""
    k = kernel(name)
    root = CACHE / "kernels" / k.name
    stamp = root / "stamp.json"
    if stamp.exists():
        state = json.loads(stamp.read_text())
        if state["pin"] == k.pin and state["layout"] == LAYOUT:
            if state["notice"]:
                say_once(state["notice"])
            return Tree(root, state["release"])
    say(f"{k.name}: fetching")
    release, notice, debs = _download(k)
    if notice:
        say_once(notice)
    fresh = root.with_name(f".{k.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    say(f"{k.name}: unpacking {release}")
    _unpack(debs, fresh, release)
    _cut_btf(Tree(fresh, release), k.arch)
    state = {"pin": k.pin, "layout": LAYOUT, "release": release, "notice": notice}
    (fresh / "stamp.json").write_text(json.dumps(state))
    shutil.rmtree(root, ignore_errors=True)
    fresh.rename(root)
    return Tree(root, release)


def _listing(directory: Path) -> dict[str, Path]:
    return {p.name: p for p in sorted(directory.iterdir())}


def btf_files(name: str) -> dict[str, Path]:
    """Raw BTF by module name; 'vmlinux' is the base of the others. 5.10 has only that."""
    return _listing(tree(name).root / "btf")


def symbol_files(name: str) -> dict[str, Path]:
    """Files of function names, one per line, by module name.

    Modules: the symbol table. 'vmlinux': the functions its BTF describes.
    """
    return _listing(tree(name).root / "sym")


def debug_modules(name: str) -> list[Path]:
    """Modules of a kernel with their debug information, fetched when needed.

    The package is large (5.10: 803 MB, 5.7 GB unpacked) and not kept: it is read up to the last
    of the few modules wanted.
    """
    k, t = kernel(name), tree(name)
    if not k.debug_package:
        raise VmProblem(f"kernels.txt names no debug package for kernel {k.name}")
    place = CACHE / "debug" / k.name / t.release
    wanted = {f"{m}.ko" for m in k.debug_modules}
    if not place.exists() or {p.name for p in place.iterdir()} != wanted:
        fresh = place.with_name(f".{t.release}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        if shutil.disk_usage(fresh).free < _DEBUG_SPACE:
            raise VmProblem(f"'{CACHE}' has less than {_DEBUG_SPACE >> 20} MiB left")
        package = k.debug_package.format(release=t.release)
        say(f"{k.name}: fetching {package}")
        with aptstate.AptState(k.suites, k.arch) as apt:
            deb = apt.download(package, apt.newest(package, k.version))
        try:
            say(f"{k.name}: taking {len(wanted)} modules out of it")
            _take_modules(deb, t, k.debug_modules, fresh)
        finally:
            deb.unlink()
        shutil.rmtree(place.parent / t.release, ignore_errors=True)
        fresh.rename(place)
    return sorted(place.iterdir())


def _take_modules(deb: Path, t: Tree, modules, into: Path) -> None:
    directory = t.modules / t.release
    names = [
        f"./usr/lib/debug/lib/modules/{t.release}/{initramfs.module_paths(directory, [m])[-1]}"
        for m in modules
    ]
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as archive:
        # One occurrence of each: tar ends behind the last, which cuts dpkg-deb off.
        done = subprocess.run(
            ["tar", "-x", "--occurrence=1", "-C", str(into), "--transform=s|.*/||", *names],
            stdin=archive.stdout, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    if done.returncode:
        raise VmProblem(f"'{deb.name}' cannot be unpacked: {done.stderr.strip()[-500:]}")


def make_joined_btf(name: str, target: Path) -> Path:
    """Type information of a kernel and the modules of :func:`debug_modules`, by ntools-btf."""
    beside = Path(sys.executable).with_name("ntools-btf")
    done = subprocess.run(
        [str(beside) if beside.exists() else "ntools-btf", "make", "--base-btf",
         str(btf_files(name)["vmlinux"]), "--module", *map(str, debug_modules(name)),
         "--output", str(target)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        raise VmProblem(f"ntools-btf failed: {done.stdout.strip()[-800:]}")
    return target


def initrd(name: str) -> Path:
    """The initramfs of a kernel."""
    k, t = kernel(name), tree(name)
    if k.arch == "amd64":
        busybox = Path(shutil.which("busybox") or "/bin/busybox")
    else:
        from vm import armroot

        busybox = armroot.root() / "usr/bin/busybox"
    return initramfs.build(t.modules / t.release, busybox, t.root)


def _libbpf(label: str) -> Path:
    """Directory of one libbpf version, unpacked when needed."""
    packages, suites = LIBBPF[label]
    target = CACHE / "libbpf" / label
    if not target.exists():
        debs = [aptstate.cached_deb(n, v, "amd64") if v else None for n, v in packages.items()]
        if not all(debs):
            with aptstate.AptState(suites) as apt:
                versions = {n: apt.newest(n, v) for n, v in packages.items()}
                for name, pinned in packages.items():
                    if pinned and versions[name] != pinned:
                        say(f"libbpf {label}: pinned {pinned} is gone, using {versions[name]}")
                debs = [apt.download(n, v) for n, v in versions.items()]
        fresh = target.with_name(f".{label}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for deb in debs:
            subprocess.run(["dpkg-deb", "-x", str(deb), str(fresh)], check=True)
        fresh.rename(target)
    return target


def libbpf_files() -> dict[str, Path]:
    """Shared libraries of several libbpf versions: '0.3', '1.1', '1.5' -> path."""
    return {
        label: next(p for p in (_libbpf(label) / _LIBRARIES).glob("libbpf.so.?"))
        for label in LIBBPF
    }


def libbpf_prefix(label: str, program: str) -> list[str]:
    """Command words in place of ``program`` under which that libbpf can be loaded.

    Just the program when the machine's C library is new enough, else the dynamic loader
    that belongs to the libbpf.
    """
    library = libbpf_files()[label]
    linker = next(_libbpf(label).glob(f"{_LIBRARIES}/ld-linux-x86-64.so.2"), None)
    if linker is None or subprocess.run(
        [sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", str(library)],
        stderr=subprocess.DEVNULL,
    ).returncode == 0:  # fmt: skip
        return [program]
    path = shutil.which(program) or program
    return [str(linker), "--library-path", str(linker.parent), "--argv0", path, path]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernel", nargs="*", help="names in kernels.txt")
    parser.add_argument("--libbpf", action="store_true", help="only the libbpf versions")
    options = parser.parse_args()
    names = options.kernel
    if not names and not options.libbpf:
        names = [k.name for k in kernels().values() if k.default]
    try:
        for name in names:
            t, image = tree(name), initrd(name)
            count = len(btf_files(name))
            print(f"{kernel(name).name}: {t.release}, {count} BTF files, {image.name}")
            if kernel(name).debug_package:
                print(f"{kernel(name).name}: {len(debug_modules(name))} modules for BTF")
        if options.libbpf or not options.kernel:
            for label, path in libbpf_files().items():
                print(f"libbpf {label}: {path.resolve().name}")
    except VmProblem as problem:
        say(str(problem))
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
