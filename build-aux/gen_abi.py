# SPDX-License-Identifier: GPL-2.0-only
"""Turn the declarations of libbpf into a module that needs only ``_cffi_backend``.

usage: gen_abi.py DECLARATIONS OUTPUT

Parsing declarations costs 90 ms of CPU; done here, no command pays for it and neither cffi
nor pycparser is imported where ntools runs.
"""

import sys
from pathlib import Path

import cffi

declarations, output = sys.argv[1:]
ffi = cffi.FFI()
ffi.set_source("ntools._loader._abi", None)
ffi.cdef(Path(declarations).read_text(encoding="utf-8"))
ffi.emit_python_code(output)
