"""How long upstream takes to build and load models, as its `from_pretrained` does, one by one.

python -m benchmarks.upstream_start CKPT MODEL...
"""

from __future__ import annotations

import json
import os
import sys
import time

START = time.perf_counter()
os.environ.update(ATTN_BACKEND="sdpa", SPARSE_ATTN_BACKEND="flash_attn")

import torch  # noqa: E402
from trellis2 import models  # noqa: E402


def main() -> None:
    """Print seconds of the imports and of each model, last line JSON."""
    folder, *names = sys.argv[1:]
    seconds = {"imports": time.perf_counter() - START}
    for name in names:
        started = time.perf_counter()
        model = models.from_pretrained(f"{folder}/ckpts/{name}")
        built = time.perf_counter()
        model.to("cuda")
        torch.cuda.synchronize()
        seconds[name] = built - started
        seconds[f"{name}, to the card"] = time.perf_counter() - built
    print(json.dumps({name: round(value, 2) for name, value in seconds.items()}))


if __name__ == "__main__":
    main()
