# SPDX-License-Identifier: GPL-2.0-only
"""Packages through a private apt state: the machine's own configuration stays untouched.

The mirror is the one the machine's apt already uses. NTOOLS_VM_MIRROR and
NTOOLS_VM_SECURITY_MIRROR override it (needed once a suite has moved to an archive).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from vm.common import CACHE, VmProblem

DEBS = CACHE / "debs"
_SUITE = re.compile(r"^(stable|oldstable|testing|bullseye|bookworm|trixie)\b")


def _deb822(text: str):
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace() and key:
                fields[key] += "\n" + line.strip()
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.lower()
                fields[key] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes") != "no":
            keyring = fields.get("signed-by", "")
            for uri in fields.get("uris", "").split():
                for suite in fields.get("suites", "").split():
                    yield uri, suite, keyring if keyring.startswith("/") else ""


def _one_line(text: str):
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)", line.strip())
        if match:
            keyring = re.search(r"signed-by=(/\S+)", match[1] or "")
            yield match[2], match[3], keyring[1] if keyring else ""


def mirrors() -> tuple[str, str, str]:
    """(main mirror, security mirror, keyring or '') of this machine."""
    etc = Path("/etc/apt")
    found = []
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        found += _deb822(path.read_text())
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]:
        if path.exists():
            found += _one_line(path.read_text())
    main = security = keyring = ""
    for uri, suite, key in found:
        if not _SUITE.match(suite):
            continue
        if "-security" in suite:
            security = security or uri
        else:
            main = main or uri
            keyring = keyring or key
    main = os.environ.get("NTOOLS_VM_MIRROR") or main
    if not main:
        raise VmProblem("no Debian mirror in the apt configuration; set NTOOLS_VM_MIRROR")
    security = os.environ.get("NTOOLS_VM_SECURITY_MIRROR") or security
    return main, security or main.rstrip("/") + "-security", keyring


class AptState:
    """apt with its own lists for some suites and one architecture; use as context manager."""

    def __init__(self, suites, arch: str = "amd64"):
        self._suites = tuple(suites)
        self._arch = arch

    def __enter__(self) -> AptState:
        CACHE.mkdir(parents=True, exist_ok=True)
        self._dir = Path(tempfile.mkdtemp(prefix="apt-", dir=CACHE))
        for sub in ("lists/partial", "cache/archives/partial"):
            (self._dir / sub).mkdir(parents=True)
        (self._dir / "status").touch()
        main, security, keyring = mirrors()
        option = f"[signed-by={keyring}] " if keyring else ""
        (self._dir / "sources.list").write_text(
            "".join(
                f"deb {option}{security if s.endswith('-security') else main} {s} main\n"
                for s in self._suites
            )
        )
        settings = {
            "Dir::Etc::sourcelist": self._dir / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": self._dir / "lists",
            "Dir::State::status": self._dir / "status",
            "Dir::Cache": self._dir / "cache",
            "Acquire::Languages": "none",
            "Acquire::Check-Valid-Until": "false",  # an archived suite is out of date
            "APT::Sandbox::User": "root",
            "APT::Architecture": self._arch,
            "APT::Architectures": self._arch,
            "DPkg::Post-Invoke": "",
        }
        self._options = [x for k, v in settings.items() for x in ("-o", f"{k}={v}")]
        # A suite which does not exist makes this fail although the others are usable: the
        # verdict is whether the packages are found.
        done = self._run("apt-get", "-q", "update", check=False)
        self._update_log = done.stdout[-2000:] + done.stderr[-2000:]
        return self

    def __exit__(self, *_exc) -> None:
        shutil.rmtree(self._dir, ignore_errors=True)

    def _run(self, tool: str, *args: str, check: bool = True, cwd=None):
        done = subprocess.run(
            [tool, *self._options, *args], text=True, capture_output=True, cwd=cwd
        )
        if check and done.returncode:
            raise VmProblem(f"{tool} {' '.join(args)} failed: {done.stderr.strip()[-800:]}")
        return done

    def names(self, prefix: str) -> list[str]:
        """Package names starting with ``prefix``."""
        return self._run("apt-cache", "pkgnames", prefix).stdout.split()

    def versions(self, name: str) -> list[str]:
        """Available versions of a package, newest first."""
        rows = self._run("apt-cache", "madison", name, check=False).stdout.splitlines()
        return [row.split("|")[1].strip() for row in rows if row.count("|") == 2]

    def newest(self, name: str, wanted: str = "") -> str:
        """``wanted`` when available, else the newest version of the package."""
        have = self.versions(name)
        if not have:
            raise VmProblem(
                f"package '{name}' ({self._arch}) not found in {' '.join(self._suites)}. "
                f"Set NTOOLS_VM_MIRROR to a mirror which has it.\n{self._update_log}"
            )
        return wanted if wanted in have else have[0]

    def download(self, name: str, version: str) -> Path:
        """Fetch one package into the cache and return its path."""
        DEBS.mkdir(parents=True, exist_ok=True)
        self._run("apt-get", "-q", "download", f"{name}={version}", cwd=DEBS)
        path = cached_deb(name, version, self._arch)
        if path is None:
            raise VmProblem(f"apt did not leave '{name}={version}' in {DEBS}")
        return path

    def download_closure(self, names) -> list[Path]:
        """Fetch packages with everything they depend on, as for an empty machine."""
        self._run(
            "apt-get", "-q", "-y", "--no-install-recommends", "--download-only",
            "-o", "Debug::NoLocking=1", "install", *names,
        )  # fmt: skip
        DEBS.mkdir(parents=True, exist_ok=True)
        got = sorted((self._dir / "cache" / "archives").glob("*.deb"))
        return [Path(shutil.move(str(p), str(DEBS / p.name))) for p in got]


def cached_deb(name: str, version: str, arch: str) -> Path | None:
    """A package which an earlier run fetched."""
    path = DEBS / f"{name}_{version.replace(':', '%3a')}_{arch}.deb"
    return path if path.exists() else None
