# SPDX-License-Identifier: GPL-2.0-only
"""Type information from a file: which one is taken, and when it is refused."""

from __future__ import annotations

import os
import re

import pytest
from unit.btfmaker import FWD, TYPEDEF, Maker

from ntools._loader import KernelFacts, kernel
from ntools._loader.external import Layout, Note, difference, layouts
from ntools._loader.join import with_text
from ntools.errors import EnvironmentProblem

RELEASE = os.uname().release
ARCH = {"x86_64": "x86", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def blob(size: int = 16, second: int = 64, first: str = "dev") -> bytes:
    """A kernel with one struct, and with the names of everything else that is looked for."""
    maker = Maker()
    number = maker.number()
    maker.add(TYPEDEF, "btf_trace_kfree_skb", number)
    maker.add(FWD, "net_device")
    maker.record("sk_buff", size, (first, number, 0), ("head", number, second), ("", number, 96))
    return maker.blob()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Directories like those of a host, empty."""
    monkeypatch.delenv("NTOOLS_BTF", raising=False)
    monkeypatch.setattr(kernel, "_BTF_DIR", str(tmp_path / "sys"))
    stored = (str(tmp_path / "var/{release}.btf"), str(tmp_path / "usr/{arch}/{release}.btf"))
    monkeypatch.setattr(kernel, "_STORED", stored)
    for name in ("sys", "var", f"usr/{ARCH}"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def put(path, content: bytes = b""):
    path.write_bytes(content or blob())
    return path


# -- which file --------------------------------------------------------------------------------


def test_order_of_the_places(places, monkeypatch):
    """Each is put beside those that come after it, and is taken."""
    package = put(places / f"usr/{ARCH}/{RELEASE}.btf")
    assert KernelFacts().btf_path == str(package)
    made = put(places / f"var/{RELEASE}.btf")
    assert KernelFacts().btf_path == str(made)
    assert KernelFacts().btf_origin == "found for this kernel"
    put(places / "sys/vmlinux")
    assert (KernelFacts().btf_path, KernelFacts().btf_origin) == (None, "")
    named = put(places / "named.btf")
    monkeypatch.setenv("NTOOLS_BTF", str(named))
    assert KernelFacts().btf_path == str(named)
    assert KernelFacts().btf_origin == "named by NTOOLS_BTF"
    given = put(places / "given.btf")
    assert KernelFacts(str(given)).btf_path == str(given)
    assert KernelFacts(str(given)).btf_origin == "given with --btf"


def test_files_of_other_kernels_are_not_found(places):
    put(places / "var/4.19.90.btf")
    put(places / f"usr/{RELEASE}.btf")
    assert KernelFacts().btf_path is None


def test_nothing_is_found(places):
    with pytest.raises(EnvironmentProblem) as caught:
        _ = KernelFacts().core_btf
    assert str(caught.value) == (
        f"kernel {RELEASE} has no type information ('{places}/sys/vmlinux'), and there is none in "
        f"'{places}/var/{RELEASE}.btf' or '{places}/usr/{ARCH}/{RELEASE}.btf'. Make it with "
        "ntools-btf(8), or give it with --btf FILE."
    )


def test_named_file_is_not_there(places, monkeypatch):
    put(places / "sys/vmlinux")
    monkeypatch.setenv("NTOOLS_BTF", str(places / "none.btf"))
    with pytest.raises(EnvironmentProblem, match="cannot read type information '.*none.btf': No"):
        _ = KernelFacts().core_btf


@pytest.mark.parametrize("cut", [2, 10, 23, 24, 60, -1])
def test_damaged_file(places, cut):
    given = put(places / "given.btf", blob()[:cut])
    with pytest.raises(EnvironmentProblem, match="given.btf. is not a BTF file"):
        _ = KernelFacts(str(given)).core_btf


# -- what it serves for ------------------------------------------------------------------------


def test_points_are_looked_up_in_the_kernels_own(places):
    """fentry and tp_btf find their targets there; fields come from the file."""
    put(places / "sys/vmlinux", blob().replace(b"sk_buff", b"sk_bufg"))
    module = put(places / "sys/openvswitch", blob().replace(b"sk_buff", b"ovs_abc"))
    given = put(places / "given.btf", blob().replace(b"kfree_skb", b"kfree_skc"))
    facts = KernelFacts(str(given))
    assert facts.has_tracepoint("kfree_skb") and not facts.has_tracepoint("kfree_skc")
    assert facts.has_name("sk_buff") and not facts.has_name("sk_bufg")
    # libbpf looks at no module when it is given a file.
    assert facts.has_function("ovs_abc") and not facts.has_name("ovs_abc")
    module.unlink()
    own = KernelFacts()
    assert own.has_name("sk_bufg") and own.has_tracepoint("kfree_skb")


def test_kernel_without_own_describes_no_function(places):
    given = put(places / f"var/{RELEASE}.btf")
    facts = KernelFacts()
    assert facts.btf_path == str(given) and facts.has_name("sk_buff")
    assert not facts.has_tracepoint("kfree_skb")


# -- whose it is -------------------------------------------------------------------------------


def refusal(places, content: bytes, name: str = "flight", build: str = "1234") -> str:
    given = put(places / "given.btf", content)
    try:
        KernelFacts(str(given)).check_fit(["net_device", "sk_buff"], name, build)
    except EnvironmentProblem as error:
        assert str(error).startswith(f"type information '{given}' ")
        assert str(error).endswith(". Make it for this kernel with ntools-btf(8).")
        return re.sub(r"^type information '[^']*' |\. Make it .*$", "", str(error))
    return ""


def noted(release: str = "", arch: str = ARCH, **builds: str) -> bytes:
    return with_text(blob(), Note(release, arch, builds).text)


def test_file_of_this_kernel(places):
    assert refusal(places, blob()) == ""
    assert refusal(places, noted(RELEASE, flight="1234", drop="5")) == ""
    put(places / "sys/vmlinux")
    assert refusal(places, blob()) == ""
    assert refusal(places, noted(RELEASE)) == ""
    KernelFacts().check_fit(["sk_buff"], "flight", "1234")


def test_file_of_another_kernel(places):
    assert refusal(places, noted("4.19.90")) == f"is of kernel 4.19.90, this is {RELEASE}"
    assert refusal(places, noted(RELEASE, "s390")) == f"is for s390, this machine is {ARCH}"
    # A kernel that has none cannot tell.
    assert refusal(places, blob(size=24)) == ""
    put(places / "sys/vmlinux")
    differs = "is of another kernel: struct sk_buff differs"
    assert refusal(places, blob(size=24)) == differs
    assert refusal(places, blob(second=32)) == differs
    assert refusal(places, noted("", "")) == ""


def test_file_reduced_for_other_objects(places):
    content = noted(RELEASE, flight="1234", drop="5")
    text = "was reduced to what other objects need than '{}' of this build"
    assert refusal(places, content, "flight", "9999") == text.format("flight")
    assert refusal(places, content, "conntrack") == text.format("conntrack")
    assert refusal(places, content, "drop", "5") == ""


def test_reduced_structs_are_compared_by_what_they_kept():
    assert Layout(16, {"a": 0, "b": 64}).agrees(Layout(16, {"b": 64, "c": 96}))
    assert not Layout(16, {"a": 0, "b": 64}).agrees(Layout(16, {"b": 32}))
    assert difference(blob(), blob(first="other"), ["sk_buff"]) is None
    assert difference(blob(), blob(size=24), ["nt_none", "net_device"]) is None


def test_one_of_several_structs_of_a_name_is_enough():
    maker = Maker()
    number = maker.number()
    name = maker.record("sk_buff", 8, ("x", number, 0))
    label = maker.text.index(b"sk_buff")
    maker.record("", 16, ("dev", number, 0), ("head", number, 64))
    maker.types[-1] = label.to_bytes(4, "little") + maker.types[-1][4:]
    assert name and [one.size for one in layouts(maker.blob(), "sk_buff")] == [8, 16]
    assert difference(blob(), maker.blob(), ["sk_buff"]) is None


def test_note_is_read_back_and_no_type_changes():
    note = Note("5.10.0-46-amd64", "x86", {"flight": "0abc", "drop": "1"})
    content = with_text(blob(), note.text)
    assert Note.from_btf(content) == note
    assert Note.from_btf(blob()) is None
    assert layouts(content, "sk_buff") == layouts(blob(), "sk_buff")
    newer = note._replace(release="5.10.0-47-amd64")
    assert Note.from_btf(with_text(content, newer.text)) == newer
