"""Read and inspect any bytes that claim to be glTF 2.0 binary; nothing is trusted.

Long because one class reads a file, and every access to it is checked there.
"""

from __future__ import annotations

import io
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trellis_runtime.assets.glb_format import BIN_CHUNK, JSON_CHUNK, MAGIC, MIN_BYTES
from trellis_runtime.errors import GlbRejected

_DTYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_DECODERS = 2  # images decoded side by side


@dataclass(slots=True)
class GlbReport:
    """What inspection found; a file is good when `errors` is empty."""

    errors: list[str] = field(default_factory=list)
    vertices: int = 0
    faces: int = 0
    images: list[tuple[str, int, int]] = field(default_factory=list)
    extensions_required: list[str] = field(default_factory=list)


@dataclass(slots=True)
class GlbContent:
    """The parts of a GLB that its preview needs: its triangles and its decoded textures.

    Primitives that share their vertices are one here: an opaque and a blended one, say.
    """

    positions: NDArray[np.float32]
    faces: NDArray[np.int64]
    normals: NDArray[np.float32] | None
    uvs: NDArray[np.float32] | None
    colors: NDArray[np.float32] | None
    base_color: Image.Image | None
    metallic_roughness: Image.Image | None
    tangents: NDArray[np.float32] | None = None
    normal_map: Image.Image | None = None
    occlusion: Image.Image | None = None


class _Bad(Exception):
    """Something in the file is not as the format has it."""


@dataclass(frozen=True, slots=True)
class CheckedGlb:
    """A good file: its bytes, the report on them and what they hold, all from one reading."""

    data: bytes
    report: GlbReport
    content: GlbContent


def inspect_glb(data: bytes) -> GlbReport:
    """Return a report on any bytes; never raises on bad content."""
    report = GlbReport()
    if len(data) < MIN_BYTES:
        report.errors.append(f"the file has {len(data)} bytes; a model has at least {MIN_BYTES}")
    try:
        _Reader(data).check(report)
    except _Bad as err:
        report.errors.append(str(err))
    return report


def require_glb(data: bytes) -> GlbReport:
    """Return the report on a good file; raises `GlbRejected` for any other."""
    report = inspect_glb(data)
    if report.errors:
        raise GlbRejected("; ".join(report.errors[:5]))
    return report


def check_glb(data: bytes) -> CheckedGlb:
    """Inspect a file that we made and keep its content, so that what is validated is what is shown.

    The decoded images stay in memory: not for bytes of others. Raises `GlbRejected`.
    """
    report = GlbReport()
    try:
        if len(data) < MIN_BYTES:
            raise _Bad(f"the file has {len(data)} bytes; a model has at least {MIN_BYTES}")
        reader = _Reader(data, keep_images=True)
        reader.check(report)
        return CheckedGlb(data, report, reader.content())
    except _Bad as err:
        raise GlbRejected(str(err)) from None


def read_glb(data: bytes) -> GlbContent:
    """Decode a good file's first primitive; raises `GlbRejected` for a bad one."""
    try:
        return _Reader(data).content()
    except _Bad as err:
        raise GlbRejected(str(err)) from None


def read_textures(data: bytes) -> tuple[Image.Image | None, Image.Image | None]:
    """Decode the first material's base colour and metallic-roughness, geometry left alone.

    So files with compressed geometry are read too. Raises `GlbRejected` for a bad one.
    """
    try:
        return _Reader(data).textures()
    except _Bad as err:
        raise GlbRejected(str(err)) from None


@dataclass(frozen=True, slots=True)
class GlbParts:
    """A good file taken apart: its document, its BIN chunk, and its primitives' raw arrays."""

    document: dict[str, Any]
    blob: bytes
    primitives: list[tuple[dict[str, NDArray[Any]], NDArray[Any]]]
    """For each primitive: its attributes by name, and its faces (F, 3)."""

    def bytes_of(self, view: dict[str, Any]) -> bytes:
        """Return what one of the document's buffer views holds."""
        start = view.get("byteOffset", 0)
        return self.blob[start : start + view["byteLength"]]


def take_apart(data: bytes) -> GlbParts:
    """Return the parts of a good file, to write another from; raises `GlbRejected` for a bad."""
    try:
        reader = _Reader(data)
        return reader.parts()
    except _Bad as err:
        raise GlbRejected(str(err)) from None


def read_document(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return a file's JSON document and its BIN chunk, no more of it inspected.

    Raises `GlbRejected` for bytes that are no GLB.
    """
    try:
        return _chunks(data)
    except _Bad as err:
        raise GlbRejected(str(err)) from None


class _Reader:
    """Reads a GLB with every access checked; decoded images are kept only when asked."""

    def __init__(self, data: bytes, *, keep_images: bool = False) -> None:
        self._json, self._bin = _chunks(data)
        self._kept: dict[int, Image.Image] | None = {} if keep_images else None

    def check(self, report: GlbReport) -> None:
        asset = self._object(self._json.get("asset"), "asset")
        if asset.get("version") != "2.0":
            raise _Bad("asset.version is not 2.0")
        required = self._json.get("extensionsRequired", [])
        if not isinstance(required, list) or not all(isinstance(e, str) for e in required):
            raise _Bad("extensionsRequired is not a list of names")
        report.extensions_required = required
        for i in range(len(self._list("accessors"))):
            self._check_accessor(i)
        with ThreadPoolExecutor(_DECODERS) as pool:  # decoding releases the GIL
            report.images += pool.map(self._image_facts, range(len(self._list("images"))))
        counted: set[int] = set()
        for primitive in self._primitives():
            positions, indices = self._geometry(primitive)
            at = self._object(primitive.get("attributes"), "attributes")["POSITION"]
            report.vertices += 0 if at in counted else len(positions)  # primitives may share them
            counted.add(at)
            report.faces += len(indices) // 3
        if report.faces == 0:
            raise _Bad("there is no triangle")

    def content(self) -> GlbContent:
        primitives = self._primitives()
        if not primitives:
            raise _Bad("there is no primitive")
        primitive = primitives[0]
        attributes = self._object(primitive.get("attributes"), "attributes")
        together = [self._geometry(p) for p in primitives if p.get("attributes") == attributes]
        positions = together[0][0]
        indices = np.concatenate([faces.astype(np.int64) for _, faces in together])

        def optional(name: str) -> NDArray[np.float32] | None:
            return self._floats(attributes[name]) if name in attributes else None

        base_color, packed = self.textures(primitive)
        material = self._material(primitive)
        return GlbContent(
            positions=positions,
            faces=indices.reshape(-1, 3),
            normals=optional("NORMAL"),
            uvs=optional("TEXCOORD_0"),
            colors=optional("COLOR_0"),
            base_color=base_color,
            metallic_roughness=packed,
            tangents=optional("TANGENT"),
            normal_map=self._texture(material.get("normalTexture")),
            occlusion=self._texture(material.get("occlusionTexture")),
        )

    def textures(
        self, primitive: dict[str, Any] | None = None
    ) -> tuple[Image.Image | None, Image.Image | None]:
        """Return base colour and metallic-roughness of a primitive, the first one by default."""
        if primitive is None:
            primitive = next(iter(self._primitives()), {})
        material = self._material(primitive)
        pbr = self._object(material.get("pbrMetallicRoughness", {}), "pbrMetallicRoughness")
        base = self._texture(pbr.get("baseColorTexture"))
        return base, self._texture(pbr.get("metallicRoughnessTexture"))

    def _material(self, primitive: dict[str, Any]) -> dict[str, Any]:
        if "material" not in primitive:
            return {}
        return self._object(self._item("materials", primitive["material"]), "material")

    def parts(self) -> GlbParts:
        taken = []
        for primitive in self._primitives():
            _, indices = self._geometry(primitive)
            attributes = self._object(primitive.get("attributes"), "attributes")
            arrays = {name: self._accessor(at) for name, at in attributes.items()}
            taken.append((arrays, indices.reshape(-1, 3)))
        return GlbParts(self._json, self._bin, taken)

    def _primitives(self) -> list[dict[str, Any]]:
        found = []
        for mesh in self._list("meshes"):
            primitives = self._object(mesh, "mesh").get("primitives")
            if not isinstance(primitives, list):
                raise _Bad("mesh.primitives is not a list")
            found += [self._object(p, "primitive") for p in primitives]
        return found

    def _geometry(self, primitive: dict[str, Any]) -> tuple[NDArray[np.float32], NDArray[Any]]:
        attributes = self._object(primitive.get("attributes"), "attributes")
        positions = self._floats(attributes.get("POSITION"))
        if positions.ndim != 2 or positions.shape[1] != 3:
            raise _Bad("POSITION is not VEC3")
        if not np.isfinite(positions).all():
            raise _Bad("POSITION holds values that are not finite")
        for name, at in attributes.items():
            if len(self._accessor(at)) != len(positions):
                raise _Bad(f"{name} has another count than POSITION")
        indices = self._accessor(primitive.get("indices"))
        if indices.ndim != 1 or indices.dtype.kind != "u" or len(indices) % 3:
            raise _Bad("indices are not triangles")
        if len(indices) and int(indices.max()) >= len(positions):
            raise _Bad(f"an index is {int(indices.max())}; there are {len(positions)} vertices")
        return positions, indices

    def _floats(self, at: Any) -> NDArray[np.float32]:
        values = self._accessor(at)
        if values.dtype.kind == "f":
            return np.asarray(values, np.float32)
        return (values / np.float32(np.iinfo(values.dtype).max)).astype(np.float32)

    def _check_accessor(self, at: int) -> None:
        values = self._accessor(at)
        stated = self._list("accessors")[at]
        for name, actual in (("min", np.min), ("max", np.max)):
            if name not in stated:
                continue
            wanted = np.asarray(_numbers(stated[name]), np.float32)
            real = np.atleast_1d(actual(values, axis=0)).astype(np.float32) if len(values) else None
            if real is None or wanted.shape != real.shape or not np.array_equal(wanted, real):
                raise _Bad(f"accessor {at}: {name} is not that of its data")

    def _accessor(self, at: Any) -> NDArray[Any]:
        accessor = self._object(self._item("accessors", at), "accessor")
        kind, code = accessor.get("type"), accessor.get("componentType")
        if not isinstance(kind, str) or kind not in _WIDTHS:
            raise _Bad(f"accessor {at} has an unknown type")
        if not isinstance(code, int) or code not in _DTYPES:
            raise _Bad(f"accessor {at} has an unknown componentType")
        count = _natural(accessor.get("count"), "accessor.count")
        view, stride = self._view(accessor.get("bufferView"))
        dtype, width = np.dtype(_DTYPES[code]), _WIDTHS[kind]
        size = dtype.itemsize * width
        stride = stride or size
        offset = _natural(accessor.get("byteOffset", 0), "accessor.byteOffset")
        if stride < size or count < 1 or offset + stride * (count - 1) + size > len(view):
            raise _Bad(f"accessor {at} does not fit its buffer view")
        shape = (count,) if width == 1 else (count, width)
        strides = (stride,) if width == 1 else (stride, dtype.itemsize)
        return np.ndarray(shape, dtype, view, offset, strides)

    def _view(self, at: Any) -> tuple[memoryview, int]:
        view = self._object(self._item("bufferViews", at), "bufferView")
        start = _natural(view.get("byteOffset", 0), "bufferView.byteOffset")
        length = _natural(view.get("byteLength"), "bufferView.byteLength")
        stride = _natural(view.get("byteStride", 0), "bufferView.byteStride")
        buffers = self._list("buffers")
        if view.get("buffer") != 0 or not buffers or not all(map(_has_no_bytes, buffers[1:])):
            raise _Bad("only one buffer, the BIN chunk, is expected")
        stated = _natural(self._object(buffers[0], "buffer").get("byteLength"), "byteLength")
        if not len(self._bin) - 3 <= stated <= len(self._bin):
            raise _Bad(f"the buffer states {stated} bytes; BIN has {len(self._bin)}")
        if start + length > stated:
            raise _Bad(f"buffer view {at} ends behind its buffer")
        return memoryview(self._bin)[start : start + length], stride

    def _texture(self, info: Any) -> Image.Image | None:
        if info is None:
            return None
        texture = self._object(
            self._item("textures", self._object(info, "textureInfo").get("index")), "texture"
        )
        webp = self._object(texture.get("extensions", {}), "extensions").get("EXT_texture_webp")
        source = self._object(webp, "EXT_texture_webp") if webp is not None else texture
        return self._image(source.get("source"))

    def _image_facts(self, at: int) -> tuple[str, int, int]:
        image = self._image(at)
        return image.format or "?", *image.size

    def _image(self, at: Any) -> Image.Image:
        if self._kept is None:
            return self._decoded(at)
        if at not in self._kept:
            self._kept[at] = self._decoded(at)
        return self._kept[at]

    def _decoded(self, at: Any) -> Image.Image:
        stated = self._object(self._item("images", at), "image")
        view, _ = self._view(stated.get("bufferView"))
        try:
            image = Image.open(io.BytesIO(view), formats=("PNG", "JPEG", "WEBP"))
            image.load()
        except (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, struct.error,
                ArithmeticError, RuntimeError, MemoryError) as err:  # fmt: skip
            raise _Bad(f"image {at} does not decode ({type(err).__name__})") from None
        if stated.get("mimeType") != f"image/{(image.format or '').lower()}":
            raise _Bad(f"image {at} is not of its mimeType")
        return image

    def _list(self, name: str) -> list[Any]:
        value = self._json.get(name, [])
        if not isinstance(value, list):
            raise _Bad(f"{name} is not a list")
        return value

    def _item(self, name: str, at: Any) -> Any:
        items = self._list(name)
        if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < len(items):
            raise _Bad(f"{name} has no item {str(at)[:20]}")
        return items[at]

    @staticmethod
    def _object(value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _Bad(f"{name} is not an object")
        return value


def _has_no_bytes(buffer: Any) -> bool:
    """Whether a buffer only says where what is compressed in another one would lie."""
    extensions = buffer.get("extensions") if isinstance(buffer, dict) else None
    told = extensions.get("EXT_meshopt_compression") if isinstance(extensions, dict) else None
    return isinstance(told, dict) and told.get("fallback") is True and "uri" not in buffer


def _natural(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**40:
        raise _Bad(f"{name} is not a size")
    return value


def _numbers(value: Any) -> list[float]:
    if not isinstance(value, list) or not all(
        isinstance(v, int | float) and abs(v) < 1e38 for v in value
    ):
        raise _Bad("accessor bounds are not numbers")
    return value


def _chunks(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a file into its JSON and BIN chunks, checking every length and type."""
    if len(data) < 28:
        raise _Bad("the file is shorter than a GLB's headers")
    magic, version, length = struct.unpack_from("<III", data)
    if magic != MAGIC or version != 2:
        raise _Bad("the header is not that of glTF 2.0 binary")
    if length != len(data):
        raise _Bad(f"the header states {length} bytes; the file has {len(data)}")
    json_length, json_type = struct.unpack_from("<II", data, 12)
    bin_at = 20 + json_length
    if json_type != JSON_CHUNK or json_length % 4 or bin_at + 8 > len(data):
        raise _Bad("the JSON chunk's header is wrong")
    bin_length, bin_type = struct.unpack_from("<II", data, bin_at)
    if bin_type != BIN_CHUNK or bin_length % 4 or bin_at + 8 + bin_length != len(data):
        raise _Bad("the BIN chunk's header is wrong")
    try:
        document = json.loads(data[20:bin_at].decode())
    except (ValueError, RecursionError):
        raise _Bad("the JSON chunk is not JSON") from None
    if not isinstance(document, dict):
        raise _Bad("the JSON chunk is not an object")
    return document, data[bin_at + 8 :]
