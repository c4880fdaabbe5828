"""Turn what an exporter or runtime raises into a typed, one-sentence reason."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from compressors import cache
from harness.core import plugins
from harness.core.errors import CellError, EdgebenchError

# How the exporters say that they lack an operator:
#   No ONNX function found for <OpOverload(op='aten.lgamma', overload='default')>       torch.onnx
#   Lowering not found: aten.lgamma.default                                            litert-torch
#   Operator torch._ops.aten.lgamma.default is not in Core ATen opset                  ExecuTorch
#   Missing out variants: {'mylib::double'}                                            ExecuTorch
#   ... Operator: <EdgeOpOverload: aten.abs.default>: ... (no such dtypes, as complex)  ExecuTorch
_LACKS = re.compile(
    r"no onnx function found for <OpOverload\(op='(?P<onnx>\w+\.\w+)'"
    r"|lowering not found: (?P<lowering>\w+\.\w+)"
    r"|operator torch\._?ops\.(?P<core>\w+\.\w+)\.\w+ is not in core aten"
    r"|missing out variants: \{(?P<variants>[^}]*)\}"
    r"|operator: <EdgeOpOverload: (?P<edge>\w+\.\w+)",
    re.IGNORECASE,
)


def missing_operators(text: str) -> list[str]:
    """The operators that *text* says are missing (``aten.lgamma``); empty if it says no such thing."""
    found = []
    for match in _LACKS.finditer(text):
        for name in re.findall(r"\w+(?:\.|::)\w+", next(filter(None, match.groups()))):
            found.append(name.replace("::", "."))
    return sorted(set(found))


def first_sentence(error: BaseException) -> str:
    """What an error says first, short enough for a table."""
    if type(error).__name__ == "GuardOnDataDependentSymNode":
        return "its control flow depends on the values of a tensor"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1]) or "no message"
    # ONNX Runtime writes its own name, a number and the path before what is the matter.
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from \S+ failed:)?", "", text)
    return f"{type(error).__name__}: {text[:300].rstrip('. ')}"


def unsupported(what: str, operators: list[str]) -> CellError:
    """The error for operators that *what* lacks."""
    return CellError("unsupported_op", f"{what} has no implementation of {', '.join(operators)}.")


def counted(integer: list[str], real: list[str]) -> str:
    """The layers of a file that a runtime computes in integers and in float, as one line for people."""
    parts = []
    for what, names in (("in integers", integer), ("in float", real)):
        if names:
            parts.append(f"{what}: " + ", ".join(f"{names.count(n)} {n}" for n in sorted(set(names))))
    return "; ".join(parts)


@contextlib.contextmanager
def explained(what: str, package: str, *, did: str = "export") -> Iterator[None]:
    """
    Turn whatever the block raises into a CellError: unsupported_op with the operator, or export_failed.

    *what* is the exporter or runtime for people, *package* the Python package that it needs, *did* what
    it was doing to the model.
    """
    try:
        yield
    except EdgebenchError:
        raise
    except ModuleNotFoundError as error:
        top = (error.name or package).split(".")[0]
        raise plugins.missing_package(top, needed_by=what) from error
    except Exception as error:
        if isinstance(error, OSError) and cache.is_full(error):
            raise  # the model is not at fault
        for cause in chain(error):
            operators = missing_operators(str(cause))
            if operators:
                raise unsupported(what, operators) from error
        root = list(chain(error))[-1]
        raise CellError(
            "export_failed", f"{what} could not {did} the model: {first_sentence(root)}."
        ) from error


def chain(error: BaseException) -> Iterator[BaseException]:
    """*error*, what it came from, what that came from, and so on."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
