"""The device's memory: out of memory in all its forms, reclaiming, and what the driver sees.

torch, CuMesh, nvdiffrast and the BLAS libraries each say "out of memory" in words of their own, and
CuMesh and nvdiffrast allocate outside torch. Once a kernel has faulted, every later call on the
device fails too: that is no lack of memory, and no retry in this process can help.

Everything that differs between a card and a CPU is decided here: on a CPU there is nothing to wait
for, and memory is the host's.
"""

from __future__ import annotations

import gc
import os
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trellis_runtime.contract.engine import MemorySnapshot
from trellis_runtime.errors import EngineFault, OutOfVram, SetupFailed, WorkerError

# CuMesh: "[CuMesh] CUDA error ... Error code: 700"; nvdiffrast: "Cuda error: 700[...]".
_POISON = (
    "illegal memory access",
    "illegal address",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "device-side assert",
    "uncorrectable ecc",
    "ecc error",
    "launch timed out",
    "error code: 700",
    "error code: 719",
    "cuda error: 700[",
    "cuda error: 719[",
    "gpu is lost",
)
_NO_MEMORY = (
    "out of memory",
    "error code: 2\n",
    "error code: 2 ",
    "cuda error: 2[",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
    "cudaerrormemoryallocation",
    "cublas_status_not_initialized",  # how cuBLAS says that its workspace did not fit
)
_POLL_S = 0.01

CARD = "cuda"
"""The device that a worker computes on."""

Device = torch.device | str | None
"""Where an engine computes; None is CUDA where there is any, else the CPU."""


def translate(err: BaseException) -> WorkerError | None:
    """Return our error for one of the device's, None for anything else."""
    if isinstance(err, torch.OutOfMemoryError):
        return OutOfVram(_first_line(err))
    if not isinstance(err, RuntimeError):
        return None
    text = str(err).lower() + "\n"
    if any(words in text for words in _POISON):
        return EngineFault(_first_line(err))
    if any(words in text for words in _NO_MEMORY):
        return OutOfVram(_first_line(err))
    return None


@contextmanager
def translated() -> Iterator[None]:
    """Raise our errors for the device's."""
    try:
        yield
    except RuntimeError as err:
        failure = translate(err)
        if failure is None:
            raise
        # The frames that it went through hold tensors, for as long as anyone holds the error.
        traceback.clear_frames(err.__traceback__)
        raise failure from None


def reclaim(device: Device = None) -> None:
    """Give every byte that torch can do without back to the driver.

    Libraries that allocate for themselves (Warp) can use nothing that torch caches.
    """
    synchronize(device)
    gc.collect()
    if is_cuda(device):
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]


def release(device: Device = None) -> None:
    """Give torch's cached blocks back to the driver: before each step of a library that cannot use
    them."""
    synchronize(device)
    if is_cuda(device):
        torch.cuda.empty_cache()


def require_free(what: str, size: int, device: Device = None) -> None:
    """Raise `OutOfVram` unless `size` bytes are free for a library outside torch.

    CuMesh was seen to crash the process where an allocation of its own failed; that must not be
    how a job learns that memory is short.
    """
    release(device)
    free, _ = memory_info(device)
    if free < size:
        raise OutOfVram(f"{what} needs about {size >> 20} MiB; {free >> 20} MiB are free")


def available(device: Device = None) -> int:
    """Return the bytes that an allocation could get: free, or cached by torch."""
    free, _ = memory_info(device)
    if not is_cuda(device):
        return free
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def memory_info(device: Device = None) -> tuple[int, int]:
    """Return the device's free and total bytes: the driver's view, or the host's memory."""
    if is_cuda(device):
        free, total = torch.cuda.mem_get_info()
        return free, total
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


def synchronize(device: Device = None) -> None:
    """Wait until the device has done what it was given; the CPU always has."""
    if is_cuda(device):
        torch.cuda.synchronize()


def is_cuda(device: Device = None) -> bool:
    """Whether a device is a CUDA one; None is the machine's own: CUDA where there is any."""
    if device is None:
        return torch.cuda.is_available()
    return torch.device(device).type == CARD


def card_name(device: Device = None) -> str | None:
    """Return the name of the card, None for a CPU or where there is no card."""
    if not (is_cuda(device) and torch.cuda.is_available()):
        return None
    return torch.cuda.get_device_name()


def initialize(device: Device = None) -> None:
    """Make a device ready; raises `SetupFailed` where it is not there."""
    if not is_cuda(device):
        return
    if not torch.cuda.is_available():
        raise SetupFailed("no CUDA device is visible; the trellis2 engine needs one")
    torch.cuda.init()  # type: ignore[no-untyped-call]


class PeakWatch:
    """Samples the device's use, as its driver sees it, from a thread of its own.

    Use by other processes counts too: the card is what runs out. So does use by a job beside: the
    peak is that of all jobs since one began while none was there.
    """

    def __init__(self, device: Device = None) -> None:
        self._device = device
        self._peak = 0
        self._lock = threading.Lock()
        self._watchers = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def peak(self) -> int:
        """Bytes in use at the highest moment seen since the first `start` that was not stopped."""
        return self._peak

    def start(self) -> None:
        """Begin to watch, from now, unless another job has begun; each `start` has its `stop`."""
        with self._lock:
            self._watchers += 1
            if self._watchers > 1:
                return
            self._peak = 0
            self._stop = threading.Event()
            card = torch.cuda.current_device() if is_cuda(self._device) else None
            arguments = (self._stop, card)
            self._thread = threading.Thread(target=self._watch, args=arguments, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the watch that was begun last; the thread leaves with the last of them."""
        with self._lock:
            self._watchers = max(0, self._watchers - 1)
            if self._watchers == 0 and self._thread is not None:
                self._stop.set()
                self._thread.join()
                self._thread = None

    def snapshot(self) -> MemorySnapshot:
        free, total = memory_info(self._device)
        self._peak = max(self._peak, total - free)
        return MemorySnapshot(free=free, total=total, peak=self._peak)

    def _watch(self, stop: threading.Event, card: int | None) -> None:
        if card is not None:
            torch.cuda.set_device(card)
        while not stop.wait(_POLL_S):
            free, total = memory_info(self._device)
            self._peak = max(self._peak, total - free)


def _first_line(err: BaseException) -> str:
    return str(err).strip().splitlines()[0][:300] if str(err).strip() else type(err).__name__
