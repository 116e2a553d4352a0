"""DINOv3 and the background remover: built by upstream's wrappers, and refused unless read whole.

Both come through transformers, which fills a tensor that a file lacks with random values and only
warns. A model of which something is missing would then answer, wrongly, for as long as the worker
lives. `from_pretrained` can tell what it did not find; upstream's wrappers do not ask it to, so it
is asked while they run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trellis_runtime.engines.trellis2.upstream.checkpoints import described_by, first_few
from trellis_runtime.errors import SetupFailed

Report = dict[str, Any]
"""transformers' loading info: lists of keys by kind (`missing_keys`, say), see `_WORDS`."""

_WORDS = {
    "missing_keys": "lacks",
    "unexpected_keys": "has unexpected",
    "mismatched_keys": "misshapes",
    "error_msgs": "cannot be read:",
}


def build_whole(build: Callable[[str], Any], name: str, folder: Path, *, is_synthetic: bool) -> Any:
    """Return what `build` makes of a model's folder; raises `SetupFailed` unless it was read whole.

    `name` is the model's. A builder that does not go through transformers tells nothing of what it
    read: that is taken for a synthetic checkpoint alone.
    """
    with loading_reports() as reports, described_by(folder / "config.json"):
        try:
            helper = build(str(folder))
        except (OSError, RuntimeError, ValueError, ImportError) as err:
            raise SetupFailed(f"{name} cannot be loaded from {folder} ({err})") from None
    for report in reports:
        _require_empty(report, name, folder)
    if not reports and not is_synthetic:
        raise SetupFailed(f"{name} was loaded from {folder}, and nothing told what was missing")
    return helper


def require_width(model: Any, context: int, folder: Path) -> None:
    """Raise `SetupFailed` where an image encoder is not as wide as the flow models expect it."""
    width = getattr(getattr(model, "config", None), "hidden_size", context)
    if width != context:
        raise SetupFailed(
            f"DINOv3 in {folder} has {width} channels; the flow models were trained on {context}"
        )


@contextmanager
def loading_reports() -> Iterator[list[Report]]:
    """Collect what transformers tells of each model that is loaded while the context lasts."""
    reports: list[Report] = []
    transformers = sys.modules.get("transformers")  # upstream's modules have imported it
    if transformers is None:
        yield reports
        return
    base: Any = transformers.PreTrainedModel
    own = base.__dict__["from_pretrained"]

    def telling(cls: Any, *args: Any, **kwargs: Any) -> Any:
        asked = kwargs.pop("output_loading_info", False)
        model, report = own.__func__(cls, *args, output_loading_info=True, **kwargs)
        reports.append(report)
        return (model, report) if asked else model

    base.from_pretrained = classmethod(telling)
    try:
        yield reports
    finally:
        base.from_pretrained = own


def _require_empty(report: Report, name: str, folder: Path) -> None:
    for kind, word in _WORDS.items():
        found = report.get(kind)
        if found:
            keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found)
            files = ", ".join(p.name for p in sorted(folder.glob("*.safetensors"))) or "no file"
            raise SetupFailed(f"{name} in {folder} ({files}) {word} {first_few(keys)}")
