"""A decoder whose attention heads can be read and replaced: `export --task-vectors`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.manifest import ComponentName, TensorSpec
from export.family import Family, GraphPlan
from export.vision_language import VisionLanguage
from graphs.task_vectors import open_heads


def with_open_heads(
    models: Mapping[ComponentName, ir.Model], plans: Mapping[ComponentName, GraphPlan], family: Family
) -> GraphPlan:
    """Change the decoder's graph, in place, and return what it takes and gives now.

    Args:
        models: With their weights, by which linear layers are known.
        plans: That they were built by.
        family: Of the checkpoint.

    Raises:
        UnsupportedConfigError: There is no decoder, or one whose heads cannot be told apart, or that sees what
            follows to a prompt's end.
    """
    if not isinstance(family, VisionLanguage):
        raise UnsupportedConfigError(
            "--task-vectors opens a decoder's heads, and the checkpoint's architecture has none"
        )
    if family.looks_ahead in ("all images", "text", "prompt"):
        raise UnsupportedConfigError(
            "--task-vectors replaces heads at the last token of a prompt, which others of a prompt of "
            f"{family.config['model_type']} see"
        )
    if family.decoder.keeps_prompt:
        raise UnsupportedConfigError(
            f"--task-vectors runs answers of {family.config['model_type']} beside their prompts, all of which their "
            "tokens see beyond their windows; that is not built"
        )
    config, plan = family.decoder.config, plans["decoder"]
    width = config.num_heads * config.head_size
    open_heads(models["decoder"], config.num_layers, config.num_heads, config.head_size)
    values = TensorSpec(name=tensors.HEAD_VALUES, dtype="float32", shape=("B", config.num_layers, width))
    mask = TensorSpec(name=tensors.HEAD_MASK, dtype="bool", shape=("B", "T", config.num_layers * config.num_heads))
    given = tuple(
        TensorSpec(name=f"{tensors.HEAD_OUTPUTS}{layer}", dtype="float32", shape=("B", 1, width))
        for layer in range(config.num_layers)
    )
    return replace(plan, inputs=(*plan.inputs, values, mask), optional_outputs=(*plan.optional_outputs, *given))
