"""Zstandard frames, with and without dictionaries, for any number of threads.

Compressors and decompressors are for one thread at a time, and creating one takes longer than
decompressing a record; each thread has its own, one for each dictionary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from objdb.errors import POSKeyError, Unsupported

# Numbers below 32,768 are reserved for published dictionaries.
MAX_NUMBER = 2**31 - 1


class ZstdFailure(Exception):
    """Not a valid zstd frame or dictionary."""


class Zstd:
    """Compresses at *level*; `load_dictionary(number)` returns the content of a dictionary.

    `local.expected(frame)` decompresses most frames; it raises one of `unusual` for a thread's
    first frame, a frame with another dictionary, or damage, which `decompress` distinguishes.
    `Unsupported` if the package `zstandard` is missing.
    """

    def __init__(self, level: int, load_dictionary: Callable[[int], bytes]) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise Unsupported(
                "compressing with zstd needs the package zstandard, which is not installed. "
                "Install it with: pip install 'objdb[zstd]'"
            ) from error
        self._zstandard = zstandard
        self._error = zstandard.ZstdError
        self.unusual = AttributeError, MemoryError, zstandard.ZstdError
        self.local = threading.local()
        self._parameters = zstandard.get_frame_parameters
        self._level = level
        self._load_dictionary = load_dictionary
        self._dictionaries: dict[int, Any] = {}
        self.use(0)

    def compress(self, record: bytes, number: int) -> bytes:
        """Return a frame made with the dictionary *number* (0: none)."""
        compressors = self._of_thread("compressors")
        compress = compressors.get(number)
        if compress is None:
            compress = compressors[number] = self._zstandard.ZstdCompressor(
                self._level, self._dictionary(number), write_checksum=True
            ).compress
        frame: bytes = compress(record)
        return frame

    def use(self, number: int) -> None:
        """Expect most frames to use the dictionary *number* (0: none)."""
        self._expected = number

    def decompress(self, frame: bytes) -> bytes:
        """Return the record in a frame; `ZstdFailure` if it is damaged, or its dictionary is
        missing."""
        try:
            record: bytes = self.local.expected(frame)
        except self.unusual:
            return self._decompress_any(frame)
        return record

    def _decompress_any(self, frame: bytes) -> bytes:
        decompressors = self._of_thread("decompressors")
        try:
            number = self._parameters(frame).dict_id
            decompress = decompressors.get(number)
            if decompress is None:
                decompress = decompressors[number] = self._zstandard.ZstdDecompressor(
                    self._dictionary(number)
                ).decompress
            if number == self._expected:
                self.local.expected = decompress
            record: bytes = decompress(frame)
        except (MemoryError, self._error) as error:  # damaged frames may claim terabytes
            raise ZstdFailure(str(error)) from error
        return record

    def number_of(self, frame: bytes) -> int:
        """Return the number of the dictionary that a frame names, 0 for none."""
        try:
            number: int = self._parameters(frame).dict_id
        except self._error as error:
            raise ZstdFailure(str(error)) from error
        return number

    def train(self, number: int, size: int, samples: list[bytes]) -> bytes:
        """Return the content of a dictionary trained on *samples*, of at most *size* bytes."""
        try:
            dictionary = self._zstandard.train_dictionary(size, [*samples], dict_id=number)
        except (self._error, ValueError) as error:
            raise ZstdFailure(str(error)) from error
        self._dictionaries[number] = dictionary
        content: bytes = dictionary.as_bytes()
        return content

    def _of_thread(self, kind: str) -> dict[int, Any]:
        found: dict[int, Any] = self.local.__dict__.setdefault(kind, {})
        return found

    def _dictionary(self, number: int) -> Any:
        if not number:
            return None
        found = self._dictionaries.get(number)
        if found is None:
            try:
                content = self._load_dictionary(number)
            except POSKeyError as error:
                raise ZstdFailure(f"its dictionary, object {hex(number)}, is gone") from error
            found = self._zstandard.ZstdCompressionDict(
                content, dict_type=self._zstandard.DICT_TYPE_FULLDICT
            )
            if found.dict_id() != number:
                raise ZstdFailure(f"object {hex(number)} is dictionary {found.dict_id()}")
            self._dictionaries[number] = found
        return found
