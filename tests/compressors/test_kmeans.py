"""k-means of numbers: the worked example of Deep Compression, every start, edge cases."""

from __future__ import annotations

import pytest
import torch

from compressors.kernels import kmeans

#: The 4x4 matrix of Han 2016, figure 3, whose four centroids are printed there.
HAN = torch.tensor(
    [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0, -1.03], [1.87, 0, 1.53, 1.49]]
)
INITS: tuple[kmeans.Init, ...] = ("linear", "density", "random", "kmeans++")


@pytest.mark.parametrize("init", ["linear", "density", "kmeans++"])
def test_example_of_the_paper(init: kmeans.Init) -> None:
    centroids, numbers = kmeans.kmeans(HAN, 4, init=init)
    assert centroids.tolist() == pytest.approx([-1.0, 0.0, 1.5, 2.0], abs=1e-6)
    assert numbers.tolist() == [[3, 0, 2, 1], [1, 1, 0, 3], [0, 3, 1, 0], [3, 1, 2, 2]]


@pytest.mark.parametrize("init", INITS)
def test_no_value_is_nearer_to_another_centroid_and_centroids_are_means(init: kmeans.Init) -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(1))
    centroids, numbers = kmeans.kmeans(values, 7, init=init, seed=3)
    assert len(centroids) == 7
    assert torch.equal(numbers, (values[:, None] - centroids).abs().argmin(1))
    means = torch.stack([values[numbers == i].mean() for i in range(7)])
    assert torch.allclose(centroids, means, atol=1e-6)
    again = kmeans.kmeans(values, 7, init=init, seed=3)
    assert torch.equal(again[0], centroids)
    assert torch.equal(again[1], numbers)


def test_seed_decides_the_random_starts() -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(1))
    one, two = (kmeans.kmeans(values, 9, init="random", seed=s, rounds=1)[0] for s in (0, 1))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("init", INITS)
def test_fewer_distinct_values_than_clusters_are_kept_exactly(init: kmeans.Init) -> None:
    values = torch.tensor([0.5, -1.0, 0.5, 2.0])
    centroids, numbers = kmeans.kmeans(values, 8, init=init)
    assert centroids.tolist() == [-1.0, 0.5, 2.0]
    assert torch.equal(centroids[numbers], values)


def test_weights_pull_the_centroid() -> None:
    """Means of (0, 1) and (10, 13) with weights 3, 1 and 1, 2: 0.25 and 12."""
    values, weights = torch.tensor([0.0, 1.0, 10.0, 13.0]), torch.tensor([3.0, 1.0, 1.0, 2.0])
    assert kmeans.kmeans(values, 2, weights=weights)[0].tolist() == [0.25, 12.0]


def test_a_centroid_without_members_goes_where_the_error_is_largest() -> None:
    """Evenly from 0 to 100 in 3: nothing is near 50, so its centroid goes to 0 or 3."""
    centroids, _ = kmeans.kmeans(torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0]), 3)
    assert centroids.tolist() == [0.0, 2.0, 100.0]


def test_rate_by_hand() -> None:
    """F08: 16 weights of 32 bits in 4 clusters: 512 / (16 * 2 + 4 * 32) = 3.2."""
    assert kmeans.rate(16, 32, 4) == pytest.approx(3.2)
