"""Tell what a model file really is from its first bytes."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from harness.core.errors import UsageError
from harness.core.types import SUFFIXES, FormatName

FORMATS: dict[str, FormatName] = {".pte": "executorch", ".onnx": "onnx", ".tflite": "tflite"}
NAMES: dict[FormatName, str] = {
    "executorch": "an ExecuTorch program",
    "onnx": "an ONNX model",
    "tflite": "a TensorFlow Lite model",
}


def format_of(path: Path) -> FormatName:
    """The format of the file at *path*; UsageError if name and content do not make a model file."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{path}: {path.suffix or 'a name without suffix'!r} is not the name of a model file.",
            hint=f"Known: {', '.join(FORMATS)}.",
        )
    named = FORMATS[path.suffix.lower()]
    try:
        with path.open("rb") as file:
            head = file.read(512)
        size_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise UsageError(f"The model file {path} does not exist.") from error
    except OSError as error:
        raise UsageError(f"The model file {path} cannot be read: {error.strerror}.") from error
    if not head:
        raise UsageError(f"{path} is empty, so it is not {NAMES[named]}.")
    found = _content(head)
    if found != named:
        if found in NAMES:
            renamed = path.with_suffix(SUFFIXES[found]).name
            raise UsageError(
                f"{path} is not {NAMES[named]} but {NAMES[found]}.", hint=f"Rename it to {renamed}."
            )
        raise UsageError(f"{path} is not {NAMES[named]}: {_guess(head)}.")
    if found == "executorch":
        _require_whole_program(path, head, size_bytes)
    return named


def _content(head: bytes) -> FormatName | None:
    if head[4:8] == b"TFL3":
        return "tflite"
    if re.fullmatch(rb"ET\d\d", head[4:8]):
        return "executorch"
    # An ONNX file is a protobuf without a magic number. Its writers put ir_version (field 1, a small
    # varint) first, then one of producer_name, producer_version, domain, model_version, doc_string, graph,
    # opset_import, metadata_props, functions.
    if len(head) > 2 and head[0] == 0x08 and 1 <= head[1] < 64 and head[2] in _ONNX_TAGS:
        return "onnx"
    return None


_ONNX_TAGS = frozenset((0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2, 0xCA))

_MAGIC = (
    (b"version https://git-lfs", "it is a Git LFS pointer; run git lfs pull to get the model itself"),
    (b"PK\x03\x04", "it is a ZIP archive, as PyTorch (.pt, .pt2) and Keras (.keras) write"),
    (b"\x89HDF", "it is an HDF5 file, as Keras (.h5) writes"),
    (b"\x80", "it is a Python pickle, as old PyTorch (.pth) writes"),
    (b"GGUF", "it is a GGUF file"),
    (b"\x1f\x8b", "it is compressed with gzip; unpack it first"),
    (b"<", "it is an HTML or XML page; the download may have failed"),
)


def _guess(head: bytes) -> str:
    for magic, text in _MAGIC:
        if head.startswith(magic):
            return text
    return f"its first bytes are {head[:8].hex(' ')}"


def _require_whole_program(path: Path, head: bytes, size_bytes: int) -> None:
    """Refuse a .pte that is shorter than its extended header says."""
    if head[8:12] != b"eh00" or len(head) < 40:
        return
    length, program_bytes, base, data_bytes = struct.unpack_from("<IQQQ", head, 12)
    wanted = max(program_bytes, base + (data_bytes if length >= 32 else 0))
    if size_bytes < wanted:
        raise UsageError(
            f"{path} is truncated: it has {size_bytes} bytes and its header says {wanted}.",
            hint="Copy or export it again.",
        )
