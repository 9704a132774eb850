"""The values that a client gets: pieces of output, gaps, endings and results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, Mapping, Sequence, TypeVar, get_args

from .errors import ExecutionFailed
from .types import CancelReport, ClaudeResult, FinalStatus, GapReason, Reason, Status, Stream, Usage

T = TypeVar("T")

#: The final statuses.
FinalState = Literal["COMPLETED", "CANCELLED", "FAILED"]


@dataclass(frozen=True)
class PerStream(Generic[T]):
    """One value for each output stream."""

    stdout: T
    stderr: T


@dataclass(frozen=True)
class Output:
    """A piece of output."""

    #: `stdout` or `stderr`.
    stream: Stream
    #: The bytes.
    data: bytes
    #: The offset in the stream after them: what `attach` takes to continue there.
    end: int


@dataclass(frozen=True)
class Gap:
    """Bytes of the output that the service no longer has."""

    stream: Stream
    #: The offset of the first lost byte.
    start: int
    #: The offset after the last lost byte.
    end: int
    #: `dropped` if the execution drops output, `overwritten`, or `unreadable`.
    reason: GapReason


@dataclass(frozen=True)
class Ending:
    """How an execution ended, as the service reported it."""

    execution_id: str
    #: `COMPLETED` (exit code 0), `CANCELLED` or `FAILED`.
    status: Status
    #: Why: `exit`, `signal`, `oom`, `timeout`, `canceled` and so on; `unknown` is a reason of a newer service.
    reason: Reason
    #: The exit code, if the command exited.
    exit_code: int | None
    #: The name of the signal that ended the command.
    signal: str | None
    #: A message for people.
    message: str | None
    #: Seconds since the command started.
    elapsed: float | None
    #: How many bytes the command wrote.
    bytes: PerStream[int | None]
    #: Their SHA-256 in hexadecimal.
    sha256: PerStream[str | None]
    #: Processor time and memory, as far as they are known.
    usage: Usage | None
    #: Whether all processes are gone, if the service ended the execution.
    cancel: CancelReport | None
    #: Claude's result, with the executor `claude`.
    claude: ClaudeResult | None
    #: All fields of the final status, also those that are newer than this package.
    raw: FinalStatus

    @property
    def ok(self) -> bool:
        """Whether the command succeeded."""
        return self.status == "COMPLETED"

    def __str__(self) -> str:
        text = f"{self.status}, {self.reason}"
        if self.exit_code is not None:
            text += f" {self.exit_code}"
        if self.signal is not None:
            text += f" {self.signal}"
        return f"{text}: {self.message}" if self.message else text


def ending_of(params: FinalStatus) -> Ending:
    """Reads the parameters of a final status."""
    elapsed = params.get("elapsedMs")
    reason = params["reason"]
    return Ending(
        execution_id=params["executionId"],
        status=params["status"],
        reason=reason if reason in get_args(Reason) else "unknown",
        exit_code=params.get("exit_code"),
        signal=params.get("signal"),
        message=params.get("message"),
        elapsed=None if elapsed is None else elapsed / 1000,
        bytes=PerStream(params["bytes"]["stdout"], params["bytes"]["stderr"]),
        sha256=PerStream(params["sha256"]["stdout"], params["sha256"]["stderr"]),
        usage=params.get("usage"),
        cancel=params.get("cancel"),
        claude=params.get("result"),
        raw=params,
    )


@dataclass(frozen=True)
class Result:
    """The output of a command and how it ended. Count and SHA-256 of the output are those of the service."""

    ending: Ending
    stdout: bytes
    stderr: bytes
    #: How many bytes of each stream are beyond the limit of `run`, and not here.
    omitted: PerStream[int]
    #: Bytes that the service no longer had, and that are not here. Empty unless gaps are allowed.
    gaps: Sequence[Gap]

    @property
    def execution_id(self) -> str:
        return self.ending.execution_id

    @property
    def ok(self) -> bool:
        """Whether the command succeeded."""
        return self.ending.ok

    @property
    def status(self) -> Status:
        return self.ending.status

    @property
    def reason(self) -> Reason:
        return self.ending.reason

    @property
    def exit_code(self) -> int | None:
        return self.ending.exit_code

    @property
    def bytes(self) -> PerStream[int | None]:
        return self.ending.bytes

    @property
    def sha256(self) -> PerStream[str | None]:
        return self.ending.sha256

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")

    def check(self) -> Result:
        """Returns this result if the command succeeded, else raises `ExecutionFailed`."""
        if not self.ok:
            raise ExecutionFailed(f"the command did not succeed: {self.ending}", self)
        return self


#: The variables of a command's environment.
Environment = Mapping[str, str]
