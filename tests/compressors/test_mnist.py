"""MNIST's files: read, verified, fetched from a mirror, refused with a sentence when they are not right."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from compressors import idx, task
from compressors.build import BuildRequest, build
from compressors.tasks import mnist
from harness.core.errors import UsageError
from harness.core.types import Artifact, Recipe
from tests.compressors.conftest import ignore


def idx_file(path: Path, values: torch.Tensor, *, magic: bytes = b"\0\0\x08", cut: int = 0) -> str:
    """Write *values* as a gzipped IDX file; its sha256."""
    header = magic + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    raw = header + bytes(values.flatten().tolist())
    path.write_bytes(gzip.compress(raw[: len(raw) - cut], mtime=0))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_values_and_shape_come_back(tmp_path: Path) -> None:
    values = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 4)
    idx_file(tmp_path / "a.gz", values)
    assert torch.equal(idx.read(tmp_path / "a.gz"), values)


def test_wrong_magic_is_refused(tmp_path: Path) -> None:
    idx_file(tmp_path / "a.gz", torch.zeros(3, dtype=torch.uint8), magic=b"\0\0\x0d")
    with pytest.raises(UsageError, match=r"starts with 00 00 0d 01, expected 00 00 08"):
        idx.read(tmp_path / "a.gz")


def test_too_few_values_are_refused(tmp_path: Path) -> None:
    idx_file(tmp_path / "a.gz", torch.zeros(3, 5, dtype=torch.uint8), cut=2)
    with pytest.raises(UsageError, match=r"holds 13 values, but its header says 3 x 5"):
        idx.read(tmp_path / "a.gz")


def test_header_that_ends_early_is_refused(tmp_path: Path) -> None:
    idx_file(tmp_path / "a.gz", torch.zeros(1, dtype=torch.uint8), cut=3)
    with pytest.raises(UsageError, match="ends inside its header"):
        idx.read(tmp_path / "a.gz")


def test_truncated_gzip_is_refused(tmp_path: Path) -> None:
    idx_file(tmp_path / "a.gz", torch.arange(200, dtype=torch.uint8))
    whole = (tmp_path / "a.gz").read_bytes()
    (tmp_path / "a.gz").write_bytes(whole[:-20])
    with pytest.raises(UsageError, match="is not a whole gzip file"):
        idx.read(tmp_path / "a.gz")


def test_file_is_fetched_once_and_verified(tmp_path: Path) -> None:
    mirror, folder = tmp_path / "mirror", tmp_path / "folder"
    mirror.mkdir()
    sha256 = idx_file(mirror / "a.gz", torch.zeros(3, dtype=torch.uint8))
    mirrors = [(tmp_path / "gone").as_uri(), mirror.as_uri()]
    path = idx.fetch("a.gz", sha256, folder, mirrors)
    assert path.read_bytes() == (mirror / "a.gz").read_bytes()
    (mirror / "a.gz").unlink()
    assert idx.fetch("a.gz", sha256, folder, mirrors) == path


def test_wrong_checksum_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    idx_file(tmp_path / "a.gz", torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(UsageError, match=r"a\.gz has the wrong checksum: sha256 \w{16}…, expected 0{16}…"):
        idx.fetch("a.gz", "0" * 64, tmp_path / "folder", [tmp_path.as_uri()])
    assert not list((tmp_path / "folder").iterdir())
    with pytest.raises(UsageError, match=r"wrong checksum.*Delete it"):
        idx.fetch("a.gz", "0" * 64, tmp_path, [])


def test_no_mirror_says_where_to_put_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be downloaded: file:///gone/a\.gz: .*Put the file into"):
        idx.fetch("a.gz", "0" * 64, tmp_path, ["file:///gone"])


@pytest.fixture
def small_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The four files with a few made-up digits: a square whose place is its label."""
    for name, count in (("train", 600), ("t10k", 100)):
        labels = (torch.arange(count) % 10).to(torch.uint8)
        images = torch.zeros(count, 28, 28, dtype=torch.uint8)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[label * 2 : label * 2 + 6, label * 2 : label * 2 + 6] = 255
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            file = f"{name}-{kind}-ubyte.gz"
            monkeypatch.setitem(mnist.SHA256, file, idx_file(tmp_path / file, values))
    monkeypatch.setenv(mnist.FOLDER, str(tmp_path / "mnist"))
    monkeypatch.setenv(mnist.MIRRORS, tmp_path.as_uri())
    monkeypatch.setattr(mnist, "VALIDATION_SAMPLES", 100)
    mnist._split.cache_clear()
    yield
    mnist._split.cache_clear()


def test_mnist_trains_on_its_files(small_mnist: None, tmp_path: Path) -> None:
    request = BuildRequest(model="mnist", recipe=Recipe(name="fp32"), formats=("onnx",), seed=0)
    artifact = build(request, tmp_path / "cache", ignore)["onnx"]
    assert isinstance(artifact, Artifact), artifact
    assert artifact.parameters == 431_080
    assert artifact.score is not None
    assert (artifact.score.values, artifact.score.samples) == ((1.0,), 100)
    assert (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").exists()


def test_mnist_splits_do_not_overlap(small_mnist: None) -> None:
    loaded = task.load("mnist")
    assert loaded.train_loader is not None
    assert sum(len(labels) for _, labels in loaded.train_loader(0)) == 512 - 128  # three full batches of 500
    assert sum(len(labels) for _, labels in loaded.validation_loader()) == 100
    assert sum(len(labels) for _, labels in loaded.test_loader()) == 100
