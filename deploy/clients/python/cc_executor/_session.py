"""One connection to the service: opens it, sends calls, and receives messages."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
from pathlib import Path
from typing import Any, Mapping
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from .errors import NotAuthorized
from .types import Connected

DEFAULT_URL = "ws://127.0.0.1:8003/ws/mcp"
DEFAULT_PORT = 8003
SUBPROTOCOL = "cc-executor.v1"
#: A message to a client has at most 1 MiB.
MAX_MESSAGE = 2 << 20
#: How long the service may take to open a session, in seconds.
OPEN_PATIENCE = 10.0
#: How long the service may take to answer a request. It waits 10 s for its backend itself.
ANSWER_PATIENCE = 30.0
#: The longest period of heartbeats that is expected. A ping asks for a sign of life after each.
LONGEST_PERIOD = 15.0
#: The connection is broken after this many periods without a sign of life.
MAX_MISSED = 3

NOT_AUTHORIZED, SESSION_LIMIT, DRAINING, FULL, BACKEND = -32007, -32001, -32008, -32009, -32010


class Broken(Exception):
    """A connection broke, or the service refuses a request for now. Not raised to users."""

    def __init__(self, why: str, retry_after: float = 0.0, temporary: bool = True) -> None:
        super().__init__(why)
        self.retry_after = retry_after
        #: Whether it makes sense to try again although no session was ever open.
        self.temporary = temporary


def session_url(url: str | None) -> str:
    """The URL of a session: as on the command line, a text without a scheme is a host without TLS, at port 8003 unless it has
    another, and a path that does not end with `/ws/mcp` or `/ws` is the prefix of a reverse proxy.
    """
    text = url or os.environ.get("CC_EXECUTOR_URL") or DEFAULT_URL
    has_scheme = "://" in text
    parts = urlsplit(text if has_scheme else f"ws://{text}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.hostname:
        raise ValueError(f"the URL of the service must be ws://HOST[:PORT] or wss://HOST[:PORT], not {text!r}")
    authority = parts.netloc if has_scheme or parts.port is not None else f"{parts.netloc}:{DEFAULT_PORT}"
    prefix = parts.path.rstrip("/")
    path = prefix if prefix.endswith(("/ws/mcp", "/ws")) else f"{prefix}/ws/mcp"
    return urlunsplit((scheme, authority, path, parts.query, ""))


def token_of_environment() -> str | None:
    """The token in `CC_EXECUTOR_TOKEN`, or in the file that `CC_EXECUTOR_TOKEN_FILE` names."""
    if token := os.environ.get("CC_EXECUTOR_TOKEN"):
        return token
    if path := os.environ.get("CC_EXECUTOR_TOKEN_FILE"):
        return Path(path).read_text(encoding="utf-8").strip()
    return None


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def retry_after(error: Mapping[str, Any]) -> float:
    """The pause that a refusal asks for, in seconds."""
    data = error.get("data")
    milliseconds = data.get("retryAfterMs") if isinstance(data, dict) else None
    return milliseconds / 1000 if isinstance(milliseconds, (int, float)) else 0.0


def refused(url: str, status: int, body: bytes | bytearray | None, has_token: bool) -> Exception:
    """The error for an HTTP status instead of a session."""
    try:
        error = json.loads(body or b"")
    except ValueError:
        error = {}
    if not isinstance(error, dict):
        error = {}
    reason = error.get("message")
    if status in (401, 403) or (status == 429 and error.get("code") == NOT_AUTHORIZED):
        if status == 403:
            return NotAuthorized(f"{url} refuses this client: {reason or 'it gives no reason'}")
        said = "refuses the token" if has_token else "demands a token, and none was given: set CC_EXECUTOR_TOKEN"
        return NotAuthorized(f"{url} {said}")
    text = f"{url} answers {status}" + (f": {reason}" if reason else "; is this the URL of a cc-executor service?")
    return Broken(text, retry_after(error), temporary=status in (429, 503))


class Session:
    """An open session."""

    connected: Connected

    def __init__(self, url: str, socket: ClientConnection) -> None:
        self._url = url
        self._socket = socket
        self._period = LONGEST_PERIOD
        self._n_calls = 0

    @staticmethod
    async def open(url: str, token: str | None, within: float) -> Session:
        """Opens a session. Raises `Broken` or `NotAuthorized`."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        host = urlsplit(url).hostname or ""
        try:
            socket = await connect(
                url,
                additional_headers=headers,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,
                max_size=MAX_MESSAGE,
                max_queue=4,
                open_timeout=min(OPEN_PATIENCE, within),
                close_timeout=1,
                # The service's own pings and heartbeats show that it lives. A ping of the library would break the
                # connection of a program that does not read for a while.
                ping_interval=None,
                proxy=None if is_loopback(host) else True,
            )
        except InvalidStatus as error:
            raise refused(url, error.response.status_code, error.response.body, token is not None) from None
        except InvalidURI as error:
            raise ValueError(str(error)) from None
        except TimeoutError:
            raise Broken(f"{url} did not open a session in time", temporary=False) from None
        except (OSError, EOFError, InvalidHandshake, ConnectionClosed) as error:
            raise Broken(f"cannot reach {url}: {error}", temporary=False) from error
        session = Session(url, socket)
        try:
            first = await session.receive(OPEN_PATIENCE)
            if first.get("method") == "error":
                refusal = first.get("params", {})
                raise Broken(str(refusal.get("message")), retry_after(refusal))
            if first.get("method") != "connected":
                raise Broken(f"{url} is not a cc-executor service: its first message is not `connected`", temporary=False)
        except BaseException:
            await session.close()
            raise
        session.connected = first["params"]
        return session

    def expect_heartbeats(self, period: float) -> None:
        """Sets the period of the service's heartbeats, in seconds."""
        self._period = min(period, LONGEST_PERIOD)

    async def receive(self, within: float | None = None) -> dict[str, Any]:
        """The next message. Raises `Broken` after `within` seconds, or when the service gives no sign of life. Only time
        that is spent here counts, so a program that reads nothing for an hour does not take that hour for silence.
        """
        missed = 0
        pong: asyncio.Future[float] | None = None
        while True:
            try:
                text = await asyncio.wait_for(self._socket.recv(), within or self._period)
            except (TimeoutError, asyncio.TimeoutError):
                if within is not None:
                    raise Broken(f"{self._url} did not answer within {within:g} s") from None
                missed = 1 if pong is not None and pong.done() else missed + 1
                if missed >= MAX_MISSED:
                    raise Broken(f"{self._url} gave no sign of life for {missed * self._period:g} s") from None
                with contextlib.suppress(ConnectionClosed, TimeoutError, asyncio.TimeoutError):
                    pong = await asyncio.wait_for(self._socket.ping(), self._period)  # type: ignore[arg-type]
                continue
            except ConnectionClosed as closed:
                raise self._closed(closed) from None
            try:
                message = json.loads(text)
            except ValueError as error:
                raise Broken(f"{self._url} sent a message that is not JSON: {error}") from None
            if isinstance(message, dict):
                return message

    def _closed(self, closed: ConnectionClosed) -> Broken:
        frame = closed.rcvd
        if frame is None:
            return Broken(f"the connection to {self._url} broke")
        return Broken(f"{self._url} closed the session: {frame.reason or 'no reason given'} ({frame.code})")

    def next_id(self) -> int:
        """An id for a call."""
        self._n_calls += 1
        return self._n_calls

    async def call(self, number: int, method: str, params: Mapping[str, Any]) -> None:
        """Sends a call with this id."""
        await self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Sends a call that has no response."""
        await self._send({"jsonrpc": "2.0", "method": method, "params": params})

    async def _send(self, message: Mapping[str, Any]) -> None:
        try:
            await self._socket.send(json.dumps(message))
        except ConnectionClosed as closed:
            raise self._closed(closed) from None

    async def close(self) -> None:
        """Closes the session."""
        await self._socket.close()

    def abort(self) -> None:
        """Drops the connection without a close frame."""
        self._socket.transport.abort()
