"""The client for programs that use asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any, cast

from ._execution import DEFAULT_GRACE, FINAL, NOT_RUNNING, AsyncExecution, describe
from ._session import ANSWER_PATIENCE, OPEN_PATIENCE, Broken, Session, session_url, token_of_environment
from .errors import DigestMismatch, EndingUnknown, OutputLost, OutputTooLong, RequestRefused, ServiceUnavailable, UnknownExecution
from .results import Ending, Environment, Gap, PerStream, Result, ending_of
from .types import AttachParams, ClaudeOptions, ExecuteParams, FinalStatus, Framing, Overflow, Stream, TerminalSize

#: How long a client tries to connect again, and how long the command runs without it, in seconds.
RECONNECT = 300.0
#: The output of each stream that `run` keeps, in bytes.
LIMIT = 64 << 20


class AsyncClient:
    """A service. Each execution has a connection of its own.

    Without `url` and `token` they are those of `CC_EXECUTOR_URL` and `CC_EXECUTOR_TOKEN`, as for the command line.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        #: The URL of a session.
        self.url = session_url(url)
        self._token = token or token_of_environment()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def start(
        self,
        command: str | Sequence[str],
        *,
        name: str | None = None,
        executor: str | None = None,
        cwd: str | None = None,
        env: Environment | None = None,
        timeout: float | None = None,
        stall_timeout: float | None = None,
        heartbeat: float | None = None,
        stdin: bool = False,
        pty: TerminalSize | None = None,
        framing: Framing = "chunk",
        reconnect: float = RECONNECT,
        overflow: Overflow = "wait",
        claude: ClaudeOptions | None = None,
        allow_gaps: bool | None = None,
        execution_id: str | None = None,
    ) -> AsyncExecution:
        """Starts a command: `async with client.start("make") as execution`. Times are in seconds.

        `command` is a text for a shell, or a list of words that run exactly as they are, without a shell. No two running
        executions of a client have the same `name`.
        `timeout` and `stall_timeout` end the command, which is then FAILED with the reason `timeout` or `stalled`.
        `reconnect` is for how long the client tries to connect again, and for how long the command runs without it; with 0 a
        broken connection ends the command. `overflow` says what happens to output when the service can keep no more of it:
        the command waits, or the oldest is dropped. A gap in the output raises `OutputLost`, unless `allow_gaps` is true; its
        default is true with `overflow="drop"`.
        """
        params: ExecuteParams = {"framing": framing}
        if isinstance(command, str):
            params["command"] = command
        else:
            params["argv"] = list(command)
        if name is not None:
            params["name"] = name
        if executor is not None:
            params["executor"] = executor
        if cwd is not None:
            params["cwd"] = cwd
        if env is not None:
            params["env"] = dict(env)
        if timeout is not None:
            params["timeoutMs"] = milliseconds(timeout)
        if stall_timeout is not None:
            params["stallTimeoutMs"] = milliseconds(stall_timeout)
        if heartbeat is not None:
            params["heartbeatMs"] = milliseconds(heartbeat)
        if stdin:
            params["stdin"] = True
        if pty is not None:
            params["pty"] = pty
        if overflow != "wait":
            params["overflow"] = overflow
        if claude is not None:
            params["claude"] = claude
        if execution_id is not None:
            params["executionId"] = execution_id
        gaps = overflow == "drop" if allow_gaps is None else allow_gaps
        return AsyncExecution(self.url, self._token, execute=params, reconnect=reconnect, allow_gaps=gaps)

    def attach(
        self,
        execution_id: str,
        *,
        stdout: int = 0,
        stderr: int = 0,
        observe: bool = False,
        framing: Framing = "chunk",
        reconnect: float = RECONNECT,
        allow_gaps: bool = False,
    ) -> AsyncExecution:
        """Follows an execution that runs, waits, or has ended: its output after these offsets, then live, and its ending. The
        session that followed it before gets `TakenOver`, unless `observe` leaves the execution to it. The digest is checked
        if the output is read from the beginning.
        """
        params: AttachParams = {
            "executionId": execution_id,
            "offsets": {"stdout": stdout, "stderr": stderr},
            "framing": framing,
        }
        if observe:
            params["observe"] = True
        return AsyncExecution(self.url, self._token, attach=params, reconnect=reconnect, allow_gaps=allow_gaps)

    async def run(
        self,
        command: str | Sequence[str],
        *,
        name: str | None = None,
        executor: str | None = None,
        cwd: str | None = None,
        env: Environment | None = None,
        timeout: float | None = None,
        stall_timeout: float | None = None,
        input: bytes | str | None = None,
        reconnect: float = RECONNECT,
        overflow: Overflow = "wait",
        claude: ClaudeOptions | None = None,
        limit: int = LIMIT,
        check: bool = False,
    ) -> Result:
        """Runs a command to its end, and returns its output and its ending. If this is cancelled, the command is, too.

        It keeps the first `limit` bytes of each stream; if the command writes more, it raises `OutputTooLong` at the end, with
        the result. With `check` a command that does not succeed raises `ExecutionFailed`. See `start` for the rest.
        """
        execution = self.start(
            command,
            executor=executor,
            cwd=cwd,
            env=env,
            timeout=timeout,
            stall_timeout=stall_timeout,
            stdin=input is not None,
            reconnect=reconnect,
            overflow=overflow,
            claude=claude,
            allow_gaps=True,
        )
        kept: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        omitted: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        damage: DigestMismatch | None = None
        async with execution:
            feeding = asyncio.create_task(feed(execution, input)) if input is not None else None
            try:
                async for output in execution:
                    room = max(limit - len(kept[output.stream]), 0)
                    kept[output.stream] += output.data[:room]
                    omitted[output.stream] += max(len(output.data) - room, 0)
                ending = await execution.wait()
                if feeding is not None:
                    await feeding
            finally:
                if feeding is not None:
                    feeding.cancel()
                    with contextlib.suppress(BaseException):
                        await feeding
        left = PerStream(omitted["stdout"], omitted["stderr"])
        result = Result(ending, bytes(kept["stdout"]), bytes(kept["stderr"]), left, execution.gaps)
        if execution.gaps and overflow != "drop":
            lost = "; ".join(map(describe, execution.gaps))
            raise OutputLost(f"{lost} of execution {execution.id}", execution.gaps, execution.id, result)
        if left.stdout or left.stderr:
            raise OutputTooLong(
                f"{left.stdout} bytes of stdout and {left.stderr} of stderr are beyond the limit of {limit}: raise the limit, or read the output with start",
                execution.id,
                result,
            )
        return result.check() if check else result

    async def cancel(self, execution_id: str, grace: float = DEFAULT_GRACE) -> Ending:
        """Ends an execution, waits until it has ended, and returns how: `ending.cancel` says whether all processes are gone.
        Of one that has ended already it returns the ending.
        """
        try:
            session = await Session.open(self.url, self._token, OPEN_PATIENCE)
        except Broken as broken:
            raise ServiceUnavailable(f"{broken}; execution {execution_id} was not canceled", execution_id) from None
        pause = 0.02
        try:
            try:
                await ask(session, "control", {"type": "CANCEL", "graceMs": milliseconds(grace), "executionId": execution_id})
            except RequestRefused as refused:
                if refused.code != NOT_RUNNING:
                    raise
            while True:
                status = await ask(session, "status", {"executionId": execution_id})
                if "reason" in status:
                    return ending_of(status)
                if "ending" in status and status.get("status") in FINAL:
                    return ending_of(cast(FinalStatus, {**status["ending"], "executionId": execution_id}))
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.5)
        except Broken as broken:
            raise EndingUnknown(f"{broken}; execution {execution_id} may still run", execution_id) from None
        finally:
            await session.close()


async def ask(session: Session, method: str, params: dict[str, Any]) -> Any:
    """Calls a method, and returns its result."""
    number = session.next_id()
    await session.call(number, method, params)
    deadline = time.monotonic() + ANSWER_PATIENCE
    while True:
        message = await session.receive(max(deadline - time.monotonic(), 0.001))
        if message.get("id") == number and "method" not in message:
            break
    if error := message.get("error"):
        kind = UnknownExecution if error["code"] == -32006 else RequestRefused
        raise kind(error["message"], error["code"], error.get("data"), params.get("executionId"))
    return message["result"]


async def feed(execution: AsyncExecution, data: bytes | str) -> None:
    """Writes the input of a command. A command that does not read it to the end is no error."""
    try:
        await execution.write(data.encode() if isinstance(data, str) else data)
        await execution.close_stdin()
    except RequestRefused as refused:
        if refused.code != NOT_RUNNING:
            raise


def milliseconds(seconds: float) -> int:
    return max(round(seconds * 1000), 0)
