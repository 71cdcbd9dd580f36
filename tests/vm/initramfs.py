# SPDX-License-Identifier: GPL-2.0-only
"""The initramfs of the guest: busybox, init.sh and the modules of the 9p root."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

from vm import elf
from vm.common import HERE, VmProblem

MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console")


def _entry(name: str, mode: int, data: bytes, number: int) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0"
    head += b"\0" * (-len(head) % 4)
    return head + data + b"\0" * (-len(data) % 4)


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A newc archive of path -> (mode, content); directories have no content."""
    rows = [_entry(n, m, d, i + 1) for i, (n, (m, d)) in enumerate(files.items())]
    return b"".join(rows) + _entry("TRAILER!!!", 0, b"", 0)


def _module_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko")[0].replace("-", "_")


def module_paths(modules_dir: Path, wanted) -> list[str]:
    """Files of the wanted modules and their dependencies, in load order.

    A name missing in modules.dep is built in.
    """
    depends, by_name = {}, {}
    for line in (modules_dir / "modules.dep").read_text().splitlines():
        path, needs = line.split(":", 1)
        depends[path] = needs.split()
        by_name[_module_name(path)] = path
    order: list[str] = []
    for name in wanted:
        path = by_name.get(name.replace("-", "_"))
        if path is None:
            continue
        # modules.dep lists the dependencies last-needed first.
        for item in [*reversed(depends[path]), path]:
            if item not in order:
                order.append(item)
    return order


def build(modules_dir: Path, busybox: Path, into: Path) -> Path:
    """Write the initramfs unless one of the same content recipe is there; return its path."""
    recipe = hashlib.sha256()
    for source in (HERE / "init.sh", HERE / "initramfs.py"):
        recipe.update(source.read_bytes())
    target = into / f"initrd-{recipe.hexdigest()[:12]}.img"
    if target.exists():
        return target
    if not busybox.exists():
        raise VmProblem(f"'{busybox}' is missing: install busybox-static")
    content = busybox.read_bytes()
    if b"/ld-linux" in content[:4096]:
        raise VmProblem(f"'{busybox}' is not static: install busybox-static")
    directories = ("bin", "dev", "proc", "sys", "modules", "lower", "upper", "new")
    files = dict.fromkeys(directories, (0o040755, b""))
    files["bin/busybox"] = (0o100755, content)
    files["init"] = (0o100755, (HERE / "init.sh").read_bytes())
    names = []
    for path in module_paths(modules_dir, MODULES):
        name = f"{_module_name(path)}.ko"
        names.append(name)
        files[f"modules/{name}"] = (0o100644, elf.read_module(modules_dir / path))
    files["modules/order"] = (0o100644, "".join(f"{n}\n" for n in names).encode())
    for old in into.glob("initrd-*.img"):
        old.unlink()
    temporary = target.with_suffix(".new")
    temporary.write_bytes(gzip.compress(cpio(files), 1))
    temporary.rename(target)
    return target
