"""What `--help` says of each verb, beside its options: what it does, and lines to copy."""

from __future__ import annotations

import argparse

_PROGRAM = "python -m trellis_runtime"

ABOUT: dict[str, tuple[str, tuple[str, ...]]] = {
    "run": (
        "Make a GLB from a picture, here and now. The last lines say where the GLB and a picture "
        "of it are, and what was given up for memory. Files stay in output/ (TRELLIS2_OUTPUT_DIR).",
        (
            "run photo.jpg -o model.glb",
            "run photo.jpg --preset fast --seed 7 --json",
            "run photo.jpg --keep-background --max-degradation-level 0",
        ),
    ),
    "cutout": (
        "Write what of a picture would be modelled, as a PNG with a transparent background, and "
        "say what looks doubtful. Takes seconds; makes no model.",
        ("cutout photo.jpg", "cutout photo.jpg -o cut.png"),
    ),
    "show": (
        "Print the answer that an earlier job left in its folder, as `run` does.",
        ("show output/local_test",),
    ),
    "check": (
        "Print what this machine can do: engines, card, disk, bucket (a small object is written to "
        "it and removed). Ends with 1 when a worker with these settings could not serve. --deep "
        "loads the GPU engine's models too.",
        ("check", "check --deep"),
    ),
    "acceptance": (
        "Hold the GPU engine against upstream's own code, stage by stage, on real weights and a "
        "card. Ends in a table and one line of JSON for an issue. See docs/acceptance.md.",
        ("acceptance --photo photo.jpg --glb first.glb",),
    ),
    "verify": (
        "Say what a GLB is: who made it, of what request and seed, and whether its hashes hold. "
        "With the picture it was made of, make it again on this machine and compare.",
        ("verify model.glb", "verify model.glb --image photo.jpg"),
    ),
    "schema": (
        "Print a JSON Schema; those in docs/schema/ are the same.",
        ("schema request", "schema error"),
    ),
    "ladder": (
        "Print what is given up, step by step, when memory runs out. A request's "
        "max_degradation_level names the lowest level that it accepts.",
        ("ladder",),
    ),
    "stats": (
        "Sum up a worker's log (TRELLIS2_LOG_FORMAT=json): jobs, failures, seconds of each stage, "
        "degradation. Lines of other programs in it are counted and passed over.",
        ("stats worker.log", "stats *.log --html report.html"),
    ),
    "serve": (
        "Serve the local page, the HTTP form of the worker and, at /docs, its description. With "
        "RUNPOD_API_KEY set the page can send jobs to an endpoint. Ctrl-C ends it after the jobs "
        "in hand.",
        ("serve", "serve --host 0.0.0.0 --token-file token.txt --allow-host models.example.com"),
    ),
    "bench": (
        "Time jobs, stage by stage, or starts of fresh processes. The last line is JSON.",
        ("bench --runs 3 --presets fast", "bench cold-start --runs 5"),
    ),
}


def describe(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Give each verb's parser its description and its examples."""
    for verb, (about, examples) in ABOUT.items():
        parser = commands.choices[verb]
        parser.description = about
        lines = "\n".join(f"  {_PROGRAM} {line}" for line in examples)
        parser.epilog = f"examples:\n{lines}\n"
        parser.formatter_class = _Formatter


class _Formatter(argparse.HelpFormatter):
    """Wraps descriptions, and leaves examples as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return text
        return super()._fill_text(text, width, indent)
