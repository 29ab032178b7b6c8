"""Configs of published checkpoints, as far as they bear on the graphs: read at full size, and of as many weights.

`million_weights` are those of the published files, or of the authors' code opened on the config, a tied table once.
`source` stands where a config or a count is not simply what was published: a copy by others, or partly from memory.
`images` are settings of the image processor. Every graph is built, and none filled.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import PocketVLMError
from export.architectures import load_family
from export.family import Family
from export.graph import build_model
from export.nn.dialects import DIALECTS

_FILE = Path(__file__).parents[1] / "data" / "published_configs.jsonl"
PUBLISHED = [json.loads(line) for line in _FILE.read_text(encoding="utf-8").splitlines()]


def _tied(name: str, stand_ins: dict[str, str]) -> str:
    """Return one name for all weights that are one tensor."""
    other = stand_ins.get(name, name)
    return min(name, other) if other in stand_ins else other


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda row: row["name"])
def test_a_published_config_makes_graphs_of_as_many_weights(published: dict[str, Any]) -> None:
    family, dialect = load_family(published["config"]), DIALECTS["contrib"]()
    family.stated_images = published.get("images", {})
    models = [build_model(part, plan, dialect) for part, plan in family.graphs(dialect).items()]
    sizes = {
        name: math.prod(int(side) for side in value.shape)
        for model in models
        for name, value in model.graph.initializers.items()
        if value.const_value is None and value.shape is not None  # what a checkpoint fills
    }
    once = {_tied(name, family.stand_ins()): size for name, size in sizes.items()}
    assert round(sum(once.values()) / 1e6, 1) == published["million_weights"]


def _settings(config: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield where each setting stands."""
    for name, value in config.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from _settings(value, (*above, name))


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda row: row["name"])
def test_a_setting_of_another_kind_is_read_or_named(published: dict[str, Any]) -> None:
    for *above, name in _settings(published["config"]):
        for wrong in (None, "x", -1, [], {}):
            config = copy.deepcopy(published["config"])
            part = config
            for each in above:
                part = part[each]
            part[name] = wrong
            with suppress(PocketVLMError):
                assert isinstance(load_family(config), Family)
