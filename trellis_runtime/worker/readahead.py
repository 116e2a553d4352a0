"""Read files into the page cache from threads, while the process is busy importing.

Loading then finds its bytes in memory. Nothing is kept here, and a file that cannot be read is left
to the loader, which knows what to say of it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from queue import Empty, SimpleQueue

_CHUNK = 16 * 2**20
_THREADS = 4  # a network disk needs several requests under way


class ReadAhead:
    """Reads the files of some folders, largest first; `seconds` and `bytes` say how it went."""

    def __init__(self, folders: Iterable[Path]) -> None:
        files = [f for folder in folders for f in folder.rglob("*.safetensors") if f.is_file()]
        self._files: SimpleQueue[Path] = SimpleQueue()
        for file in sorted(set(files), key=lambda f: -f.stat().st_size):
            self._files.put(file)
        self._started = time.perf_counter()
        self._lock = threading.Lock()
        self.bytes = 0
        self.seconds = 0.0
        self._threads = [
            threading.Thread(target=self._read, name="read-ahead", daemon=True)
            for _ in range(min(_THREADS, len(files)))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def finished(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Wait until all is read."""
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        buffer = bytearray(_CHUNK)
        while True:
            try:
                path = self._files.get_nowait()
            except Empty:
                return
            try:
                with path.open("rb", buffering=0) as file:
                    while count := file.readinto(buffer):
                        self._note(count)
            except OSError:
                continue

    def _note(self, count: int) -> None:
        with self._lock:
            self.bytes += count
            self.seconds = time.perf_counter() - self._started


def drop(folder: Path) -> None:
    """Ask the kernel to forget what it has of a folder's files: a cold start, for measuring."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
