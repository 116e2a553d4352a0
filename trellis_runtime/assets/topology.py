"""How the faces of a mesh hang together, on NumPy arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ints = NDArray[np.int64]


def component_count(faces: Ints) -> int:
    """Return how many parts faces (F, 3) fall into that share no vertex."""
    if len(faces) == 0:
        return 0
    links = np.concatenate([faces[:, :2], faces[:, 1:]])
    _, labels = connected(links[:, 0], links[:, 1], int(faces.max()) + 1)
    return len(np.unique(labels[faces[:, 0]]))


def half_edges(faces: Ints) -> Ints:
    """Return the edges (3 F, 2) of faces (F, 3), each in its face's direction."""
    return faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)


def connected(first: Ints, second: Ints, count: int) -> tuple[int, Ints]:
    """Return the number of parts that links from `first` to `second` (L,) make, and each one's.

    The second is (count,): the part of each of `count` things, numbered from 0.
    """
    graph = coo_array((np.ones(len(first), np.int8), (first, second)), (count, count))
    number, labels = connected_components(graph, directed=False)
    return int(number), labels.astype(np.int64)
