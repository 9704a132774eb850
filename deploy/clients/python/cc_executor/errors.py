"""The errors of this package. How a command ended is a value, not an error, unless it is not known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

if TYPE_CHECKING:
    from .results import Ending, Gap, Result


class CcExecutorError(Exception):
    """The base of all errors of this package."""

    #: The execution that the error concerns.
    execution_id: str | None

    def __init__(self, message: str, execution_id: str | None = None) -> None:
        super().__init__(message)
        self.execution_id = execution_id


class NotAuthorized(CcExecutorError):
    """The service refuses the token, or demands one."""


class ServiceUnavailable(CcExecutorError):
    """The service cannot be reached, is full, or is shutting down. The command was not started."""


class RequestRefused(CcExecutorError):
    """The service refuses the request, for instance because of a parameter. Nothing was started."""

    #: The JSON-RPC error code, see src/protocol.md.
    code: int
    #: Details for programs, such as `param`, `min` and `max`.
    data: Any

    def __init__(self, message: str, code: int, data: Any = None, execution_id: str | None = None) -> None:
        super().__init__(message, execution_id)
        self.code = code
        self.data = data


class UnknownExecution(RequestRefused):
    """The service has no execution with this id, or it belongs to another client."""


class EndingUnknown(CcExecutorError):
    """The command was started or may have been, and how it ended is not known: the client could not connect again in
    time, or the service or its backend was restarted. `attach` with the id may still tell it.
    """

    #: What the service reported, if it reported that its backend was lost.
    ending: Ending | None

    def __init__(self, message: str, execution_id: str | None = None, ending: Ending | None = None) -> None:
        super().__init__(message, execution_id)
        self.ending = ending


class TakenOver(CcExecutorError):
    """Another session has attached to the execution, which continues."""


class InputUnconfirmed(CcExecutorError):
    """The connection broke before the service had confirmed input, which the command may or may not have got."""


class OutputError(CcExecutorError):
    """The output that arrived is not what the command wrote."""

    #: How the command ended, and what did arrive. Only `run` sets it.
    result: Result | None

    def __init__(self, message: str, execution_id: str | None = None, result: Result | None = None) -> None:
        super().__init__(message, execution_id)
        self.result = result


class OutputLost(OutputError):
    """The service reports a gap: it no longer has some bytes of the output."""

    #: The lost ranges.
    gaps: Sequence[Gap]

    def __init__(
        self, message: str, gaps: Sequence[Gap], execution_id: str | None = None, result: Result | None = None
    ) -> None:
        super().__init__(message, execution_id, result)
        self.gaps = gaps


class DigestMismatch(OutputError):
    """The number of bytes or their SHA-256 is not that which the service computed where the command ran."""


class OutputTooLong(OutputError):
    """The command wrote more than the limit of `run`. `result` has the beginning, and `result.omitted` counts the rest."""


class ExecutionFailed(CcExecutorError):
    """The command did not succeed. Only `check` raises this."""

    #: How the command ended.
    result: Result

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message, result.execution_id)
        self.result = result
