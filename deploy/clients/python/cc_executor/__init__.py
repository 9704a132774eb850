"""Runs commands on a cc-executor service: reconnects, checks every byte, and never invents an ending.

    from cc_executor import Client

    result = Client().run("make test", timeout=600)
    print(result.exit_code, result.text)

`AsyncClient` is the same for asyncio. The messages of the service are typed in `cc_executor.types`.
"""

from ._async_client import AsyncClient
from ._client import Client, Execution
from ._execution import AsyncExecution
from .errors import (
    CcExecutorError,
    DigestMismatch,
    EndingUnknown,
    ExecutionFailed,
    InputUnconfirmed,
    NotAuthorized,
    OutputError,
    OutputLost,
    OutputTooLong,
    RequestRefused,
    ServiceUnavailable,
    TakenOver,
    UnknownExecution,
)
from .results import Ending, Gap, Output, PerStream, Result

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "AsyncExecution",
    "CcExecutorError",
    "Client",
    "DigestMismatch",
    "Ending",
    "EndingUnknown",
    "Execution",
    "ExecutionFailed",
    "Gap",
    "InputUnconfirmed",
    "NotAuthorized",
    "Output",
    "OutputError",
    "OutputLost",
    "OutputTooLong",
    "PerStream",
    "RequestRefused",
    "Result",
    "ServiceUnavailable",
    "TakenOver",
    "UnknownExecution",
]
