"""The pictures of a bake show what they are for: whether a surface is there once or twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh

from benchmarks.kept import KeptName, keep_mesh, read_mesh
from builder.make_quality_pictures import CAPTION, CELL, sheets
from builder.quality_views import View, Window
from trellis_runtime.assets.glb_reader import GlbContent
from trellis_runtime.engines.trellis2.baking.quality import Baked

SIZE = 96


def baked(*radii: float) -> Baked:
    """Balls around one middle; every second one is turned inside out."""
    balls = [trimesh.creation.icosphere(4, radius) for radius in radii]
    for ball in balls[1::2]:
        ball.invert()
    whole: Any = trimesh.util.concatenate(balls)
    return Baked(torch.tensor(whole.vertices).float(), torch.tensor(whole.faces))


def content(tmp_path: Path, *radii: float) -> GlbContent:
    path = tmp_path / "ball-8-ours.npz"
    keep_mesh(baked(*radii), path)
    return read_mesh(path)


def crossings(view: View) -> int:
    """Return how many lines the section has from the middle to the right."""
    lines = view.section(view.middle, SIZE, Window()) - SIZE / 2
    across = (lines[:, 0, 1] < 0.137) != (lines[:, 1, 1] < 0.137)
    return int((across & (lines[..., 0].min(1) > 0)).sum())


def test_a_cut_tells_one_shell_from_two(tmp_path: Path) -> None:
    one, two = View(content(tmp_path, 0.4)), View(content(tmp_path, 0.4, 0.38))
    assert (crossings(one), crossings(two)) == (1, 2)
    red, _, blue = np.asarray(one.cut(SIZE, Window()))[SIZE // 2, SIZE // 2]
    assert red > blue + 80  # the ball's inside, from behind
    red, _, blue = np.asarray(two.cut(SIZE, Window()))[SIZE // 2, SIZE // 2]
    assert red < blue  # the inner shell hides it: its front shows


def test_wires_are_drawn_on_edges_alone(tmp_path: Path) -> None:
    picture = np.asarray(View(content(tmp_path, 0.4)).wires(SIZE, Window(6)).convert("L"))
    assert 0.02 < (picture < 110).mean() < 0.4
    assert (picture > 150).mean() > 0.5


def test_a_kept_mesh_comes_back_in_gltfs_axes_with_its_picture(tmp_path: Path) -> None:
    pixels = torch.zeros((16, 16, 3), dtype=torch.uint8)
    pixels[..., 0] = 200
    given = Baked(
        torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 10]]),
        torch.tensor([[0, 1, 2]]),
        torch.rand((3, 2)),
        pixels,
    )
    path = KeptName("open_vase", 512, "upstream").path(tmp_path)
    keep_mesh(given, path)
    assert KeptName.of(path) == KeptName("open_vase", 512, "upstream")
    back = read_mesh(path)
    assert back.positions.tolist() == [[1, 3, -2], [4, 6, -5], [7, 10, -8]]
    assert back.base_color is not None
    assert abs(back.base_color.getpixel((8, 8))[0] - 200) < 12  # type: ignore[index]


def test_ours_stands_above_upstreams_and_alone_where_there_is_none(tmp_path: Path) -> None:
    keep_mesh(baked(0.4), KeptName("ball", 64, "ours").path(tmp_path))
    keep_mesh(baked(0.42, 0.38), KeptName("ball", 64, "upstream").path(tmp_path))
    keep_mesh(baked(0.4), KeptName("moon", 64, "ours").path(tmp_path))
    drawn = sheets(tmp_path)
    assert {name: picture.height for name, picture in drawn.items()} == {
        "ball-64": 2 * (CELL + CAPTION),
        "moon-64": CELL + CAPTION,
    }
