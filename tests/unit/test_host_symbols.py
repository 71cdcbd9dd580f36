# SPDX-License-Identifier: GPL-2.0-only
"""Addresses and names, from a small kallsyms of every kind of line."""

import pytest

from ntools.host.symbols import Symbol, Symbols

SMALL = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T startup_64
ffffffff81000000 T _text
ffffffff81000000 t a_third_alias
ffffffff81000100 t twin
ffffffff81000180 D data_between
ffffffff81000200 t ip_rcv_core.constprop.0
ffffffff81000300 t twin
ffffffff81000400 W weak_one
ffffffff81000500 T _etext
ffffffffc0201000 t tun_net_xmit\t[tun]
ffffffffc0200000 t tun_first\t[tun]
ffffffffc0300000 t vhost_work\t[vhost]
ffffffffc0300040 d vhost_data\t[vhost]
ffffffffa0001000 t bpf_prog_3b185187f1855c4c_drop\t[bpf]
ffffffffa0002000 t bpf_trampoline_6442536467\t[bpf]
"""


def make(tmp_path, text=SMALL):
    path = tmp_path / "kallsyms"
    path.write_text(text)
    return Symbols(path)


@pytest.mark.parametrize(
    "address, expected",
    [
        (0xFFFFFFFF81000000, ("startup_64", 0, None)),
        (0xFFFFFFFF810000FF, ("startup_64", 0xFF, None)),
        (0xFFFFFFFF81000100, ("twin", 0, None)),
        (0xFFFFFFFF81000190, ("twin", 0x90, None)),
        (0xFFFFFFFF81000204, ("ip_rcv_core.constprop.0", 4, None)),
        (0xFFFFFFFF81000404, ("weak_one", 4, None)),
        (0xFFFFFFFFC0200FFF, ("tun_first", 0xFFF, "tun")),
        (0xFFFFFFFFC0201096, ("tun_net_xmit", 0x96, "tun")),
        (0xFFFFFFFFC0300001, ("vhost_work", 1, "vhost")),
        (0xFFFFFFFFA0001002, ("bpf_prog_3b185187f1855c4c_drop", 2, "bpf")),
        (0xFFFFFFFFA0002010, ("bpf_trampoline_6442536467", 0x10, "bpf")),
    ],
)
def test_lookup(tmp_path, address, expected):
    assert make(tmp_path).lookup(address) == Symbol(*expected)


@pytest.mark.parametrize(
    "address",
    [
        0,
        0xFFFFFFFF80FFFFFF,  # before the kernel
        0xFFFFFFFFC0280000,  # between two modules
        0xFFFFFFFFA0100000,  # behind the last trampoline
        0xFFFFFFFFFFFFFFFF,
    ],
)
def test_addresses_in_no_code(tmp_path, address):
    assert make(tmp_path).lookup(address) is None


def test_range(tmp_path):
    symbols = make(tmp_path)
    assert symbols.range("twin") == (0xFFFFFFFF81000100, 0xFFFFFFFF81000200)
    assert symbols.range("_text") == (0xFFFFFFFF81000000, 0xFFFFFFFF81000100)
    assert symbols.range("tun_first") == (0xFFFFFFFFC0200000, 0xFFFFFFFFC0201000)
    assert symbols.range("ip_rcv_core.constprop.0") == (0xFFFFFFFF81000200, 0xFFFFFFFF81000300)
    for name in ("ip_rcv_core", "data_between", "", "twi", "[tun]", "tun"):
        assert symbols.range(name) is None


def test_nothing_is_read_before_use(tmp_path):
    symbols = Symbols(tmp_path / "late")
    (tmp_path / "late").write_text(SMALL)
    assert symbols.lookup(0xFFFFFFFF81000000) is not None
    (tmp_path / "late").write_text("ffffffff81000000 T another\n")
    assert symbols.lookup(0xFFFFFFFF81000000).name == "startup_64"
    symbols.refresh()
    assert symbols.lookup(0xFFFFFFFF81000000).name == "another"


def test_hidden_addresses(tmp_path):
    symbols = make(tmp_path, "0000000000000000 T a\n0000000000000000 t b\t[tun]\n")
    assert symbols.lookup(0) is None and symbols.lookup(0xFFFFFFFF81000000) is None
    assert symbols.range("a") is None
    assert symbols.note == ("kernel addresses are hidden (kernel.kptr_restrict): no symbol names")


def test_no_file(tmp_path):
    symbols = Symbols(tmp_path / "none")
    assert symbols.lookup(1) is None
    assert symbols.note == "kernel symbols cannot be read: No such file or directory"


def test_visible_has_no_note(tmp_path):
    assert make(tmp_path).note is None


def test_lines_cut_by_the_read_size(tmp_path, monkeypatch):
    from ntools.host import symbols as module

    for size in (7, 64, 100):
        monkeypatch.setattr(module, "_CHUNK_BYTES", size)
        symbols = make(tmp_path)
        assert symbols.range("weak_one") == (0xFFFFFFFF81000400, 0xFFFFFFFF81000500)
        assert symbols.lookup(0xFFFFFFFFC0201001).name == "tun_net_xmit"


def test_unsorted_kernel_part(tmp_path):
    lines = SMALL.splitlines(keepends=True)
    symbols = make(tmp_path, "".join(lines[4:10][::-1] + lines[1:4]))
    assert symbols.lookup(0xFFFFFFFF81000210).name == "ip_rcv_core.constprop.0"
    assert symbols.range("weak_one") == (0xFFFFFFFF81000400, 0xFFFFFFFF81000500)


def test_what_was_found_in_passing_needs_no_table(tmp_path):
    symbols = make(tmp_path)
    symbols.expect(["twin*", "startup_64"])
    assert [name for name, _, _ in symbols.matching("twin*")] == ["twin", "twin"]
    (tmp_path / "kallsyms").unlink()
    assert symbols.note is None
    assert symbols.matching("startup_64") == [
        ("startup_64", 0xFFFFFFFF81000000, 0xFFFFFFFF81000100)
    ]


def test_hidden_addresses_are_told_after_a_pass_too(tmp_path):
    symbols = make(tmp_path, "0000000000000000 T startup_64\n0000000000000000 T twin\n")
    symbols.expect(["twin*"])
    assert symbols.matching("twin*") == []
    assert "hidden" in symbols.note
