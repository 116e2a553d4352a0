"""Pictures are decoded in a child process: it can be ended, and its memory is bounded.

A decoder's `load()` cannot be interrupted, and a file of half a megabyte can keep one busy for
minutes, or make it take gigabytes. A child is kept warm, so that a normal picture costs the copy of
its pixels through a pipe. A child that was ended, or ended itself, is replaced by the next.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

import trellis_runtime
from trellis_runtime.contract.engine import Rgba
from trellis_runtime.contract.scope import Deadline, JobScope
from trellis_runtime.errors import ImageRejected
from trellis_runtime.settings import ImageLimits

_WATCH_S = 0.05
_PIPE_BYTES = 2**20
_KEPT = 4  # idle children; more exist only while more pictures are decoded at once
_ROOT = str(Path(trellis_runtime.__file__).parent.parent)
_RUN = (
    f"import sys; sys.path.insert(0, {_ROOT!r}); "
    "from trellis_runtime.assets.decode_child import main; main(int(sys.argv[1]))"
)


class _Ended(Exception):
    """The child is no more."""


class _Child:
    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own code, no input of a caller
            [sys.executable, "-c", _RUN, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.used = False
        self._widen()

    def _widen(self) -> None:
        """Let the pipes hold a megabyte, where the system can: fewer turns a picture."""
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[arg-type]
            except (OSError, AttributeError):
                return

    def ask(self, request: dict[str, Any], encoded: bytes) -> Rgba | str:
        """Return the pixels, or the words of a refusal; raises `_Ended`."""
        self.used = True
        assert self._process.stdin is not None  # noqa: S101 - both are pipes
        assert self._process.stdout is not None  # noqa: S101
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n" + encoded)
            self._process.stdin.flush()
            head = json.loads(self._process.stdout.readline() or "null")
            if head is None:
                raise _Ended
            if "rejected" in head:
                return str(head["rejected"])
            pixels = np.empty(head["shape"], np.uint8)
            room = pixels.data.cast("B")
            while room:
                if not (got := self._process.stdout.readinto(room)):  # type: ignore[attr-defined]
                    raise _Ended
                room = room[got:]
        except (OSError, ValueError) as err:
            raise _Ended from err
        return pixels

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End it; whoever waits for its answer gets `_Ended`."""
        self._process.kill()

    def close(self) -> None:
        """End it, and let go of its pipes."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass  # what was not sent any more
        self._process.wait()


class Decoder:
    """A few children, and the pictures that they decode; safe from any thread."""

    def __init__(self) -> None:
        self._idle: list[_Child] = []
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Start a child now, so that the first picture finds it ready."""
        self._give_back(self._take())

    def decode(self, encoded: bytes, limits: ImageLimits, field: str, scope: JobScope) -> Rgba:
        """Return what `images.decode_image` does, within `limits.decode_timeout_s`.

        Raises `ImageRejected`, also for a picture that takes too long or too much memory, and what
        `scope.check` raises when the job is stopped or its time is over.
        """
        request = {
            "bytes": len(encoded),
            "field": field,
            "limits": limits.model_dump(mode="json"),
        }
        deadline = Deadline.after(min(limits.decode_timeout_s, scope.deadline.remaining()))
        while True:
            child = self._take()
            fresh = not child.used
            answer = self._watched(child, request, encoded, deadline, scope)
            scope.check()
            if isinstance(answer, str):
                raise ImageRejected(answer, field=field)
            if answer is not None:
                return answer
            if deadline.passed:
                raise ImageRejected(
                    f"{field} takes longer than {limits.decode_timeout_s:g} s to decode",
                    field=field,
                )
            if fresh:  # an older one may have ended for reasons of its own
                raise ImageRejected(f"{field} ended its decoder", field=field)

    def close(self) -> None:
        """End the idle children."""
        with self._lock:
            children, self._idle = self._idle, []
        for child in children:
            child.close()

    def _watched(
        self,
        child: _Child,
        request: dict[str, Any],
        encoded: bytes,
        deadline: Deadline,
        scope: JobScope,
    ) -> Rgba | str | None:
        """Ask `child`, which is ended when the time is over or the job is stopped: None then."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_WATCH_S):
                if deadline.passed or scope.cancelled:
                    child.kill()
                    return

        watcher = threading.Thread(target=watch, name="decode-watch", daemon=True)
        watcher.start()
        try:
            answer = child.ask(request, encoded)
        except _Ended:
            answer = None
        finally:
            done.set()
            watcher.join()
        if answer is None:
            child.close()
        else:
            self._give_back(child)
        return answer

    def _take(self) -> _Child:
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.alive:
                    return child
                child.close()
        return _Child()

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            if keep := len(self._idle) < _KEPT:
                self._idle.append(child)
        if not keep:
            child.close()


DECODER = Decoder()
"""The process's own; its children end with it."""

atexit.register(DECODER.close)
