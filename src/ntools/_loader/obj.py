# SPDX-License-Identifier: GPL-2.0-only
"""A BPF object: opened, configured, planned, loaded, attached, given back.

A *point* is a place of interest with several *candidates*: programs named ``point__mechanism`` (or
``point__label__mechanism``) in a section ``mechanism/target``. For each wanted point the first
candidate that looks possible is loaded and attached; what the kernel refuses is noted and the next
one is tried in another copy of the object, a *layer*, that shares all maps with the first.
"""

import errno
import mmap
import os
from typing import Any, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Set, Tuple

from ntools.errors import AttachFailed, EnvironmentProblem, LoadFailed, UsageProblem

from .btf import StructType, Types, relocation_roots
from .elf import sections
from .files import fingerprint, object_path
from .kernel import MECHANISMS, KernelFacts, facts, refused_by_environment
from .lib import error_text, failed, ffi, library
from .maps import KernelMap, MapView
from .modules import module_targets
from .ring import RingChannel

__all__ = ["BpfObject", "Candidate", "Point", "PointReport", "Refusal"]

_RINGBUF, _PERF_ARRAY = 27, 4
_LOG_BYTES = 8 << 20  # kernels before 5.2 refuse 16 MiB and more
_MIN_RING = 256 << 10
#: The kernel resolves their targets itself; a BTF file does not help.
_NEEDS_OWN_BTF = ("tp_btf", "fentry", "fexit")
#: Refused for one means refused for all programs of that mechanism.
_MECHANISM_WIDE = (errno.EPERM, 524, errno.EOPNOTSUPP)
_REJECTED = "refused by the verifier"
#: Lines of the verifier's log behind the one that says what is wrong.
_STATISTICS = ("processed ", "verification time", "stack depth", "peak_states", "max_states")


class Candidate(NamedTuple):
    """One program of a point: its name, how and where it attaches."""

    program: str
    mechanism: str
    target: str


class Point(NamedTuple):
    """A point and its candidates in the order they are tried."""

    name: str
    candidates: List[Candidate]


class Refusal(NamedTuple):
    """Why a candidate was not used; ``errno`` 0 when it was not even tried."""

    mechanism: str
    target: str
    errno: int
    text: str


class PointReport(NamedTuple):
    """What became of a wanted point; ``attach`` None: missing."""

    point: str
    attach: Optional[str]
    target: Optional[str]
    failed: List[Refusal]


class BpfObject:
    """One object file and, after :meth:`start`, its programs and maps in the kernel.

    :param name: engine name ("flight") or a path that ends in ".o".
    :param btf: file with type information for a kernel that has none.
    :param refuse: mechanisms and features not to use (default: ``NTOOLS_REFUSE``).
    :raises EnvironmentProblem: no libbpf, no such object for this architecture, no BTF.
    """

    def __init__(
        self, name: str, *, btf: Optional[str] = None, refuse: Optional[FrozenSet[str]] = None
    ) -> None:
        self._refuse = refused_by_environment() if refuse is None else refuse
        self.kernel = KernelFacts(btf) if btf else facts()
        self._disguise: Any = None
        if "ringbuf" in self._refuse:
            self._disguise = self.kernel.without_ringbuf()
            self.kernel = KernelFacts(self._disguise.name)
        self.path = object_path(name, self.kernel.arch)
        self.name = os.path.basename(self.path).split(".")[0]
        with open(self.path, "rb") as file:
            data = file.read()
        self.build_id = fingerprint(data)
        content = sections(data)
        self.types = Types(content[".BTF"])
        self.manifest = self.types.manifest()
        self._roots = relocation_roots(self.types, content.get(".BTF.ext", b""))
        self._library = library()
        self._wanted: Dict[str, bool] = {}
        self._sizes: Dict[str, int] = {}
        self._config: Dict[str, Any] = {}
        self._layers: List[Any] = []
        self._links: List[Any] = []
        self._maps: Dict[str, Any] = {}
        self._views: Dict[str, MapView] = {}
        self._channels: Dict[str, Any] = {}
        self._chosen: Dict[str, Candidate] = {}
        self._fds: Dict[str, int] = {}
        self._refusals: Dict[str, List[Refusal]] = {}
        self._rejected: Dict[str, Tuple[Candidate, str, str]] = {}  # point -> last, why, log
        self._gone: Set[str] = set()
        self._log = mmap.mmap(-1, _LOG_BYTES)
        self._perf = False
        module_targets().expect(content, self.kernel)
        first = self._open()
        self._layers.append(first)
        self.points = self._read_points(first)

    def __enter__(self) -> "BpfObject":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # -- before start --------------------------------------------------------------------------

    def want(self, *points: str) -> None:
        """Use these points where the kernel has them."""
        for point in points:
            self._wanted.setdefault(self._known(point), False)

    def need(self, *points: str) -> None:
        """Use these points; :meth:`start` fails without them."""
        for point in points:
            self._wanted[self._known(point)] = True

    def resize(self, map_name: str, size: int) -> None:
        """Entries of a map, or bytes of a channel (rounded up to a power of two)."""
        self._sizes[map_name] = size

    def configure(self, **values: Any) -> None:
        """Set fields of the config struct, before or after :meth:`start`."""
        self._config.update(values)
        if "nt_cfg" in self._maps:
            self._write_config()

    @property
    def config_type(self) -> StructType:
        """The config struct."""
        return self.types.struct(self.manifest["cfg"][1])

    # -- start ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Load and attach every wanted point, falling back per point.

        :raises LoadFailed: the object cannot be loaded at all.
        :raises AttachFailed: a needed point is not available here.
        :raises EnvironmentProblem: privilege, lockdown or type information missing.
        """
        self.kernel.check_privilege()
        self._perf = not self.kernel.has_ringbuf
        _raise_memlock()
        self._prefilter()
        pending = dict(self._wanted)
        while True:
            plan = self._plan(pending)
            self._load(plan, pending)
            for point in [p for p in plan if self._attach(p, plan[p])]:
                del pending[point]
            if not any(self._next(point) for point in pending):
                break
            self._layers.append(self._open())
        self.kernel.forget()
        for point, needed in self._wanted.items():
            if needed and point not in self._chosen:
                raise self._needed_error(point)

    @property
    def report(self) -> List[PointReport]:
        """What became of each wanted point."""
        return [self._report(point, self._chosen.get(point)) for point in self._wanted]

    def outlook(self) -> List[PointReport]:
        """What :meth:`start` would try first for each wanted point. Loads nothing."""
        self._prefilter()
        return [self._report(point, self._next(point)) for point in self._wanted]

    def attached(self, point: str) -> bool:
        """Whether a point has a running program."""
        return point in self._chosen

    # -- while running -------------------------------------------------------------------------

    def map(self, name: str) -> MapView:
        """A loaded map."""
        if name not in self._views:
            self._views[name] = self._view(name, self._maps[name])
        return self._views[name]

    def maps(self) -> List[MapView]:
        """All loaded maps with keys and values, that is all but channels."""
        return [self.map(name) for name in self._maps if self.types.map_types(name)[0]]

    def channel(self, name: str = "events") -> Any:
        """Reader of a channel: :class:`RingChannel` or :class:`PerfChannel`."""
        if name not in self._channels:
            handle = self._maps[name]
            c = self._library.c
            fd = c.bpf_map__fd(handle)
            record = self.types.struct(self.manifest[name][1])
            if self._perf:
                from .perf import PerfChannel  # brings ctypes, which no other path needs

                array = KernelMap(
                    name, fd, _PERF_ARRAY, c.bpf_map__max_entries(handle), 4, 4, False
                )
                self._channels[name] = PerfChannel(array, record)
            else:
                self._channels[name] = RingChannel(fd, record, c.bpf_map__max_entries(handle))
        return self._channels[name]

    def map_bytes(self) -> List[Tuple[str, int, int]]:
        """(name, entries, bytes) of every map; before :meth:`start`, of those it would make."""
        handles = self._maps
        if not handles:
            self._perf = not self.kernel.has_ringbuf
            self._prepare_maps(self._layers[-1])
            handles = dict(self._map_handles(self._layers[-1]))
        rows = []
        for name, handle in handles.items():
            entries = int(self._library.c.bpf_map__max_entries(handle))
            if name in self.manifest:  # a channel: its entries are bytes, or CPUs with perf pages
                rows.append((name, entries, 0 if self._perf else entries))
            else:
                rows.append((name, entries, self._view(name, handle).memory_bytes))
        return rows

    def programs(self) -> List[Tuple[str, int, int, int]]:
        """(point, run time in ns, runs, runs missed through recursion) per attached program.

        Time and runs are 0 unless the kernel's BPF statistics are on.
        """
        rows = []
        info = ffi.new("uint64_t[32]")
        length = ffi.new("uint32_t *")
        for point, fd in self._fds.items():
            ffi.buffer(info)[:] = b"\0" * 256
            length[0] = 256
            if not self._library.c.bpf_obj_get_info_by_fd(fd, info, length):
                missed = int(info[26]) if length[0] >= 216 else 0
                rows.append((point, int(info[24]), int(info[25]), missed))
        return rows

    def detach(self) -> None:
        """Detach all programs; maps stay readable."""
        while self._links:
            self._library.c.bpf_link__destroy(self._links.pop())

    def close(self) -> None:
        """Detach and free everything; may be called twice."""
        self.detach()
        for channel in self._channels.values():
            channel.close()
        self._channels = {}
        self._views = {}
        self._maps = {}
        while self._layers:
            self._library.c.bpf_object__close(self._layers.pop())
        if self._disguise:
            self._disguise.close()

    # -- inside --------------------------------------------------------------------------------

    def _open(self) -> Any:
        options = ffi.new("struct bpf_object_open_opts *")
        options.sz = ffi.sizeof("struct bpf_object_open_opts")
        keep = [ffi.new("char[]", os.fsencode(self.kernel.btf_path or "")), None]
        if self.kernel.btf_path:
            options.btf_custom_path = keep[0]
        keep[1] = ffi.from_buffer("char[]", self._log)
        options.kernel_log_buf = keep[1]
        options.kernel_log_size = _LOG_BYTES
        self._library.forget()
        handle = self._library.c.bpf_object__open_file(os.fsencode(self.path), options)
        if failed(handle):
            raise LoadFailed(
                "cannot open object '{}': {}.".format(self.path, error_text(ffi.errno))
            )
        self._keep = keep
        return handle

    def _programs(self, layer: Any) -> Dict[str, Any]:
        c = self._library.c
        found = {}
        program = c.bpf_object__next_program(layer, ffi.NULL)
        while program != ffi.NULL:
            found[ffi.string(c.bpf_program__name(program)).decode()] = program
            program = c.bpf_object__next_program(layer, program)
        return found

    def _read_points(self, layer: Any) -> Dict[str, Point]:
        points: Dict[str, List[Candidate]] = {}
        for name, program in self._programs(layer).items():
            section = ffi.string(self._library.c.bpf_program__section_name(program)).decode()
            mechanism, _, target = section.lstrip("?").partition("/")
            points.setdefault(name.split("__")[0], []).append(Candidate(name, mechanism, target))
        # libbpf lists programs by section; among equal mechanisms the order of the source decides.
        source = {name: index for index, name in enumerate(self.types.functions())}
        order = {mechanism: index for index, mechanism in enumerate(MECHANISMS)}
        return {
            name: Point(
                name,
                sorted(found, key=lambda c: (order.get(c.mechanism, 99), source[c.program])),
            )
            for name, found in points.items()
        }

    def _known(self, point: str) -> str:
        if point not in self.points:
            raise UsageProblem("object '{}' has no point '{}'.".format(self.name, point))
        return point

    def _refuse_candidate(self, candidate: Candidate, number: int, text: str) -> None:
        self._gone.add(candidate.program)
        point = candidate.program.split("__")[0]
        self._refusals.setdefault(point, []).append(
            Refusal(candidate.mechanism, candidate.target, number, text)
        )

    def _prefilter(self) -> None:
        """Refuse what cannot work, without asking the kernel: each try costs a whole load."""
        kernel = self.kernel
        read = sorted({name for names in self._roots.values() for name in names})
        kernel.check_fit(read, self.name, self.build_id)
        for point in self._wanted:
            for candidate in self.points[point].candidates:
                mechanism, target = candidate.mechanism, candidate.target
                if candidate.program in self._gone:
                    continue
                if mechanism in self._refuse:
                    self._refuse_candidate(candidate, 0, "switched off by NTOOLS_REFUSE")
                elif mechanism in ("kprobe", "kretprobe") and not kernel.has_kprobes:
                    self._refuse_candidate(candidate, 0, "this kernel has no kprobes")
                elif mechanism in _NEEDS_OWN_BTF and not kernel.has_own_btf:
                    self._refuse_candidate(candidate, 0, "this kernel has no BTF of its own")
                elif mechanism == "tp_btf" and not kernel.has_tracepoint(target):
                    self._refuse_candidate(candidate, 0, "tracepoint not in the type information")
                elif mechanism in ("fentry", "fexit") and not kernel.has_function(target):
                    self._refuse_candidate(candidate, 0, "function not in the type information")
                else:
                    missing = [
                        root
                        for root in sorted(self._roots.get(candidate.program, ()))
                        if not kernel.has_name(root)
                    ]
                    if missing:
                        self._refuse_candidate(
                            candidate, 0, "no struct {} in the type information".format(missing[0])
                        )

    def _report(self, point: str, candidate: Optional[Candidate]) -> PointReport:
        return PointReport(
            point,
            candidate.mechanism if candidate else None,
            candidate.target if candidate else None,
            self._refusals.get(point, []),
        )

    def _next(self, point: str) -> Optional[Candidate]:
        for candidate in self.points[point].candidates:
            if candidate.program not in self._gone:
                return candidate
        return None

    def _plan(self, pending: Dict[str, bool]) -> Dict[str, Candidate]:
        plan = {}
        for point in pending:
            candidate = self._next(point)
            if candidate:
                plan[point] = candidate
        return plan

    def _load(self, plan: Dict[str, Candidate], pending: Dict[str, bool]) -> None:
        """Load the newest layer with the planned programs, demoting those that are refused."""
        while True:
            layer = self._layers[-1]
            number = self._try_load(layer, {c.program for c in plan.values()})
            if not number:
                self._adopt(layer)
                return
            blamed = self._library.failing_programs()
            culprits = [c for c in plan.values() if c.program in blamed]
            if not culprits:
                culprits = self._search_culprits(plan)
            if not culprits:
                raise self._load_error(number)
            for candidate in culprits:
                self._demote(candidate, number)
            self._reopen()
            plan.clear()
            plan.update(self._plan(pending))

    def _reopen(self) -> None:
        self._library.c.bpf_object__close(self._layers.pop())
        self._layers.append(self._open())

    def _try_load(self, layer: Any, programs: Set[str]) -> int:
        c = self._library.c
        for name, program in self._programs(layer).items():
            c.bpf_program__set_autoload(program, name in programs)
        self._prepare_maps(layer)
        self._library.forget()
        self._log[:1] = b"\0"
        refused = c.bpf_object__load(layer)
        number = ffi.errno or errno.EINVAL
        module_targets().forget()
        return number if refused else 0

    def _search_culprits(self, plan: Dict[str, Candidate]) -> List[Candidate]:
        """Which planned programs fail when loaded alone: for a library whose log names none."""
        found = []
        for candidate in plan.values():
            self._reopen()
            if self._try_load(self._layers[-1], {candidate.program}):
                found.append(candidate)
        return found if len(found) < len(plan) or len(plan) == 1 else []

    def _demote(self, candidate: Candidate, number: int) -> None:
        log = self._log_text()
        text = _load_text(number, log)
        if text.startswith(_REJECTED):
            self._rejected[candidate.program.split("__")[0]] = (candidate, text, log)
        self._refuse_candidate(candidate, number, text)
        if number in _MECHANISM_WIDE and candidate.mechanism in ("fentry", "fexit"):
            for point in self._wanted:
                for other in self.points[point].candidates:
                    if other.mechanism in ("fentry", "fexit") and other.program not in self._gone:
                        self._refuse_candidate(other, number, text)

    def _log_text(self) -> str:
        end = self._log.find(b"\0")
        return self._log[: max(end, 0)].decode("utf-8", "replace")

    def _load_error(self, number: int) -> Exception:
        log = self._log_text()
        if number == errno.EPERM and not log:
            return EnvironmentProblem(
                "the kernel refuses BPF programs of object '{}': {}. Check lockdown and LSM "
                "policy.".format(self.name, error_text(number))
            )
        if any("valid kernel BTF" in line for line in self._library.log):
            return EnvironmentProblem(
                "libbpf {} cannot read the type information of kernel {}. Install libbpf 1.0 or "
                "newer, or point NTOOLS_LIBBPF at one.".format(
                    self._library.version_text, self.kernel.release
                )
            )
        last = log.strip().splitlines()[-1:] or self._library.log[-1:]
        return LoadFailed(
            "cannot load object '{}': {}. {}".format(
                self.name, error_text(number), " ".join(last)
            ).strip(),
            log=log,
        )

    def _view(self, name: str, handle: Any) -> MapView:
        c = self._library.c
        key, value = self.types.map_types(name)
        assert key is not None and value is not None, name
        kind = c.bpf_map__type(handle)
        entries = int(c.bpf_map__max_entries(handle))
        cpus = KernelMap.cpus(kind)
        view = MapView(name, None, entries, key, value, cpus)
        view.store = KernelMap(
            name,
            c.bpf_map__fd(handle),
            kind,
            entries,
            key.size,
            view.percpu_stride * (cpus or 1),
            "batch" not in self._refuse,
        )
        return view

    def _map_handles(self, layer: Any) -> Iterator[Tuple[str, Any]]:
        c = self._library.c
        handle = c.bpf_object__next_map(layer, ffi.NULL)
        while handle != ffi.NULL:
            yield ffi.string(c.bpf_map__name(handle)).decode(), handle
            handle = c.bpf_object__next_map(layer, handle)

    def _prepare_maps(self, layer: Any) -> None:
        c = self._library.c
        for name, handle in self._map_handles(layer):
            size = self._sizes.get(name)
            if name in self._maps:
                c.bpf_map__reuse_fd(handle, c.bpf_map__fd(self._maps[name]))
            elif c.bpf_map__type(handle) == _RINGBUF:
                if self._perf:
                    c.bpf_map__set_type(handle, _PERF_ARRAY)
                    c.bpf_map__set_key_size(handle, 4)
                    c.bpf_map__set_value_size(handle, 4)
                    size = c.libbpf_num_possible_cpus()
                elif size:
                    size = max(_MIN_RING, 1 << (size - 1).bit_length())
                if size:
                    c.bpf_map__set_max_entries(handle, size)
            elif size:
                c.bpf_map__set_max_entries(handle, size)

    def _adopt(self, layer: Any) -> None:
        """Take the maps of the first loaded layer; write the configuration before any attach."""
        if self._maps:
            return
        for name, handle in self._map_handles(layer):
            if self._library.c.bpf_map__fd(handle) >= 0:
                self._maps[name] = handle
        self._write_config()

    def _write_config(self) -> None:
        self.map("nt_cfg").update(0, self.config_type.pack(self._config))

    def _attach(self, point: str, candidate: Candidate) -> bool:
        c = self._library.c
        program = self._programs(self._layers[-1])[candidate.program]
        self._library.forget()
        # What a handler of ours has prepared libbpf attaches only by this name.
        own_btf = candidate.mechanism in _NEEDS_OWN_BTF
        link = (c.bpf_program__attach_trace if own_btf else c.bpf_program__attach)(program)
        if failed(link):
            number = ffi.errno
            self._refuse_candidate(
                candidate, number, "refused at attach: {}".format(error_text(number))
            )
            return False
        self._links.append(link)
        self._fds[point] = c.bpf_program__fd(program)
        self._chosen[point] = candidate
        return True

    def _needed_error(self, point: str) -> Exception:
        refusals = self._refusals.get(point, [])
        rejected, text, log = self._rejected.get(point, (None, "", ""))
        if rejected and refusals[-1][:2] == rejected[1:]:
            return LoadFailed(
                "cannot load program '{}' of object '{}' on kernel {}: {}. Please report it with "
                "the whole log (-vv).".format(
                    rejected.program, self.name, self.kernel.release, text
                ),
                program=rejected.program,
                log=log,
            )
        targets = sorted({candidate.target for candidate in self.points[point].candidates})
        hint = "The command cannot work without {} on kernel {}.".format(
            " or ".join(targets), self.kernel.release
        )
        return AttachFailed(point, refusals, hint)


def _load_text(number: int, log: str) -> str:
    """Why a program was refused at load, from the verifier's log or what libbpf put there."""
    lines = [line for line in log.splitlines() if line.strip()]
    relocation = [line for line in lines if "failed to resolve CO-RE relocation" in line]
    if relocation:
        field = relocation[-1].split("struct ")[-1].split(" ")[0].rstrip(")")
        return "the kernel's type information has no {}".format(field)
    while lines and lines[-1].startswith(_STATISTICS):
        lines.pop()
    if lines:
        return "{}: {}: {}".format(_REJECTED, error_text(number), lines[-1].strip())
    return "refused at load: {}".format(error_text(number))


def _raise_memlock() -> None:
    """Before 5.11 maps are charged to this limit; a refusal shows up as EPERM at load."""
    import resource

    try:
        resource.setrlimit(
            resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )
    except (ValueError, OSError):
        pass
