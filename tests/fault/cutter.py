"""A proxy between clients and a server that comes and goes, which loses COMMITs when armed.

Holds a thread with an event loop. Must not know the product, nor the protocol beyond the word
COMMIT. The hard thing is to outlive both sides: a server that is away refuses its clients and
everybody tries again.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
import threading
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_CHUNK = 65_536
_COMMIT = b"COMMIT\x00"
"""With the end of its text: every BEGIN says READ COMMITTED."""
_RESET = struct.pack("ii", 1, 0)
_HOLD_SECONDS = 0.8
_GATHER_SECONDS = 0.1
"""For the COMMIT behind an append: a session that waits for the append first sends none."""


class Cut(enum.Enum):
    """What becomes of the next COMMIT; what is true in the end stands behind it."""

    REQUEST = "it never arrives"
    ANSWER = "it arrives, the answer is lost"
    LATE = "the client is cut off first, then it arrives, and the append that travels with it"
    BOTH = "both sides are cut off as it is sent: nobody knows"


class Cutter:
    """Listens on 127.0.0.1 and passes everything on to a server's Unix socket."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._armed: deque[Cut] = deque()
        self.done: Counter[Cut] = Counter()
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def arm(self, cut: Cut) -> None:
        """Let it strike the next COMMIT that any client sends."""
        self._armed.append(cut)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        links: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            links.add(task)
            try:
                await self._connect(reader, writer)
            except (OSError, asyncio.CancelledError):
                pass  # either side went away, or the proxy ends: both are what it is for
            finally:
                writer.close()
                links.discard(task)

        server = await asyncio.start_server(accept, sock=self._listener)
        await self._stop.wait()
        server.close()
        for task in list(links):
            task.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(str(self._upstream))
        link = _Link(self, reader, writer, from_server, to_server)
        try:
            await link.run()
        finally:
            to_server.close()

    def _is_next(self, cut: Cut) -> bool:
        return bool(self._armed) and self._armed[0] is cut

    def _take(self, data: bytes) -> Cut | None:
        if _COMMIT not in data or not self._armed:
            return None
        cut = self._armed.popleft()
        self.done[cut] += 1
        return cut


class _Link:
    """One client's connection and its own to the server."""

    def __init__(
        self,
        cutter: Cutter,
        from_client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self._cutter = cutter
        self._from_client = from_client
        self._to_client = to_client
        self._from_server = from_server
        self._to_server = to_server
        self._swallows = False

    async def run(self) -> None:
        """Pass on until either side ends, or is cut."""
        sides = [
            asyncio.ensure_future(self._hear_client()),
            asyncio.ensure_future(self._hear_server()),
        ]
        try:
            done, _ = await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
            for side in done:
                side.result()
        finally:
            for side in sides:
                side.cancel()
            await asyncio.gather(*sides, return_exceptions=True)

    async def _hear_client(self) -> None:
        while data := await self._from_client.read(_CHUNK):
            if b"oplog_append" in data and self._cutter._is_next(Cut.LATE):
                data += await self._gather()
            cut = self._cutter._take(data)
            if cut in {Cut.REQUEST, Cut.LATE}:
                self._reset()
            if cut is Cut.LATE:
                await asyncio.sleep(_HOLD_SECONDS)
            if cut is not Cut.REQUEST:
                self._to_server.write(data)
                await self._to_server.drain()
            if cut is Cut.BOTH:
                self._reset()
            if cut in {Cut.REQUEST, Cut.LATE, Cut.BOTH}:
                return
            self._swallows = self._swallows or cut is Cut.ANSWER

    async def _gather(self) -> bytes:
        """What the client sends behind an append, until it is a COMMIT.

        Let through, the append would hold its ticket, and whoever asks would only have to wait.
        """
        more = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GATHER_SECONDS):
                while _COMMIT not in more:
                    data = await self._from_client.read(_CHUNK)
                    if not data:
                        break
                    more += data
        return more

    async def _hear_server(self) -> None:
        while data := await self._from_server.read(_CHUNK):
            if self._swallows:
                self._reset()
                return
            self._to_client.write(data)
            await self._to_client.drain()

    def _reset(self) -> None:
        raw = self._to_client.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._to_client.transport.abort()
