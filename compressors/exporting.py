"""Turn what an exporter or runtime raises into a typed, one-sentence reason."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from harness.core import plugins
from harness.core.errors import CellError, EdgebenchError

# How the exporters and runtimes write the operator that they lack:
#   "No ONNX function found for <OpOverload(op='aten.fft_fft', overload='default')>"   torch.onnx
#   "Lowering not found: aten._fft_r2c.default"                                       litert-torch
#   "Missing operator: aten::_fft_r2c.out", "Operator aten.x.default is not Aten Canonical"   ExecuTorch
_LACKS = re.compile(
    r"no onnx function|lowering not found|missing operator|missing out variant|not aten canonical"
    r"|no decomposition|unsupported op|not implemented for|operators? (?:is|are) not (?:found|supported)"
    r"|could not find .*implementation|unregistered op",
    re.IGNORECASE,
)
_OPERATOR = re.compile(r"\b([a-zA-Z_]\w*)(?:\.|::)(\w+)(?:\.(?:default|out|\w+))?")
_NAMESPACES_TO_SKIP = {"torch", "ops", "executorch", "litert_torch", "self", "exir", "onnx", "torchlib", "os"}


def missing_operator(text: str) -> str | None:
    """The operator that *text* says is missing (``aten.fft_fft``), None if it says no such thing."""
    if not _LACKS.search(text):
        return None
    for namespace, name in _OPERATOR.findall(text.replace("torch.ops.", "")):
        if namespace not in _NAMESPACES_TO_SKIP and not namespace.endswith(("py", "Error")):
            return f"{namespace}.{name}"
    return None


def first_sentence(error: BaseException) -> str:
    """The first line of an error that says something, short enough for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no message"
    return f"{type(error).__name__}: {text[:300]}"


@contextlib.contextmanager
def explained(what: str, package: str) -> Iterator[None]:
    """
    Turn whatever the block raises into a CellError: unsupported_op with the operator, or export_failed.

    *what* is the exporter for people, *package* the Python package that it needs.
    """
    try:
        yield
    except EdgebenchError:
        raise
    except ModuleNotFoundError as error:
        top = (error.name or package).split(".")[0]
        raise plugins.missing_package(top, needed_by=what) from error
    except Exception as error:
        for cause in _chain(error):
            operator = missing_operator(str(cause))
            if operator:
                raise CellError("unsupported_op", f"{what} has no implementation of {operator}.") from error
        root = list(_chain(error))[-1]
        raise CellError(
            "export_failed", f"{what} could not export the model: {first_sentence(root)}"
        ) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
