#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Run one command in a guest with one kernel of the matrix.

    run.py --kernel 6.1 [--timeout S] [--memory MB] [--out DIR] -- COMMAND...
    run.py --kernel 6.1 --shell
    run.py --kernel 6.1 --count -- COMMAND...

With --count the guest has one CPU and its clock goes on by 1 ns per instruction, whatever the
load of this machine: differences of clocks are instructions that were executed.
The x86 guest's root is this machine's root, read-only under an overlay in memory, and the
command runs in the current directory. An arm64 guest has a root of its own, with the
project at /run/project. /run/out in the guest is the --out directory.
Exit status: the command's; 124 after --timeout seconds, 125 when the guest died.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vm import common, fetch  # noqa: E402
from vm.common import PROJECT, RC_DIED, RC_TIMEOUT, VmProblem  # noqa: E402

# AVX would be emulated badly, 5-level paging and SMAP/SMEP cost time; tsc=reliable keeps the
# TSC as clock source.
_MACHINE = {
    "amd64": (
        "qemu-system-x86_64",
        "-machine q35 -cpu max,la57=off,-avx,-avx2,-smap,-smep",
        "console=ttyS0 tsc=reliable no_timer_check",
    ),
    "arm64": (
        "qemu-system-aarch64",
        "-machine virt,gic-version=3 -cpu max,pauth-impdef=on",
        "console=ttyAMA0",
    ),
}
_FAST = ("-accel", "tcg,thread=multi", "-smp", "2")
# A nanosecond of the guest's clock per instruction. While it waits, its clock goes with that of
# this machine: with sleep=off it leaps, and a minute passes before a file of 9p has been read.
_COUNTING = ("-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=0,sleep=on")
_APPEND = "quiet loglevel=1 panic=-1 oops=panic mitigations=off random.trust_cpu=on"
# A guest that has written its status gets this long to power off.
_POWEROFF_S = 20
# Result directories kept for each kernel.
KEEP_BOOTS = 30
_LIBC = ctypes.CDLL(None)


@contextmanager
def one_guest_at_a_time():
    """Two emulated guests on two cores disturb each other: wait for the other one."""
    common.CACHE.mkdir(parents=True, exist_ok=True)
    with (common.CACHE / "guest.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fetch.say("waiting for another guest to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def end_on_sigterm() -> None:
    """Leave through the finally blocks, which end QEMU."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _die_with_parent() -> None:
    # PR_SET_PDEATHSIG: no guest outlives a runner that was killed.
    _LIBC.prctl(1, signal.SIGKILL)


class _Tail:
    """Copies what was appended to a file since the last look."""

    def __init__(self, path: Path, stream):
        self._path, self._stream, self._at = path, stream, 0

    def pump(self) -> None:
        with self._path.open("rb") as source:
            source.seek(self._at)
            data = source.read()
        if data:
            self._at += len(data)
            self._stream.write(data)
            self._stream.flush()


def _share(tag: str, path: Path, writable: bool) -> list[str]:
    mode = "" if writable else ",readonly=on,multidevs=remap"
    return [
        "-fsdev", f"local,id={tag},path={path},security_model=none{mode}",
        "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}",
    ]  # fmt: skip


class Guest:
    """One boot: prepare the out directory, then run()."""

    def __init__(self, name: str, command: list[str], out: Path, memory_mb: int = 2048,
                 shell: bool = False, count: bool = False):  # fmt: skip
        self.kernel = common.kernel(name)
        self.tree = fetch.tree(name)
        self._initrd = fetch.initrd(name)
        self.out = out
        self._memory_mb = memory_mb
        self._shell = shell
        self._count = count
        self.boot_s: float | None = None
        self.qemu_status: int | None = None
        self._boot_failed = False
        out.mkdir(parents=True, exist_ok=True)
        self._write_files(command)

    def _prepare(self) -> None:
        """Nothing of an earlier boot may look like a result of this one."""
        self.boot_s = None
        for stale in (".rc", ".started", ".dmesg"):
            (self.out / stale).unlink(missing_ok=True)
        for empty in ("stdout", "stderr", "console"):
            (self.out / empty).write_bytes(b"")

    def _write_files(self, command: list[str]) -> None:
        env = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": os.environ.get("HOME", "/"),
            "LANG": "C.UTF-8",
            "NTOOLS_VM_KERNEL": self.kernel.name,
        }
        cwd = Path.cwd()
        if self.kernel.arch == "amd64":
            self._root, self._shares, modules = Path("/"), [], self.tree.modules
            env["PYTHONDONTWRITEBYTECODE"] = "1"
        else:
            self._root, self._shares, modules = self._own_root()
            inside = cwd.relative_to(PROJECT) if PROJECT in (cwd, *cwd.parents) else ""
            cwd = Path(common.GUEST_PROJECT) / inside
            # Compiling the Python library under emulation takes a minute: keep the result.
            env |= {"PATH": "/usr/bin", "HOME": "/", "PYTHONPYCACHEPREFIX": "/run/pyc"}
        env["PATH"] = ":".join(dict.fromkeys([*env["PATH"].split(":"), "/usr/sbin", "/sbin"]))
        lines = [f"export {k}={shlex.quote(v)}\n" for k, v in env.items()]
        lines += [f"NT_CWD={shlex.quote(str(cwd))}\n", f"NT_MODULES={shlex.quote(str(modules))}\n"]
        lines += ["NT_SHELL=1\n"] if self._shell else []
        (self.out / ".env").write_text("".join(lines))
        (self.out / ".command").write_text(shlex.join(command) + "\n")
        (self.out / ".shares").write_text(
            " ".join(f"{tag}:{'rw' if writable else 'ro'}" for tag, _, writable in self._shares)
        )
        shutil.copyfile(common.HERE / "boot.sh", self.out / ".boot")

    def _own_root(self):
        """Root, further shares and module directory of a guest which is no copy of the host."""
        from vm import armroot

        pyc = common.CACHE / f"{self.kernel.arch}-pyc"
        pyc.mkdir(exist_ok=True)
        shares = [
            ("project", PROJECT, False),
            ("modules", self.tree.modules, False),
            ("pyc", pyc, True),
        ]
        return armroot.root(), shares, Path("/run/modules")

    def _qemu(self) -> list[str]:
        binary, machine, append = _MACHINE[self.kernel.arch]
        if not shutil.which(binary):
            raise VmProblem(f"'{binary}' is missing: install it")
        line = [
            binary, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            *machine.split(), *(_COUNTING if self._count else _FAST),
            "-m", str(self._memory_mb),
            "-kernel", str(self.tree.boot_image), "-initrd", str(self._initrd),
            "-append", f"{append} {_APPEND}{' nokaslr' if self._count else ''}",
            "-serial", f"file:{self.out}/console",
            *_share("root", self._root, False), *_share("out", self.out, True),
        ]  # fmt: skip
        for tag, path, writable in self._shares:
            line += _share(tag, path, writable)
        line += ["-device", "virtio-serial-pci"]
        for short, name, file in (("o", "lab.out", "stdout"), ("e", "lab.err", "stderr")):
            line += [
                "-chardev", f"file,id={short},path={self.out}/{file}",
                "-device", f"virtserialport,chardev={short},name={name}",
            ]  # fmt: skip
        if self._shell:
            line += ["-chardev", "stdio,id=t,signal=off", "-device", "virtconsole,chardev=t"]
        # A card for the guest-side scenarios; its driver is loaded only on demand.
        line += ["-netdev", "user,id=u", "-device", "virtio-net-pci,netdev=u,romfile="]
        return line

    def run(self, timeout_s: float, tick: Callable[[], bool] = lambda: True,
            streams=None) -> int:  # fmt: skip
        """Boot, wait, return the exit status.

        ``tick`` is called several times a second; False ends the guest (counts as timeout).
        ``streams``: two binary files which get the command's stdout and stderr as it runs.
        """
        with one_guest_at_a_time():
            status = self._boot(timeout_s, tick, streams)
            if status in (RC_TIMEOUT, RC_DIED) and self._boot_failed:
                # Rare, on a loaded machine: QEMU crashes or the kernel hangs before the
                # command has begun. That says nothing about the command.
                fetch.say(f"{self.kernel.name}: no boot ({self.qemu_status}), guest restarted")
                status = self._boot(timeout_s, tick, streams)
        return status

    def _boot(self, timeout_s: float, tick, streams) -> int:
        self._prepare()
        tails = []
        if streams:
            tails = [_Tail(self.out / n, s) for n, s in zip(("stdout", "stderr"), streams)]
        stdin = None if self._shell else subprocess.DEVNULL
        began = time.monotonic()
        with subprocess.Popen(
            self._qemu(),
            stdin=stdin,
            stderr=(self.out / "qemu").open("wb"),
            preexec_fn=_die_with_parent,
        ) as qemu:
            try:
                killed = self._wait(qemu, began, timeout_s, tick, tails)
            finally:
                if qemu.poll() is None:
                    qemu.kill()
                self.qemu_status = qemu.wait()
        for tail in tails:
            tail.pump()
        self._boot_failed = not self._has(".started") and time.monotonic() < began + timeout_s
        if self._has(".rc"):
            return int((self.out / ".rc").read_text())
        return RC_TIMEOUT if killed else RC_DIED

    def _has(self, name: str) -> bool:
        return (self.out / name).exists()

    def _wait(self, qemu, began, timeout_s, tick, tails) -> bool:
        """True when the guest has to be killed."""
        deadline = began + timeout_s
        finished = None
        while True:
            try:
                qemu.wait(0.1)
                return False
            except subprocess.TimeoutExpired:
                pass
            now = time.monotonic()
            if self.boot_s is None and self._has(".started"):
                self.boot_s = now - began
            for tail in tails:
                tail.pump()
            if finished is None and self._has(".rc"):
                finished = now
            if finished is not None and now > finished + _POWEROFF_S:
                return True
            if self.boot_s is None and now > began + common.BOOT_LIMIT_S:
                return True
            if not tick() or now > deadline:
                return True

    def last_words(self) -> str:
        """The end of the console and QEMU's messages, for a guest that died."""
        texts = [f"QEMU ended with {self.qemu_status}"]
        for name in ("console", "qemu"):
            text = (self.out / name).read_text(errors="replace").strip()
            texts += [line for line in text.splitlines() if line.strip()][-25:]
        return "\n".join(texts)


def new_out_dir(name: str) -> Path:
    """A fresh directory for one boot; only the newest of a kernel are kept."""
    parent = common.OUT_ROOT / common.kernel(name).name
    parent.mkdir(parents=True, exist_ok=True)
    for old in sorted(parent.iterdir(), key=lambda p: p.stat().st_mtime)[: 1 - KEEP_BOOTS]:
        shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=time.strftime("%m%d-%H%M%S-"), dir=parent))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", required=True, help="name in kernels.txt")
    parser.add_argument("--timeout", type=float, default=common.DEFAULT_TIMEOUT_S, metavar="S")
    parser.add_argument("--memory", type=int, default=2048, metavar="MB")
    parser.add_argument("--out", type=Path, help="directory seen as /run/out")
    parser.add_argument("--shell", action="store_true", help="interactive shell")
    parser.add_argument("--count", action="store_true",
                        help="one CPU whose clock counts instructions")  # fmt: skip
    parser.add_argument("-v", "--verbose", action="store_true", help="report times and paths")
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    if not options.command and not options.shell:
        parser.error("no command")
    end_on_sigterm()
    try:
        out = (options.out or new_out_dir(options.kernel)).resolve()
        guest = Guest(options.kernel, options.command, out, options.memory, options.shell,
                      options.count)  # fmt: skip
        began = time.monotonic()
        status = guest.run(
            options.timeout if not options.shell else 1e9,
            streams=(sys.stdout.buffer, sys.stderr.buffer),
        )
    except VmProblem as problem:
        fetch.say(str(problem))
        return 3
    except KeyboardInterrupt:
        return 130
    if status == RC_DIED and not (out / ".rc").exists():
        fetch.say(f"the guest died; console of {out}:\n{guest.last_words()}")
    elif status == RC_TIMEOUT and not (out / ".rc").exists():
        fetch.say(f"killed after {options.timeout:g} s; see {out}")
    if options.verbose:
        boot = "-" if guest.boot_s is None else f"{guest.boot_s:.1f} s"
        fetch.say(f"boot {boot}, total {time.monotonic() - began:.1f} s, {out}")
    return status


if __name__ == "__main__":
    sys.exit(main())
