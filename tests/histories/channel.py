"""Messages between the walk and the process that has an application of SQLAlchemy 1.4."""

from __future__ import annotations

import pickle
from typing import IO, Any

Message = tuple[Any, ...]


class Channel:
    """Pickled messages in both directions."""

    def __init__(self, reader: IO[bytes], writer: IO[bytes]) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *message: Any) -> None:
        """Send one message."""
        pickle.dump(message, self.writer)
        self.writer.flush()

    def receive(self) -> Message:
        """Wait for one message. Raises `EOFError` when the other side has ended."""
        found: Message = pickle.load(self.reader)
        return found

    def ask(self, *message: Any) -> Message:
        """Send one message and wait for the answer."""
        self.send(*message)
        return self.receive()
