"""gltfpack, run where it can reach nothing: WebAssembly, and two files that are only in memory.

    GLB ─► wasmtime: gltfpack's own library.wasm, its system calls answered here ─► GLB

It has no folder, network, clock, environment or thread. Its memory and its instructions are
bounded, and the same GLB gives the same bytes, or stops at the same instruction, on any machine.
The other way to run it is its `cli.js` in a process of node, which would have the worker's rights,
only its time bounded, and seven times wasmtime's bytes in the image. wasmtime's own WASI would not
do: this build asks for `path_open32` and `fd_seek32`, which only its library.js answers.

Source: WebAssembly System Interface, preview 1; gltfpack 1.3, library.js.
"""

from __future__ import annotations

import atexit
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from trellis_runtime.errors import FileRejected

WASM = Path(__file__).parent / "vendor/gltfpack.wasm"
"""npm's gltfpack, put here by `make serve` and in the image."""

_IN, _OUT = "in.glb", "out.glb"
_ROOT_FD, _STANDARD_FDS = 3, (0, 1, 2)
_BAD_FD, _IO_FAILED, _NOT_SUPPORTED = 8, 29, 52  # WASI's errno
_FOLDER, _FILE = 3, 4  # its kinds of files
_CREATE = 1
_U32, _MASK = struct.Struct("<I"), 0xFFFFFFFF

_LEAST_MEMORY, _MEMORY_PER_BYTE = 256 << 20, 16
_LEAST_FUEL, _FUEL_PER_BYTE = 2_000_000_000, 5_000
"""Of a GLB; 500,000 faces in 15 MB took 92 MB and 3.4 billion instructions, half a second."""


def pack(
    data: bytes, options: list[str], *, memory: int | None = None, fuel: int | None = None
) -> bytes:
    """Return what gltfpack makes of a GLB under `options`; needs wasmtime and `WASM`.

    `memory` (bytes) and `fuel` (instructions, about) bound the run. Raises `FileRejected` where it
    does not take the file, or a bound is passed.
    """
    import wasmtime

    files = _Files({_IN: data})
    memory = memory or _LEAST_MEMORY + _MEMORY_PER_BYTE * len(data)
    fuel = fuel or _LEAST_FUEL + _FUEL_PER_BYTE * len(data)
    try:
        code = _ended(files, [*options, "-i", _IN, "-o", _OUT], memory, fuel)
    except (wasmtime.Trap, wasmtime.WasmtimeError) as err:
        why = "it ran out of its instructions" if "fuel" in str(err) else "it stopped"
        raise FileRejected(f"gltfpack did not finish: {why}") from err
    except (LookupError, ValueError, struct.error) as err:
        raise FileRejected(f"gltfpack asked for what is not there ({type(err).__name__})") from err
    if code != 0 or not files.content.get(_OUT):
        said = files.said.decode(errors="replace").strip()[:200]
        raise FileRejected(f"gltfpack does not take the file: {said or f'exit code {code}'}")
    return bytes(files.content[_OUT])


@cache
def _compiled() -> tuple[Any, Any]:
    """Return wasmtime's engine and gltfpack as its machine code, which takes half a second once."""
    import wasmtime

    config = wasmtime.Config()
    config.consume_fuel = True
    engine = wasmtime.Engine(config)
    atexit.register(_compiled.cache_clear)  # while Python still has what frees it
    return engine, wasmtime.Module(engine, WASM.read_bytes())


def _ended(files: _Files, arguments: list[str], memory: int, fuel: int) -> int:
    """Run gltfpack once, in a store of its own; returns its exit code."""
    import wasmtime

    engine, module = _compiled()
    with wasmtime.Store(engine) as store:  # closed: it and `files` hold each other
        store.set_limits(memory_size=memory)
        store.set_fuel(fuel)
        imports = [wasmtime.Func(store, i.type, getattr(files, i.name)) for i in module.imports]
        exports = wasmtime.Instance(store, module, imports).exports(store)
        files.memory = _Memory(store, exports["memory"])
        return _called(files.memory, exports, arguments)


def _called(memory: _Memory, exports: Any, arguments: list[str]) -> int:
    """Call gltfpack as a program is called, with its words in its memory; returns its exit code."""
    exports["__wasm_call_ctors"](memory.store)
    words = [word.encode() + b"\0" for word in ["gltfpack", *arguments]]
    at = exports["malloc"](memory.store, 4 * len(words) + sum(map(len, words)))
    starts = [at + 4 * len(words) + sum(map(len, words[:i])) for i in range(len(words))]
    memory.put(at, b"".join(map(_U32.pack, starts)) + b"".join(words))
    return int(exports["pack"](memory.store, len(words), at))


@dataclass(frozen=True, slots=True)
class _Memory:
    """The memory of one run; addresses may come as the signed numbers that wasm's integers are."""

    store: Any
    inner: Any

    def get(self, at: int, length: int) -> bytes:
        """Return `length` bytes; raises `IndexError` where they are not all there."""
        at &= _MASK
        found = bytes(self.inner.read(self.store, at, at + length))
        if len(found) != length:
            raise IndexError("behind the end of memory")
        return found

    def put(self, at: int, data: bytes) -> None:
        """Write bytes; raises `IndexError` where there is no room for them."""
        self.inner.write(self.store, data, at & _MASK)

    def parts(self, at: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield address and length of each buffer of a list of them, WASI's iovec."""
        yield from struct.iter_unpack("<II", self.get(at, 8 * count))


@dataclass(slots=True)
class _Open:
    name: str
    position: int = 0


@dataclass(slots=True)
class _Files:
    """All that gltfpack sees of a system: one folder, `/`, and its files, by name.

    The methods are its imports, by their own names; each returns WASI's errno.
    """

    content: dict[str, bytes | bytearray]
    said: bytearray = field(default_factory=bytearray)
    memory: _Memory = field(init=False)
    _open: dict[int, _Open] = field(default_factory=dict)

    def path_open32(
        self, folder: int, _follow: int, at: int, length: int, mode: int, *more: int
    ) -> int:
        """Open a file of the folder, or make it; its number goes to the last address."""
        name = self.memory.get(at, length).decode()
        if mode & _CREATE:
            self.content[name] = bytearray()
        if name not in self.content or folder != _ROOT_FD:
            return _IO_FAILED
        number = max(self._open, default=_ROOT_FD) + 1
        self._open[number] = _Open(name)
        self.memory.put(more[-1], _U32.pack(number))
        return 0

    def fd_read(self, fd: int, at: int, count: int, done: int) -> int:
        """Fill buffers from where a file is."""
        if fd not in self._open:
            return _BAD_FD
        file, start = self._open[fd], self._open[fd].position
        for to, length in self.memory.parts(at, count):
            data = self.content[file.name][file.position : file.position + length]
            self.memory.put(to, bytes(data))
            file.position += len(data)
        self.memory.put(done, _U32.pack(file.position - start))
        return 0

    def fd_write(self, fd: int, at: int, count: int, done: int) -> int:
        """Append buffers to what was said, or write them where a file is."""
        data = b"".join(self.memory.get(*part) for part in self.memory.parts(at, count))
        if fd in _STANDARD_FDS:
            self.said += data
        elif fd in self._open and isinstance(made := self.content[self._open[fd].name], bytearray):
            file = self._open[fd]
            made[file.position : file.position + len(data)] = data
            file.position += len(data)
        else:
            return _BAD_FD
        self.memory.put(done, _U32.pack(len(data)))
        return 0

    def fd_seek32(self, fd: int, offset: int, whence: int, done: int) -> int:
        """Go to a place of a file, from its start, its place now or its end."""
        if fd not in self._open:
            return _BAD_FD
        file = self._open[fd]
        size = len(self.content[file.name])
        position = (0, file.position, size)[whence] + offset
        if not 0 <= position <= size:
            return _IO_FAILED
        file.position = position
        self.memory.put(done, _U32.pack(position))
        return 0

    def fd_close(self, fd: int) -> int:
        """Close a file."""
        return 0 if self._open.pop(fd, None) or fd in _STANDARD_FDS else _BAD_FD

    def fd_prestat_get(self, fd: int, at: int) -> int:
        """Say that there is one folder, and how long its name is."""
        if fd != _ROOT_FD:
            return _BAD_FD
        self.memory.put(at, struct.pack("<II", 0, 1))
        return 0

    def fd_prestat_dir_name(self, _fd: int, at: int, _length: int) -> int:
        """Say what the folder is called."""
        self.memory.put(at, b"/")
        return 0

    def fd_fdstat_get(self, fd: int, at: int) -> int:
        """Say what kind of file a number stands for."""
        kind = _FOLDER if fd == _ROOT_FD else _FILE
        self.memory.put(at, struct.pack("<BxHxxxxQQ", kind, 0, 0, 0))
        return 0

    def path_filestat_get(self, _fd: int, _flags: int, _at: int, _length: int, out: int) -> int:
        """Say of any path that it is a file."""
        self.memory.put(out, struct.pack("<16xB47x", _FILE))
        return 0

    def fd_fdstat_set_flags(self, _fd: int, _flags: int) -> int:
        """Refuse, as its own library.js does."""
        return _NOT_SUPPORTED

    def proc_exit(self, code: int) -> None:
        """End the run; raises `FileRejected`."""
        raise FileRejected(f"gltfpack ended itself (exit code {code})")
