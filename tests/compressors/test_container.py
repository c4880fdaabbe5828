"""The container: codes worked by hand, files that come back exactly, real gains, damage that is told."""

from __future__ import annotations

import gzip
import hashlib
import lzma
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from compressors import container, produce
from compressors.build import build
from compressors.kernels import huffman
from compressors.state import State
from device_agents import container as decoder
from harness.core.types import FormatName, Recipe, Step
from tests.compressors.conftest import FORMATS, artifacts, ignore, request
from tests.compressors.models import run_pass, trained

STEPS = (
    Step(name="prune_weights", options={"ratio": 0.7, "finetune": {"epochs": 0}}),
    Step(name="cluster", options={"bits": 3, "finetune": {"epochs": 0}}),
)
QUANTISE = Step(name="quantise", options={"calibration": 32, "allow_growth": True})
PLAIN = Path(__file__).with_name("plain_task.py")


def weights(shape: tuple[int, ...], kept: float, entries: int, seed: int = 0) -> Any:
    """A sparse tensor with few values."""
    generator = numpy.random.default_rng(seed)
    book = generator.standard_normal(entries).astype(numpy.float32)
    return numpy.where(generator.random(shape) < kept, book[generator.integers(0, entries, shape)], 0)


def test_code_lengths_by_hand() -> None:
    """45, 13, 12, 16, 9, 5 of Cormen's textbook: 1, 3, 3, 3, 4, 4 bits, 224 in all."""
    counts = numpy.array([45, 13, 0, 12, 16, 9, 5])
    assert huffman.lengths(counts).tolist() == [1, 3, 0, 3, 3, 4, 4]
    assert huffman.packed_bits(counts) == 224
    assert huffman.codes(numpy.array([1, 3, 0, 3, 3, 4, 4])).tolist() == [0, 4, 0, 5, 6, 14, 15]
    assert huffman.lengths(numpy.array([0, 7])).tolist() == [0, 1]


def test_no_code_is_longer_than_15_bits() -> None:
    """Fibonacci's numbers give the deepest tree: 30 of them would need 29 bits."""
    counts = [1, 1]
    while len(counts) < 30:
        counts.append(counts[-1] + counts[-2])
    lengths = huffman.lengths(numpy.array(counts))
    assert lengths.max() <= 15
    assert (2.0**-lengths).sum() == 1


def test_packed_bits_by_hand() -> None:
    """Codes 0, 10, 11 of symbols 0, 1, 2: 1 0 2 is 10 0 11 and three bits of nothing."""
    assert huffman.pack(numpy.array([1, 0, 2]), numpy.array([1, 2, 2])) == bytes([0b10011000])


def test_gaps_by_hand() -> None:
    """Places 0, 4, 5, 12 with 2 bits: skip 0, then 3 and 0, 0, then 3, 3 and 0."""
    assert container.gaps(numpy.array([0, 4, 5, 12]), 2).tolist() == [0, 3, 0, 0, 3, 3, 0]
    assert container.gaps(numpy.array([], dtype=numpy.int64), 3).tolist() == []


@pytest.mark.parametrize("numpy_is_there", [True, False])
@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"a",
        b"abc" * 1000,
        bytes(3000),
        weights((40, 50), 0.1, 16).astype(numpy.float32).tobytes(),
        b"x" + weights((50, 60), 0.9, 7).astype(numpy.float32).tobytes() + b"tail",
        weights((4000,), 0.2, 5).astype(numpy.float16).tobytes(),
        numpy.random.default_rng(0).standard_normal(900).astype(numpy.float32).tobytes(),
        numpy.where(numpy.arange(900) % 7, 0, numpy.random.default_rng(0).random(900))
        .astype("<f4")
        .tobytes(),
        numpy.random.default_rng(0).bytes(2000),
    ],
    ids=lambda file: f"{len(file)} bytes",
)
def test_every_file_comes_back(file: bytes, numpy_is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (1, 2, 4):
        tensor = numpy.frombuffer(file[: len(file) // width * width], dtype=f"<u{width}")
        packed = container.pack(file, [tensor])
        with monkeypatch.context() as patch:
            if not numpy_is_there:
                patch.setattr(decoder, "numpy", None)
            assert bytes(decoder.decode(packed)) == file
    assert bytes(container.unpack(container.pack(file))) == file


def test_sparse_weights_with_few_values_beat_gzip_and_xz() -> None:
    """10,000 weights, 8 % of 32 values: gaps and numbers cost about 10 bits for each that is not zero."""
    tensor = weights((100, 100), 0.08, 32).astype(numpy.float32)
    file = b"head" + tensor.tobytes() + b"end"
    packed = len(container.pack(file, [tensor]))
    nonzeros = numpy.count_nonzero(tensor)
    assert packed < 32 * 4 + 10.5 * nonzeros / 8 + 150
    assert packed < len(lzma.compress(file, preset=9))
    assert packed < len(gzip.compress(file, 9))
    assert len(container.pack(file)) < len(gzip.compress(file, 9)), "weights that nobody named are found"


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (1, 2, 3, 0), (3, 2, 1, 0)])
def test_tensor_is_found_in_any_order_of_its_dimensions(order: tuple[int, ...]) -> None:
    tensor = weights((12, 8, 3, 3), 0.3, 16).astype(numpy.float32)
    file = b"begin" + numpy.ascontiguousarray(tensor.transpose(order)).tobytes() + b"end"
    assert len(container.pack(file, [tensor])) < len(lzma.compress(file, preset=9)) - 50


def test_damage_is_told_and_never_decoded() -> None:
    tensor = weights((60, 60), 0.1, 8).astype(numpy.float32)
    packed = container.pack(b"head" + tensor.tobytes(), [tensor])
    for end in range(0, len(packed), 7):
        with pytest.raises(decoder.Damaged):
            decoder.decode(packed[:end])
    for at in range(0, len(packed), 3):
        changed = packed[:at] + bytes([packed[at] ^ 0x55]) + packed[at + 1 :]
        try:  # a bit that only fills a byte makes no difference
            assert decoder.decode(changed) == b"head" + tensor.tobytes()
        except decoder.Damaged as error:
            assert str(error).endswith(".")
    with pytest.raises(decoder.Damaged, match="goes on after its end"):
        decoder.decode(packed + b"x")
    with pytest.raises(decoder.Damaged, match="no container"):
        decoder.decode(b"PK" + packed)


@pytest.mark.parametrize("name", ["plain", "tabular"])
def test_step_says_what_the_weights_come_to_and_changes_nothing(name: str) -> None:
    model = trained(name)
    after, report = run_pass("huffman", {}, model)
    assert not report.changed
    assert report.note.startswith("weights: ")
    shared, _ = run_pass("cluster", {"bits": 2, "finetune": {"epochs": 0}}, model)
    _, smaller = run_pass("huffman", {}, model, after=shared)

    def times(note: str) -> float:
        return float(note.split(" packed, ")[1].partition("x")[0])

    assert times(smaller.note) > 2 * times(report.note)
    assert after.module is model.state.module


@pytest.mark.parametrize(
    ("steps", "formats"), [(STEPS, FORMATS), ((*STEPS, QUANTISE), ("onnx",))], ids=["float", "int8"]
)
def test_files_of_every_format_come_packed(
    steps: tuple[Step, ...], formats: tuple[FormatName, ...], cache: Path
) -> None:
    recipe = Recipe(name="packed", steps=(*steps, Step(name="huffman", options={})))
    for format, made in artifacts(build(request(recipe, PLAIN, formats=formats), cache, ignore)).items():
        packed = made.container
        assert packed is not None, format
        content = Path(packed.path).read_bytes()
        assert hashlib.sha256(decoder.decode(content)).hexdigest() == made.sha256
        assert packed.bytes == len(content) < packed.xz_bytes
        assert packed.bytes < made.gzip_bytes
    again = artifacts(build(request(recipe, PLAIN, formats=formats), cache, ignore))
    assert all(made.cached and made.container for made in again.values())


def test_a_file_that_would_grow_is_not_packed(tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(numpy.random.default_rng(0).bytes(1000))

    class Built:
        request = request(Recipe(name="packed", steps=(Step(name="huffman", options={}),)))
        state = State(module=torch.nn.Sequential())

    class Unasked(Built):
        request = request(Recipe(name="fp32"))

    assert produce._packed(Unasked(), path, ignore) == (None, None)  # type: ignore[arg-type]
    packed, reason = produce._packed(Built(), path, ignore)  # type: ignore[arg-type]
    assert packed is None
    assert reason is not None
    assert reason.startswith("packed, noise.onnx would have 1,0")
    assert reason.endswith("bytes instead of 1,000")
