"""Read IDX files (the format of MNIST), fetching and verifying those that are not there yet."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import math
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from harness.core.errors import UsageError

#: The third byte of the magic number; the fourth is the number of dimensions.
_UNSIGNED_BYTE = 0x08
_TIMEOUT_S = 30


def read(path: Path) -> Tensor:
    """The unsigned bytes in the gzipped IDX file at *path*, in their shape."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} is not a whole gzip file: {error}.") from error
    if len(raw) < 4 or raw[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        raise UsageError(
            f"{path} is not an IDX file of unsigned bytes: it starts with {raw[:4].hex(' ') or 'nothing'},"
            " expected 00 00 08."
        )
    dimensions = raw[3]
    start = 4 + 4 * dimensions
    if len(raw) < start:
        raise UsageError(f"{path} ends inside its header.")
    shape = struct.unpack(f">{dimensions}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise UsageError(
            f"{path} holds {len(raw) - start} values, but its header says {' x '.join(map(str, shape))}."
        )
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=start).reshape(shape)


def fetch(name: str, sha256: str, folder: Path, mirrors: Sequence[str]) -> Path:
    """
    The verified file *name* in *folder*, downloaded from the first mirror that has it if it is not there.

    Raises UsageError if no mirror can be reached, or if the file is not the one with *sha256*.
    """
    path = folder / name
    if path.exists():
        _verify(path.read_bytes(), sha256, str(path))
        return path
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    for mirror in mirrors:
        url = mirror.rstrip("/") + "/" + name
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                data: bytes = answer.read()
        except (OSError, ValueError, urllib.error.URLError, http.client.HTTPException) as error:
            problems.append(f"{url}: {getattr(error, 'reason', error)}")
            continue
        _verify(data, sha256, url)
        fresh = path.with_suffix(".part")
        fresh.write_bytes(data)
        fresh.replace(path)
        return path
    raise UsageError(
        f"{name} is not in {folder} and cannot be downloaded: {'; '.join(problems) or 'no mirror is set'}.",
        hint=f"Put the file into {folder}.",
    )


def _verify(data: bytes, sha256: str, where: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UsageError(
            f"{where} has the wrong checksum: sha256 {found[:16]}…, expected {sha256[:16]}….",
            hint="Delete it and get it again.",
        )
