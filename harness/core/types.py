"""
The vocabulary of edgebench: frozen values that flow from a recipe to a report.

Names carry units (``p50_ns``, ``rss_bytes``). A value that could not be measured is ``None`` and has a
reason beside it. Statistics are never stored: they are derived from the raw values by harness.metrics.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Status = Literal[
    "measured",
    "interrupted",  # some blocks are there, --resume goes on
    "build_failed",  # training or a pass failed
    "export_failed",  # the exporter failed for another reason than an operator
    "unsupported_op",  # exporter or runtime lacks an operator; the reason names it
    "wrong_output",  # host parity gate or the agent's check failed
    "push_failed",
    "load_failed",  # the runtime does not accept the file
    "runtime_missing",  # the device has no runtime for this format
    "agent_failed",  # the agent died or spoke nonsense
    "timeout",
    "out_of_memory",
    "not_ready",
    "lost_device",
]
STATUSES: tuple[Status, ...] = get_args(Status)

FormatName = Literal["executorch", "onnx", "tflite"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)
BlockKind = Literal["latency", "memory"]

#: What the file of each format is called and which runtime opens it.
SUFFIXES: Mapping[str, str] = {"executorch": ".pte", "onnx": ".onnx", "tflite": ".tflite"}
RUNTIMES: Mapping[str, str] = {"executorch": "executorch", "onnx": "onnxruntime", "tflite": "litert"}
LONGEST_ID_BYTES = 220  # of a cell's id; file names may have 255, with what is put before and behind
#: The backend that a cell uses when none is asked for.
BACKENDS: Mapping[str, str] = {"executorch": "xnnpack", "onnx": "cpu", "tflite": "xnnpack"}


def digest(value: object) -> str:
    """sha256 (hex) of *value* as canonical JSON: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One entry of devices.yaml."""

    name: str
    transport: str
    options: Mapping[str, Any] = field(default_factory=dict)  # validated keys of that transport
    tags: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # governor, power_mode, ...: set, then restored
    emulated: bool = False  # its times are an emulator's: never ranked beside real devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One pass of a recipe with its options as written (validated by the pass itself)."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A named sequence of passes; *source* is the file it came from."""

    name: str
    steps: tuple[Step, ...] = ()
    source: str = ""

    @property
    def digest(self) -> str:
        """sha256 over the steps alone: two names for the same steps share their artifacts."""
        return digest([[step.name, dict(step.options)] for step in self.steps])


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of a model file; sizes that the file leaves open are 1."""

    name: str
    dtype: str  # a key of harness.core.tensors.ITEM_BYTES
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far a file's outputs in its own runtime are from the eager compressed model's."""

    max_abs: float  # largest absolute difference
    cosine: float  # of the two flattened outputs
    sqnr_db: float  # 10 log10(sum ref^2 / sum (ref-out)^2); capped at 200 for equal outputs
    top1_agreement: float | None  # share of samples with the same argmax; None: not a classifier
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The task's metric of a file on the test split, measured in the file's own runtime, per seed."""

    metric: str  # e.g. "accuracy"
    values: tuple[float, ...]  # one per seed, same order as seeds
    seeds: tuple[int, ...]
    samples: int  # size of the test split


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChange:
    """What one step did to one layer; a layer that stayed as it was has none."""

    name: str  # its path in the model
    kind: str  # its class; "Conv2d -> Sequential" if another one took its place
    shape_before: tuple[int, ...] | None  # of its weight; None: it has none or is new
    shape_after: tuple[int, ...] | None  # None: it has none or is gone
    parameters: int  # after the step, with all that is inside
    nonzeros: int
    sqnr_db: float | None  # of the weight against the one before; None: shapes differ


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step did to the model and what it cost (name "train" is the model's own training)."""

    name: str
    wall_s: float
    parameters: int
    nonzeros: int
    macs: int  # multiply-accumulates of one inference with the example inputs
    score: float | None  # the task's metric of the eager model on the test split
    changed: bool
    cached: bool  # taken from the cache; wall_s is then the time of the build that filled it
    note: str = ""
    sparsity: float | None = None  # share of the parameters that are zero
    bytes: int | None = None  # of all weights and buffers, each at the bits that it needs
    gzip_bytes: int | None = None  # of the same after gzip -9
    metrics: Mapping[str, float] = field(
        default_factory=dict
    )  # "accuracy", "f1", "recall" (macro), the task's
    metrics_reason: str | None = None  # why metrics is empty
    peak_memory_bytes: int | None = None  # how far the step raised the process's resident memory
    peak_memory_method: str = ""  # how that was measured, or why it could not be
    layers: tuple[LayerChange, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A model file as it is downloaded: packed without loss, unpacked on the device before it is loaded."""

    path: str
    sha256: str
    bytes: int
    xz_bytes: int  # of the model file after xz -9e, to compare with; Artifact.gzip_bytes is the other


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model file that passed the host parity gate, or one that was made elsewhere."""

    path: str
    format: FormatName
    sha256: str
    bytes: int
    gzip_bytes: int  # size after gzip -9
    model: str
    recipe: str
    seed: int | None
    model_digest: str | None  # of the task's source, seed and libraries; None for files made elsewhere
    recipe_digest: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    check_path: str  # tensor file: K input sets, then their K output sets on this host
    check_sets: int  # K
    check_min_sqnr_db: float  # the agent's outputs must reach this against the file's host outputs
    exporter: Mapping[str, str]  # package -> version
    parameters: int | None = None
    nonzeros: int | None = None
    macs: int | None = None
    parity: Parity | None = None
    parity_reason: str | None = None  # why parity is None
    score: Score | None = None
    score_reason: str | None = None  # why score is None
    steps: tuple[StepReport, ...] = ()
    cached: bool = False
    #: The layers that the runtime computes in integers and in float, counted in the file; None: not looked.
    arithmetic: str | None = None
    container: Container | None = None  # of a recipe with the step huffman
    container_reason: str | None = None  # why there is none although the recipe asks for it

    @property
    def not_packed(self) -> str:
        """Why there is no container, where there is none."""
        return self.container_reason or "the recipe packs no file (step huffman)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why something that was asked for does not exist."""

    status: Status
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination that is measured; every cell that was asked for ends as one record."""

    device: str
    model: str
    recipe: str
    format: FormatName
    threads: int
    backend: str

    @property
    def id(self) -> str:
        """A file-name-safe id, unique within a run, of at most 255 bytes with a suffix."""
        parts = [self.device, self.model, self.recipe, self.format, f"t{self.threads}", self.backend]
        plain = ["".join(c if c.isalnum() or c in "._" else "_" for c in part) for part in parts]
        if len("--".join(plain).encode()) > LONGEST_ID_BYTES:  # names that are alike at their start only
            plain = [part.encode()[:40].decode(errors="ignore") for part in plain]
        if plain != parts:  # names that look alike once they are plain
            plain.append(digest(parts)[:8])
        return "--".join(plain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one agent process is asked to do; *model* and *check* are paths on the device."""

    kind: BlockKind
    format: FormatName
    backend: str
    model: str
    check: str
    check_sets: int
    check_min_sqnr_db: float
    threads: int
    warmup_iterations: int
    warmup_time_s: float
    min_iterations: int
    min_time_s: float
    timeout_s: float
    unpacked: Mapping[str, Any] = field(
        default_factory=dict
    )  # what getting *model* out of its container cost


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryMark:
    """/proc/self/status of the agent at one point; peak is the high-water mark since the mark before."""

    name: str  # "baseline", "loaded", "first_inference", "steady"
    peak_rss_bytes: int  # VmHWM
    rss_bytes: int  # VmRSS
    anon_bytes: int  # RssAnon
    file_bytes: int  # RssFile
    swap_bytes: int  # VmSwap


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting that was asked for and what was read back."""

    requested: float | str
    observed: float | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fresh agent process: raw values only. A latency block has no marks, a memory block no values."""

    kind: BlockKind
    index: int
    started_utc: str  # ISO 8601
    load_ns: int  # from the model's path to a model ready to run, page cache as it was
    first_inference_ns: int
    warmup_ns: tuple[int, ...] = ()
    values_ns: tuple[int, ...] = ()  # every timed inference, in order
    cpu_ns: int = 0  # process CPU time of the timed loop
    wall_ns: int = 0  # monotonic time of the timed loop
    marks: tuple[MemoryMark, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)  # as the agent sent them


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Something that went wrong while a cell was measured; its blocks are whole. Mended, but for ``lost``."""

    kind: Literal["reconnected", "rebooted", "retried", "lost"]  # lost: the device, and it did not come back
    utc: str  # ISO 8601, of the host
    block: str  # e.g. "latency 3"
    text: str  # one sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What ran the model on the device."""

    name: str  # a value of RUNTIMES
    version: str
    engine: Literal["native", "python"]
    note: str = ""  # e.g. why the slower engine ran


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How cells are measured."""

    blocks: int = 6
    min_iterations: int = 30
    min_time_s: float = 0.5
    warmup_iterations: int = 5
    warmup_time_s: float = 0.2
    memory_blocks: int = 3
    timeout_s: float = 120.0
    order_seed: int = 0
    quick: bool = False  # a fast look: fewer blocks; marked in every record


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One cell of one run, as stored: everything that was measured, or the reason why not."""

    schema: int
    run: str
    cell: Cell
    status: Status
    reason: str | None  # None exactly when status is "measured"
    created_utc: str
    plan: Plan
    artifact: Artifact | None
    device: Mapping[str, Any]  # fingerprint facts of the device
    host: Mapping[str, Any]  # versions and facts of the machine that built and drove
    runtime: Runtime | None
    blocks: tuple[Block, ...] = ()
    incidents: tuple[Incident, ...] = ()
    energy_j_per_inference: float | None = None
    energy_reason: str | None = "no power meter was asked for"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a run was asked to do, written before anything is measured (run.json)."""

    schema: int
    name: str
    created_utc: str
    cells: tuple[Cell, ...]
    plan: Plan
    request: Mapping[str, Any]  # the options of the command, as needed by --resume
    host: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as read back: its plan and one record for every cell that has got one."""

    info: RunInfo
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of long work: *done* of *total* units of *stage* (total None: not known)."""

    stage: str
    done: int = 0
    total: int | None = None
    note: str = ""
