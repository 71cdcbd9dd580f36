# SPDX-License-Identifier: GPL-2.0-only
"""``ntools list`` and ``ntools doctor`` on the running kernel say what is true."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab.bpfsys import bpf_leftovers, bpf_snapshot
from lab.caps import capabilities
from lab.netns import Namespace
from object.bpfrun import obstacle

import ntools
from ntools.cli.commands import COMMANDS

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle())

MECHANISMS = ("tp_btf", "raw_tp", "fentry", "kprobe")
#: Names of everything doctor puts into the kernel for itself.
OWN = ("tp_btf__", "raw_tp__", "fentry__", "kprobe__", "tries")


@pytest.fixture(autouse=True)
def objects_are_there():
    if not list((Path(ntools.__file__).parent / "bpf").glob("doctor.*.bpf.o")):
        pytest.skip("the objects are not built ('make build')")


def run(*words: str, module: str = "ntools.cli.umbrella", prefix: tuple[str, ...] = (),
        **more: str) -> subprocess.CompletedProcess:  # fmt: skip
    script = f"import sys; from {module} import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(Path(ntools.__file__).parents[1]),
                   "PYTHONDONTWRITEBYTECODE": "1", **more}  # fmt: skip
    return subprocess.run(
        [*prefix, sys.executable, "-c", script, *words],
        env=environment, capture_output=True, text=True, timeout=180,
    )  # fmt: skip


def doctor(*words: str, **more) -> tuple[int, dict[str, dict], dict[str, dict]]:
    """Status, facts by name, verdicts by command."""
    done = run("doctor", "--format", "json", *words, **more)
    assert done.stderr == ""
    document = json.loads(done.stdout)
    return (
        done.returncode,
        {fact["name"]: fact for fact in document["facts"]},
        {row["command"]: row for row in document["commands"]},
    )


def without_privilege() -> tuple[str, ...]:
    if not shutil.which("setpriv"):
        pytest.skip("no setpriv")
    held = "-all,+dac_read_search"  # to read the files of this user
    return ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps={held}",
            f"--ambient-caps={held}", f"--bounding-set={held}")  # fmt: skip


def test_facts_agree_with_the_laboratory():
    """What the laboratory finds with calls of its own, doctor finds through libbpf."""
    before = bpf_snapshot()
    _, facts, _ = doctor()
    for name in MECHANISMS:
        assert (facts[name]["state"] == "ok") == (name in capabilities()), facts[name]
    assert (facts["ringbuf"]["state"] == "ok") == ("ringbuf" in capabilities())
    assert (facts["batch"]["state"] == "ok") == ("batch" in capabilities())
    assert (facts["module_btf"]["state"] == "ok") == ("module_btf" in capabilities())
    assert facts["libbpf"]["value"].split("(")[1].startswith("/")
    assert facts["privilege"]["state"] == "ok"
    assert not any(bpf_leftovers(before, OWN).counts().values())


@pytest.mark.parametrize("refused", ["tp_btf", "ringbuf,batch", "raw_tp,tp_btf"])
def test_facts_with_something_switched_off(refused):
    _, facts, verdicts = doctor(NTOOLS_REFUSE=refused)
    for word in refused.split(","):
        assert facts[word]["state"] == "no"
    if "raw_tp" in refused:
        for row in verdicts.values():
            assert row["verdict"] == "no"
            needed = [missing for missing in row["missing"] if missing["needed"]]
            assert needed and "switched off by NTOOLS_REFUSE" in needed[0]["why"]
    else:
        assert {row["verdict"] for row in verdicts.values()} <= {"works", "reduced"}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda row: row.name)
def test_verdict_is_what_starting_the_command_gives(command):
    """Stages that doctor calls missing are those the header of a run calls not observable."""
    status, _, verdicts = doctor(command.name)
    verdict = verdicts[command.program]
    assert (status == 0) == (verdict["verdict"] != "no")
    with Namespace("u") as ns:
        ns.ip("link add ntu0 type veth peer name ntu1", "link set ntu0 up")
        words = ["--format", "json", "--duration", "0.3"]
        if command.name.startswith("vm-"):
            words += ["--vm-interface", "ntu0", "--netns", ns.path]
        if command.name.endswith("-path"):
            words += ["--src-ip", "192.0.2.1", "--dst-ip", "192.0.2.2", "--netns", ns.path]
            words += ["--rx-iface", "ntu0", "--tx-iface", "ntu1"]
        done = run(*words, module=command.module)
    if verdict["verdict"] == "no":
        assert done.returncode == 3
        return
    assert done.returncode == 0, done.stderr
    header = json.loads(done.stdout.splitlines()[0])
    missing = {row["stage"] for row in verdict["missing"] if command.objects[0] in row["objects"]}
    assert {row["feature"] for row in header["degraded"]} == missing
    assert (verdict["verdict"] == "reduced") == bool(verdict["missing"])
    rungs: dict[str, int] = {}
    for row in header["points"]:
        rungs[row["attach"]] = rungs.get(row["attach"], 0) + 1
    assert verdict["attached"] == rungs


def test_doctor_without_privilege():
    status, facts, verdicts = doctor(prefix=without_privilege())
    assert status == 3
    assert facts["privilege"]["state"] == "bad"
    assert "missing privilege: CAP_BPF and CAP_PERFMON" in facts["privilege"]["value"]
    assert set(verdicts) == {row.program for row in COMMANDS.values()}
    for row in verdicts.values():
        assert row["verdict"] == "no"
        assert row["cause"].startswith("missing privilege: CAP_BPF and CAP_PERFMON.")
        assert row["missing"] == [] and row["attached"] == {}


def test_list_needs_no_privilege_and_loads_nothing():
    before = bpf_snapshot()
    as_root = run("list", "--format", "json")
    as_nobody = run("list", "--format", "json", prefix=without_privilege())
    assert as_root.stderr == as_nobody.stderr == ""
    assert json.loads(as_root.stdout) == json.loads(as_nobody.stdout)
    assert not any(bpf_leftovers(before, OWN, 0).counts().values())
    _, _, verdicts = doctor()
    for row in json.loads(as_root.stdout):
        verdict = verdicts[row["command"]]["verdict"]
        # A look can be too hopeful, never too gloomy.
        order = ["no", "reduced", "yes"]
        assert order.index(row["usable"]) >= order.index({"works": "yes"}.get(verdict, verdict))


def test_without_libbpf():
    status, facts, verdicts = doctor(NTOOLS_LIBBPF="/nonexistent/libbpf.so.1")
    assert status == 3
    assert facts["libbpf"]["state"] == facts["attaching"]["state"] == "bad"
    for row in verdicts.values():
        assert row["cause"].startswith("cannot open libbpf: ")
    done = run("version", NTOOLS_LIBBPF="/nonexistent/libbpf.so.1")
    assert done.returncode == 0
    assert "cannot open libbpf" in done.stdout


def test_with_type_information_that_is_not_there():
    status, facts, verdicts = doctor("--btf", "/nonexistent.btf")
    assert status == 3
    assert facts["btf"]["state"] == "bad"
    for row in verdicts.values():
        assert row["cause"] == (
            "cannot read type information '/nonexistent.btf': No such file or directory."
        )


def test_version_names_the_objects():
    done = run("version", "--format", "json")
    fields = json.loads(done.stdout)
    assert done.returncode == 0 and fields["problems"] == {}
    assert set(fields["objects"]) == {name for row in COMMANDS.values() for name in row.objects}
    assert all(len(build) == 8 for build in fields["objects"].values())
