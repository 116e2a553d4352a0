"""Which attention kernels upstream's models run on, chosen once at start.

Upstream's sparse attention knows flash-attn 2 and 3 and xformers, and nothing else. With a batch of
one its "sparse" attention is dense attention over one sequence, which torch computes itself; so
where none of those packages is installed, a module of ours takes the place of `flash_attn` and
answers its three calls with torch's scaled dot product attention.

The fast flow models (`flow`) ask torch directly, whose cuDNN kernels were the fastest measured on
an H200, so that the choice is for `TRELLIS2_FLOW=upstream` alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trellis_runtime.errors import SetupFailed

_PACKAGES = (
    ("flash_attn_interface", "flash_attn_3"),
    ("flash_attn", "flash_attn"),
    ("xformers", "xformers"),
)


def choose() -> str:
    """Return the name of the kernels to use: flash_attn_3, flash_attn, xformers or sdpa."""
    for package, name in _PACKAGES:
        if package in sys.modules and sys.modules[package].__doc__ == __doc__:
            continue  # our own module, from an earlier start in this process
        if importlib.util.find_spec(package) is not None:
            return name
    return "sdpa"


def environment(name: str) -> dict[str, str]:
    """Return the variables that upstream reads at import, for kernels `name`.

    Never spconv: its checkpoint keys differ, and upstream would load it with random weights.
    """
    sparse = "flash_attn" if name == "sdpa" else name
    return {"ATTN_BACKEND": name, "SPARSE_ATTN_BACKEND": sparse, "SPARSE_CONV_BACKEND": "flex_gemm"}


def check_chosen(name: str) -> None:
    """Raise `SetupFailed` unless upstream has read its variables: they are read once, at import."""
    wanted = environment(name)
    sparse = importlib.import_module("trellis2.modules.sparse.config")
    for variable, found in (
        ("SPARSE_ATTN_BACKEND", sparse.ATTN),
        ("SPARSE_CONV_BACKEND", sparse.CONV),
    ):
        if found != wanted[variable]:
            raise SetupFailed(f"upstream runs {found} where {variable}={wanted[variable]} was set")


def install_flash_attn_shim(name: str) -> None:
    """Put our module in `flash_attn`'s place when `name` is sdpa.

    Upstream imports it at each call. Called after upstream and transformers are imported:
    transformers probes for the real package then, and must not find ours.
    """
    if name != "sdpa":
        return
    module = ModuleType("flash_attn", __doc__)
    module.__spec__ = ModuleSpec("flash_attn", None)
    module.flash_attn_varlen_func = varlen  # type: ignore[attr-defined]
    module.flash_attn_varlen_kvpacked_func = varlen_kvpacked  # type: ignore[attr-defined]
    module.flash_attn_varlen_qkvpacked_func = varlen_qkvpacked  # type: ignore[attr-defined]
    sys.modules["flash_attn"] = module


def varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """Attend within each of several sequences laid end to end.

    q is (Tq, H, C), k and v are (Tk, H, C); `cu_q` and `cu_k` (B + 1) are where sequences start
    and end. Returns (Tq, H, C).
    """
    if len(cu_q) == 2:
        return _attend(q, k, v)
    starts_q, starts_k = cu_q.tolist(), cu_k.tolist()
    spans = zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False)
    return torch.cat([_attend(q[a:b], k[c:d], v[c:d]) for a, b, c, d in spans])


def varlen_kvpacked(
    q: Tensor, kv: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """As `varlen`, kv being (Tk, 2, H, C)."""
    return varlen(q, kv[:, 0], kv[:, 1], cu_q, cu_k, max_q, max_k)


def varlen_qkvpacked(qkv: Tensor, cu: Tensor, longest: int) -> Tensor:
    """As `varlen`, qkv being (T, 3, H, C)."""
    return varlen(qkv[:, 0], qkv[:, 1], qkv[:, 2], cu, cu, longest, longest)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
