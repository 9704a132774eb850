"""Output that waits for the program, bounded in bytes."""

from __future__ import annotations

import asyncio
from collections import deque

from .results import Gap, Output

#: Output that waits, in bytes. When it is reached, nothing is read from the connection, and the command waits.
MAX_WAITING = 1 << 20


class OutputQueue:
    """Output in order, until the end."""

    def __init__(self) -> None:
        self._items: deque[Output | Gap] = deque()
        self._size = 0
        self._ended = False
        self._discarding = False
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()

    async def put(self, item: Output | Gap) -> bool:
        """Adds an item, and waits until there is room for the next one. This is where back-pressure begins. Returns false if
        output is discarded.
        """
        if self._discarding:
            return False
        self._items.append(item)
        self._size += len(item.data) if isinstance(item, Output) else 0
        self._filled.set()
        while self._size >= MAX_WAITING:
            self._emptied.clear()
            await self._emptied.wait()
        return True

    async def get(self) -> Output | Gap | None:
        """The next item; `None` at the end."""
        while not self._items:
            if self._ended:
                return None
            self._filled.clear()
            await self._filled.wait()
        item = self._items.popleft()
        self._size -= len(item.data) if isinstance(item, Output) else 0
        self._emptied.set()
        return item

    async def drained(self) -> None:
        """Waits until every item was taken."""
        while self._items:
            self._emptied.clear()
            await self._emptied.wait()

    def end(self) -> None:
        """Adds the end. Items before it can still be taken."""
        self._ended = True
        self._filled.set()

    def discard(self) -> list[Output | Gap]:
        """Drops what is still to come, and returns what waits."""
        self._discarding = True
        waiting = list(self._items)
        self._items.clear()
        self._size = 0
        self._emptied.set()
        return waiting
