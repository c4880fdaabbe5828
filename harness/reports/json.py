"""Everything that was derived, for machines; the raw values stay in the records, which it names."""

from __future__ import annotations

import dataclasses
from typing import Any

from harness import metrics, ranking
from harness.compare import Comparison
from harness.core.codec import dumps, to_json
from harness.core.types import Run
from harness.metrics import Row
from harness.ranking import Ranking
from harness.reports import _wording

SUFFIX = ".json"

# History of this rendering's schema:
#
# 1 - first version.
SCHEMA = 1


def render(run: Run) -> str:
    """
    One JSON object: ``schema``, ``run`` (run.json as it is), ``rows``, ``rankings``, ``cautions``,
    ``incidents``, ``summary``.

    Each row has ``cell_id`` (the record's name in the run's folder), the cell, its status and reason, and
    ``metrics``: name -> {value, unit, low, high, spread, n, samples, reason}.
    """
    rows = metrics.rows(run)
    return dumps(
        {
            "schema": SCHEMA,
            "run": run.info,
            "rows": [_row(r) for r in rows],
            "rankings": [_ranking(group) for group in ranking.rank(run)],
            "cautions": _wording.cautions(run.records),
            "incidents": _wording.incidents(run.records),
            "measured": sum(r.status == "measured" for r in rows),
            "cells": len(rows),
            "summary": metrics.coverage(rows),
        },
        indent=2,
    )


def _row(row: Row) -> dict[str, Any]:
    about = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name not in metrics.METRICS}
    return {"cell_id": row.cell.id, **to_json(about), "metrics": to_json(row.metrics)}


def _ranking(group: Ranking) -> dict[str, Any]:
    return {
        "device": group.device,
        "model": group.model,
        "threads": group.threads,
        "fastest_first": [row.cell.id for row in group.ranked],
        "unranked": [row.cell.id for row in group.unranked],
        "pareto_front": [row.cell.id for row in group.front],
        "fastest_within_score_loss": group.accurate.cell.id if group.accurate else None,
        "score_loss": group.score_loss,
        "speed_over_uncompressed": [_comparison(c) for c in group.over_original.values()],
        "fastest_over_others": [_comparison(c) for c in group.under_fastest.values()],
        "sentences": list(group.sentences),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    fields = {f.name: getattr(comparison, f.name) for f in dataclasses.fields(comparison)}
    ends = {"base": comparison.base.id, "candidate": comparison.candidate.id}
    return {**to_json(fields), **ends}
