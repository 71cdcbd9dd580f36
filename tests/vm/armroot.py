# SPDX-License-Identifier: GPL-2.0-only
"""The root directory of the arm64 guest: packages unpacked, no maintainer scripts run."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from vm import aptstate
from vm.common import CACHE

SUITES = ("trixie", "trixie-security")
PACKAGES = (
    "bash bpftool busybox-static coreutils findutils grep iproute2 iputils-ping kmod libbpf1 "
    "mount nftables openvswitch-switch procps python3 python3-cffi python3-pyelftools "
    "python3-jsonschema python3-pytest sed tar tcpdump util-linux"
).split()

# What the skipped maintainer scripts would have left.
_FILES = {
    "etc/passwd": "root:x:0:0:root:/:/bin/bash\n",
    "etc/group": "root:x:0:\n",
    "etc/hosts": "127.0.0.1 localhost ntlab\n",
    "etc/hostname": "ntlab\n",
}
# What update-alternatives would have made.
_LINKS = {
    "usr/sbin/ovs-vswitchd": "../lib/openvswitch-switch/ovs-vswitchd",
    "usr/bin/awk": "mawk",
    "usr/bin/sh": "bash",
}
_DIRECTORIES = "dev etc home mnt proc root run srv sys tmp var usr/bin usr/sbin usr/lib".split()


def _prepare(root: Path) -> None:
    for name in _DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "usr/lib/modules").mkdir()
    (root / "var/run").symlink_to("/run")


def root() -> Path:
    """The arm64 root, built when needed."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    target = CACHE / f"arm64-root-{recipe}"
    if target.exists():
        return target
    for old in CACHE.glob("arm64-root-*"):
        shutil.rmtree(old)
    fresh = CACHE / ".arm64-root.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    _prepare(fresh)
    with aptstate.AptState(SUITES, "arm64") as apt:
        debs = apt.download_closure(PACKAGES)
    for deb in debs:
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE
        ) as unpack:
            subprocess.run(
                ["tar", "-x", "--keep-directory-symlink", "-C", str(fresh)],
                stdin=unpack.stdout,
                check=True,
            )
    for name, text in _FILES.items():
        (fresh / name).write_text(text)
    for name, to in _LINKS.items():
        if not (fresh / name).exists():
            (fresh / name).symlink_to(to)
    fresh.rename(target)
    return target
