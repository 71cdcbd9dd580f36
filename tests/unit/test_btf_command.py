# SPDX-License-Identifier: GPL-2.0-only
"""ntools-btf: what it makes of debug information, what it says of a file, what it refuses."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from unit.btfmaker import Maker, btf_of, compiled

import ntools
from ntools._loader.external import Note
from ntools._loader.join import join, with_text
from ntools._loader.kernel_types import RECORDS, KernelTypes
from ntools.cli import btf

RELEASE = "4.19.90-1.test"
COMMON = (
    "struct common { int a; struct net_device *dev; };\nstruct net_device { int index; } device;\n"
)
BANNER = f'const char banner[] = "Linux version {RELEASE} (somebody) 1";\n'
VERMAGIC = (
    'const char magic[] __attribute__((section(".modinfo"), used)) = "vermagic={} SMP";\n'
    "int init_module(void);\nint init_module(void) {{ return 0; }}\n"
)
KERNEL = COMMON + "struct common here; struct pt_regs { long orig_ax; } regs;\n" + BANNER


def need(*programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"no {program}")


def native(source: str, target: Path, *flags: str) -> Path:
    """An object of this machine with debug information, as a module is one."""
    need("gcc")
    command = ["gcc", "-g", "-c", "-x", "c", "-", "-o", str(target), *flags]
    subprocess.run(command, input=source.encode(), check=True)
    return target


def module(place: Path, name: str, release: str = RELEASE) -> Path:
    source = COMMON + f"struct {name}_struct {{ long first; struct common inner; }} {name}_one;\n"
    return native(source + VERMAGIC.format(release), place / f"{name}.ko")


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """An empty directory; temporary files go beside it."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "files").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("NTOOLS_BTF", raising=False)
    yield tmp_path / "files"
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not [path for path in (tmp_path / "files").iterdir() if path.name.startswith(".")]


@pytest.fixture
def base(files) -> Path:
    """The kernel's own type information, that of its modules missing."""
    path = files / "base.btf"
    path.write_bytes(btf_of(KERNEL, files))
    (files / "types.o").unlink()
    return path


def ran(capsys, *words: object) -> tuple[int, str, str]:
    try:
        status = btf.main([str(word) for word in words])
    except SystemExit as end:
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys, status: int, *words: object) -> str:
    """The one line of a run that fails."""
    found, out, err = ran(capsys, *words)
    assert (found, out) == (status, ""), err
    assert err.startswith("ntools-btf") and err.count("\n") == 1 and err.endswith(".\n"), err
    return err


# -- join --------------------------------------------------------------------------------------


def test_joined_types_are_there_once(tmp_path):
    one = btf_of(COMMON + "struct first { struct common c; int x; } f;", tmp_path)
    two = btf_of(COMMON + "struct second { long y; struct common c; } s;", tmp_path)
    types = KernelTypes(join([one, two]))
    for name, path, bits in (
        ("first", ("c", "a"), 0),
        ("first", ("x",), 128),
        ("second", ("y",), 0),
        ("second", ("c", "dev"), 128),
    ):
        (found,) = types.find(name, RECORDS)
        assert types.follow(found, path).bit_offset == bits
    assert len(types.find("common", RECORDS)) == len(types.find("net_device", RECORDS)) == 1
    assert types.count < KernelTypes(one).count + KernelTypes(two).count


def test_join_does_not_believe_a_file(tmp_path):
    good = btf_of(COMMON + "struct common c;", tmp_path)
    maker = Maker()
    maker.add(2, "", 4711)  # a pointer to nowhere
    for parts in ([good, maker.blob()], [maker.blob(), good], [good, good[:-9]]):
        with pytest.raises(ValueError):
            join(parts)
    with pytest.raises(ValueError):
        with_text(maker.blob(), "x")


# -- make --------------------------------------------------------------------------------------


def test_modules_are_joined_with_the_kernel(files, base, capsys):
    need("pahole", "ld")
    modules = [module(files, "tun"), module(files, "vhost")]
    out = files / "out.btf"
    status, text, err = ran(capsys, "make", "--base-btf", base, "--module", *modules, "-o", out)
    assert (status, err) == (0, ""), err
    types = KernelTypes(out.read_bytes())
    for name in ("tun_struct", "vhost_struct"):
        (found,) = types.find(name, RECORDS)
        assert types.follow(found, ("inner", "dev")).bit_offset == 128
    assert types.find("pt_regs", RECORDS)
    assert Note.from_btf(out.read_bytes()) == Note(RELEASE, "x86", {})
    assert stat.S_IMODE(out.stat().st_mode) == 0o644 & ~current_umask()
    lines = text.splitlines()
    assert lines[0].split() == ["step", "types", "bytes", "s", "of"]
    assert [line.split()[0] for line in lines[1:] if line[0] != " "] == [
        "base", "modules", "joined", "wrote",
    ]  # fmt: skip
    assert re.search(r"^modules .* tun, vhost \(ld, pahole\)$", text, re.MULTILINE)
    assert f"for kernel {RELEASE} on x86" in " ".join(text.split())
    joined = next(line for line in lines if line.startswith("joined")).split()
    assert int(joined[1]) == types.count


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_vmlinux_with_debug_information(files, capsys):
    need("pahole", "ld")
    vmlinux = native(KERNEL + "const char *use(void) { return banner; }", files / "vmlinux")
    out = files / "out.btf"
    words = ("make", "--vmlinux", vmlinux, "--module", module(files, "tun"), "-o", out)
    status, text, err = ran(capsys, *words, "--format", "json")
    assert (status, err) == (0, "")
    document = json.loads(text)
    assert (document["release"], document["arch"], document["output"]) == (
        RELEASE, "x86", str(out),
    )  # fmt: skip
    assert [step["name"] for step in document["steps"]] == ["base", "modules", "joined"]
    assert "(pahole)" in document["steps"][0]["source"]
    types = KernelTypes(out.read_bytes())
    assert document["steps"][2]["types"] == types.count
    assert types.find("tun_struct", RECORDS) and types.find("pt_regs", RECORDS)


def test_vmlinux_that_has_btf_needs_no_program(files, base, capsys, monkeypatch):
    need("objcopy")
    bare = native(BANNER, files / "bare.o", "-g0")
    vmlinux = files / "vmlinux"
    subprocess.run(["objcopy", f"--add-section=.BTF={base}", str(bare), str(vmlinux)], check=True)
    monkeypatch.setenv("PATH", str(files))
    out = files / "out.btf"
    status, text, _ = ran(capsys, "make", "--vmlinux", vmlinux, "-o", out)
    assert status == 0 and "(section .BTF)" in text
    assert KernelTypes(out.read_bytes()).count == KernelTypes(base.read_bytes()).count


def test_compressed_and_detached_modules(files, base, capsys):
    """What distributions make of a module gives the same types."""
    need("pahole", "ld", "zstd", "objcopy")
    names = ("one", "two", "three", "four")
    plain = {name: module(files, name) for name in names}
    (files / "one.ko.xz").write_bytes(lzma.compress(plain["one"].read_bytes()))
    (files / "two.ko.gz").write_bytes(gzip.compress(plain["two"].read_bytes()))
    subprocess.run(["zstd", "-q", str(plain["three"]), "-o", str(files / "three.ko.zst")])
    subprocess.run(
        ["objcopy", "--only-keep-debug", str(plain["four"]), str(files / "four.ko.debug")],
        check=True,
    )
    given = [files / n for n in ("one.ko.xz", "two.ko.gz", "three.ko.zst", "four.ko.debug")]
    for number, modules in enumerate((plain.values(), given)):
        out = files / f"{number}.btf"
        words = ("--base-btf", base, "--module", *modules)
        assert ran(capsys, "make", *words, "-o", out)[0] == 0
    assert (files / "0.btf").read_bytes() == (files / "1.btf").read_bytes()
    (files / "one.ko.xz").write_bytes(lzma.compress(plain["one"].read_bytes())[:-200])
    (files / "two.ko.gz").write_bytes(gzip.compress(plain["two"].read_bytes())[:-200])
    (files / "three.ko.zst").write_bytes((files / "three.ko.zst").read_bytes()[:-200])
    for path in given[:3]:
        words = ("make", "--base-btf", base, "--module", path, "-o", files / "x.btf")
        assert f"cannot unpack '{path}'" in refused(capsys, 2, *words)


def test_debug_files_that_cannot_be_moved_are_joined_one_by_one(files, base, capsys):
    need("pahole", "objcopy")
    modules = [module(files, "tun"), module(files, "tap")]
    linked = []
    for path in modules:  # linking resolves the relocations, as some package builds do
        need("gcc")
        target = path.with_suffix(".debug")
        command = ["gcc", "-nostdlib", "-static", "-Wl,-e,init_module", str(path), "-o"]
        subprocess.run([*command, str(target)], check=True)
        linked.append(target)
    out = files / "out.btf"
    words = ("make", "--base-btf", base, "--module", *linked, "-o", out, "--format", "json")
    status, text, err = ran(capsys, *words)
    assert (status, err) == (0, "")
    sources = [step["source"] for step in json.loads(text)["steps"]]
    assert sources[1:3] == ["tun.debug (pahole)", "tap.debug (pahole)"]
    types = KernelTypes(out.read_bytes())
    assert types.find("tun_struct", RECORDS) and types.find("tap_struct", RECORDS)


def test_nothing_is_overwritten(files, base, capsys):
    need("pahole", "ld")
    out = files / "out.btf"
    out.write_text("mine")
    words = ("make", "--base-btf", base, "--module", module(files, "tun"), "-o", out)
    assert "exists. Use --force" in refused(capsys, 2, *words)
    assert out.read_text() == "mine"
    assert ran(capsys, *words, "--force")[0] == 0
    assert KernelTypes(out.read_bytes()).find("tun_struct", RECORDS)
    assert "is a directory" in refused(capsys, 2, *words[:-1], files, "--force")
    assert "no directory" in refused(capsys, 2, *words[:-1], files / "none" / "out.btf")


def test_files_that_do_not_fit(files, base, capsys):
    tun, other = module(files, "tun"), module(files, "vhost", "5.10.0-1")
    out = files / "out.btf"
    make = ("make", "--base-btf", base, "-o", out, "--module")
    assert f"is of kernel 5.10.0-1, '{tun}' of {RELEASE}" in refused(capsys, 2, *make, tun, other)
    text = refused(capsys, 2, *make, tun, "--release", "6.1")
    assert f"is of kernel {RELEASE}, '--release' of 6.1" in text
    arm = bytearray(tun.read_bytes())
    arm[18:20] = (183).to_bytes(2, "little")
    (files / "arm.ko").write_bytes(arm)
    text = refused(capsys, 2, *make, tun, files / "arm.ko")
    assert "arm.ko' is for arm64, the files before it are for x86" in text
    arm[18:20] = (2).to_bytes(2, "little")
    (files / "arm.ko").write_bytes(arm)
    assert "(ELF machine 2)" in refused(capsys, 2, *make, files / "arm.ko")
    need("pahole", "ld")
    foreign = files / "foreign.btf"
    foreign.write_bytes(btf_of(KERNEL.replace("int index", "long more; int index"), files))
    text = refused(capsys, 2, "make", "--base-btf", foreign, "-o", out, "--module", tun)
    assert f"of another kernel than '{foreign}': struct net_device differs" in text
    assert not out.exists()


def hostile(files: Path, base: Path) -> list[Path]:
    """Files that are not what they should be."""
    chance = random.Random(3)
    good = base.read_bytes()
    elf = module(files, "tun").read_bytes()
    contents = {
        "empty": b"",
        "noise": chance.randbytes(5000),
        "text": b"no type information\n" * 9,
        "short": good[:17],
        "half": good[: len(good) // 2],
        "magic": b"\x9f\xeb",
        "damaged": good[:24] + b"\xff" * 64 + good[88:],
        "zeros": b"\x9f\xeb\x01\x00" + bytes(400),
        "elf": elf[: len(elf) // 2],
        "elf64": elf[:64],
        "sections": elf[:40] + b"\xff" * 8 + elf[48:],
        "stripped": native("int x;", files / "bare.o", "-g0").read_bytes(),
        "xz": b"\xfd7zXZ\0" + chance.randbytes(300),
        "gz": b"\x1f\x8b" + chance.randbytes(300),
        "zst": b"\x28\xb5\x2f\xfd" + chance.randbytes(300),
    }
    paths = []
    for name, content in contents.items():
        paths.append(files / name)
        paths[-1].write_bytes(content)
    return [*paths, files, files / "missing", Path("/dev/null"), Path("/dev/zero")]


def test_files_of_any_kind_are_refused_in_one_line(files, base, capsys):
    need("pahole", "ld", "zstd")
    out = files / "out.btf"
    for path in hostile(files, base):
        tun = files / "tun.ko"
        for words in (
            ("check", path),
            ("make", "--base-btf", path, "--module", tun, "-o", out),
            ("make", "--vmlinux", path, "-o", out),
            ("make", "--base-btf", base, "--module", path, "-o", out),
        ):
            assert f"'{path}'" in refused(capsys, 2, *words), words
    text = refused(capsys, 2, "make", "--vmlinux", base, "-o", out)
    assert "is BTF already: give it with --base-btf" in text
    assert not out.exists()


def test_damage_anywhere_in_a_checked_file(files, base, capsys):
    """Whatever the bytes are, there is an answer or one line."""
    chance = random.Random(5)
    good, path = base.read_bytes(), files / "damaged.btf"
    seen = set()
    for _ in range(80):
        blob = bytearray(good)
        for _ in range(chance.choice((1, 3, 9))):
            blob[chance.randrange(len(blob))] = chance.choice((0, 1, 4, 64, 255))
        path.write_bytes(blob)
        status, out, err = ran(capsys, "check", path)
        assert status in (2, 3), err
        assert (err.count("\n"), "internal error" in err) == (int(status == 2), False), err
        assert bool(out) == (status == 3)
        seen.add(status)
    assert seen == {2, 3}


# -- programs ----------------------------------------------------------------------------------


def script(place: Path, name: str, text: str) -> None:
    """A program of ours in the place of another."""
    path = place / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


def test_missing_programs_are_named_with_their_package(files, base, capsys, monkeypatch):
    bin_dir = files / "bin"
    bin_dir.mkdir()
    one, two = module(files, "tun"), module(files, "tap")
    (files / "three.ko.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(90))
    monkeypatch.setenv("PATH", str(bin_dir))
    monkeypatch.setattr("ntools.cli.btfmake._SBIN", str(bin_dir))
    make = ("make", "--base-btf", base, "-o", files / "out.btf")
    for words, program, package in (
        (("--module", one), "pahole", "dwarves (Debian: pahole)"),
        (("--module", one, two), "ld", "binutils"),
        (("--module", files / "three.ko.zst"), "zstd", "zstd"),
        (("--min-all",), "bpftool", "bpftool"),
    ):
        text = refused(capsys, 3, *make, *words)
        assert f"'{program}' is missing: install the package {package}." in text


HELP = 'case $1 in --help) echo "--btf_encode_detached=FILENAME"; exit 0;; esac\n'


@pytest.mark.parametrize(
    "text, status, message",
    [
        ("exit 0", 3, "is too old: it has no --btf_encode_detached (1.22 has)"),
        (HELP + "echo first; echo some reason.; exit 7", 1,
         "pahole failed with status 7 on 'tun': some reason."),
        (HELP + "exit 0", 1, "pahole made no usable type information of 'tun'."),
        (HELP + 'for a; do case $a in *=*) echo x > "${a#*=}";; esac; done; echo hm', 1,
         "pahole made no usable type information of 'tun': hm."),
    ],
)  # fmt: skip
def test_pahole_that_does_not_work(files, base, capsys, monkeypatch, text, status, message):
    tun = module(files, "tun")
    bin_dir = files / "bin"
    bin_dir.mkdir()
    script(bin_dir, "pahole", text)
    monkeypatch.setenv("PATH", str(bin_dir))
    words = ("make", "--base-btf", base, "--module", tun, "-o", files / "out.btf")
    assert message in refused(capsys, status, *words)
    assert not (files / "out.btf").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted(files, base, number):
    """Neither the file nor anything temporary is left; `files` looks for the latter."""
    tun = module(files, "tun")
    bin_dir = files / "bin"
    bin_dir.mkdir()
    begun = files / "begun"
    script(bin_dir, "pahole", HELP + f"touch '{begun}'; exec sleep 60")
    environment = {**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}",
                   "PYTHONPATH": str(Path(ntools.__file__).parents[1])}  # fmt: skip
    code = "import sys; from ntools.cli.btf import main; sys.exit(main())"
    out = files / "out.btf"
    words = ["make", "--base-btf", str(base), "--module", str(tun), "-o", str(out)]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], env=environment, stderr=subprocess.PIPE, text=True,
        # A shell's background job has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 30
        while not begun.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert begun.exists()
    assert err == f"ntools-btf: interrupted, '{out}' was not written.\n"
    assert process.returncode == 1 and not out.exists()


# -- check -------------------------------------------------------------------------------------

OBJECT = """
#define SEC(name) __attribute__((section(name), used))
#define CORE __attribute__((preserve_access_index))
struct net_device { int index; } CORE;
struct common { int a; struct net_device *dev; } CORE;
struct tun_struct { long first; struct common inner; long newer; } CORE;
enum color { RED = 1 };
static long (*const read)(void *, unsigned, const void *) = (void *)113;
#define READ(place, type, field) read(place, 8, __builtin_preserve_access_index(&(type)->field))

SEC("?kprobe/one") int plain__kprobe(struct common *c)
{
	long value = 0;
	READ(&value, c, dev);
	return value;
}
SEC("?kprobe/two") int tap__kprobe(struct tun_struct *t)
{
	long value = 0;
	READ(&value, t, inner.dev);
	return value;
}
SEC("?kprobe/three") int newest__new__kprobe(struct tun_struct *t)
{
	long value = 0;
	READ(&value, t, newer);
	return value;
}
SEC("?kprobe/four") int newest__old__kprobe(struct common *c)
{
	return __builtin_preserve_enum_value(*(enum color *)RED, 1);
}
SEC("?kprobe/five") int guarded__kprobe(struct tun_struct *t)
{
	long value = 0;
	if (__builtin_preserve_field_info(t->newer, 2))
		READ(&value, t, newer);
	return value;
}
char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture
def wants(files) -> Path:
    """An object with a point that needs no module, one that does, one with two candidates, one
    that asks before it reads."""
    return compiled(OBJECT, files / "wants.o")


def looked(capsys, path: Path, wants: Path, expected: int) -> dict:
    words = ("check", path, "--object", wants, "--format", "json")
    status, out, err = ran(capsys, *words)
    assert (status, err) == (expected, "")
    document = json.loads(out)
    (row,) = document.pop("objects")
    return {**document, **row}


def lacks(row: dict) -> dict[str, tuple]:
    return {one["field"]: (one["why"], one["programs"]) for one in row["lacks"]}


ENUM = "enum color { RED = 1 } color;\n"
TUN = "struct tun_struct { long first; struct common inner; } tun;\n"


def test_check_of_a_file_with_everything(files, wants, capsys):
    path = files / "whole.btf"
    whole = TUN.replace("; }", "; long newer; }")
    path.write_bytes(btf_of(KERNEL + ENUM + whole, files))
    row = looked(capsys, path, wants, 0)
    assert row["resolves"] and row["missing"] == [] and row["lacks"] == []
    assert (row["points"], row["arch"], row["wrong_arch"]) == (4, "x86", False)
    assert row["modules"]["tun"] == {"found": ["tun_struct"], "absent": ["tun_file"]}


def test_check_of_a_file_without_a_struct(files, wants, capsys):
    path = files / "none.btf"
    path.write_bytes(btf_of(KERNEL + ENUM, files))
    row = looked(capsys, path, wants, 3)
    assert not row["resolves"] and row["missing"] == ["tap"]
    assert lacks(row) == {
        "tun_struct.inner.dev": ("no such type", ["tap__kprobe"]),
        "tun_struct.newer": ("no such type", ["newest__new__kprobe"]),
    }
    assert row["modules"]["tun"]["found"] == []


def test_check_of_a_file_without_a_field_and_an_enumerator(files, wants, capsys):
    path = files / "old.btf"
    path.write_bytes(btf_of(KERNEL + ENUM.replace("RED", "BLUE") + TUN, files))
    row = looked(capsys, path, wants, 3)
    assert row["missing"] == ["newest"]
    assert lacks(row) == {
        "tun_struct.newer": ("no such field", ["newest__new__kprobe"]),
        "color.RED": ("no such value in the enum", ["newest__old__kprobe"]),
    }


def test_check_of_a_file_with_two_structs_of_a_name(files, wants, capsys):
    other = COMMON + TUN.replace("first", "first[2]")
    blobs = [btf_of(source, files) for source in (KERNEL + ENUM + TUN, other)]
    path = files / "two.btf"
    path.write_bytes(join(blobs))
    row = looked(capsys, path, wants, 3)
    assert lacks(row)["tun_struct.inner.dev"][0] == "several types of this name that differ"


def test_check_as_text(files, wants, capsys):
    path = files / "none.btf"
    path.write_bytes(with_text(btf_of(KERNEL, files), Note(RELEASE, "x86", {}).text))
    status, out, err = ran(capsys, "check", path, "--object", wants)
    assert (status, err) == (3, "")
    text = " ".join(out.split())
    assert f"kernel {RELEASE}: not for this host" in text
    assert "no: 2 of 4 points have no program that resolves no newest, tap" in text
    assert "lacks tun_struct.inner.dev: no such type, for tap__kprobe" in text
    assert "lacks color.RED: no such enum, for newest__old__kprobe" in text
    assert max(len(line) for line in out.splitlines() if str(files) not in line) <= 80


def test_check_for_another_architecture(files, base, capsys):
    status, out, _ = ran(capsys, "check", base, "--arch", "arm64")
    assert status == 3 and "wrong architecture; --arch x86" in out
    arm = files / "arm.btf"
    regs = "struct pt_regs { long pstate; } regs;"
    arm.write_bytes(btf_of(KERNEL.split("struct pt_regs")[0] + regs, files))
    document = json.loads(ran(capsys, "check", arm, "--format", "json")[1])
    assert document["arch"] == "arm64"
    assert document["wrong_arch"] == (os.uname().machine != "aarch64")
    assert document["fits"] is (None if os.uname().machine == "aarch64" else False)


def test_check_of_the_running_kernel(capsys):
    own = Path("/sys/kernel/btf/vmlinux")
    if not own.exists():
        pytest.skip("the running kernel has no BTF")
    status, out, _ = ran(capsys, "check", own, "--format", "json")
    document = json.loads(out)
    assert status == 0 and document["fits"] is True and document["release"] == ""
    assert all(row["resolves"] for row in document["objects"])


def test_check_on_a_kernel_without_type_information(base, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("ntools._loader.kernel._BTF_DIR", str(tmp_path / "none"))
    monkeypatch.setattr("ntools._loader.kernel._STORED", ())
    status, out, err = ran(capsys, "check", base, "--format", "json")
    assert (status, err) == (3, "") and json.loads(out)["fits"] is None


def test_reduced_file_serves_its_objects_only(capsys, files):
    need("bpftool")
    own = Path("/sys/kernel/btf/vmlinux")
    if not own.exists():
        pytest.skip("the running kernel has no BTF")
    out = files / "small.btf"
    status, text, err = ran(capsys, "make", "--base-btf", own, "--min", "drop", "-o", out)
    assert (status, err) == (0, ""), err
    assert out.stat().st_size < 10000
    note = Note.from_btf(out.read_bytes())
    assert note.release == os.uname().release and set(note.builds) == {"drop"}
    assert ran(capsys, "check", out, "--object", "drop")[0] == 0
    status, text, _ = ran(capsys, "check", out)
    assert status == 3 and "reduced to what other objects need" in " ".join(text.split())
    words = ("make", "--base-btf", out, "--min-all", "-o", files / "x.btf")
    assert "has been reduced already" in refused(capsys, 2, *words)


@pytest.mark.parametrize(
    "words, text",
    [
        (("make",), "--output"),
        (("make", "-o", "x"), "--vmlinux --base-btf"),
        (("make", "--base-btf", "a", "--vmlinux", "b", "-o", "x"), "not allowed with"),
        (("make", "--base-btf", "a", "-o", "x"), "nothing to make of 'a'"),
        (("make", "--base-btf", "a", "--min", "nonsense", "-o", "x"), "no object 'nonsense'"),
        (("make", "--base-btf", "a", "--release", "a b", "-o", "x"), "'a b' is not the release"),
        (("check",), "FILE"),
        (("check", "x", "--arch", "s390"), "s390"),
        (("check", "x", "--object", "nonsense"), "There are: flight"),
        (("nonsense",), "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_usage(words, text, capsys):
    assert text in refused(capsys, 2, *words)


def test_object_that_is_none(base, files, capsys):
    path = files / "noise.o"
    path.write_bytes(b"\x7fELF" + bytes(300))
    assert f"'{path}' is no BPF object" in refused(capsys, 2, "check", base, "--object", path)
    missing = files / "none.o"
    assert f"cannot read '{missing}'" in refused(capsys, 2, "check", base, "--object", missing)


def test_without_a_command_there_is_help(capsys):
    status, out, err = ran(capsys)
    assert (status, err) == (0, "") and out.startswith("usage: ntools-btf ")


def test_the_umbrella_knows_it(base, capsys, monkeypatch):
    from ntools.cli import umbrella

    monkeypatch.setattr(sys, "argv", ["ntools"])
    assert umbrella.main(["btf", "check", str(base)]) in (0, 3)
    assert "architecture" in capsys.readouterr().out
    assert umbrella.main(["bft"]) == 2
    assert "Did you mean 'btf'?" in capsys.readouterr().err
