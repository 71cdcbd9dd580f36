# SPDX-License-Identifier: GPL-2.0-only
"""Every error a command can end with.

NtoolsError
|-- UsageProblem         2  the command line asks for something that cannot be
|-- EnvironmentProblem   3  this kernel, module, library or privilege cannot give it
|-- AttachFailed         3  a point the command cannot do without was refused everywhere
|-- LoadFailed           1  the verifier or the library refused a program
|-- RecordingProblem     1  a recording cannot be read or written
`-- SafetyRefusal        5  the safety model says no (``--force`` overrides)

``str()`` of each is the one line a user reads; ``exit_status`` is what the command returns.
"""

from typing import Sequence, Tuple

__all__ = [
    "NtoolsError",
    "UsageProblem",
    "EnvironmentProblem",
    "AttachFailed",
    "LoadFailed",
    "RecordingProblem",
    "SafetyRefusal",
]


class NtoolsError(Exception):
    """Base of all errors that end a command with one line on stderr."""

    exit_status = 1


class UsageProblem(NtoolsError):
    """An option value that cannot be used; says which and what would do."""

    exit_status = 2


class EnvironmentProblem(NtoolsError):
    """This host cannot run the command: kernel, module, BTF, library or privilege."""

    exit_status = 3


class AttachFailed(NtoolsError):
    """No candidate of a needed point could be attached.

    :ivar point: name of the point.
    :ivar tried: ``(mechanism, target, errno, text)`` of every refused candidate.
    """

    exit_status = 3

    def __init__(self, point: str, tried: Sequence[Tuple[str, str, int, str]], hint: str) -> None:
        self.point = point
        self.tried = tuple(tried)
        attempts = "; ".join(
            "{} {}: {}".format(mechanism, target, text) for mechanism, target, _, text in tried
        )
        super().__init__(
            "cannot attach to '{}': {}. {}".format(point, attempts or "no candidate", hint)
        )


class LoadFailed(NtoolsError):
    """The kernel or libbpf refused an object.

    :ivar program: name of the refused program, "" when unknown.
    :ivar log: the verifier's log, whole.
    """

    def __init__(self, message: str, program: str = "", log: str = "") -> None:
        self.program = program
        self.log = log
        super().__init__(message)


class RecordingProblem(NtoolsError):
    """A recording that is damaged, foreign or cannot be written."""


class SafetyRefusal(NtoolsError):
    """The run would cost more than the safety model allows."""

    exit_status = 5
