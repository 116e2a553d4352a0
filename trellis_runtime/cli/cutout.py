"""`cutout`: what of a picture would be modelled, without a job."""

from __future__ import annotations

import argparse
from pathlib import Path

from trellis_runtime.assets.cutout import cutout_png
from trellis_runtime.assets.images import decode_image
from trellis_runtime.assets.warnings import cutout_warnings
from trellis_runtime.cli.console import out_console, require_writable
from trellis_runtime.contract.engine import CutOut
from trellis_runtime.contract.ladder import Plan
from trellis_runtime.contract.request import parse_request
from trellis_runtime.contract.scope import JobScope
from trellis_runtime.contract.stages import Stage
from trellis_runtime.settings import Settings
from trellis_runtime.worker.startup import build_engine


def add_cutout(parser: argparse.ArgumentParser) -> None:
    """Give `cutout` its options."""
    parser.add_argument("image", type=Path, help="PNG, JPEG, WebP, AVIF or HEIC")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="the PNG to write; by default IMAGE's name and .cutout.png",
    )
    parser.add_argument("--engine", choices=("trellis2", "embedded"), help="TRELLIS2_ENGINE")
    parser.add_argument("--keep-background", action="store_true", help="all of it is the object")
    parser.set_defaults(run=_cutout)


def _cutout(args: argparse.Namespace) -> int:
    settings = Settings.from_env()
    if args.engine:
        settings = settings.model_copy(update={"engine": args.engine})
    target = args.output or args.image.with_suffix(".cutout.png")
    require_writable(target, "--output")
    made = _cut_out(args, settings)
    target.write_bytes(cutout_png(made))
    by = {"alpha": "the picture's alpha", "model": "the background remover", "keep": "nothing"}
    out_console.print(
        f"cut out by {by[made.source]}: {made.share:.1%} of the picture, {made.longer_px} px long",
        highlight=False,
        soft_wrap=True,
    )
    for warning in cutout_warnings(made):
        out_console.print(
            f"[yellow]{warning.code}: {warning.text}[/yellow]", highlight=False, soft_wrap=True
        )
    out_console.print(f"picture: {target}", soft_wrap=True, highlight=False)
    return 0


def _cut_out(args: argparse.Namespace, settings: Settings) -> CutOut:
    image = decode_image(args.image.read_bytes(), settings.image)
    background = "keep" if args.keep_background else "auto"
    plan = Plan.as_asked(parse_request({"image": "-", "background": background}), 0)
    engine = build_engine(settings)
    engine.load(lambda _phase, _seconds: None)
    generation = engine.begin(image, plan)
    try:
        generation.run(Stage.CONDITION, plan, JobScope("cutout"))
        return generation.cutout()
    finally:
        generation.close()
