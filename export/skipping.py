"""A decoder some of whose feed-forwards image tokens may skip: `export --skip-visual`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import onnx_ir as ir

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.manifest import ComponentName, TensorSpec
from export.family import Family, GraphPlan
from export.vision_language import VisionLanguage
from graphs.skipping import skip_feed_forwards

_STRETCH = re.compile(r"(\d+)(?:-(\d+))?")


def listed_layers(text: str) -> list[int]:
    """Return the layers that a text lists, such as "2,4,8-11".

    Raises:
        UnsupportedConfigError: It is no such list.
    """
    found = list[int]()
    for part in text.split(","):
        matched = _STRETCH.fullmatch(part.strip())
        first, last = (0, -1) if matched is None else (int(matched[1]), int(matched[2] or matched[1]))
        if last < first:
            raise UnsupportedConfigError(
                f"--skip-visual {text}: give layers and stretches of them with commas between, such as 2,4,8-11"
            )
        found += range(first, last + 1)
    return found


def with_skipped_layers(
    models: Mapping[ComponentName, ir.Model],
    plans: Mapping[ComponentName, GraphPlan],
    family: Family,
    layers: Sequence[int],
) -> GraphPlan:
    """Change the decoder's graph, in place, and return what it takes now.

    Args:
        models: The graphs.
        plans: That they were built by.
        family: Of the checkpoint.
        layers: Whose feed-forwards may be skipped.

    Raises:
        UnsupportedConfigError: There is no decoder whose prompts have image tokens, no such layers, or one that has no
            feed-forward that can be found.
    """
    if not isinstance(family, VisionLanguage):
        raise UnsupportedConfigError("--skip-visual is of a decoder, and the checkpoint's architecture has none")
    if any(state.kind == "memory" for state in family.decoder.states):
        raise UnsupportedConfigError(
            f"--skip-visual: {family.config['model_type']} keeps images in a memory beside its prompts, whose tokens "
            "are all text"
        )
    num_layers, plan = family.decoder.config.num_layers, plans["decoder"]
    if any(first >= second for first, second in pairwise(layers)) or layers[-1] >= num_layers:
        raise UnsupportedConfigError(
            f"--skip-visual {','.join(map(str, layers))}: the decoder has the layers 0 to {num_layers - 1}; give "
            "numbers among them that count up"
        )
    skip_feed_forwards(models["decoder"], layers)
    mask = TensorSpec(name=tensors.FULL_LAYERS, dtype="bool", shape=("B", "T", len(layers)))
    return replace(plan, inputs=(*plan.inputs, mask))
