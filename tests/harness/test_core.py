"""The shared floor: errors cross processes, records and tensor files come back as they were."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core import codec, tensors, units
from harness.core.errors import CellError, UsageError
from harness.core.types import Block, Cell, Incident, Recipe, Record, Setting, Step
from tests import records


def test_errors_cross_process_borders_whole() -> None:
    error = pickle.loads(pickle.dumps(CellError("timeout", "It took too long.", hint="Wait.")))
    assert (error.status, error.message, error.hint) == ("timeout", "It took too long.", "Wait.")
    assert str(error) == "It took too long. Wait."


def test_dataclasses_come_back_from_json() -> None:
    block = Block(
        kind="latency",
        index=1,
        started_utc="2026-01-01T00:00:00Z",
        load_ns=1,
        first_inference_ns=2,
        values_ns=(3, 4),
        settings={"threads": Setting(requested=1, observed=None)},
        facts={"temperature_c": None, "load": [0.5]},
    )
    assert codec.from_json(Block, json.loads(codec.dumps(block))) == block


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"indx": 1}, "unknown key 'indx'"),
        ({"kind": "latencies"}, "Block.kind: expected one of"),
        ({"load_ns": "1"}, "Block.load_ns: expected int, found '1'"),
        ({"load_ns": True}, "Block.load_ns: expected int"),
        ({"values_ns": [1, "x"]}, "Block.values_ns[1]: expected int"),
        ({"settings": []}, "Block.settings: expected an object"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], said: str) -> None:
    good = {"kind": "latency", "index": 0, "started_utc": "", "load_ns": 1, "first_inference_ns": 1}
    with pytest.raises(UsageError) as caught:
        codec.from_json(Block, good | change)
    assert said in str(caught.value)


def test_missing_key_is_named() -> None:
    with pytest.raises(UsageError, match="load_ns"):
        codec.from_json(Block, {"kind": "latency", "index": 0, "started_utc": "", "first_inference_ns": 1})


def test_recipe_digest_is_of_the_steps() -> None:
    one = Recipe(name="one", steps=(Step(name="p", options={"a": 1, "b": 2}),))
    same = Recipe(name="two", steps=(Step(name="p", options={"b": 2, "a": 1}),))
    other = Recipe(name="one", steps=(Step(name="p", options={"a": 1, "b": 3}),))
    assert one.digest == same.digest != other.digest


def test_cell_ids_are_file_names() -> None:
    cell = Cell(device="pi/5", model="m x", recipe="r", format="onnx", threads=2, backend="cpu")
    alike = replace(cell, device="pi 5")
    assert cell.id.startswith("pi_5--m_x--r--onnx--t2--cpu--")
    assert cell.id != alike.id, "names that look alike once they are plain"
    assert replace(cell, device="pi5", model="m").id == "pi5--m--r--onnx--t2--cpu"


def test_cell_ids_of_long_names_still_fit_a_file_name() -> None:
    cell = Cell(device="é" * 64, model="m" * 200, recipe="r", format="onnx", threads=2, backend="cpu")
    assert len(cell.id.encode()) <= 230
    assert cell.id != replace(cell, model="m" * 201).id


def test_a_record_from_before_incidents_still_loads() -> None:
    """What was added to the schema has a default."""
    record = records.medians(1000, 1100)
    stored = json.loads(codec.dumps(record))
    del stored["incidents"]
    assert codec.from_json(Record, stored) == record
    troubled = replace(record, incidents=(Incident(kind="rebooted", utc="", block="latency 3", text="x"),))
    assert codec.from_json(Record, json.loads(codec.dumps(troubled))) == troubled


SHAPES = st.lists(st.integers(0, 4), max_size=3)


@given(st.lists(st.tuples(st.sampled_from(sorted(tensors.ITEM_BYTES)), SHAPES), max_size=4))
def test_tensor_files_come_back(
    tmp_path_factory: pytest.TempPathFactory, specs: list[tuple[str, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("ebt") / "t.ebt"
    written = []
    for dtype, shape in specs:
        count = 1
        for dim in shape:
            count *= dim
        data = bytes(i % 251 for i in range(count * tensors.ITEM_BYTES[dtype]))
        written.append(tensors.Tensor(dtype=dtype, shape=tuple(shape), data=data))
    tensors.dump(path, written)
    assert tensors.load(path) == written


@pytest.mark.parametrize(
    "raw", [b"", b"EBT2 0\n", b"EBT1 1\nfloat32 2\n1234", b"EBT1 0\nx", b"EBT1 1\nbyte 1\n1", b"EBT1 x\n"]
)
def test_damaged_tensor_files_are_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "t.ebt"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match="is not a tensor file"):
        tensors.load(path)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (units.duration(21_340), "21.3 µs"),
        (units.duration(1_234_000), "1.23 ms"),
        (units.duration(12), "12.0 ns"),
        (units.duration(2.5e9), "2.50 s"),
        (units.size(512), "512 B"),
        (units.size(37_000), "36.1 KiB"),
        (units.count(93_322), "93.3 k"),
        (units.percent(0.9912), "99.1 %"),
    ],
)
def test_units_are_readable(shown: str, text: str) -> None:
    assert shown == text
