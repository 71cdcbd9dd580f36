# SPDX-License-Identifier: GPL-2.0-only
"""The declarations of libbpf say what the headers of libbpf say.

In ABI mode nobody notices a wrong declaration. Here the same declarations are compiled in API
mode, where the compiler compares them with the headers; nothing of it is used afterwards.
NTOOLS_TEST_LIBBPF_INCLUDES names further include directories, one per version of libbpf,
separated by colons.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import cffi
import pytest

TOP = Path(__file__).resolve().parents[2]
DECLARATIONS = (TOP / "src" / "ntools" / "_loader" / "libbpf.cdef.h").read_text()

# Declared otherwise than in the headers on purpose, and why.
ON_PURPOSE = {
    # No va_list in cffi: a parameter of that type is a pointer on both architectures.
    "libbpf_print_fn_t",
    "libbpf_set_print",
    "vsnprintf",
}
# Members without a name in the headers.
NAMELESS = {"removed"}

# Where the fields we set have to be, as found in libbpf 0.5 to 1.7.
OFFSETS = {
    "bpf_object_open_opts": {
        "sz": 0,
        "object_name": 8,
        "btf_custom_path": 48,
        "kernel_log_buf": 56,
        "kernel_log_size": 64,
        "kernel_log_level": 72,
    },
    "bpf_map_batch_opts": {"sz": 0, "elem_flags": 8, "flags": 16},
    "bpf_prog_load_opts": {"sz": 0, "attach_btf_id": 32, "attach_btf_obj_fd": 40},  # from 0.8
    "libbpf_prog_handler_opts": {"sz": 0, "prog_prepare_load_fn": 24},  # from 0.8
    "bpf_btf_info": {"btf": 0, "btf_size": 8, "id": 12, "name": 16, "name_len": 24},
}

INCLUDES = "".join(
    f"#include <{name}>\n" for name in ("stdio.h", "bpf/bpf.h", "bpf/btf.h", "bpf/libbpf.h")
)
FLAGS = [
    "-Werror=incompatible-pointer-types",
    "-Werror=int-conversion",
    "-Werror=implicit-function-declaration",
    "-Wno-deprecated-declarations",
]


def statements(declarations: str) -> list[str]:
    """The declarations one by one, without comments."""
    bare = re.sub(r"/\*.*?\*/", "", declarations, flags=re.DOTALL)
    found = re.findall(r"\w(?:[^;{}]|\{[^}]*\})*;", bare)
    return [re.sub(r"\s+", " ", statement) for statement in found]


def structs(declarations: str) -> dict[str, list[str]]:
    """Names of the members we declare, by struct."""
    members = {}
    for statement in statements(declarations):
        body = re.fullmatch(r"struct (\w+) \{(.*)\};", statement)
        if body:
            names = re.findall(r"(\w+)(?:\[\w+\])?;", body[2])
            members[body[1]] = [name for name in names if name not in NAMELESS]
    return members


def api_statement(statement: str) -> str:
    """A declaration as API mode wants it: structs leave their layout to the compiler."""
    for name in NAMELESS:
        statement = re.sub(rf"\w+ {name};", "", statement)
    return re.sub(r"\}", " ...; }", statement)


def api_source(declarations: str, directory: Path) -> Path:
    """C source that compiles only where declarations and headers agree."""
    binding = cffi.FFI()
    binding.cdef(declarations)
    asserts = []
    for struct, members in structs(declarations).items():
        for member in members:
            offset = binding.offsetof("struct " + struct, member)
            size = binding.sizeof(dict(binding.typeof("struct " + struct).fields)[member].type)
            asserts.append(
                f"_Static_assert(__builtin_offsetof(struct {struct}, {member}) == {offset} && "
                f'sizeof(((struct {struct} *)0)->{member}) == {size}, "{struct}.{member}");\n'
            )
    compiled = cffi.FFI()
    for statement in statements(declarations):
        if not any(re.search(rf"\b{name}\b", statement) for name in ON_PURPOSE):
            compiled.cdef(api_statement(statement))
    compiled.set_source("ntools_abi_check", INCLUDES + "".join(asserts))
    source = directory / "ntools_abi_check.c"
    compiled.emit_c_code(str(source))
    return source


def compile_against(include: str, source: Path) -> subprocess.CompletedProcess[str]:
    python = sysconfig.get_path("include")
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    if not Path(python, "Python.h").exists():
        pytest.skip("no Python.h (python3-dev)")
    return subprocess.run(
        ["cc", "-c", "-o", os.devnull, *FLAGS, "-I", include, "-I", python, str(source)],
        capture_output=True,
        text=True,
    )


def include_directories() -> list[str]:
    further = os.environ.get("NTOOLS_TEST_LIBBPF_INCLUDES", "")
    return ["/usr/include", *further.split(":")] if further else ["/usr/include"]


@pytest.mark.parametrize("include", include_directories())
def test_declarations_agree_with_headers(include, tmp_path):
    if not Path(include, "bpf", "libbpf.h").exists():
        pytest.skip(f"no libbpf headers in {include}")
    done = compile_against(include, api_source(DECLARATIONS, tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("const char *kconfig;", "", "btf_custom_path"),
        ("size_t kernel_log_size;", "uint32_t kernel_log_size;", "kernel_log_size"),
        ("const struct bpf_map *map);", "struct btf *map);", "incompatible pointer"),
        ("bpf_object__load(struct bpf_object *obj)", "bpf_object__load(void)", "too few"),
        ("bpf_object__close", "bpf_object__shut", "bpf_object__shut"),
    ],
)
def test_wrong_declaration_is_noticed(right, wrong, message, tmp_path):
    if not Path("/usr/include/bpf/libbpf.h").exists():
        pytest.skip("no libbpf headers in /usr/include")
    assert right in DECLARATIONS
    source = api_source(DECLARATIONS.replace(right, wrong, 1), tmp_path)
    done = compile_against("/usr/include", source)
    assert done.returncode != 0
    assert message in done.stderr


def test_fields_lie_where_every_version_has_them():
    binding = cffi.FFI()
    binding.cdef(DECLARATIONS)
    declared = structs(DECLARATIONS)
    assert "bpf_object_open_opts" in declared
    for struct in declared:
        for member, offset in OFFSETS[struct].items():
            assert binding.offsetof("struct " + struct, member) == offset, (struct, member)


def test_installed_library_has_every_function():
    abi = pytest.importorskip("ntools._loader._abi")
    try:
        library = abi.ffi.dlopen("libbpf.so.1")
    except OSError as error:
        pytest.skip(f"no libbpf.so.1: {error}")
    functions = [
        name[1]
        for statement in statements(DECLARATIONS)
        if not statement.startswith("typedef") and (name := re.search(r"(\w+)\(", statement))
    ]
    assert len(functions) > 20
    for function in functions:
        assert callable(getattr(library, function)), function
