"""Connected parts have the label of their least member, however links come and whoever is first."""

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components as by_scipy

from trellis_runtime.engines.trellis2.baking.components import (
    component_labels,
    connected_components,
)
from trellis_runtime.engines.trellis2.baking.connectivity import Pairs


def least_members(first: torch.Tensor, second: torch.Tensor, count: int) -> torch.Tensor:
    """Return what SciPy says, each part called by its least member."""
    ends = first.numpy(), second.numpy()
    links = coo_matrix((np.ones(len(first)), ends), shape=(count, count))
    _, part = by_scipy(links, directed=False)
    least = np.full(part.max() + 1, count)
    np.minimum.at(least, part, np.arange(count))
    return torch.from_numpy(least[part])


@pytest.mark.parametrize("links", [0, 50, 400, 2000])
def test_random_links_give_what_scipy_finds(links: int) -> None:
    drawn = torch.Generator().manual_seed(links)
    first, second = torch.randint(0, 600, (2, links), generator=drawn)
    assert torch.equal(connected_components(first, second, 600), least_members(first, second, 600))


@pytest.mark.parametrize("backwards", [False, True])
def test_a_long_chain_is_one_part_from_either_end(backwards: bool) -> None:
    along = torch.arange(50_000)
    along = along.flip(0) if backwards else along
    assert not connected_components(along[:-1], along[1:], len(along)).any()


def test_links_may_come_some_at_a_time_and_more_than_once() -> None:
    first, second = torch.tensor([4, 2, 9, 4, 7]), torch.tensor([2, 4, 7, 4, 9])
    at_once = connected_components(first, second, 10)
    assert at_once.tolist() == [0, 1, 2, 3, 2, 5, 6, 7, 8, 7]
    assert torch.equal(connected_components(first, second, 10, block=2), at_once)


def test_each_link_is_asked_for_once() -> None:
    asked = []

    def pairs() -> Pairs:
        asked.append(1)
        yield torch.tensor([1]), torch.tensor([0])

    assert component_labels(pairs, 3, torch.device("cpu")).tolist() == [0, 0, 2]
    assert asked == [1]


def test_more_things_than_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="2147483648 things to label; 2147483647 at most"):
        component_labels(lambda: iter([]), 2**31, torch.device("cpu"))
