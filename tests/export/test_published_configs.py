"""Configs of published checkpoints, as far as they bear on the graphs: read at full size, and of as many weights.

`million_weights` are those of the published files, a tied table once. Every graph is built, and none filled.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from export.architectures import load_family
from export.graph import build_model
from export.nn.dialects import DIALECTS

_FILE = Path(__file__).parents[1] / "data" / "published_configs.jsonl"
PUBLISHED = [json.loads(line) for line in _FILE.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda row: row["name"])
def test_a_published_config_makes_graphs_of_as_many_weights(published: dict[str, Any]) -> None:
    family, dialect = load_family(published["config"]), DIALECTS["contrib"]()
    models = [build_model(part, plan, dialect) for part, plan in family.graphs(dialect).items()]
    sizes = {
        name: math.prod(int(side) for side in value.shape)
        for model in models
        for name, value in model.graph.initializers.items()
        if value.const_value is None and value.shape is not None  # what a checkpoint fills
    }
    tied = sizes.get("lm_head.weight", 0) if "lm_head.weight" in family.stand_ins() else 0
    assert round((sum(sizes.values()) - tied) / 1e6, 1) == published["million_weights"]
