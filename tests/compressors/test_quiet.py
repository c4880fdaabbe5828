"""The exporters' chatter stays off the terminal; whatever else is said there comes through."""

from __future__ import annotations

import os
import warnings

import pytest

from compressors import exporting, quiet
from harness.core.errors import CellError, MissingPackage

CHATTER = (
    b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n"
    b"I0000 00:00:1795322081.931916    6385 port.cc:153] oneDNN custom operations are on.\n"
    b"Failed to load /site/torchao/_C_mxfp8.so: Could not load this library\n"
)


def test_known_lines_are_dropped_and_others_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet.exporters():
        os.write(2, CHATTER + b"ERROR: the model is too large\n")
    assert capfd.readouterr().err == "ERROR: the model is too large\n"


def test_what_a_failing_exporter_dumps_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="the reason"), quiet.exporters():
        os.write(2, b"a graph of a thousand lines\n")
        raise ValueError("the reason")
    assert capfd.readouterr().err == ""


def test_other_warnings_are_kept() -> None:
    with pytest.warns(UserWarning, match="mind this"), quiet.exporters():
        warnings.warn("mind this", UserWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("text", "operators"),
    [
        (
            "No ONNX function found for <OpOverload(op='aten.lgamma', overload='default')>. More",
            ["aten.lgamma"],
        ),
        ("Lowering not found: aten._linalg_det.default", ["aten._linalg_det"]),
        ("Operator torch._ops.aten.histc.default is not in Core ATen opset (https://x)", ["aten.histc"]),
        ("Missing out variants: {'mylib::double', 'mylib::triple'}", ["mylib.double", "mylib.triple"]),
        ("expected aten.add.default to have two inputs", []),
    ],
)
def test_missing_operator_is_found_in_what_exporters_say(text: str, operators: list[str]) -> None:
    assert exporting.missing_operators(text) == operators


def _convert() -> None:
    try:
        raise KeyError("Lowering not found: aten.lgamma.default")
    except KeyError as error:
        raise RuntimeError("conversion failed") from error


def test_cause_below_the_error_is_looked_at() -> None:
    sentence = r"The X exporter has no implementation of aten\.lgamma"
    with pytest.raises(CellError, match=sentence) as caught, exporting.explained("The X exporter", "x"):
        _convert()
    assert caught.value.status == "unsupported_op"


def test_other_errors_are_one_short_sentence() -> None:
    with (
        pytest.raises(CellError, match=r"^The X exporter could not export the model: ValueError: too big\.$"),
        exporting.explained("The X exporter", "x"),
    ):
        raise ValueError("too big\nand a long tail\nof lines")


def test_missing_package_names_the_install_command() -> None:
    command = r"pip install 'edgebench\[tflite\]'"
    with pytest.raises(MissingPackage, match=command), exporting.explained("The exporter", "litert_torch"):
        raise ModuleNotFoundError("No module named 'litert_torch'", name="litert_torch")
