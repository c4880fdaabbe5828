"""Low-rank factors of matrices and convolution kernels; every result is contiguous."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """
    A [m, rank] and B [rank, n] whose product is the nearest matrix of that rank (Eckart & Young 1936).

    A = U_r S_r^(1/2), B = S_r^(1/2) V_r^T; the Frobenius error is sqrt(sum of the other squared values).
    """
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = values[:rank].sqrt()
    a, b = left[:, :rank] * root, root[:, None] * right[:rank]
    return a.to(matrix.dtype).contiguous(), b.to(matrix.dtype).contiguous()


def spatial_matrix(kernel: Tensor) -> Tensor:
    """[out, in, h, w] as [in * h, w * out], split into h x 1 and 1 x w (Jaderberg 2014)."""
    return kernel.permute(1, 2, 3, 0).flatten(2).flatten(0, 1)


def spatial_kernels(kernel: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The kernels [rank, in, h, 1] and [out, rank, 1, w] of the spatial SVD of [out, in, h, w]."""
    out, inputs, high, wide = kernel.shape
    a, b = svd(spatial_matrix(kernel), rank)
    first = a.reshape(inputs, high, rank).permute(2, 0, 1)[..., None]
    second = b.reshape(rank, wide, out).permute(2, 0, 1)[:, :, None]
    return first.contiguous(), second.contiguous()


def tucker2(kernel: Tensor, ranks: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """
    The kernels of in -> r_in (1x1), r_in -> r_out (k x k), r_out -> out (1x1) (Kim 2016, arXiv:1511.06530).

    *ranks* is (r_out, r_in); *kernel* is [out, in, *k].
    """
    import tensorly
    from tensorly.decomposition import partial_tucker

    values = kernel.double().numpy()
    (core, (outs, ins)), _ = partial_tucker(
        tensorly.tensor(values), rank=list(ranks), modes=[0, 1], init="svd"
    )
    ones = (1,) * (kernel.ndim - 2)
    first = torch.from_numpy(ins.copy()).T.reshape(ranks[1], kernel.shape[1], *ones)
    middle = torch.from_numpy(core.copy())
    last = torch.from_numpy(outs.copy()).reshape(kernel.shape[0], ranks[0], *ones)
    first, middle, last = (t.to(kernel.dtype).contiguous() for t in (first, middle, last))
    return first, middle, last


def rank_for_energy(values: Tensor, energy: float) -> int:
    """The smallest rank whose singular *values* hold the share *energy* of all squared ones."""
    shares = values.double().square().cumsum(0)
    return int((shares < energy * shares[-1] * (1 - 1e-12)).sum()) + 1


def ranks_for_budget(
    values: Mapping[str, Tensor], costs: Mapping[str, tuple[int, int]], budget: float
) -> dict[str, int]:
    """
    A rank for each matrix so that all together have at most *budget* parameters.

    *costs* is (parameters per rank, parameters of the whole matrix). Ranks are handed out by how much of a
    matrix's energy a parameter buys; a matrix whose factors would be as big as itself counts as itself.
    """
    ranks = dict.fromkeys(values, 1)
    gains = [
        (float(value**2 / tensor.double().square().sum().clamp(min=1e-30)) / costs[name][0], name)
        for name, tensor in values.items()
        for value in tensor[1:]
    ]
    used = sum(min(per_rank, whole) for per_rank, whole in costs.values())
    for _, name in sorted(gains, key=lambda gain: -gain[0]):
        per_rank, whole = costs[name]
        now, more = (min(rank * per_rank, whole) for rank in (ranks[name], ranks[name] + 1))
        if used - now + more > budget:
            break
        used += more - now
        ranks[name] += 1
    return ranks
