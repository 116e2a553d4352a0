"""What a GLB says of its own making, in `asset.extras`: enough to make it again, and no secret.

engine, versions, worker_version   what made it
seed, request, effective           what was asked, and the plan that was carried out
degradation_level                  the ladder's
input_sha256                       of the picture's file as it was sent; never the picture
content_sha256                     of the file's own BIN chunk: all of its geometry and textures
finish                             which of output.finishes it is; absent in the plain GLB
"""

from __future__ import annotations

from typing import Any

from trellis_runtime import __version__
from trellis_runtime.assets.glb_format import CONTENT_HASH
from trellis_runtime.contract.answer import EngineInfo
from trellis_runtime.contract.engine import Asset
from trellis_runtime.contract.ladder import LadderState
from trellis_runtime.contract.request import GenerationRequest

_NOT_KEPT: Any = {
    **dict.fromkeys(("image", "image_url"), True),
    **dict.fromkeys(("finish_of", "seeds", "variants", "keep"), True),
    "output": {"upload_url": True, "upload_headers": True},
}
"""Pictures, and addresses with what is sent to them: they may hold a signature. And what else the
job was to do: a file is the same whether it was made alone, beside others, or later."""


def recipe(
    info: EngineInfo,
    request: GenerationRequest,
    input_sha256: str,
    descent: LadderState,
    asset: Asset,
) -> dict[str, Any]:
    """Return the extras of a GLB of `asset`, made under `descent`, as plain JSON."""
    return {
        "engine": info.name,
        "synthetic": info.synthetic,
        "versions": dict(info.versions),
        "worker_version": __version__,
        "seed": descent.requested.seed,
        "degradation_level": descent.rung.level,
        "request": request.model_dump(mode="json", exclude=_NOT_KEPT),
        "effective": {**descent.plan.quality(), **asset.effective},
        "input_sha256": input_sha256,
        CONTENT_HASH: "",
    }
