"""An execution that a client follows over any number of connections."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import time
import uuid
from types import TracebackType
from typing import Any, AsyncIterator, Generator, NoReturn, cast

from ._checksum import Checksum
from ._queue import OutputQueue
from ._session import (
    ANSWER_PATIENCE,
    BACKEND,
    DRAINING,
    FULL,
    OPEN_PATIENCE,
    SESSION_LIMIT,
    Broken,
    Session,
    retry_after,
)
from .errors import (
    CcExecutorError,
    DigestMismatch,
    EndingUnknown,
    InputUnconfirmed,
    OutputLost,
    RequestRefused,
    ServiceUnavailable,
    TakenOver,
    UnknownExecution,
)
from .results import Ending, Gap, Output, PerStream, ending_of
from .types import AttachParams, ExecuteParams, FinalStatus, GapNotice, OutputNotice, Signal, StatusUpdate

UNKNOWN_EXECUTION, NOT_RUNNING, OTHER_INSTANCE = -32006, -32003, -32014
TEMPORARY = (SESSION_LIMIT, DRAINING, FULL, BACKEND)
FINAL = ("COMPLETED", "CANCELLED", "FAILED")
DEFAULT_GRACE = 5.0

#: What reading a message raises that is not valid.
INVALID = (KeyError, TypeError, AttributeError, ValueError)

#: Output that is acknowledged at once, in bytes, and the delay of an acknowledgement of less, in seconds.
ACK_BYTES, ACK_DELAY = 256 << 10, 0.1
#: The first and the longest pause between two attempts to connect, in seconds.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
#: How long leaving an execution may take, in seconds, until it is tried again.
CLOSE_PATIENCE = 2.0
#: The largest piece of input in one call, in bytes. The service takes messages of at least 1 MiB by default.
INPUT_BYTES = 64 << 10


class AsyncExecution:
    """A command that runs, or an execution that was attached to.

    Iterate over it for its output, in order; `wait` then has its ending. Leave it with `async with`: that cancels a command
    which has not ended, unless `detach` was called. Output that is not read is not dropped: the command waits for it.
    """

    #: The execution's id, chosen by the client. Any program with the same token can `attach` to it.
    id: str
    #: The newest status while it runs.
    status: StatusUpdate | None
    #: How it ended, once that is known.
    ending: Ending | None
    #: The gaps in the output so far.
    gaps: list[Gap]

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        execute: ExecuteParams | None = None,
        attach: AttachParams | None = None,
        reconnect: float,
        allow_gaps: bool,
    ) -> None:
        self._url, self._token, self._reconnect, self._allow_gaps = url, token, reconnect, allow_gaps
        self._execute, self._observes = execute, attach is not None and attach.get("observe", False)
        offsets = PerStream(0, 0)
        if attach is not None:
            self.id, self._framing = attach["executionId"], attach.get("framing", "chunk")
            if "offsets" in attach:
                offsets = PerStream(attach["offsets"]["stdout"], attach["offsets"]["stderr"])
        elif execute is not None:
            self.id, self._framing = execute.setdefault("executionId", str(uuid.uuid4())), execute.get("framing", "chunk")
        # A detachable execution is acknowledged: the service keeps what this program has not taken.
        self._acknowledges = not self._observes and (self._execute is None or reconnect > 0)
        self.status, self.ending, self.gaps = None, None, []
        self._received = {"stdout": Checksum("stdout", offsets.stdout), "stderr": Checksum("stderr", offsets.stderr)}
        self._taken = {"stdout": offsets.stdout, "stderr": offsets.stderr}
        self._queue = OutputQueue()
        self._error: CcExecutorError | None = None
        self._session: Session | None = None
        self._sent = False
        self._sent_instance: str | None = None
        self._accepted = False
        self._instance: str | None = None
        self._away_since: float | None = None
        self._pause = FIRST_PAUSE
        self._grace_ms: int | None = None
        self._detached, self._left = False, False
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._n_unacknowledged = 0
        self._moved, self._moved_far = asyncio.Event(), asyncio.Event()
        self._ready, self._finished = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # Starting and leaving

    def __await__(self) -> Generator[Any, None, AsyncExecution]:
        return self._started().__await__()

    async def _started(self) -> AsyncExecution:
        """Waits until the service has accepted the execution."""
        if self._task is None:
            self._task = asyncio.create_task(self._follow_to_the_end())
        await self._ready.wait()
        if not self._accepted and self._error is not None:
            raise self._error
        return self

    async def __aenter__(self) -> AsyncExecution:
        try:
            return await self._started()
        except BaseException:
            await self.aclose()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leaves the execution: cancels a command that has not ended, waits for its end, and closes the connection. After
        `attach`, and after `detach`, the execution continues.
        """
        if self._task is None:
            return
        owned = self._execute is not None and not self._detached
        if owned and not self._finished.is_set() and (self._sent or self._accepted):
            grace_ms = self._grace_ms if self._grace_ms is not None else int(DEFAULT_GRACE * 1000)
            await self._request_cancel(grace_ms)
            self._discard()
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._finished.wait(), grace_ms / 1000 + OPEN_PATIENCE)
        self._left = True
        self._queue.discard()
        # Again after a while, because `asyncio.wait_for` before Python 3.12 may lose a cancellation.
        while not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=CLOSE_PATIENCE)
        self._finish(None)

    async def detach(self) -> str:
        """Leaves the command running without a client for at most `reconnect` seconds, and returns its id. It needs a
        `reconnect` that is not 0.
        """
        if self._execute is not None and self._reconnect <= 0:
            raise ValueError("an execution with reconnect=0 ends with its client: start it with a longer reconnect")
        await self._started()
        self._detached = True
        await self.aclose()
        return self.id

    # Output and ending

    def __aiter__(self) -> AsyncIterator[Output]:
        return self

    async def __anext__(self) -> Output:
        """The next piece of output. Raises `OutputLost` at a gap; the iteration may continue after it."""
        await self._started()
        while True:
            item = await self._queue.get()
            if item is None:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._on_taken(item)
            if isinstance(item, Output):
                return item
            if not self._allow_gaps:
                raise OutputLost(f"{describe(item)} of execution {self.id}", [item], self.id)

    def _on_taken(self, item: Output | Gap) -> None:
        self._taken[item.stream] = item.end
        self._n_unacknowledged += len(item.data) if isinstance(item, Output) else 0
        self._moved.set()
        if self._n_unacknowledged >= ACK_BYTES:
            self._moved_far.set()

    def _discard(self) -> None:
        """Drops output that waits, and all that is still to come. It counts as taken."""
        for item in self._queue.discard():
            self._on_taken(item)

    async def wait(self) -> Ending:
        """Waits for the end, drops output that was not read, and returns how the execution ended.

        Raises `EndingUnknown` if that is not known, and `DigestMismatch` if the output was damaged on the way.
        """
        await self._started()
        self._discard()
        await self._finished.wait()
        if self._error is not None:
            raise self._error
        if self.ending is None:
            raise EndingUnknown(f"this client no longer follows execution {self.id}", self.id)
        return self.ending

    # Control

    async def cancel(self, grace: float = DEFAULT_GRACE) -> None:
        """Ends the command with TERM, and with KILL after `grace` seconds. The output and the ending follow as always;
        `ending.cancel` says whether all processes are gone.
        """
        await self._started()
        await self._request_cancel(int(grace * 1000))

    async def _request_cancel(self, grace_ms: int) -> None:
        self._grace_ms = grace_ms
        if self._session is not None and self._accepted:
            with contextlib.suppress(Broken):
                await self._send_cancel(self._session)

    async def _send_cancel(self, session: Session) -> None:
        # Without a response, which would wait behind output that nobody reads. A refusal means that it has ended.
        params = {"type": "CANCEL", "graceMs": self._grace_ms, "executionId": self.id}
        await session.notify("control", params)

    async def signal(self, signal: Signal) -> None:
        """Sends a signal, such as `SIGINT`, to the command's process group."""
        await self._ask("control", {"type": "SIGNAL", "signal": signal})

    async def pause(self) -> None:
        """Stops all processes of the execution."""
        await self._ask("control", {"type": "PAUSE"})

    async def resume(self) -> None:
        """Continues them."""
        await self._ask("control", {"type": "RESUME"})

    async def write(self, data: bytes) -> None:
        """Writes to the command's standard input. Returns when the command can read all of it, so read the output
        meanwhile. The execution must have been started with `stdin=True`.
        """
        for at in range(0, len(data), INPUT_BYTES):
            piece = base64.b64encode(data[at : at + INPUT_BYTES]).decode()
            await self._ask("input", {"dataBase64": piece})

    async def close_stdin(self) -> None:
        """Ends the command's standard input."""
        await self._ask("input", {"eof": True})

    async def _ask(self, method: str, params: dict[str, Any]) -> None:
        """Calls a method, and waits for its response."""
        await self._started()
        session = self._session
        if self._finished.is_set() or self.ending is not None:
            raise RequestRefused(f"execution {self.id} has ended", NOT_RUNNING, None, self.id)
        unconfirmed = InputUnconfirmed(f"the connection broke before {method} was confirmed", self.id)
        if session is None:
            raise unconfirmed
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            number = session.next_id()
            self._answers[number] = answer
            await session.call(number, method, {**params, "executionId": self.id})
            await answer
        except Broken:
            raise unconfirmed from None
        finally:
            self._answers.pop(number, None)

    # The connections

    async def _follow_to_the_end(self) -> None:
        error: CcExecutorError | None = None
        try:
            while True:
                try:
                    await self._follow_on_one_connection()
                    return
                except Broken as broken:
                    await self._wait_before_reconnect(broken)
        except CcExecutorError as failure:
            failure.execution_id = self.id
            error = failure
        except INVALID as failure:
            error = EndingUnknown(f"the service sent a message that is not valid: {failure!r}", self.id)
        finally:
            self._finish(error)

    def _finish(self, error: CcExecutorError | None) -> None:
        if self._error is None:
            self._error = error
        self._break_answers()
        self._queue.end()
        self._ready.set()
        self._finished.set()

    def _break_answers(self) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Broken("the connection broke"))
        self._answers.clear()

    async def _wait_before_reconnect(self, broken: Broken) -> None:
        """Waits before the next attempt. Raises the final error when the time is over."""
        if self._left:
            raise asyncio.CancelledError
        now = time.monotonic()
        is_known = self._sent or self._accepted
        if not is_known and self._execute is not None and self._grace_ms is not None:
            raise ServiceUnavailable("canceled before the service had accepted the command, which was not started")
        if self._away_since is None:
            self._away_since, self._pause = now, FIRST_PAUSE
        pause = max(self._pause * random.uniform(0.5, 1.0), broken.retry_after)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        left = self._away_since + self._reconnect - now
        if left <= 0 or pause > left or not (broken.temporary or is_known):
            raise self._gave_up(broken)
        await asyncio.sleep(pause)

    def _gave_up(self, broken: Broken) -> CcExecutorError:
        if self._execute is None and not self._accepted:
            return ServiceUnavailable(f"{broken}; execution {self.id} may still run")
        if not self._sent and not self._accepted:
            return ServiceUnavailable(f"{broken}; the command was not started")
        tried = f"gave up reconnecting after {self._reconnect:g} s: " if self._reconnect > 0 else ""
        return EndingUnknown(f"{tried}{broken}; execution {self.id} may still run: attach to it, or cancel it")

    async def _follow_on_one_connection(self) -> None:
        away = 0.0 if self._away_since is None else time.monotonic() - self._away_since
        within = max(self._reconnect - away, 1.0) if self._away_since is not None else OPEN_PATIENCE
        session = await Session.open(self._url, self._token, within)
        acknowledging: asyncio.Task[None] | None = None
        is_broken = False
        try:
            await self._request(session)
            self._session = session
            if self._acknowledges:
                acknowledging = asyncio.create_task(self._acknowledge(session))
            if self._grace_ms is not None:
                await self._send_cancel(session)
            self._ready.set()
            try:
                while self.ending is None:
                    message = await session.receive()
                    if self._left:
                        raise asyncio.CancelledError
                    await self._on_message(message)
            except (DigestMismatch, *INVALID):
                if self._execute is not None:
                    # Nobody follows the command any more.
                    self._grace_ms = self._grace_ms or int(DEFAULT_GRACE * 1000)
                    with contextlib.suppress(Broken):
                        await self._send_cancel(session)
                raise
            # The service keeps the output until the program has taken all of it.
            await self._queue.drained()
            if self._acknowledges:
                with contextlib.suppress(Broken):
                    await session.notify("ack", {"executionId": self.id, "offsets": self._taken})
        except Broken:
            is_broken = True
            raise
        finally:
            self._session = None
            self._break_answers()
            if acknowledging is not None:
                acknowledging.cancel()
            if is_broken:
                # It does not answer a close frame.
                session.abort()
            else:
                await session.close()

    async def _request(self, session: Session) -> None:
        """Sends `execute` or `attach`, and waits for the response."""
        instance = session.connected.get("instance")
        execute = self._execute
        was_sent, number = self._sent, session.next_id()
        if execute is not None and not self._accepted and (self._sent_instance is not None or not was_sent):
            if was_sent:
                # The command may run already. Only the instance that got the request may get it again.
                params = ExecuteParams(**{**execute, "instance": cast(str, self._sent_instance)})
            else:
                if self._reconnect > 0:
                    longest = session.connected["limits"]["detachMs"]
                    execute["onDisconnect"] = "detach"
                    execute["detachMs"] = max(1, min(int(self._reconnect * 1000), longest))
                params = execute
            self._sent_instance = self._sent_instance or instance
            self._sent = True
            await session.call(number, "execute", params)
        else:
            # Also for a request whose response was lost and whose instance is not known: `attach` never runs a command.
            offsets = {name: checksum.end for name, checksum in self._received.items()}
            attach: dict[str, Any] = {"executionId": self.id, "offsets": offsets, "framing": self._framing}
            if self._observes:
                attach["observe"] = True
            await session.call(number, "attach", attach)
        deadline = time.monotonic() + ANSWER_PATIENCE
        while True:
            message = await session.receive(max(deadline - time.monotonic(), 0.001))
            if message.get("id") == number and "method" not in message:
                break
            await self._on_message(message)
        if "error" in message:
            self._on_refused(message["error"], may_run=self._accepted or (was_sent and execute is not None))
        result = message["result"]
        self._instance = result.get("instance") or self._instance
        self._accepted, self._away_since = True, None
        if result.get("claude") or result.get("agent"):
            self._received["stdout"].resume_agent()
        if execute is not None and "heartbeatMs" in execute:
            session.expect_heartbeats(execute["heartbeatMs"] / 1000)

    def _on_refused(self, error: dict[str, Any], may_run: bool) -> NoReturn:
        """Raises the error for a refused `execute` or `attach`. `may_run` says that an earlier request may have started the
        command.
        """
        code, message, data = int(error["code"]), str(error["message"]), error.get("data")
        if code in TEMPORARY:
            if not may_run and code != BACKEND:
                self._sent, self._sent_instance = False, None
            raise Broken(message, retry_after(error))
        if may_run and code == OTHER_INSTANCE:
            message = "the service was restarted before it answered; if it had started the command, that ended with it"
        elif may_run and code == UNKNOWN_EXECUTION:
            restarted = isinstance(data, dict) and self._instance not in (None, data.get("instance"))
            message = "the service was restarted, which ended the execution" if restarted else message
        if may_run:
            raise EndingUnknown(f"how execution {self.id} ended is not known: {message}")
        kind = UnknownExecution if code == UNKNOWN_EXECUTION else RequestRefused
        raise kind(message, code, data)

    async def _acknowledge(self, session: Session) -> None:
        """Acknowledges the output that the program has taken. From the first time on, pongs acknowledge nothing."""
        with contextlib.suppress(Broken):
            while True:
                self._moved.clear()
                self._moved_far.clear()
                self._n_unacknowledged = 0
                await session.notify("ack", {"executionId": self.id, "offsets": dict(self._taken)})
                await self._moved.wait()
                with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                    await asyncio.wait_for(self._moved_far.wait(), ACK_DELAY)

    # Messages

    async def _on_message(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params")
        if method == "output":
            await self._on_output(cast(OutputNotice, params))
        elif method == "gap":
            await self._on_gap(cast(GapNotice, params))
        elif method == "statusUpdate":
            status = cast(dict[str, Any], params)
            if "reason" in status:
                self._on_ended(cast(FinalStatus, params))
            else:
                self.status = cast(StatusUpdate, params)
        elif method == "detached":
            raise TakenOver(f"another session has attached to execution {self.id}, which continues")
        elif method == "error":
            error = cast(dict[str, Any], params)
            if error.get("code") == SESSION_LIMIT:
                raise Broken(str(error.get("message")), retry_after(error))
        elif method is None and (answer := self._answers.get(message.get("id", 0))) and not answer.done():
            if refusal := message.get("error"):
                answer.set_exception(RequestRefused(refusal["message"], refusal["code"], refusal.get("data"), self.id))
            else:
                answer.set_result(None)

    async def _on_output(self, params: OutputNotice) -> None:
        if "content" in params:
            data = params["content"].encode()
        else:
            data = base64.b64decode(params["contentBase64"], validate=True)
        stream, end = params["type"], params["end"]
        new = self._received[stream].take(data, end)
        if new:
            await self._deliver(Output(stream, new, end))

    async def _on_gap(self, params: GapNotice) -> None:
        gap = Gap(params["type"], params["from"], params["to"], params["reason"])
        self._received[gap.stream].skip(gap.start, gap.end)
        self.gaps.append(gap)
        await self._deliver(gap)

    async def _deliver(self, item: Output | Gap) -> None:
        if not await self._queue.put(item):
            self._on_taken(item)

    def _on_ended(self, params: FinalStatus) -> None:
        ending = ending_of(params)
        if ending.reason == "backend_lost":
            # The command's own ending is not known.
            if self._observes:
                raise Broken(ending.message or "the backend's stream broke")
            raise EndingUnknown(f"how execution {self.id} ended is not known: {ending.message}", self.id, ending)
        for name, n_bytes, sha256 in (
            ("stdout", ending.bytes.stdout, ending.sha256.stdout),
            ("stderr", ending.bytes.stderr, ending.sha256.stderr),
        ):
            self._received[name].check(n_bytes, sha256)
        self.ending = ending


def describe(gap: Gap) -> str:
    return f"{gap.end - gap.start} bytes of {gap.stream} are lost ({gap.reason}, from {gap.start} to {gap.end})"
