"""The best cell of a device, said in sentences, and never from cells that have no right to be ranked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness import ranking
from harness.core.types import FormatName, Record, Score, Step
from harness.metrics import Row
from tests import records

FAST = (100_000, 103_000, 98_000, 101_000, 99_000, 102_000)
EDGE = (0.003, -0.003, 0.004, -0.004, 0.002, -0.001)  # its interval begins below 3 % and ends above


def scaled(
    factor: float,
    recipe: str,
    format_: FormatName = "onnx",
    *,
    right: int = 446,
    device: str = "local",
    jitter: tuple[float, ...] = (0.0, 0.001, -0.001, 0.002, -0.002, 0.001),
    threads: int = 1,
) -> Record:
    steps = () if recipe == "fp32" else (Step(name=recipe),)
    of = records.cell(recipe, format_, device=device, threads=threads)
    made = records.artifact(recipe, format_, steps=steps, scores=(right / 450,))
    block_ns = [round(m * factor * (1 + j)) for m, j in zip(FAST, jitter, strict=True)]
    return records.medians(*block_ns, of=of, made=made)


def only(*rows: Record) -> ranking.Ranking:
    (group,) = ranking.rank(records.run(rows))
    return group


def recipes(rows: tuple[Row, ...]) -> list[str]:
    return [row.cell.recipe for row in rows]


def test_the_fastest_measured_cell_wins_and_its_factors_are_said() -> None:
    """The interval by hand: sd of the jitter 0.237 %, times 2.571 / sqrt(6), is 0.25 % of 4.00."""
    apart = (0.002, -0.002, 0.001, -0.001, 0.003, -0.003)
    even = (0.0,) * 6
    group = only(
        scaled(4, "fp32", jitter=apart), scaled(1, "int8", jitter=even), scaled(2, "pruned", jitter=apart)
    )
    assert recipes(group.ranked) == ["int8", "pruned", "fp32"]
    text = " ".join(group.sentences)
    assert "The fastest form of digits_cnn on local with 1 thread is int8 as .onnx in onnxruntime" in text
    assert "100 µs per inference" in text
    assert "4.00 × as fast (95 % interval 3.99–4.01) as the uncompressed model in the same format" in text
    assert "runner-up is pruned as .onnx: the fastest is 2.00 × as fast" in text
    assert "a real difference" in text


def test_the_uncompressed_model_is_the_one_without_steps_whatever_its_name() -> None:
    base = scaled(4, "fp32")
    assert base.artifact is not None
    of = records.cell("my_start")
    renamed = replace(base, cell=of, artifact=replace(base.artifact, recipe="my_start"))
    group = only(renamed, scaled(1, "int8"))
    assert group.over_original[records.cell("int8")].base == of


def test_the_factor_is_over_the_same_format_and_not_over_the_slowest() -> None:
    group = only(scaled(9, "fp32", "tflite"), scaled(3, "fp32", "onnx"), scaled(1, "int8", "onnx"))
    assert "3.00 × as fast" in " ".join(group.sentences)


def test_a_format_without_the_uncompressed_model_says_so_instead_of_a_factor() -> None:
    group = only(scaled(3, "fp32", "onnx"), scaled(1, "int8", "tflite"))
    assert "The uncompressed model was not measured as .tflite." in group.sentences


def test_the_uncompressed_model_may_be_the_fastest() -> None:
    group = only(scaled(1, "fp32"), scaled(2, "int8"))
    assert any("no compressed form that was measured is faster" in s for s in group.sentences)


def test_a_runner_up_that_blocks_cannot_tell_apart_is_said_to_be_so() -> None:
    noisy = (0.1, -0.1, 0.12, -0.08, 0.02, 0.05)
    group = only(scaled(1, "int8"), scaled(1.01, "pruned", jitter=noisy))
    (said,) = [s for s in group.sentences if "cannot tell the two apart" in s]
    against = group.under_fastest[records.cell("pruned")]
    assert against.p is not None
    assert against.p > 0.05
    p = f"exact sign-flip p = {against.p:.2g}"
    assert said.endswith(f"({p}; the smallest that 6 pairs of blocks can give is 0.031).")


def test_a_runner_up_at_the_edge_of_the_tolerance_is_not_said_to_be_the_same_or_slower() -> None:
    group = only(scaled(1, "int8"), scaled(1.032, "pruned", jitter=EDGE))
    against = group.under_fastest[records.cell("pruned")]
    assert against.verdict == "unclear"
    (said,) = [s for s in group.sentences if "runner-up" in s]
    assert (
        "1.03 × as fast (95 % interval 1.03–1.04); the two differ, but the interval begins at 1.027: whether"
        in said
    )
    assert "more than the 3 % that count as real is open (exact sign-flip p = 0.031;" in said
    assert "apart" not in said


def test_the_uncompressed_model_is_compared_in_the_same_words() -> None:
    edge = " ".join(only(scaled(1, "int8"), scaled(1.032, "fp32", jitter=EDGE)).sentences)
    assert "in the same format; the two differ, but the interval begins at 1.027: whether" in edge
    equal = " ".join(only(scaled(1, "int8"), scaled(1.005, "fp32")).sentences)
    assert "in the same format, which is practically the same (within 3 %)." in equal


def test_a_runner_up_within_the_tolerance_is_practically_the_same() -> None:
    group = only(scaled(1, "int8"), scaled(1.005, "pruned"))
    assert any("practically the same (within 3 %)" in s for s in group.sentences)


@pytest.mark.parametrize(("right", "accurate"), [(444, "int8"), (443, "pruned")])
def test_the_best_within_half_a_point_of_accuracy(right: int, accurate: str) -> None:
    """446, 445 and 444 of 450 are within 0.5 points (2.25 samples) of each other; 443 is not."""
    group = only(scaled(4, "fp32", right=446), scaled(2, "pruned", right=445), scaled(1, "int8", right=right))
    assert group.accurate is not None
    assert group.accurate.cell.recipe == accurate
    assert any(s.startswith("Within 0.5 points of the best accuracy (99.11 %") for s in group.sentences)


def test_a_loss_of_exactly_the_limit_is_within_it() -> None:
    rows = [scaled(2, "fp32", right=450), scaled(1, "int8", right=441)]
    (group,) = ranking.rank(records.run(rows), score_loss=0.02)
    assert group.accurate is not None
    assert group.accurate.cell.recipe == "int8"


def seeded(recipe: str, factor: float, rights: tuple[int, ...]) -> Record:
    whole = scaled(factor, recipe)
    assert whole.artifact is not None
    score = Score(
        metric="accuracy", values=tuple(r / 450 for r in rights), seeds=tuple(range(len(rights))), samples=450
    )
    return replace(whole, artifact=replace(whole.artifact, score=score))


def test_one_seed_is_said_to_be_too_few_to_settle_half_a_point() -> None:
    """445 of 450: Wilson's interval is 97.4 to 99.5 %, two points wide."""
    group = only(scaled(2, "fp32", right=446), scaled(1, "int8", right=445))
    (doubt,) = [s for s in group.sentences if "settle" in s]
    assert doubt.startswith("But 450 samples and one seed know that accuracy as 97.4–99.5 % only")


def test_a_loss_is_told_over_the_seeds_that_both_have_and_in_pairs() -> None:
    """
    Losses of 1, 2 and 1 samples: mean 4/3, s = 0.577, half = 4.303 s / sqrt(3) = 1.434 samples of 450.

    The scores themselves vary by far more from seed to seed, which pairs by seed take out.
    """
    group = only(seeded("fp32", 2, (448, 430, 440)), seeded("int8", 1, (447, 428, 439)))
    assert "Over 3 seeds its loss is 0.3 points (95 % interval -0.02 to 0.62)" in " ".join(group.sentences)
    assert any("does not settle 0.5 points" in s for s in group.sentences)


def test_a_loss_whose_interval_is_within_the_limit_is_not_doubted() -> None:
    group = only(seeded("fp32", 2, (448, 447, 446, 445)), seeded("int8", 1, (447, 446, 446, 444)))
    (said,) = [s for s in group.sentences if "Over 4 seeds" in s]
    assert "settle" not in said


def test_equal_scores_leave_no_doubt_to_tell() -> None:
    group = only(scaled(2, "fp32", right=446), scaled(1, "int8", right=446))
    assert not [s for s in group.sentences if "settle" in s or "Over" in s]


def test_the_front_holds_whom_nobody_beats() -> None:
    """Faster and better beats; equal score at more time is beaten; equal in both stays."""
    group = only(
        scaled(1, "a", right=440),
        scaled(2, "b", right=445),
        scaled(2, "b2", "tflite", right=445),
        scaled(3, "c", right=445),
        scaled(4, "d", right=444),
        scaled(5, "e", right=450),
    )
    assert recipes(group.front) == ["a", "b", "b2", "e"]


def test_failed_interrupted_and_unfinished_cells_are_never_ranked() -> None:
    wrong = replace(scaled(0.1, "wrong"), status="wrong_output", reason="11 dB")
    part = replace(scaled(0.2, "part"), status="interrupted", reason="stopped")
    empty = replace(scaled(1, "empty"), blocks=())
    group = only(scaled(1, "fp32"), wrong, part, empty)
    assert recipes(group.ranked) == ["fp32"]
    assert recipes(group.unranked) == ["wrong", "part", "empty"]
    assert recipes(group.front) == ["fp32"]


def test_nothing_measured_is_said_and_is_no_crash() -> None:
    group = only(records.failed(records.cell(), "runtime_missing", "no onnxruntime"))
    assert group.fastest is None
    assert group.sentences == ("None of the 1 cells of digits_cnn on local with 1 thread was measured.",)


def test_an_emulated_device_is_not_ranked() -> None:
    emulated = [
        replace(r, device={**r.device, "emulated": True}) for r in (scaled(1, "int8"), scaled(2, "fp32"))
    ]
    group = only(*emulated)
    assert (group.fastest, group.front, len(group.unranked)) == (None, (), 2)
    assert "is emulated" in group.sentences[0]


def test_devices_and_thread_counts_are_ranked_apart() -> None:
    rows = [scaled(1, "int8", device=d, threads=t) for d in ("local", "pi5") for t in (1, 2)]
    groups = ranking.rank(records.run(rows))
    assert [(g.device, g.threads) for g in groups] == [("local", 1), ("local", 2), ("pi5", 1), ("pi5", 2)]
    assert all(len(g.ranked) == 1 for g in groups)


def test_cells_under_other_facts_get_no_ratio_but_the_fact() -> None:
    """A run that was resumed after a kernel update."""
    later = replace(scaled(1, "int8"), device={**records.DEVICE_FACTS, "kernel": "6.9"})
    group = only(later, scaled(2, "fp32"))
    assert group.over_original == {}
    assert any("the device's kernel is 6.1.0-18-amd64 and 6.9" in s for s in group.sentences)


def test_without_scores_the_reason_is_said() -> None:
    rows = [scaled(1, "int8"), scaled(2, "fp32")]
    bare = [
        replace(r, artifact=replace(r.artifact, score=None, score_reason="random weights"))
        for r in rows
        if r.artifact
    ]
    assert "Accuracy was not weighed against speed: random weights." in only(*bare).sentences
