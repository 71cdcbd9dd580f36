# SPDX-License-Identifier: GPL-2.0-only
"""The loader on the running kernel: plans, layers, channels, maps, refusals, nothing left behind.

test_loader_libbpf.py runs this file once more with other versions of libbpf.
"""

from __future__ import annotations

import copy
import ctypes
import errno
import json
import os
import platform
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab.bpfsys import bpf_leftovers, bpf_snapshot, objects_of
from lab.caps import capabilities
from lab.netns import Namespace
from object.bpfrun import build, obstacle

from ntools._loader import BpfObject, KernelFacts, MapView, facts, kernel
from ntools.errors import AttachFailed, EnvironmentProblem, LoadFailed, NtoolsError, UsageProblem

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle())

HERE = Path(__file__).resolve().parent
#: How to start the interpreter; a libbpf newer than the machine's C library needs a prefix.
PYTHON = shlex.split(os.environ.get("NTOOLS_TEST_PYTHON", shlex.quote(sys.executable)))
SENDS = 23
BURST = 64
NOTHING = frozenset()
#: Beginnings of the names of everything the test object puts into the kernel.
NAMES = ("sent__", "either__", "entry__", "flood__", "hits", "numbers", "spread", "recent")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    if not shutil.which("clang"):
        pytest.skip("no clang")
    return str(build(HERE / "loader.bpf.c", tmp_path_factory.mktemp("bpf") / "loader.o"))


@pytest.fixture(scope="module")
def network():
    with Namespace("l") as ns:
        yield ns


@pytest.fixture(autouse=True)
def nothing_left():
    before = bpf_snapshot()
    yield
    assert not any(bpf_leftovers(before, NAMES).counts().values())


def send(ns: Namespace, count: int = SENDS) -> None:
    """Datagrams to a socket of this process: each is one transmission in its own context."""
    with ns.entered():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.bind(("127.0.0.1", 0))
        for _ in range(count):
            sender.sendto(b"ntools", receiver.getsockname())


def run_program(descriptor: int, argument: int, cpu: int | None = None) -> None:
    """BPF_PROG_TEST_RUN of a raw tracepoint program."""
    context = ctypes.create_string_buffer(struct.pack("<Q", argument), 8)
    attribute = bytearray(80)
    struct.pack_into("<I", attribute, 0, descriptor)
    struct.pack_into("<I", attribute, 40, len(context))
    struct.pack_into("<Q", attribute, 48, ctypes.addressof(context))
    if cpu is not None:
        struct.pack_into("<II", attribute, 64, 1, cpu)
    buffer = ctypes.create_string_buffer(bytes(attribute), len(attribute))
    number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, 10, buffer, len(attribute)) < 0:
        raise OSError(ctypes.get_errno(), "test run")


def hits(obj: BpfObject) -> dict[str, int]:
    names = obj.types.enum("nt_loader_hit")
    sums = obj.map("hits").sums()
    return {name: sums[at] for name, at in names.items() if name != "NT_HIT_MAX"}


def report(obj: BpfObject) -> dict[str, str | None]:
    return {row.point: row.attach for row in obj.report}


# -- planning ----------------------------------------------------------------------------------


def test_points_are_read_from_names_and_sections(path):
    with BpfObject(path) as obj:
        assert set(obj.points) == {
            "sent", "either", "missing", "entry", "nowhere", "flood", "rejected", "typeless",
            "fieldless",
        }  # fmt: skip
        assert [c[1:] for c in obj.points["sent"].candidates] == [
            ("tp_btf", "net_dev_start_xmit"),
            ("raw_tp", "net_dev_start_xmit"),
        ]
        assert [c.program for c in obj.points["either"].candidates] == [
            "either__gone__tp_btf", "either__here__tp_btf",
            "either__gone__raw_tp", "either__here__raw_tp",
        ]  # fmt: skip
        with pytest.raises(UsageProblem, match="no point 'sends'"):
            obj.want("sends")


def test_nothing_is_loaded_before_start(path):
    before = bpf_snapshot()
    with BpfObject(path) as obj:
        obj.want(*obj.points)
        plan = {row.point: row.attach for row in obj.outlook()}
        assert not any(bpf_leftovers(before, NAMES, 0).counts().values())
    assert plan["sent"] == "tp_btf"
    # The second target has type information; the first is not even tried.
    assert plan["either"] == "tp_btf"
    assert plan["typeless"] is None


@pytest.mark.parametrize("refused", [(), ("tp_btf",), ("tp_btf", "raw_tp"), ("raw_tp",)])
def test_tracepoint_falls_from_typed_to_raw(path, network, refused):
    expected = next((m for m in ("tp_btf", "raw_tp") if m not in refused), None)
    with BpfObject(path, refuse=frozenset(refused)) as obj:
        obj.configure(enabled=1, pid=os.getpid())
        obj.want("sent")
        obj.start()
        send(network)
        assert report(obj) == {"sent": expected}
        assert hits(obj)["NT_HIT_SENT"] == (SENDS if expected else 0)
        (row,) = obj.report
        assert [refusal.mechanism for refusal in row.failed] == [
            m for m in ("tp_btf", "raw_tp") if m in refused and (expected != "tp_btf")
        ] or expected == "tp_btf"


@pytest.mark.parametrize("refused", [(), ("fentry",), ("kprobe",), ("fentry", "kprobe")])
def test_function_falls_from_fentry_to_kprobe(path, refused):
    possible = [m for m in ("fentry", "kprobe") if m in capabilities() and m not in refused]
    with BpfObject(path, refuse=frozenset(refused)) as obj:
        obj.want("entry", "nowhere", "sent")
        obj.start()
        assert report(obj) == {
            "entry": possible[0] if possible else None,
            "nowhere": None,
            "sent": "tp_btf",
        }
        nowhere = obj.report[1]
        assert {refusal.target for refusal in nowhere.failed} == {"nt_no_such_function"}
        assert len(nowhere.failed) == 2


def test_refusals_come_from_the_environment(path, monkeypatch):
    monkeypatch.setenv("NTOOLS_REFUSE", "tp_btf,fentry")
    with BpfObject(path) as obj:
        obj.want("sent")
        assert [row.attach for row in obj.outlook()] == ["raw_tp"]
    monkeypatch.setenv("NTOOLS_REFUSE", "uprobe")
    with pytest.raises(EnvironmentProblem, match="NTOOLS_REFUSE names 'uprobe'; known: tp_btf"):
        BpfObject(path)


def test_layers_share_maps_and_configuration(path, network):
    """The first target of `either` is refused at attach: its point moves to a second layer."""
    with BpfObject(path, refuse=frozenset(["tp_btf"])) as obj:
        obj.configure(enabled=1, pid=os.getpid())
        obj.want("sent", "either")
        obj.start()
        assert len(obj._layers) == 2
        assert report(obj) == {"sent": "raw_tp", "either": "raw_tp"}
        refusals = [row for row in obj.report[1].failed if row.mechanism == "raw_tp"]
        assert [row[:3] for row in refusals] == [("raw_tp", "nt_no_such_tracepoint", errno.ENOENT)]
        assert obj.report[1].target == "net_dev_start_xmit"
        send(network)
        assert hits(obj)["NT_HIT_SENT"] == hits(obj)["NT_HIT_EITHER"] == SENDS
        obj.configure(enabled=0)
        send(network)
        assert hits(obj)["NT_HIT_SENT"] == hits(obj)["NT_HIT_EITHER"] == SENDS
        obj.configure(enabled=2)
        send(network)
        assert hits(obj)["NT_HIT_SENT"] == hits(obj)["NT_HIT_EITHER"] == 3 * SENDS
        names = [name for name in bpf_snapshot().maps.values() if name in ("numbers", "hits")]
        assert sorted(names) == ["hits", "numbers"]


def test_configuration_can_be_read_back_and_changed(path):
    with BpfObject(path) as obj:
        obj.configure(enabled=7, inner__port=443)
        obj.start()
        fields = obj.config_type.names
        assert fields == ["enabled", "pid", "inner__port", "inner__flags", "inner__pad",
                          "inner__word"]  # fmt: skip
        assert obj.map("nt_cfg").lookup(0) == (7, 0, 443, 0, 0, 0)
        obj.configure(inner__word=1 << 31, enabled=0)
        assert obj.map("nt_cfg").lookup(0) == (0, 0, 443, 0, 0, 1 << 31)
        with pytest.raises(KeyError, match="inner__ports"):
            obj.configure(inner__ports=1)


def test_missing_needed_point_names_every_attempt(path):
    with BpfObject(path, refuse=NOTHING) as obj:
        obj.want("sent")
        obj.need("missing")
        with pytest.raises(AttachFailed) as caught:
            obj.start()
    error = caught.value
    assert error.exit_status == 3
    assert error.point == "missing"
    assert [row[:3] for row in error.tried] == [
        ("tp_btf", "nt_no_such_tracepoint", 0),
        ("raw_tp", "nt_no_such_tracepoint", errno.ENOENT),
    ]
    assert str(error) == (
        "cannot attach to 'missing': tp_btf nt_no_such_tracepoint: tracepoint not in the type "
        "information; raw_tp nt_no_such_tracepoint: refused at attach: ENOENT (No such file or "
        "directory). The command cannot work without nt_no_such_tracepoint on kernel {}.".format(
            os.uname().release
        )
    )


def test_verifier_rejection_of_a_wanted_point_costs_only_that_point(path):
    with BpfObject(path) as obj:
        obj.want("sent", "rejected", "fieldless", "typeless")
        obj.start()
        rows = {row.point: row for row in obj.report}
    assert rows["sent"].attach == "tp_btf"
    for point in ("rejected", "fieldless", "typeless"):
        assert rows[point].attach is None
    (refusal,) = rows["rejected"].failed
    assert refusal.text.startswith("refused by the verifier: EACCES (Permission denied): R1 ")
    assert "invalid mem access" in refusal.text
    (refusal,) = rows["typeless"].failed
    assert refusal[2:] == (0, "no struct nt_no_such_type in the type information")
    (refusal,) = rows["fieldless"].failed
    assert refusal.text == (
        "the kernel's type information has no sk_buff___nt_test.nt_no_such_field"
    )


def test_verifier_rejection_of_a_needed_point_is_a_failed_load(path):
    with BpfObject(path) as obj:
        obj.need("rejected")
        with pytest.raises(LoadFailed) as caught:
            obj.start()
    error = caught.value
    assert error.exit_status == 1
    assert error.program == "rejected__raw_tp"
    assert "rejected__raw_tp" in str(error) and "invalid mem access" in str(error)
    assert "\n" not in str(error)
    # The whole log, with the instruction in question.
    assert len(error.log.splitlines()) >= 3
    assert "invalid mem access" in error.log


def test_kernel_without_kprobes_is_not_asked(path, monkeypatch):
    monkeypatch.setattr(KernelFacts, "has_kprobes", False)
    with BpfObject(path, refuse=frozenset(["fentry"])) as obj:
        obj.need("entry")
        with pytest.raises(AttachFailed, match="kprobe dev_change_name: this kernel has no kprobe"):
            obj.start()


# -- what the host lacks -----------------------------------------------------------------------


def test_type_information_that_is_not_there(path, tmp_path):
    absent = str(tmp_path / "nothing.btf")
    with BpfObject(path, btf=absent) as obj:
        obj.want("sent")
        with pytest.raises(EnvironmentProblem) as caught:
            obj.start()
    assert str(caught.value) == (
        f"cannot read type information '{absent}': No such file or directory."
    )
    wrong = tmp_path / "wrong.btf"
    wrong.write_bytes(b"\x7fELF" + bytes(60))
    with BpfObject(path, btf=str(wrong)) as obj:
        obj.want("sent")
        with pytest.raises(EnvironmentProblem, match="is not a BTF file. Give raw BTF, as in "):
            obj.start()


def test_kernel_without_type_information(path, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel, "_BTF_DIR", str(tmp_path))
    monkeypatch.setattr(kernel, "_facts", None)
    with BpfObject(path) as obj:
        obj.want("sent")
        with pytest.raises(EnvironmentProblem) as caught:
            obj.start()
    text = str(caught.value)
    assert text.startswith(
        f"kernel {os.uname().release} has no type information ('{tmp_path}/vmlinux'), and there is "
        f"none in '/var/lib/ntools/btf/{os.uname().release}.btf' or '/usr/share/ntools/btf/"
    )
    assert text.endswith("Make it with ntools-btf(8), or give it with --btf FILE.")


def test_given_type_information_serves_in_place_of_the_kernels(path, network, tmp_path):
    copy = tmp_path / "copy.btf"
    copy.write_bytes(Path("/sys/kernel/btf/vmlinux").read_bytes())
    with BpfObject(path, btf=str(copy)) as obj:
        obj.configure(enabled=1, pid=os.getpid())
        obj.want("sent")
        obj.start()
        send(network)
        assert hits(obj)["NT_HIT_SENT"] == SENDS


def test_object_of_another_architecture_or_engine(tmp_path):
    with pytest.raises(EnvironmentProblem, match="no BPF object 'nonsense' for architecture"):
        BpfObject("nonsense")


# -- channels ----------------------------------------------------------------------------------


def flood(obj: BpfObject, bursts: int, first: int, cpu: int) -> None:
    for burst in range(bursts):
        run_program(obj._fds["flood"], first + burst * BURST, cpu)


def check(rows: list[tuple], fields: list[str], last: int) -> int:
    """Every record is whole and comes after the ones before; the last number."""
    number, inverse = fields.index("number"), fields.index("inverse")
    low, text, negative = (fields.index(name) for name in ("low", "text", "negative"))
    for row in rows:
        assert row[number] > last
        last = row[number]
        assert row[inverse] == last ^ 0xFFFFFFFFFFFFFFFF
        assert row[low] == last & 0xFFFF
        assert row[text] == b"nt\0\0\0\0"
        assert row[negative] == -5
    return last


@pytest.mark.parametrize("refused", [(), ("ringbuf",)], ids=["ring", "perf"])
def test_flood_is_accounted_exactly(path, refused):
    """A producer on its own CPU and a reader that is too slow at first: received + lost = sent."""
    early, live = 300, 3000
    cpu = min(os.sched_getaffinity(0))
    with BpfObject(path, refuse=frozenset(refused)) as obj:
        obj.want("flood")
        obj.start()
        channel = obj.channel()
        flood(obj, early, 1, cpu)
        assert channel.unread_bytes > 100_000
        child = os.fork()
        if not child:
            status = 1
            try:
                flood(obj, live, 1 + early * BURST, cpu)
                status = 0
            finally:
                os._exit(status)
        received, last, done = 0, 0, False
        while not done:
            done = os.waitpid(child, os.WNOHANG) != (0, 0)
            rows = list(channel.read())
            last = check(rows, channel.fields, last)
            received += len(rows)
            channel.wait(0.01)
        # The kernel reports what a CPU lost with the next record that finds room there.
        flood(obj, 1, 1 + (early + live) * BURST, cpu)
        while rows := list(channel.read()):
            last = check(rows, channel.fields, last)
            received += len(rows)
        sent = (early + live + 1) * BURST
        causes = obj.types.enum("nt_loss")
        lost = obj.map("nt_loss").sums()[causes["NT_LOSS_RING_FULL"]]
        assert hits(obj)["NT_HIT_FLOOD"] == sent
        assert lost > 0, "the reader was meant to be too slow"
        assert received + lost == sent
        assert channel.lost == (lost if refused else 0), "the kernel's own count"
        assert channel.unread_bytes == 0


@pytest.mark.parametrize("refused", [(), ("ringbuf",)], ids=["ring", "perf"])
def test_channel_wakes_its_reader(path, refused):
    with BpfObject(path, refuse=frozenset(refused)) as obj:
        obj.want("flood")
        obj.start()
        channel = obj.channel()
        assert not channel.wait(0)
        for cpu in sorted(os.sched_getaffinity(0)):
            run_program(obj._fds["flood"], 1 + cpu * BURST, cpu)
            assert channel.wait(1)
            rows = list(channel.read())
            assert [row[1] for row in rows] == list(range(1 + cpu * BURST, 1 + (cpu + 1) * BURST))
            assert {row[3] for row in rows} == {cpu}
            assert not channel.wait(0)


def test_channel_size_is_rounded_up(path):
    with BpfObject(path, refuse=NOTHING) as obj:
        obj.resize("events", 300_000)
        obj.start()
        assert ("events", 1 << 19, 1 << 19) in obj.map_bytes()


def test_close_while_a_reader_is_in_the_middle(path):
    obj = BpfObject(path, refuse=NOTHING)
    obj.want("flood")
    obj.start()
    channel = obj.channel()
    flood(obj, 1, 1, 0)
    rows = channel.read()
    assert next(rows)[1] == 1
    obj.close()
    obj.close()


# -- maps --------------------------------------------------------------------------------------


def keywise(view: MapView) -> dict:
    """Every entry read by its own lookup."""
    one_by_one = copy.copy(view)
    one_by_one.store = copy.copy(view.store)
    one_by_one.store.reads_in_batches = False
    assert not one_by_one.reads_in_batches
    return dict(one_by_one.items())


def test_ten_thousand_entries_read_in_batches_and_one_by_one(path):
    count = 10_000
    with BpfObject(path, refuse=NOTHING) as obj:
        obj.start()
        view = obj.map("numbers")
        written = {(n & 0xFFFF, n % 7, 0, n): n * n for n in range(count)}
        for key, value in written.items():
            view.update(key, value)
        rows = list(view.items())
        assert len(rows) == count
        assert dict(rows) == written
        assert keywise(view) == written
        if "batch" in capabilities():
            assert view.reads_in_batches
        assert view.lookup((77, 0, 0, 77)) == 77 * 77
        assert view.lookup((77, 1, 0, 77)) is None
        assert view.delete((77, 0, 0, 77)) is True
        assert view.delete((77, 0, 0, 77)) is False
        assert len(list(view.items())) == count - 1
        key, value = next(view.items_bytes())
        assert (len(key), len(value)) == (8, 8)


def test_values_of_all_cpus(path):
    possible = [int(n) for n in Path("/sys/devices/system/cpu/possible").read_text().split("-")]
    cpus = possible[-1] + 1
    with BpfObject(path, refuse=NOTHING) as obj:
        obj.want("flood")
        obj.start()
        view = obj.map("spread")
        for n in range(1000):
            view.update(n, (n << 40, n))
        expected = {n: [(n << 40, n)] * cpus for n in range(1000)}
        assert dict(view.items()) == expected
        assert keywise(view) == expected
        assert view.percpu_stride == 16
        assert view.memory_bytes == 16384 * (4 + 16 * cpus)
        for cpu in sorted(os.sched_getaffinity(0)):
            for _ in range(cpu + 1):
                run_program(obj._fds["flood"], 1, cpu)
        counts = dict(obj.map("hits").items())[obj.types.enum("nt_loader_hit")["NT_HIT_FLOOD"]]
        assert [counts[cpu] for cpu in sorted(os.sched_getaffinity(0))] == [
            BURST * (cpu + 1) for cpu in sorted(os.sched_getaffinity(0))
        ]


def test_maps_can_be_resized_and_fill_up(path):
    with BpfObject(path, refuse=NOTHING) as obj:
        obj.resize("numbers", 4)
        obj.start()
        view = obj.map("numbers")
        assert view.entries == 4
        for n in range(4):
            view.update((n, 0, 0, 0), n)
        with pytest.raises(NtoolsError, match="cannot update in map 'numbers': E2BIG"):
            view.update((5, 0, 0, 0), 5)
        recent = obj.map("recent")
        for n in range(1000):
            recent.update(n, n)
        rows = dict(recent.items())
        assert 0 < len(rows) <= 64 and all(rows[key] == key for key in rows)


def test_reading_while_entries_go(path):
    """Key by key: a key that is gone meanwhile is left out, none comes twice."""
    with BpfObject(path, refuse=frozenset(["batch"])) as obj:
        obj.start()
        view = obj.map("numbers")
        for n in range(1000):
            view.update((n, 0, 0, 0), n)
        seen = []
        for _, value in view.items():
            seen.append(value)
            view.delete(((value + 1) % 1000, 0, 0, 0))
        assert len(seen) == len(set(seen))
        assert 400 <= len(seen) <= 1000


# -- privileges and ends -----------------------------------------------------------------------

ATTACH = """
import sys
from ntools._loader import BpfObject
from ntools.errors import NtoolsError
try:
    with BpfObject(sys.argv[1]) as obj:
        obj.want("sent", "either", "entry")
        obj.start()
        obj.channel()
        obj.map("numbers").update((1, 2, 3, 4), 5)
        assert dict(obj.map("numbers").items()) == {(1, 2, 3, 4): 5}
        print({row.point: row.attach for row in obj.report}, flush=True)
        if len(sys.argv) > 2:
            sys.stdin.read()
except NtoolsError as error:
    print("{}: {}".format(type(error).__name__, error), file=sys.stderr)
    sys.exit(error.exit_status)
"""


def run_as(capabilities: str, path: str) -> subprocess.CompletedProcess:
    """Another user with these capabilities; reading the files of this one needs one more."""
    if not shutil.which("setpriv"):
        pytest.skip("no setpriv")
    if tuple(map(int, facts().release.split(".")[:2])) < (5, 11):
        pytest.skip("before 5.11 the memory of maps needs CAP_SYS_RESOURCE, too")
    held = "-all,+dac_read_search" + capabilities
    return subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534",
         "--clear-groups", f"--inh-caps={held}", f"--ambient-caps={held}",
         f"--bounding-set={held}", *PYTHON, "-c", ATTACH, path],
        capture_output=True, text=True, env=environment(), timeout=60,
    )  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    """For child processes: they import the same ntools as this one."""
    import ntools

    package = str(Path(ntools.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1", **more}


@pytest.mark.parametrize(
    "held, missing",
    [
        ("", "CAP_BPF and CAP_PERFMON"),
        (",+perfmon", "CAP_BPF"),
        (",+bpf", "CAP_PERFMON"),
        (",+net_admin,+net_raw,+sys_ptrace", "CAP_BPF and CAP_PERFMON"),
    ],
    ids=["none", "perfmon", "bpf", "others"],
)
def test_privilege_that_does_not_suffice(path, held, missing):
    done = run_as(held, path)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == (
        f"EnvironmentProblem: missing privilege: {missing}. Run as root, or with CAP_BPF and "
        "CAP_PERFMON (CAP_SYS_ADMIN for points in modules and on kernels before 5.8).\n"
    )


@pytest.mark.parametrize("held", [",+bpf,+perfmon", ",+sys_admin"], ids=["both", "sys_admin"])
def test_privilege_that_suffices(path, held):
    done = run_as(held, path)
    assert done.returncode == 0, done.stderr
    assert "'sent': 'tp_btf', 'either': 'tp_btf'" in done.stdout


def test_lockdown_confidentiality(path, tmp_path, monkeypatch):
    place = tmp_path / "lockdown"
    place.write_text("none integrity [confidentiality]\n")
    monkeypatch.setattr(kernel, "_LOCKDOWN", str(place))
    with BpfObject(path) as obj:
        obj.want("sent")
        with pytest.raises(EnvironmentProblem, match="lockdown is 'confidentiality'") as caught:
            obj.start()
    assert caught.value.exit_status == 3
    place.write_text("none [integrity] confidentiality\n")
    with BpfObject(path) as obj:
        obj.want("sent")
        obj.start()
        assert facts().lockdown == "integrity"


def bpftool_ids() -> dict[str, set[int]]:
    """What bpftool lists; when something vanishes meanwhile it fails, and is asked again."""
    found = {}
    for kind in ("prog", "map", "link"):
        for _ in range(10):
            done = subprocess.run(["bpftool", "-j", kind, "list"], capture_output=True, text=True)
            if done.returncode == 0:
                break
        assert done.returncode == 0, f"bpftool {kind} list: {done.stdout[-500:]}{done.stderr}"
        found[kind] = {row["id"] for row in json.loads(done.stdout or "[]")}
    return found


def test_kill_leaves_nothing(path):
    before = bpf_snapshot()
    process = subprocess.Popen(
        [*PYTHON, "-c", ATTACH, path, "stay"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert "'sent': 'tp_btf'" in process.stdout.readline()
        held = bpf_leftovers(before, NAMES, 0)
        # Without what a refused attempt to load left behind: that goes by itself, at any moment.
        own = objects_of(process.pid)
        assert {"sent__tp_btf", "either__here__t"} <= set(held.progs.values())
        assert {"hits", "numbers"} <= set(held.maps.values())
        assert held.links
        shown = bpftool_ids() if shutil.which("bpftool") else None
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    # The kernel frees them when it comes to it: on a busy machine that can take seconds.
    assert bpf_leftovers(before, NAMES, 60).counts() == {"progs": 0, "maps": 0, "links": 0}
    if shown:
        mine = {"prog": set(own.progs), "map": set(own.maps), "link": set(own.links)}
        assert all(mine.values())
        deadline = time.monotonic() + 60
        while left := {kind: ids & bpftool_ids()[kind] for kind, ids in mine.items()}:
            if not any(left.values()):
                break
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
        assert all(ids <= shown[kind] for kind, ids in mine.items())
