# SPDX-License-Identifier: GPL-2.0-only
"""``--dry-run``: what a command would attach, look for and keep. Nothing is loaded."""

from typing import TYPE_CHECKING, Any, List, Mapping

if TYPE_CHECKING:
    from ntools._loader import BpfObject

__all__ = ["plan_lines", "print_plan"]


def print_plan(obj: "BpfObject", filters: Mapping[str, Any], overhead: str) -> None:
    """Write the plan of a command to stdout.

    :param obj: the points of the run are wanted, its maps have their sizes.
    :param filters: as in the header record: name -> value.
    :param overhead: overhead class of the chosen mode.
    """
    import sys

    from ntools.output.stream import LineStream, printable

    LineStream(sys.stdout).write([printable(line) for line in plan_lines(obj, filters, overhead)])


def plan_lines(obj: "BpfObject", filters: Mapping[str, Any], overhead: str) -> List[str]:
    """The plan as lines; see :func:`print_plan`."""
    from ntools.model import stages
    from ntools.model.units import size_text
    from ntools.output.text import Column, table

    rows: List[List[Any]] = []
    for report in obj.outlook():
        refused = {(row.mechanism, row.target): row.text for row in report.failed}
        for candidate in obj.points[report.point].candidates:
            key = (candidate.mechanism, candidate.target)
            if key in refused:
                state = "no: " + refused[key]
            elif key == (report.attach, report.target):
                state = "first choice"
            else:
                state = "if those before are refused"
            rows.append([stages.from_symbol(report.point), "/".join(key), state])
    lines = table(
        [Column("point", left=True), Column("candidate", left=True), Column("here", left=True)],
        rows,
    )
    maps = obj.map_bytes()
    lines += [""] + table(
        [Column("map", left=True), Column("entries"), Column("memory")],
        [[name, entries, size_text(size)] for name, entries, size in maps],
    )
    total = sum(size for _, _, size in maps)
    given = [
        "{}={}".format(name, " | ".join(value) if name == "rules" else value)
        for name, value in filters.items()
        if value is not None
    ]
    lines += [
        "",
        "memory of all maps: " + size_text(total),
        "filters: " + (", ".join(given) or "none"),
        "overhead class: " + overhead,
    ]
    return lines
