"""Integers by hand: scales and zero points, ranges of activations, learned rounding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import pytest
import torch
from scipy import stats
from torch import Tensor

from compressors.kernels import affine, histogram, kmeans, rounding
from compressors.kernels.affine import Grid
from compressors.kernels.histogram import Histogram


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take most of the time of models as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def filled(values: Tensor, parts: int = 1) -> Histogram:
    made = Histogram()
    for part in values.chunk(parts):
        made.add(part)
    return made


def test_affine_integers_are_jacobs() -> None:
    """F07: [-1, 3] on 8 bits: S = 4/255, Z = round(-128 + 255/4) = -64; 0.5 -> round(31.875) - 64 = -32."""
    grid = Grid(symmetric=False, restricted=False)
    weight = torch.tensor([[-1.0, 0.0, 0.5, 3.0]])
    found = affine.of_weight(weight, grid)
    assert found.scale.tolist() == pytest.approx([4 / 255])
    assert found.zero.tolist() == [-64]
    assert found.codes.tolist() == [[-128, -64, -32, 127]]
    assert found.dequantised()[0, 1] == 0  # zero is exact


def test_symmetric_integers_divide_by_the_largest() -> None:
    """F07, F10: S = 2/127, not x times or divided by a range: small weights do not all become 0."""
    found = affine.of_weight(torch.tensor([[2.0, -1.0, 0.01, 0.0]]), Grid())
    assert found.scale.tolist() == pytest.approx([2 / 127])
    assert found.zero.tolist() == [0]
    assert found.codes.tolist() == [[127, -64, 1, 0]]


def test_uniform_levels_split_the_range() -> None:
    """F11: with range = 2^b - 1 the step is (b - a) / (2^b - 1), and a and b are exact."""
    weight = torch.linspace(0, 3, 16)[None]
    grid = Grid(bits=4, symmetric=False, restricted=False)
    found = affine.of_weight(weight, grid)
    assert found.scale.tolist() == pytest.approx([3 / 15])
    assert (found.codes - found.codes.min()).tolist() == [list(range(16))]
    assert found.dequantised().flatten().tolist() == pytest.approx(weight.flatten().tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("bits", "restricted", "limits"),
    [(8, True, (-127, 127)), (8, False, (-128, 127)), (4, True, (-7, 7)), (2, True, (-1, 1))],
)
def test_restricted_range(bits: int, restricted: bool, limits: tuple[int, int]) -> None:
    """N06."""
    grid = Grid(bits=bits, restricted=restricted)
    assert (grid.low, grid.high) == limits


def test_fixed_point_takes_the_next_power_of_two() -> None:
    """2/127 = 0.0157 becomes 2^-5; 1/127 becomes 2^-6; nothing is clipped."""
    weight = torch.tensor([[2.0, 0.5], [1.0, 0.25]])
    found = affine.of_weight(weight, Grid(power_of_two=True))
    assert found.scale.tolist() == [2.0**-5, 2.0**-6]
    assert found.codes.tolist() == [[64, 16], [64, 16]]
    assert torch.equal(found.dequantised(), weight)


def test_scales_per_channel_tensor_and_block() -> None:
    weight = torch.tensor([[1.0, -2.0, 4.0, 8.0], [16.0, 0.0, 0.0, 0.0]])
    by = {block: affine.of_weight(weight, Grid(), block=block).scale * 127 for block in (-1, 0)}
    assert by[-1].tolist() == pytest.approx([16])
    assert by[0].tolist() == pytest.approx([8, 16])
    blocks = affine.of_weight(weight, Grid(bits=4), block=2)
    wanted = torch.tensor([2 / 7, 8 / 7, 16 / 7, affine.OF_ZEROS])
    assert torch.equal(blocks.scale.bfloat16().float(), blocks.scale)  # as runtimes store it
    assert ((blocks.scale / wanted) >= 1 - 1e-6).all()
    assert ((blocks.scale / wanted) < 1.01).all()
    assert blocks.codes.tolist() == [[3, -7, 3, 7], [7, 0, 0, 0]]


def test_range_with_the_least_error_clips_the_outlier() -> None:
    weight = torch.cat([torch.linspace(-1, 1, 400), torch.tensor([3.0])])[None]
    plain, best = (affine.of_weight(weight, Grid(bits=3), by=by) for by in ("min_max", "mse"))
    errors = [(i.dequantised() - weight).square().sum() for i in (plain, best)]
    assert best.scale < plain.scale
    assert errors[1] < 0.6 * errors[0]


def test_histogram_counts_the_same_in_any_order() -> None:
    values = torch.randn(3000, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 5, 3000)
    one, many, back = filled(values), filled(values, 30), filled(values.flip(0), 30)
    assert float(one.counts.sum()) == 3000
    assert (many.low, many.high) == (float(values.min()), float(values.max()))
    assert many.limit == back.limit == one.limit
    for other in (many, back):
        assert float((other.counts.cumsum(0) - one.counts.cumsum(0)).abs().max()) <= 2  # values on an edge


@pytest.mark.parametrize("share", [0.9, 0.99, 0.999])
def test_percentile_is_scipys(share: float) -> None:
    values = torch.randn(20000, generator=torch.Generator().manual_seed(1))
    low, high = histogram.chosen(filled(values), "percentile", Grid(), share)
    rest = (1 - share) / 2 * 100
    wanted = [stats.scoreatpercentile(values.numpy(), p) for p in (rest, 100 - rest)]
    assert [low, high] == pytest.approx(wanted, abs=4e-3)
    positive = values.abs()
    low, high = histogram.chosen(filled(positive), "percentile", Grid(), share)
    assert low == float(positive.min())
    assert high == pytest.approx(numpy.percentile(positive.numpy(), share * 100), abs=4e-3)


def test_divergence_is_scipys() -> None:
    p, q = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([2.0, 2.0, 1.0, 1.0])
    assert histogram.divergence(p, q) == pytest.approx(float(stats.entropy(p.numpy(), q.numpy())))


def test_counts_on_levels_are_even_over_the_bins_in_use() -> None:
    """Bins 4 0 2 | 1 1 0 on two levels: 6 over two bins in use, 2 over two."""
    counts = torch.tensor([4.0, 0, 2, 1, 1, 0])
    assert histogram.on_levels(counts, 2).tolist() == [3, 0, 3, 1, 1, 0]


def test_entropy_drops_a_far_outlier_but_keeps_even_values() -> None:
    generator = torch.Generator().manual_seed(0)
    bell = torch.cat([torch.randn(50000, generator=generator), torch.tensor([40.0])])
    low, high = histogram.chosen(filled(bell), "entropy", Grid())
    assert -float(bell.min()) * 0.5 < -low <= -float(bell.min())
    assert 2 < high < 12
    even = torch.rand(50000, generator=generator)
    assert histogram.chosen(filled(even), "entropy", Grid())[1] > 0.95


def test_mse_range_has_the_least_error_of_all_shares() -> None:
    """Against the error of every share, worked out on the values themselves."""
    values = torch.cat([torch.randn(20000, generator=torch.Generator().manual_seed(2)), torch.tensor([12.0])])
    grid = Grid(bits=4, symmetric=False, restricted=False)
    low, high = histogram.chosen(filled(values), "mse", grid)

    def error(share: float) -> float:
        a, b = float(values.min()) * share, float(values.max()) * share
        step, zero = affine.scales(torch.tensor(a), torch.tensor(b), grid)
        codes = ((values / step).round() + zero).clamp(grid.low, grid.high)
        return float(((codes - zero) * step - values).square().sum())

    best = min((i / 64 for i in range(1, 65)), key=error)
    assert high == pytest.approx(float(values.max()) * best, rel=0.07)
    assert low == pytest.approx(float(values.min()) * best, rel=0.07)
    assert histogram.chosen(filled(values), "min_max", grid) == (float(values.min()), float(values.max()))


def test_learned_rounding_is_better_than_nearest_and_never_worse() -> None:
    """Inputs that go together: rounding to nearest adds its errors up, learned rounding cancels them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 1, generator=generator) + 0.05 * torch.randn(256, 8, generator=generator)
    weight = torch.full((4, 8), 0.45)
    weight[:, 0] = 1.0
    weight[0, 3] = 0.0
    nearest = affine.of_weight(weight, Grid(bits=3))

    def output(w: Tensor) -> Tensor:
        return x @ w.T

    found = rounding.learned(weight, nearest, output, steps=300)
    errors = [float((output(i.dequantised()) - output(weight)).square().mean()) for i in (nearest, found)]
    assert errors[1] < 0.5 * errors[0]
    assert found.codes[0, 3] == 0
    assert int((found.codes - nearest.codes).abs().max()) == 1  # up or down, never further
    alone = rounding.learned(weight, nearest, output, steps=1, rate=50.0)
    assert float((output(alone.dequantised()) - output(weight)).square().mean()) <= errors[0]


def test_codebook_is_the_nearest_of_k_means() -> None:
    """1 2 | 9 10 11: centres 1.5 and 10."""
    centres, numbers = kmeans.kmeans(torch.tensor([1.0, 10, 2, 9, 11]), 2)
    assert centres.tolist() == [1.5, 10]
    assert numbers.tolist() == [0, 1, 0, 1, 1]
