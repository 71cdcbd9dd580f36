# SPDX-License-Identifier: GPL-2.0-only
"""Open vSwitch inside a namespace: private database, nothing installed as a service.

Starting takes 5 to 14 s under emulation, so the daemons live as long as the process and every
scenario gets a fresh bridge from them. They run in the namespace H because a kernel datapath
belongs to the network namespace of the socket that made it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Iterator, List, Sequence, Union

from lab.netns import Namespace, lines, stop_process

__all__ = ["Ovs", "ovs_host"]

_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
_NORMAL = "priority=0,actions=NORMAL"
_BASE = Path("/run" if os.access("/run", os.W_OK) else tempfile.gettempdir())
_running: List["Ovs"] = []


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-1500:] if path.exists() else ""


def _sweep_dead() -> None:
    """Removes the files of processes that were killed."""
    for path in _BASE.glob("ntovs*-*"):
        owner = path.name[5:].split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(path, ignore_errors=True)


class Ovs:
    """The two daemons and what one asks of them."""

    bridge = "br-int"

    def __init__(self) -> None:
        self.ns = Namespace("ho", kept=True)
        _sweep_dead()
        self.dir = Path(tempfile.mkdtemp(prefix=f"ntovs{os.getpid()}-", dir=_BASE))
        self._daemons: List["subprocess.Popen[bytes]"] = []

    @property
    def vswitchd_pid(self) -> int:
        """Process id of ovs-vswitchd; its handler threads serve upcalls."""
        return self._daemons[1].pid

    def _daemon(self, command: Sequence[str], ready: str) -> None:
        log = self.dir / f"{Path(command[0]).name}.log"
        environment = {
            **os.environ,
            "OVS_RUNDIR": str(self.dir),
            "OVS_LOGDIR": str(self.dir),
            "OVS_DBDIR": str(self.dir),
        }
        with log.open("wb") as stream:
            process = self.ns.popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )
        self._daemons.append(process)
        deadline = time.monotonic() + 60
        while not list(self.dir.glob(ready)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not start: {_tail(log)}")
            time.sleep(0.05)

    def start(self) -> None:
        """Starts both daemons; about 5 s."""
        self.ns.__enter__()
        database = str(self.dir / "conf.db")
        self.ns.run(["ovsdb-tool", "create", database, _SCHEMA])
        self._daemon(
            [
                "ovsdb-server",
                database,
                f"--remote=punix:{self.dir}/db.sock",
                "--no-chdir",
                "-vconsole:warn",
            ],
            "db.sock",
        )
        self.vsctl("--no-wait", "init")
        # By default a flow is forgotten after 10 s, which is less than a slow machine takes to
        # start a command: packets that are meant to hit the flow table would miss it.
        self.vsctl("--no-wait", "set", "Open_vSwitch", ".", "other_config:max-idle=600000")
        self._daemon(
            ["ovs-vswitchd", f"unix:{self.dir}/db.sock", "--no-chdir", "-vconsole:warn"],
            "ovs-vswitchd.*.ctl",
        )

    def stop(self) -> None:
        """Ends the daemons by their ids and removes namespace and files."""
        while self._daemons:
            stop_process(self._daemons.pop(), signal.SIGTERM)
        self.ns.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def alive(self) -> bool:
        """Both daemons run."""
        return bool(self._daemons) and all(one.poll() is None for one in self._daemons)

    def vsctl(self, *arguments: str) -> str:
        """Runs ovs-vsctl and waits until the switch has done it."""
        command = ["ovs-vsctl", f"--db=unix:{self.dir}/db.sock", "--timeout=60", *arguments]
        return self.ns.run(command).stdout

    def appctl(self, *arguments: str, check: bool = True) -> str:
        """Runs ovs-appctl against ovs-vswitchd."""
        control = f"{self.dir}/ovs-vswitchd.{self.vswitchd_pid}.ctl"
        return self.ns.run(["ovs-appctl", "-t", control, *arguments], check=check).stdout

    def add_bridge(
        self, ports: Sequence[str], internal: Sequence[str], tags: Sequence[str] = ()
    ) -> None:
        """Makes br-int with a kernel datapath in one transaction.

        :param tags: settings of ports such as ``mgmt0 tag=100``.
        """
        command = [
            "--",
            "add-br",
            self.bridge,
            "--",
            "set",
            "bridge",
            self.bridge,
            "datapath_type=system",
            "fail-mode=standalone",
        ]
        for port in ports:
            command += ["--", "add-port", self.bridge, port]
        for port in internal:
            command += [
                "--",
                "add-port",
                self.bridge,
                port,
                "--",
                "set",
                "interface",
                port,
                "type=internal",
            ]
        for setting in tags:
            command += ["--", "set", "port", *setting.split()]
        self.vsctl(*command)

    def del_bridge(self) -> None:
        """Removes br-int, its datapath flows and all conntrack entries of the namespace."""
        self.appctl("dpctl/flush-conntrack", check=False)
        self.vsctl("--", "--if-exists", "del-br", self.bridge)

    def flows(self, *flows: Union[str, Sequence[str]]) -> None:
        """Replaces all OpenFlow rules; without arguments back to NORMAL."""
        text = lines(*flows) or f"{_NORMAL}\n"
        address = f"unix:{self.dir}/{self.bridge}.mgmt"
        self.ns.run(["ovs-ofctl", "-O", "OpenFlow13", "replace-flows", address, "-"], text)

    def dump_openflow(self) -> str:
        """OpenFlow rules with their counters."""
        address = f"unix:{self.dir}/{self.bridge}.mgmt"
        return self.ns.run(["ovs-ofctl", "-O", "OpenFlow13", "dump-flows", address]).stdout

    def del_flows(self) -> None:
        """Empties the datapath: the next packet of every flow is an upcall."""
        self.appctl("dpctl/del-flows")

    def dump_flows(self) -> List[str]:
        """Flows of the kernel datapath."""
        return [line for line in self.appctl("dpctl/dump-flows", "-m").splitlines() if line]

    def conntrack(self, zone: int) -> List[str]:
        """Connections in a zone."""
        return self.appctl("dpctl/dump-conntrack", f"zone={zone}").splitlines()

    def one_upcall_per_flow(self) -> None:
        """From now on every new UDP flow needs its own upcall, and its answers another one.

        The rule reads the ports, which puts them into the mask of the datapath flow.
        """
        read = (
            "move:NXM_OF_UDP_SRC[]->NXM_NX_REG0[0..15],move:NXM_OF_UDP_DST[]->NXM_NX_REG0[16..31]"
        )
        self.flows(
            f"priority=10,udp,actions={read},NORMAL",
            f"priority=10,udp6,actions={read},NORMAL",
            _NORMAL,
        )
        self.del_flows()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """ovs-vswitchd is stopped (SIGSTOP): upcalls wait, known flows go on."""
        process = self._daemons[1]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def stop_for(self, seconds: float) -> threading.Thread:
        """Stops ovs-vswitchd now and lets it go on after a while; join the thread to wait."""
        begun = threading.Event()

        def body() -> None:
            with self.stopped():
                begun.set()
                time.sleep(seconds)

        thread = threading.Thread(target=body, name="ovs-stop")
        thread.start()
        begun.wait()
        return thread


def ovs_host() -> Ovs:
    """The daemons of this process, started when they do not run."""
    if _running and not _running[0].alive():
        _running.pop().stop()
    if not _running:
        ovs = Ovs()
        try:
            ovs.start()
        except BaseException:
            ovs.stop()
            raise
        _running.append(ovs)
    return _running[0]


@atexit.register
def _stop_all() -> None:
    while _running:
        _running.pop().stop()
