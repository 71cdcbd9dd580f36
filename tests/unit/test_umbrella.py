# SPDX-License-Identifier: GPL-2.0-only
"""``ntools``: the table of commands, and what list, doctor, schema and version make of it."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import ntools
from ntools._loader import PointReport, Refusal
from ntools.cli import commands as tools
from ntools.cli import doctor, umbrella
from ntools.errors import EnvironmentProblem

TOP = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(ntools.__file__).parents[1])}


def run(*words: str, stdout=subprocess.PIPE) -> subprocess.CompletedProcess:
    script = "import sys; from ntools.cli.umbrella import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", script, *words],
        env=environment(), stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip


# -- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("row", tools.COMMANDS.values(), ids=lambda row: row.name)
def test_row_of_a_command(row):
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", row.name)
    assert re.fullmatch(r"[a-z]+", row.family)
    assert row.question.endswith("?") and len(row.question) <= 76
    assert row.objects and row.needed
    assert set(row.overhead.values()) <= {"none", "low", "variable", "high"}
    assert row.overhead
    points = row.needed + row.wanted
    assert len(set(points)) == len(points)
    assert all(re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", point) for point in points)


@pytest.mark.parametrize("row", tools.COMMANDS.values(), ids=lambda row: row.name)
def test_module_of_a_command(row):
    module = importlib.import_module(row.module)
    parser = module.parser()
    assert isinstance(parser, argparse.ArgumentParser)
    assert parser.prog == row.program
    assert callable(module.main)


def test_table_is_the_list_of_executables():
    text = (TOP / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.scripts]\n")[1].split("\n[")[0]
    scripts = dict(re.findall(r'^([\w-]+) = "(.+)"$', section, re.MULTILINE))
    assert scripts.pop("ntools") == "ntools.cli.umbrella:main"
    for name, module in tools.OFFLINE.items():
        assert scripts.pop("ntools-" + name) == module + ":main"
    assert scripts == {row.program: row.module + ":main" for row in tools.COMMANDS.values()}


def test_objects_of_the_table_are_built():
    text = (TOP / "bpf" / "meson.build").read_text(encoding="utf-8")
    built = set(re.findall(r"^ *\['(\w+)', '", text, re.MULTILINE))
    assert set(tools.objects()) | {"doctor"} == built


def test_parsers_import_nothing_heavy():
    """``--help``, manual pages and completion work without libbpf, and start at once."""
    modules = ["ntools.cli.umbrella", "ntools.cli.btf"]
    modules += [row.module for row in tools.COMMANDS.values()]
    for name in modules:
        script = (
            f"import sys; import {name} as m; m.parser().format_help(); "
            "print([n for n in sys.modules if n.split('.')[0] in "
            "('cffi', '_cffi_backend', 'pycparser', 'elftools', 'pyroute2', 'json', 'ipaddress',"
            " 'ctypes') or n.startswith(('ntools._loader', 'ntools.engine', 'ntools.host',"
            " 'ntools.output'))])"
        )
        done = subprocess.run(
            [sys.executable, "-S", "-c", script], env=environment(), capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (0, "[]\n"), f"{name}: {done.stderr}"


# -- the command line --------------------------------------------------------------------------


def test_without_words_it_helps(capsys):
    assert umbrella.main([]) == 0
    shown = capsys.readouterr().out
    for word in ("list", "doctor", "schema", "version", "ntools drop --duration 10"):
        assert word in shown


@pytest.mark.parametrize("word", ["list", "doctor", "schema", "version"])
def test_help_of_each_part(word, capsys):
    with pytest.raises(SystemExit) as caught:
        umbrella.main([word, "--help"])
    assert caught.value.code == 0
    assert f"usage: ntools {word}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, line",
    [
        (["drops"], "ntools: unknown command 'drops'. Did you mean 'drop'? See 'ntools list'.\n"),
        (["xyzzy"], "ntools: unknown command 'xyzzy'. See 'ntools list'.\n"),
        (["ntools-drop"], "ntools: unknown command 'ntools-drop'. Did you mean 'drop'? See "
                          "'ntools list'.\n"),
        (["doctor", "vm-latenc"], "ntools: unknown command 'vm-latenc'. Did you mean "
                                  "'vm-latency'? See 'ntools list'.\n"),
        (["schema", "pakcet"], "ntools: no record type 'pakcet'. Did you mean 'packet'? See "
                               "'ntools schema'.\n"),
        (["list", "--family", "x"], "ntools: no family 'x'. Families: "),
    ],
)  # fmt: skip
def test_wrong_words(words, line, capsys):
    assert umbrella.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line) and err.count("\n") == 1


@pytest.mark.parametrize("words", [["--bogus"], ["list", "--bogus"], ["list", "--format", "xml"]])
def test_wrong_options(words, capsys):
    with pytest.raises(SystemExit) as caught:
        umbrella.main(words)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ntools") and err.count("\n") == 1


@pytest.mark.parametrize("status", [0, 3])
def test_name_of_a_command_runs_it(status, monkeypatch):
    seen = []

    def run_it() -> int:
        seen.append(list(sys.argv))
        return status

    fake = types.SimpleNamespace(main=run_it)
    monkeypatch.setattr(importlib, "import_module", lambda name: {"ntools.tools.drop": fake}[name])
    monkeypatch.setattr(sys, "argv", ["ntools", "drop", "--duration", "3"])
    assert umbrella.main() == status
    assert seen == [["ntools-drop", "--duration", "3"]]


def test_a_command_names_itself_in_its_errors():
    done = run("drop", "--bogus")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ntools-drop: unrecognized arguments: --bogus.")


def test_reader_that_goes_away():
    """``ntools schema header | head -1`` ends without a word."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = run("schema", "header", stdout=pipe)
    assert done.stderr == ""


# -- verdicts ----------------------------------------------------------------------------------

ROW = tools.Command(
    "test", "path", "What?", ("one", "two"), {"summary": "low"}, ("dev_rx",), ("ovs_in", "vm_kick")
)


def refused(point: str, *refusals: Refusal) -> PointReport:
    return PointReport(point, None, None, list(refusals))


def use(monkeypatch, **objects: object) -> list[str]:
    """Fake objects: name -> reports, or an error that start() raises. What happened, in order."""
    done: list[str] = []

    class FakeObject:
        def __init__(self, name: str, btf=None) -> None:
            self.name, self.content = name, objects[name]
            rows = self.content if isinstance(self.content, list) else []
            self.points = {row.point: None for row in rows}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            done.append("close " + self.name)

        def want(self, *points: str) -> None:
            done.append("want " + " ".join(points))

        def start(self) -> None:
            done.append("start " + self.name)
            if isinstance(self.content, Exception):
                raise self.content

        def outlook(self):
            return self.content

        report = property(outlook)

    monkeypatch.setattr(doctor, "BpfObject", FakeObject)
    return done


def test_all_points_work(monkeypatch):
    rows = [PointReport(point, "tp_btf", "x", []) for point in ("dev_rx", "ovs_in", "vm_kick")]
    done = use(monkeypatch, one=rows, two=rows)
    verdict = doctor.examine(ROW)
    assert verdict == ("test", "works", None, {"tp_btf": 3}, ())
    assert done == ["want dev_rx ovs_in vm_kick", "start one", "close one",
                    "want dev_rx ovs_in vm_kick", "start two", "close two"]  # fmt: skip


def test_missing_wanted_point_reduces(monkeypatch):
    why = Refusal("kprobe", "handle_tx", 2, "refused at attach: ENOENT (No such file or directory)")
    rows = [
        PointReport("dev_rx", "raw_tp", "x", []),
        PointReport("ovs_in", "kprobe", "x", []),
        refused("vm_kick", why),
    ]
    use(monkeypatch, one=rows, two=rows)
    monkeypatch.setattr(doctor.facts(), "module_loaded", lambda name: False, raising=False)
    verdict = doctor.examine(ROW)
    assert (verdict.verdict, verdict.attached) == ("reduced", {"raw_tp": 1, "kprobe": 1})
    (missing,) = verdict.missing
    assert missing == (
        "vm.kick",
        False,
        "kprobe handle_tx: refused at attach: ENOENT (No such file or directory); module "
        "'vhost_net' is not loaded",
        ("one", "two"),
    )


def test_module_is_not_blamed_for_another_refusal(monkeypatch):
    why = Refusal("fentry", "handle_tx", 1, "refused at load: EPERM (Operation not permitted)")
    rows = [PointReport("dev_rx", "raw_tp", "x", []), refused("vm_kick", why)]
    use(monkeypatch, one=rows, two=rows)
    monkeypatch.setattr(doctor.facts(), "module_loaded", lambda name: False, raising=False)
    missing = {row.stage: row.why for row in doctor.examine(ROW).missing}
    assert missing["vm.kick"] == (
        "fentry handle_tx: refused at load: EPERM (Operation not permitted)"
    )
    assert missing["ovs.in"] == "no such point in this build"


def test_missing_needed_point_is_a_no(monkeypatch):
    rows = [refused("dev_rx"), PointReport("ovs_in", "kprobe", "x", []),
            PointReport("vm_kick", "kprobe", "x", [])]  # fmt: skip
    use(monkeypatch, one=rows, two=rows)
    verdict = doctor.examine(ROW)
    assert verdict.verdict == "no"
    assert verdict.missing == (("dev.rx", True, "no candidate", ("one", "two")),)


def test_object_that_cannot_be_loaded_is_a_no(monkeypatch):
    done = use(monkeypatch, one=EnvironmentProblem("missing privilege: CAP_BPF."), two=[])
    verdict = doctor.examine(ROW)
    assert verdict == ("test", "no", "missing privilege: CAP_BPF.", {}, ())
    assert done == ["want ", "start one", "close one"]


def test_a_look_starts_nothing(monkeypatch):
    rows = [PointReport(point, "tp_btf", "x", []) for point in ("dev_rx", "ovs_in", "vm_kick")]
    done = use(monkeypatch, one=rows, two=rows)
    assert doctor.examine(ROW, load=False).verdict == "works"
    assert not [step for step in done if step.startswith("start")]


# -- what is printed ---------------------------------------------------------------------------

VERDICTS = {
    "vm-latency": doctor.Verdict(
        "vm-latency", "reduced", None, {"tp_btf": 6, "kprobe": 2},
        (
            doctor.Missing("ovs.in", False, "no such thing", ("flight", "flight_detail")),
            doctor.Missing("vm.kick", False, "only there", ("flight_detail",)),
        ),
    ),
    "drop": doctor.Verdict("drop", "works", None, {"tp_btf": 1}, ()),
}  # fmt: skip
FACTS = [
    doctor.Fact("kernel", "info", "6.12"),
    doctor.Fact("libbpf", "ok", "1.5"),
    doctor.Fact("fentry", "no", "refused at load: " + "EPERM " * 20),
]


@pytest.fixture
def fixed(monkeypatch):
    """Two commands, verdicts and facts that do not depend on this host."""
    monkeypatch.setattr(doctor, "host_facts", lambda btf: FACTS)
    shown = dict(VERDICTS)
    monkeypatch.setattr(doctor, "examine", lambda row, btf=None, load=True: shown[row.name])
    rows = {name: tools.COMMANDS[name] for name in shown}
    monkeypatch.setattr(tools, "COMMANDS", rows)
    return shown


def test_list(fixed, capsys):
    assert umbrella.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["command", "usable", "overhead", "class"]
    assert lines[1].split(None, 2) == ["ntools-vm-latency", "reduced",
                                       "summary low, details variable"]  # fmt: skip
    assert lines[2] == "    " + tools.COMMANDS["vm-latency"].question
    assert lines[3].split()[:2] == ["ntools-drop", "yes"]
    assert max(map(len, lines)) <= 80


def test_list_as_json(fixed, capsys):
    fixed["drop"] = doctor.Verdict("drop", "no", "no libbpf.", {}, ())
    assert umbrella.main(["list", "--format", "json", "--family", "drop"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {
        "command": "ntools-drop",
        "family": "drop",
        "question": tools.COMMANDS["drop"].question,
        "overhead": tools.COMMANDS["drop"].overhead,
        "usable": "no",
        "cause": "no libbpf.",
    }


def test_doctor(fixed, capsys):
    assert umbrella.main(["doctor"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["kernel", "6.12"]
    assert lines[1].split() == ["libbpf", "ok", "1.5"]
    assert re.search(r"^ntools-vm-latency +reduced \(2 kprobe, 6 tp_btf\)$", out, re.MULTILINE)
    assert "    no    ovs.in: no such thing" in lines
    assert "    no    vm.kick in flight_detail: only there" in lines
    assert re.search(r"^ntools-drop +works \(1 tp_btf\)$", out, re.MULTILINE)
    assert max(map(len, lines)) <= 80


def test_doctor_of_one_command_that_does_not_work(fixed, capsys):
    missing = doctor.Missing("free.drop", True, "raw_tp x: ENOENT", ("drop",))
    fixed["drop"] = doctor.Verdict("drop", "no", None, {}, (missing,))
    assert umbrella.main(["doctor", "ntools-drop"]) == 3
    out = capsys.readouterr().out
    assert "ntools-vm-latency" not in out
    assert "    needs free.drop: raw_tp x: ENOENT" in out.splitlines()


def test_doctor_as_json(fixed, capsys):
    fixed["drop"] = doctor.Verdict("drop", "no", "missing privilege.", {}, ())
    assert umbrella.main(["doctor", "--format", "json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["facts"][1] == {"name": "libbpf", "state": "ok", "value": "1.5"}
    latency, drop = document["commands"]
    assert latency["command"] == "ntools-vm-latency"
    assert latency["attached"] == {"tp_btf": 6, "kprobe": 2}
    assert latency["missing"][0] == {
        "stage": "ovs.in", "needed": False, "why": "no such thing",
        "objects": ["flight", "flight_detail"],
    }  # fmt: skip
    assert (drop["verdict"], drop["cause"]) == ("no", "missing privilege.")


def test_schema(capsys):
    assert umbrella.main(["schema"]) == 0
    names = capsys.readouterr().out.split()
    assert {"header", "summary", "packet", "drop"} <= set(names)
    assert umbrella.main(["schema", "summary"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"]["type"]["const"] == "summary"


def test_version_without_libbpf_and_objects(monkeypatch, capsys):
    from ntools import _loader

    def none(*_):
        raise EnvironmentProblem("cannot open libbpf: none.")

    monkeypatch.setattr(_loader, "library", none)
    monkeypatch.setattr(_loader, "build_id", none)
    assert umbrella.main(["version", "--format", "json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["ntools"] == ntools.__version__
    assert fields["schema"] == 1
    assert "libbpf" not in fields and fields["objects"] == {}
    assert set(fields["problems"]) == {"libbpf", *tools.objects()}


def test_version(monkeypatch, capsys):
    from ntools import _loader

    monkeypatch.setattr(_loader, "build_id", lambda name: f"id-of-{name}")
    assert umbrella.main(["version"]) == 0
    out = capsys.readouterr().out
    for name in tools.objects():
        assert re.search(rf"^object {name} +id-of-{name}$", out, re.MULTILINE)
