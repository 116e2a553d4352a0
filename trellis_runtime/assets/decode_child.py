"""The process that decodes pictures: one request after another on its standard input.

    in   {"bytes": n, "field": "image", "limits": {...}} newline, n bytes of the file
    out  {"shape": [h, w, 4]} newline, h * w * 4 bytes      or {"rejected": "words"} newline

Its address space is bounded before each picture, by what the picture's header says: a stream that
turns out larger than its header meets the bound and not the machine's memory.
"""

from __future__ import annotations

import io
import json
import os
import select
import sys
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from trellis_runtime.assets.address_space import bound_address_space
from trellis_runtime.assets.images import DECODER_ERRORS, FORMATS, decode_image
from trellis_runtime.errors import ImageRejected
from trellis_runtime.settings import ImageLimits

BYTES_PER_PIXEL = 40
"""The most that decoding takes for a pixel: 16-bit grey, whose scaling is done in float64."""

BASE_BYTES = 192 * 2**20
"""Room besides: libraries that are loaded with the first picture, decoders' own tables."""

_PARENT_LOOK_S = 2.0


def room_for(encoded: bytes, limits: ImageLimits) -> int:
    """Return the bytes of address space that a picture gets, from its header's size."""
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            pixels = image.width * image.height
    except DECODER_ERRORS:
        pixels = limits.max_pixels
    return BYTES_PER_PIXEL * min(pixels, limits.max_pixels) + 4 * len(encoded) + BASE_BYTES


def _answer(request: dict[str, Any], encoded: bytes, out: BinaryIO) -> None:
    limits = ImageLimits.model_validate(request["limits"])
    try:
        bound_address_space(room_for(encoded, limits))
        pixels = decode_image(encoded, limits, request["field"])
    except ImageRejected as err:
        out.write(json.dumps({"rejected": err.message}).encode() + b"\n")
    except MemoryError:
        told = f"{request['field']} takes more memory to decode than its size explains"
        out.write(json.dumps({"rejected": told}).encode() + b"\n")
    else:
        out.write(json.dumps({"shape": pixels.shape}).encode() + b"\n")
        out.write(np.ascontiguousarray(pixels).data)
    out.flush()


def main(parent: int) -> None:
    """Serve until the process `parent` closes the pipe, or is no more."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not pass for an answer
    source = sys.stdin.buffer
    while True:
        # A process that the parent forked may hold the pipe open after the parent's death.
        while not select.select([source], [], [], _PARENT_LOOK_S)[0]:
            if os.getppid() != parent:
                return
        line = source.readline()
        if not line:
            return
        request = json.loads(line)
        _answer(request, source.read(request["bytes"]), out)
