"""The parity gate: how far a file's outputs are from the model's, and how far they may be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.errors import CellError
from harness.core.types import Parity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sample = tuple[NDArray[Any], ...]

#: Two equal outputs have no error at all; this stands for it.
CAP_DB = 200.0


def compare(reference: Sequence[Sample], found: Sequence[Sample], *, classifier: bool) -> Parity:
    """
    The distance of *found* from *reference* over all samples: that of the output that is furthest off.

    Outputs are compared one by one, so that a large right one never hides a small wrong one. Another
    number of outputs, another shape or another dtype is as far off as can be (see require_signature).
    """
    if not found or _signatures(reference) != _signatures(found):
        return Parity(max_abs=math.inf, cosine=0.0, sqnr_db=-CAP_DB, top1_agreement=None, samples=len(found))
    outputs = [
        _distance(_flat(wanted), _flat(got))
        for wanted, got in zip(zip(*reference, strict=True), zip(*found, strict=True), strict=True)
    ]
    agreement = None
    if classifier:
        same = [int(a[0].argmax()) == int(b[0].argmax()) for a, b in zip(reference, found, strict=True)]
        agreement = sum(same) / len(same)
    return Parity(
        max_abs=max(output.max_abs for output in outputs),
        cosine=min(output.cosine for output in outputs),
        sqnr_db=min(output.sqnr_db for output in outputs),
        top1_agreement=agreement,
        samples=len(found),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Distance:
    """How far one output is off."""

    max_abs: float
    cosine: float
    sqnr_db: float


def _distance(wanted: NDArray[Any], got: NDArray[Any]) -> _Distance:
    import numpy

    if not (numpy.isfinite(wanted).all() and numpy.isfinite(got).all()):
        return _Distance(max_abs=math.inf, cosine=0.0, sqnr_db=-CAP_DB)
    error = got - wanted
    norm = float(numpy.linalg.norm(wanted) * numpy.linalg.norm(got))
    return _Distance(
        max_abs=float(numpy.abs(error).max(initial=0.0)),
        cosine=float(wanted @ got) / norm if norm else float(not error.any()),
        sqnr_db=sqnr_db(wanted, error),
    )


def _signatures(samples: Sequence[Sample]) -> list[str]:
    """The outputs of each sample for people: ``float32[1, 10], int64[1]``."""
    return [", ".join(f"{array.dtype.name}{list(array.shape)}" for array in sample) for sample in samples]


def sqnr_db(signal: NDArray[Any], error: NDArray[Any]) -> float:
    """10 log10(sum signal^2 / sum error^2), between -CAP_DB and CAP_DB."""
    import numpy

    power, noise = float(signal @ signal), float(error @ error)
    if noise == 0:
        return CAP_DB
    if power == 0:
        return -CAP_DB
    return float(numpy.clip(10 * numpy.log10(power / noise), -CAP_DB, CAP_DB))


def _flat(arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
    import numpy

    return numpy.concatenate([array.astype(numpy.float64).ravel() for array in arrays])


#: What a float file must reach. Summing in another order leaves 90 dB and more even after 50 layers
#: (digits_cnn 130 dB, mobilenet_v2 97 dB); one wrong weight of a small model leaves about 40 dB.
FLOAT_MIN_DB = 60.0
#: What an integer file must reach where quantising costs little. The runtimes round the same graph in the
#: same places as the reference, so what differs is the last bit of some values (digits_cnn 47 dB).
INTEGER_MIN_DB = 30.0
#: Below this nothing can be told from garbage, which scatters around 0 dB.
INTEGER_FLOOR_DB = 8.0
MIN_AGREEMENT = {"float": 0.99, "integer": 0.95}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What a file's outputs must reach against its model's."""

    sqnr_db: float
    agreement: float


def bound(noise: Parity | None) -> Bound:
    """
    The bound for a float file (*noise* None), or for an integer file whose model has *noise*.

    *noise* is the distance of the quantised model from the float one. A deep model that doubles every
    small difference does so with the runtime's last bits, too: a right file may be as far from its
    reference as the reference is from the float model, give or take 3 dB, and no further.
    """
    if noise is None:
        return Bound(sqnr_db=FLOAT_MIN_DB, agreement=MIN_AGREEMENT["float"])
    own_agreement = 1.0 if noise.top1_agreement is None else noise.top1_agreement
    return Bound(
        sqnr_db=max(INTEGER_FLOOR_DB, min(INTEGER_MIN_DB, noise.sqnr_db - 3)),
        agreement=min(MIN_AGREEMENT["integer"], own_agreement - 0.05),
    )


def require_signature(reference: Sequence[Sample], found: Sequence[Sample], *, runtime: str) -> None:
    """Refuse a file whose outputs have another number, shape or dtype: CellError wrong_output."""
    for wanted, got in zip(_signatures(reference), _signatures(found), strict=True):
        if got != wanted:
            raise CellError(
                "wrong_output",
                f"In {runtime} the file gives {got or 'no output'}, where the model gives {wanted}.",
            )


def require(parity: Parity, wanted: Bound, *, runtime: str) -> None:
    """Refuse a file that is too far from its model: CellError wrong_output with the figures."""
    agreement = parity.top1_agreement
    if parity.sqnr_db >= wanted.sqnr_db and (agreement is None or agreement >= wanted.agreement):
        return
    figures = (
        f"SQNR {parity.sqnr_db:.1f} dB, cosine {parity.cosine:.4f}, max |difference| {parity.max_abs:.3g}"
    )
    limits = f"SQNR {wanted.sqnr_db:.0f} dB"
    if agreement is not None:
        figures += f", top-1 agreement {agreement:.1%}"
        limits += f" and top-1 agreement {wanted.agreement:.0%}"
    raise CellError(
        "wrong_output",
        f"In {runtime} the file does not give the model's outputs over {parity.samples} samples: {figures};"
        f" it must reach {limits}.",
    )
