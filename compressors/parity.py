"""The parity gate: how far a file's outputs are from the model's, and how far they may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.core.errors import CellError
from harness.core.types import Parity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sample = tuple[NDArray[Any], ...]

#: Two equal outputs have no error at all; this stands for it.
CAP_DB = 200.0


def compare(reference: Sequence[Sample], found: Sequence[Sample], *, classifier: bool) -> Parity:
    """The distance of *found* from *reference*, over all samples and outputs together."""
    import numpy

    wanted = _flat(reference)
    got = _flat(found)
    if wanted.shape != got.shape:
        return Parity(
            max_abs=float("inf"), cosine=0.0, sqnr_db=-CAP_DB, top1_agreement=None, samples=len(found)
        )
    error = got - wanted
    finite = bool(numpy.isfinite(got).all())
    agreement = None
    if classifier:
        same = [int(a[0].argmax()) == int(b[0].argmax()) for a, b in zip(reference, found, strict=True)]
        agreement = sum(same) / len(same)
    norm = float(numpy.linalg.norm(wanted) * numpy.linalg.norm(got))
    return Parity(
        max_abs=float(numpy.abs(error).max()) if finite else float("inf"),
        cosine=float(wanted @ got) / norm if finite and norm else float(not error.any()),
        sqnr_db=sqnr_db(wanted, error) if finite else -CAP_DB,
        top1_agreement=agreement,
        samples=len(found),
    )


def sqnr_db(signal: NDArray[Any], error: NDArray[Any]) -> float:
    """10 log10(sum signal^2 / sum error^2), between -CAP_DB and CAP_DB."""
    import numpy

    power, noise = float(signal @ signal), float(error @ error)
    if noise == 0:
        return CAP_DB
    if power == 0:
        return -CAP_DB
    return float(numpy.clip(10 * numpy.log10(power / noise), -CAP_DB, CAP_DB))


def _flat(samples: Sequence[Sample]) -> NDArray[Any]:
    import numpy

    return numpy.concatenate([array.astype(numpy.float64).ravel() for sample in samples for array in sample])


#: What a file must reach: (SQNR in dB, top-1 agreement).
FLOAT_MIN = (60.0, 0.99)
INTEGER_MIN = (20.0, 0.95)


def require(parity: Parity, *, quantised: bool, runtime: str) -> None:
    """Refuse a file that is too far from its model: CellError wrong_output with the figures."""
    min_sqnr_db, min_agreement = INTEGER_MIN if quantised else FLOAT_MIN
    agreement = parity.top1_agreement
    if parity.sqnr_db >= min_sqnr_db and (agreement is None or agreement >= min_agreement):
        return
    figures = (
        f"SQNR {parity.sqnr_db:.1f} dB, cosine {parity.cosine:.4f}, max |difference| {parity.max_abs:.3g}"
    )
    wanted = f"SQNR {min_sqnr_db:.0f} dB"
    if agreement is not None:
        figures += f", top-1 agreement {agreement:.1%}"
        wanted += f" and top-1 agreement {min_agreement:.0%}"
    raise CellError(
        "wrong_output",
        f"In {runtime} the file does not give the model's outputs over {parity.samples} samples: {figures};"
        f" it must reach {wanted}.",
    )
