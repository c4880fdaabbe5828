"""Model files that were made elsewhere: taken in with a check set, or refused with one sentence."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy
import onnx
import pytest
from onnx import TensorProto, helper

from compressors.build import open_file
from harness.core import tensors
from harness.core.errors import UsageError
from harness.core.types import SUFFIXES, FormatName
from harness.pipeline import FILE_RECIPE
from tests.compressors.conftest import FORMATS, Built


@pytest.fixture
def files(built: Built, tmp_path: Path) -> dict[FormatName, Path]:
    """A copy of a real file of each format."""
    found = {}
    for format in FORMATS:
        found[format] = tmp_path / f"mine{SUFFIXES[format]}"
        shutil.copy(built["int8"][format].path, found[format])
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_file_gets_a_check_set_of_its_own(
    files: dict[FormatName, Path], cache: Path, format: FormatName
) -> None:
    artifact = open_file(files[format], cache, None)
    assert (artifact.format, artifact.model, artifact.seed, artifact.score) == (format, "mine", None, None)
    assert artifact.path == str(files[format])
    assert artifact.parity is None
    assert artifact.parity_reason is not None
    stored = tensors.load(Path(artifact.check_path))
    assert [t.shape for t in stored] == [(1, 1, 8, 8)] * 8 + [(1, 10)] * 8
    assert len({t.data for t in stored[:8]}) == 8
    assert open_file(files[format], cache, None).cached


def test_seed_decides_the_inputs(files: dict[FormatName, Path], cache: Path, tmp_path: Path) -> None:
    paths = [
        open_file(files["onnx"], root, None, seed).check_path
        for root, seed in ((cache, 0), (tmp_path, 0), (cache, 1))
    ]
    first, again, other = (Path(path).read_bytes() for path in paths)
    assert first == again != other


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_file_is_refused(
    files: dict[FormatName, Path], cache: Path, format: FormatName, share: float
) -> None:
    path = files[format]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UsageError, match=rf"mine\{SUFFIXES[format]} (is|cannot)") as caught:
        open_file(path, cache, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
def test_garbage_is_refused_and_never_ends_this_process(
    files: dict[FormatName, Path], cache: Path, format: FormatName
) -> None:
    """The header is right, the rest is noise; some runtimes crash on that."""
    path = files[format]
    whole = bytearray(path.read_bytes())
    noise = random.Random(0)
    whole[64:] = noise.randbytes(len(whole) - 64)
    path.write_bytes(whole)
    with pytest.raises(UsageError, match=r"mine\.\w+"):
        open_file(path, cache, None)


@pytest.mark.parametrize(
    ("real", "named", "sentence"),
    [
        ("tflite", ".onnx", r"is not an ONNX model but a TensorFlow Lite model\. Rename it to mine\.tflite"),
        ("onnx", ".pte", r"is not an ExecuTorch program but an ONNX model\. Rename it to mine\.onnx"),
        ("executorch", ".tflite", r"is not a TensorFlow Lite model but an ExecuTorch program"),
    ],
)
def test_renamed_file_is_told_what_it_is(
    files: dict[FormatName, Path], cache: Path, real: FormatName, named: str, sentence: str
) -> None:
    path = files[real].rename(files[real].with_suffix(named))
    with pytest.raises(UsageError, match=sentence):
        open_file(path, cache, None)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.bin", b"x", r"'\.bin' is not the name of a model file\. Known: \.pte, \.onnx, \.tflite"),
        ("a.onnx", b"PK\x03\x04zip", "it is a ZIP archive"),
        ("a.tflite", b"version https://git-lfs.github.com", "it is a Git LFS pointer; run git lfs pull"),
        ("a.pte", b"<html>", "it is an HTML or XML page"),
        ("a.onnx", b"\xff\xff", "its first bytes are ff ff"),
        ("a.onnx", None, "does not exist"),
    ],
)
def test_other_files_are_told_what_they_are(
    cache: Path, tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        open_file(tmp_path / name, cache, None)


def test_given_inputs_are_used(files: dict[FormatName, Path], cache: Path, tmp_path: Path) -> None:
    image = numpy.full((1, 1, 8, 8), 0.5, numpy.float32)
    numpy.savez(tmp_path / "x.npz", input=image)
    artifact = open_file(files["onnx"], cache, tmp_path / "x.npz")
    stored = tensors.load(Path(artifact.check_path))
    assert artifact.check_sets == 1
    assert stored[0].data == image.tobytes()


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": numpy.zeros((1, 1, 8, 8), numpy.float32)}, r"holds 'x', but the model's inputs are 'input'"),
        (
            {"input": numpy.zeros((1, 1, 8, 8))},
            r"'input' is float64, but the model takes float32\. Convert it",
        ),
        (
            {"input": numpy.zeros((1, 1, 8, 9), numpy.float32)},
            r"has the shape \[1, 1, 8, 9\], but the model takes \[1, 1, 8, 8\]",
        ),
        ({"input": numpy.zeros((1, 8, 8), numpy.float32)}, r"has the shape \[1, 8, 8\], but the model takes"),
    ],
    ids=["name", "dtype", "size", "rank"],
)
def test_inputs_that_do_not_fit_are_refused(
    files: dict[FormatName, Path],
    cache: Path,
    tmp_path: Path,
    arrays: dict[str, numpy.typing.NDArray[numpy.float32]],
    sentence: str,
) -> None:
    numpy.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]  # its stub takes the names for flags
    with pytest.raises(UsageError, match=sentence):
        open_file(files["onnx"], cache, tmp_path / "x.npz")


def test_inputs_that_are_no_npz_are_refused(
    files: dict[FormatName, Path], cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.npz").write_text("1, 2, 3")
    with pytest.raises(UsageError, match=r"x\.npz is not a \.npz file"):
        open_file(files["onnx"], cache, tmp_path / "x.npz")
    with pytest.raises(UsageError, match=r"gone\.npz does not exist"):
        open_file(files["onnx"], cache, tmp_path / "gone.npz")


def small_onnx(path: Path, operator: str, dtype: int, shape: list[int | str], **attributes: int) -> Path:
    """One operator on one input."""
    value = helper.make_tensor_value_info
    node = helper.make_node(operator, ["tokens"], ["y"], **attributes)
    graph = helper.make_graph(
        [node], "g", [value("tokens", dtype, shape)], [value("y", attributes.get("to", dtype), None)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def test_open_sizes_are_one_unless_inputs_say_otherwise(cache: Path, tmp_path: Path) -> None:
    path = small_onnx(tmp_path / "a.onnx", "Identity", TensorProto.FLOAT, ["batch", 3])
    assert open_file(path, cache, None).inputs[0].shape == (1, 3)
    numpy.savez(tmp_path / "x.npz", numpy.zeros((5, 3), numpy.float32))  # one input: the name may be left out
    assert open_file(path, cache, tmp_path / "x.npz").inputs[0].shape == (5, 3)


def test_whole_numbers_are_small_enough_for_any_table(cache: Path, tmp_path: Path) -> None:
    path = small_onnx(tmp_path / "a.onnx", "Identity", TensorProto.INT64, [1, 64])
    stored = tensors.load(Path(open_file(path, cache, None).check_path))
    values = numpy.frombuffer(stored[0].data, numpy.int64)
    assert (values.min(), values.max()) == (0, 9)


def test_outputs_that_are_not_finite_ask_for_inputs(cache: Path, tmp_path: Path) -> None:
    path = small_onnx(tmp_path / "a.onnx", "Acosh", TensorProto.FLOAT, [4])  # not a number below 1
    with pytest.raises(UsageError, match=r"outputs for generated inputs are not finite\. .*--inputs"):
        open_file(path, cache, None)


def test_given_inputs_that_are_not_finite_are_refused(cache: Path, tmp_path: Path) -> None:
    path = small_onnx(tmp_path / "a.onnx", "Relu", TensorProto.FLOAT, [4])
    for value in (numpy.nan, numpy.inf, -numpy.inf):
        numpy.savez(tmp_path / "x.npz", tokens=numpy.array([0, value, 1, 2], numpy.float32))
        with pytest.raises(UsageError, match=r"x\.npz: 'tokens' holds values that are not finite"):
            open_file(path, cache, tmp_path / "x.npz")


def test_outputs_for_given_inputs_must_be_finite(cache: Path, tmp_path: Path) -> None:
    """Nothing can be checked against them."""
    path = small_onnx(tmp_path / "a.onnx", "Sqrt", TensorProto.FLOAT, [4])
    numpy.savez(tmp_path / "x.npz", tokens=numpy.array([0, -1, 1, 2], numpy.float32))
    with pytest.raises(
        UsageError, match=r"a\.onnx: in ONNX Runtime the model's outputs for .*x\.npz are not finite"
    ):
        open_file(path, cache, tmp_path / "x.npz")


def test_file_made_elsewhere_has_the_recipe_that_reports_call_it_by(cache: Path, tmp_path: Path) -> None:
    path = small_onnx(tmp_path / "a.onnx", "Relu", TensorProto.FLOAT, [4])
    assert open_file(path, cache, None).recipe == FILE_RECIPE


def test_text_tensors_are_refused(cache: Path, tmp_path: Path) -> None:
    path = small_onnx(tmp_path / "a.onnx", "Identity", TensorProto.STRING, [1])
    with pytest.raises(UsageError, match="'tokens' is string, which cannot be benchmarked"):
        open_file(path, cache, None)


def test_weights_in_another_file_are_refused(
    files: dict[FormatName, Path], cache: Path, tmp_path: Path
) -> None:
    """A device is sent one file."""
    model = onnx.load(files["onnx"])
    path = tmp_path / "split.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(UsageError, match=r"split\.onnx keeps its weights in another file"):
        open_file(path, cache, None)
