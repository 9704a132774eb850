"""The client for programs without asyncio. It runs the asynchronous one in a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from types import TracebackType
from collections.abc import Sequence
from typing import Any, Coroutine, Iterator, TypeVar

from ._async_client import LIMIT, RECONNECT, AsyncClient
from ._execution import DEFAULT_GRACE, AsyncExecution
from .results import Ending, Environment, Gap, Output, Result
from .types import ClaudeOptions, Framing, Overflow, Signal, StatusUpdate, TerminalSize

T = TypeVar("T")


class EventLoopThread:
    """A thread with an event loop, which all clients of the process share."""

    _lock = threading.Lock()
    _loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def loop(cls) -> asyncio.AbstractEventLoop:
        with cls._lock:
            if cls._loop is None:
                cls._loop = asyncio.new_event_loop()
                threading.Thread(target=cls._loop.run_forever, name="cc-executor", daemon=True).start()
            return cls._loop

    @classmethod
    def call(cls, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine to its end. An exception here, such as KeyboardInterrupt, cancels it and waits for its clean-up."""
        done: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[None]] = []

        async def run() -> None:
            try:
                done.set_result(await work)
            except BaseException as error:
                done.set_exception(error)

        loop = cls.loop()
        loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(run())))
        try:
            return done.result()
        except BaseException:
            if not done.done():
                loop.call_soon_threadsafe(lambda: tasks[0].cancel())
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    done.result()
            raise

    @classmethod
    def forget(cls) -> None:
        """In a child process the thread is not there."""
        cls._loop = None
        cls._lock = threading.Lock()


os.register_at_fork(after_in_child=EventLoopThread.forget)


class Client:
    """A service. Each execution has a connection of its own.

    Without `url` and `token` they are those of `CC_EXECUTOR_URL` and `CC_EXECUTOR_TOKEN`, as for the command line.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self._client = AsyncClient(url, token)

    @property
    def url(self) -> str:
        """The URL of a session."""
        return self._client.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def run(
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
        """Runs a command to its end, and returns its output and its ending. If this is interrupted, the command is cancelled.

        It keeps the first `limit` bytes of each stream; if the command writes more, it raises `OutputTooLong` at the end, with
        the result. With `check` a command that does not succeed raises `ExecutionFailed`. See `start` for the rest.
        """
        return EventLoopThread.call(
            self._client.run(
                command,
                name=name,
                executor=executor,
                cwd=cwd,
                env=env,
                timeout=timeout,
                stall_timeout=stall_timeout,
                input=input,
                reconnect=reconnect,
                overflow=overflow,
                claude=claude,
                limit=limit,
                check=check,
            )
        )

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
    ) -> Execution:
        """Starts a command: `with client.start("make") as execution`. Times are in seconds.

        `command` is a text for a shell, or a list of words that run exactly as they are, without a shell. No two running
        executions of a client have the same `name`.
        `timeout` and `stall_timeout` end the command, which is then FAILED with the reason `timeout` or `stalled`.
        `reconnect` is for how long the client tries to connect again, and for how long the command runs without it; with 0 a
        broken connection ends the command. `overflow` says what happens to output when the service can keep no more of it:
        the command waits, or the oldest is dropped. A gap in the output raises `OutputLost`, unless `allow_gaps` is true; its
        default is true with `overflow="drop"`.
        """
        return Execution(
            self._client.start(
                command,
                name=name,
                executor=executor,
                cwd=cwd,
                env=env,
                timeout=timeout,
                stall_timeout=stall_timeout,
                heartbeat=heartbeat,
                stdin=stdin,
                pty=pty,
                framing=framing,
                reconnect=reconnect,
                overflow=overflow,
                claude=claude,
                allow_gaps=allow_gaps,
                execution_id=execution_id,
            )
        )

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
    ) -> Execution:
        """Follows an execution that runs, waits, or has ended: its output after these offsets, then live, and its ending. The
        session that followed it before gets `TakenOver`, unless `observe` leaves the execution to it. The digest is checked
        if the output is read from the beginning.
        """
        return Execution(
            self._client.attach(
                execution_id,
                stdout=stdout,
                stderr=stderr,
                observe=observe,
                framing=framing,
                reconnect=reconnect,
                allow_gaps=allow_gaps,
            )
        )

    def cancel(self, execution_id: str, grace: float = DEFAULT_GRACE) -> Ending:
        """Ends an execution, waits until it has ended, and returns how: `ending.cancel` says whether all processes are gone.
        Of one that has ended already it returns the ending.
        """
        return EventLoopThread.call(self._client.cancel(execution_id, grace))


class Execution:
    """A command that runs, or an execution that was attached to: `AsyncExecution` without asyncio.

    Iterate over it for its output, in order; `wait` then has its ending. Leave it with `with`: that cancels a command which has
    not ended, unless `detach` was called.
    """

    def __init__(self, execution: AsyncExecution) -> None:
        self._execution = execution

    @property
    def id(self) -> str:
        """The execution's id, chosen by the client."""
        return self._execution.id

    @property
    def status(self) -> StatusUpdate | None:
        """The newest status while it runs."""
        return self._execution.status

    @property
    def ending(self) -> Ending | None:
        """How it ended, once that is known."""
        return self._execution.ending

    @property
    def gaps(self) -> list[Gap]:
        """The gaps in the output so far."""
        return self._execution.gaps

    def __enter__(self) -> Execution:
        EventLoopThread.call(self._execution.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the execution, and cancels a command that has not ended."""
        EventLoopThread.call(self._execution.aclose())

    def detach(self) -> str:
        """Leaves the command running without a client for at most `reconnect` seconds, and returns its id."""
        return EventLoopThread.call(self._execution.detach())

    def __iter__(self) -> Iterator[Output]:
        return self

    def __next__(self) -> Output:
        try:
            return EventLoopThread.call(self._execution.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def wait(self) -> Ending:
        """Waits for the end, drops output that was not read, and returns how the execution ended."""
        return EventLoopThread.call(self._execution.wait())

    def cancel(self, grace: float = DEFAULT_GRACE) -> None:
        """Ends the command with TERM, and with KILL after `grace` seconds. The output and the ending follow as always."""
        EventLoopThread.call(self._execution.cancel(grace))

    def signal(self, signal: Signal) -> None:
        """Sends a signal, such as `SIGINT`, to the command's process group."""
        EventLoopThread.call(self._execution.signal(signal))

    def pause(self) -> None:
        """Stops all processes of the execution."""
        EventLoopThread.call(self._execution.pause())

    def resume(self) -> None:
        """Continues them."""
        EventLoopThread.call(self._execution.resume())

    def write(self, data: bytes) -> None:
        """Writes to the command's standard input. Returns when the command can read all of it."""
        EventLoopThread.call(self._execution.write(data))

    def close_stdin(self) -> None:
        """Ends the command's standard input."""
        EventLoopThread.call(self._execution.close_stdin())
