"""Counts and digests a received stream, and compares it with what the command wrote."""

from __future__ import annotations

import hashlib

from .errors import DigestMismatch


class Checksum:
    """The count and the digest of a stream up to now."""

    def __init__(self, name: str, offset: int) -> None:
        self._name = name
        #: The offset after the last byte that was received or lost.
        self.end = offset
        # The digest covers the whole stream, so it is not compared without its beginning or after a gap.
        self._sha256 = hashlib.sha256() if offset == 0 else None
        # Of an agent, whose text is made of events: the offsets count the events, and the text is not counted.
        self._counts = True
        self._partial = 0
        self._repeated = 0

    def resume_agent(self) -> None:
        """The stream is the text of an agent, from the beginning of the event at the offset on. If the event's text was cut
        by a broken connection, its beginning is repeated.
        """
        self._counts = False
        self._repeated += self._partial
        self._partial = 0

    def take(self, data: bytes, end: int) -> bytes:
        """Takes the bytes of a message. Returns those that are new."""
        if self._counts:
            if self.end + len(data) != end:
                raise DigestMismatch(
                    f"{len(data)} bytes of {self._name} came after offset {self.end}, but end at {end}: a part was lost or repeated"
                )
            if self._sha256 is not None:
                self._sha256.update(data)
            self.end = end
            return data
        skipped = min(self._repeated, len(data))
        self._repeated -= skipped
        self._partial += len(data)
        if end > self.end:
            self.end, self._partial, self._repeated = end, 0, 0
        return data[skipped:]

    def skip(self, start: int, end: int) -> None:
        """Takes a gap."""
        if start != self.end or end <= start:
            raise DigestMismatch(f"a gap in {self._name} from {start} to {end} came after offset {self.end}")
        self.end, self._partial, self._repeated, self._sha256 = end, 0, 0, None

    def check(self, n_bytes: int | None, sha256: str | None) -> None:
        """Compares the stream with the count and the digest that the service computed where the command ran."""
        if not self._counts:
            return
        if n_bytes is not None and n_bytes != self.end:
            raise DigestMismatch(f"{self.end} bytes of {self._name} arrived, but the command wrote {n_bytes}")
        if self._sha256 is None or sha256 is None or sha256 == "pending":
            return
        received = self._sha256.hexdigest()
        if received != sha256:
            raise DigestMismatch(
                f"the SHA-256 of the received {self._name} is {received}, that of what the command wrote is {sha256}"
            )
