"""One zstd frame that declares its size: made, and read without believing what it declares.

A frame that declares its size is given that much memory when it is decompressed, whatever limit
is passed, and 6 kB can declare gigabytes. So the size has to be known from elsewhere, and is
compared with what the frame declares before anything is decompressed.
"""

from __future__ import annotations

import threading

import zstandard

_LEVEL = 3


class Zstd(threading.local):
    """Compresses and decompresses. May be shared: each thread has contexts of its own."""

    def __init__(self, *, most: int) -> None:
        """`most` bytes are the most that a frame may need as a window to be decompressed."""
        # Threads would cut the input at other places, and so give other bytes.
        self._compressor = zstandard.ZstdCompressor(
            level=_LEVEL, write_content_size=True, threads=0
        )
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=most)

    def compress(self, body: bytes) -> bytes:
        """One frame; the same bytes each time."""
        return self._compressor.compress(body)

    def decompress(self, body: bytes, *, size: int) -> bytes:
        """The `size` bytes that were compressed; `ValueError` for a frame of anything else."""
        try:
            declared = zstandard.frame_content_size(body)
            if declared != size:
                raise ValueError(f"it claims {size} bytes, its zstd frame {declared}")
            found = self._decompressor.decompress(
                body, max_output_size=size, allow_extra_data=False
            )
        except zstandard.ZstdError as cause:
            raise ValueError(f"its body is not one zstd frame: {cause}") from cause
        if len(found) != size:
            raise ValueError(f"it claims {size} bytes and has {len(found)}")
        return found
