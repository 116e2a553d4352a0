"""Every picture of a folder to a GLB beside it, through an endpoint, several at a time.

    RUNPOD_API_KEY=... python -m examples.batch_folder ENDPOINT_ID pictures/ models/ --at-once 8

A picture whose model is there already is passed over, so a batch that was cut off goes on where it
was. A failure that says `retryable` is sent again, twice; others are told and the batch goes on.
Needs `pip install runpod`.
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import runpod

from examples.save_answer import save

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic"}
ATTEMPTS = 3
TIMEOUT_S = 1800


def request_of(picture: Path, preset: str) -> dict[str, Any]:
    """Return the job for one picture."""
    image = base64.b64encode(picture.read_bytes()).decode()
    return {"input": {"image": image, "preset": preset}}


def ask(endpoint: Any, job: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Run a job; return whether it succeeded and its output. Retryable failures are sent again.

    Of a job that failed the platform gives the message to `status` and the rest of the worker's
    answer (`code`, `field`, `retryable`) to `output`.
    """
    output: dict[str, Any] = {}
    for _ in range(ATTEMPTS):
        run = endpoint.run(job)
        output = run.output(timeout=TIMEOUT_S) or {}
        if run.status() == "COMPLETED":
            return True, output
        if not output.get("retryable", True):
            break
    return False, output


def convert(endpoint: Any, preset: str, out: Path, picture: Path) -> str | None:
    """Make one picture's model; returns what went wrong, None when all is well."""
    folder = out / picture.stem
    if (folder / "model.glb").is_file():
        return None
    succeeded, output = ask(endpoint, request_of(picture, preset))
    if not succeeded:
        return f"{picture.name}: {output.get('code', 'the platform gave no answer')}"
    save(output, folder)
    return None


def main() -> int:
    """Convert a folder; the exit code says whether every picture has its model."""
    parser = argparse.ArgumentParser(description="Every picture of a folder to a GLB.")
    parser.add_argument("endpoint")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", default="fast", choices=("fast", "balanced", "game_asset"))
    parser.add_argument("--at-once", type=int, default=4, metavar="JOBS")
    args = parser.parse_args()
    endpoint = runpod.Endpoint(args.endpoint, api_key=os.environ["RUNPOD_API_KEY"])
    pictures = sorted(p for p in args.pictures.iterdir() if p.suffix.lower() in SUFFIXES)
    with ThreadPoolExecutor(args.at_once) as pool:
        told = list(pool.map(partial(convert, endpoint, args.preset, args.out), pictures))
    failed = [text for text in told if text]
    print(f"{len(pictures) - len(failed)} of {len(pictures)} pictures have a model in {args.out}")
    print(*failed, sep="\n", file=sys.stderr, end="\n" if failed else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
