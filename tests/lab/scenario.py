# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios: functions with needs and a limit, collected from tests/vm/scenarios.

::

    @scenario(requires=("tun", "bridge"), timeout_s=60)
    def drops_are_counted(lab):
        with bridge_topo() as topo, Tool(topo.h, "ntools-drop") as tool:
            ...
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import platform
import signal
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Collection, Dict, FrozenSet, Iterator, List, Tuple

from lab import netns
from lab.caps import capabilities, why_not

__all__ = [
    "Context",
    "Scenario",
    "ScenarioTimeout",
    "Skip",
    "capabilities",
    "load_all",
    "run_one",
    "scenario",
]

_PACKAGE = "vm.scenarios"
_registry: List["Scenario"] = []


class Skip(Exception):
    """Raised by a scenario that finds it cannot run here; the text is the reason."""


class ScenarioTimeout(BaseException):
    """The limit of a scenario is over; not an Exception, so that nothing swallows it."""


@dataclass
class Context:
    """What a scenario gets."""

    caps: FrozenSet[str]
    out_dir: Path
    name: str
    release: str = field(default_factory=platform.release)
    arch: str = field(default_factory=platform.machine)

    @property
    def kernel(self) -> Tuple[int, int]:
        """Major and minor number, for expectations that differ; never to choose behaviour."""
        major, minor = self.release.split(".")[:2]
        return int(major), int("".join(c for c in minor if c.isdigit()))

    def log(self, *parts: object) -> None:
        """Appends a line to the log of the scenario."""
        path = self.out_dir / f"{self.name}.log"
        with path.open("a", errors="backslashreplace") as stream:
            stream.write(" ".join(str(part) for part in parts) + "\n")


@dataclass(frozen=True)
class Scenario:
    """One registered scenario."""

    name: str
    func: Callable[[Context], Any]
    requires: Tuple[str, ...]
    timeout_s: float


def scenario(requires: Collection[str] = (), timeout_s: float = 90) -> Callable[[Any], Any]:
    """Registers a function as ``module.function``.

    :param requires: names of :func:`lab.caps.capabilities`; without them it is skipped.
    """

    def register(func: Callable[[Context], Any]) -> Callable[[Context], Any]:
        name = f"{func.__module__.rsplit('.', 1)[-1]}.{func.__name__}"
        _registry.append(Scenario(name, func, tuple(requires), timeout_s))
        return func

    return register


def load_all(package: str = _PACKAGE) -> List[Scenario]:
    """Imports all modules of the package; scenarios by module name, then as written."""
    names = [package]
    home = importlib.import_module(package)
    for name in sorted(found.name for found in pkgutil.iter_modules(getattr(home, "__path__", []))):
        names.append(importlib.import_module(f"{package}.{name}").__name__)
    return [one for name in names for one in _registry if one.func.__module__ == name]


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("scenarios run in the main thread: their limit is an alarm")

    def ring(*_: object) -> None:
        raise ScenarioTimeout(f"not finished in {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    # Again and again: the clean-up can hang too.
    signal.setitimer(signal.ITIMER_REAL, seconds, 30)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _reason(problem: BaseException) -> str:
    text = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {text[0] if text else ''}"[:300]


def run_one(one: Scenario, caps: Collection[str], out_dir: Path) -> Dict[str, Any]:
    """Runs a scenario: name, result (passed, failed, skipped), reason, seconds, load.

    The traceback goes to ``out_dir/<name>.log``. A namespace left behind is a failure too.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    record: Dict[str, Any] = {"name": one.name, "result": "passed", "reason": ""}
    missing = [name for name in one.requires if name not in caps]
    begun = time.monotonic()
    if missing:
        record.update(
            result="skipped",
            reason="missing: " + ", ".join(f"{name} ({why_not(name)})" for name in missing),
        )
    else:
        context = Context(frozenset(caps), out_dir, one.name)
        try:
            with _limit(one.timeout_s):
                one.func(context)
        except Skip as skip:
            record.update(result="skipped", reason=str(skip))
        except KeyboardInterrupt:
            context.log(traceback.format_exc())
            raise
        except (Exception, ScenarioTimeout) as problem:
            context.log(traceback.format_exc())
            record.update(result="failed", reason=_reason(problem))
        left = netns.leaked()
        if left and record["result"] == "passed":
            record.update(result="failed", reason=f"left behind: {', '.join(left)}")
    record["seconds"] = round(time.monotonic() - begun, 2)
    record["load"] = round(os.getloadavg()[0], 2)
    return record
