"""Encoders and token tables in float16 for CUDA, pixels as the bytes that they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bundle import tensors
from bundle.errors import QuantizationError
from bundle.image import ImageSpec
from graphs.half import SINGLE, halve, halve_inside
from graphs.lowering.unit_lengths import spell_unit_lengths
from graphs.store import add_initializer, drop_unused, make_node

_BYTES = ir.DataType.UINT8
_COLOURS = 3
Numbers: TypeAlias = npt.NDArray[np.float32]


def lower_vision_for_cuda(model: ir.Model, image: ImageSpec, *, gives_half: bool) -> None:
    """Let a vision encoder take bytes and compute in float16, in place.

    Bytes are a quarter of what float32 pixels are on the way to the device.

    Args:
        model: Of float32, input [I, 3, height, width].
        image: How bytes become its pixels.
        gives_half: Features stay float16, for a decoder that takes them so.
    """
    _take_bytes(model.graph, image)
    lower_encoder_for_cuda(model, gives_half=gives_half)


def lower_encoder_for_cuda(model: ir.Model, *, gives_half: bool) -> None:
    """Let an encoder or a token table compute in float16, in place.

    Args:
        model: Of float32, its weights in codes or not.
        gives_half: Outputs stay float16; else they are float32 again.
    """
    spell_unit_lengths(model.graph)
    if gives_half:
        halve(model.graph)
    else:
        halve_inside(model.graph, ())
    drop_unused(model)
    model.graph.sort()


def _take_bytes(graph: ir.Graph, image: ImageSpec) -> None:
    """Put a new input [I, height, width, 3] uint8 and its normalisation before the old one's readers."""
    (old,) = (value for value in graph.inputs if value.name == tensors.PIXEL_VALUES)
    if old.shape is None or len(old.shape) != 4:
        raise QuantizationError(f"{graph.name}: {old.name} is {old.shape}, not [I, 3, height, width]. Export again.")
    images, channels, height, width = list(old.shape)
    given = ir.Value(name=old.name, type=ir.TensorType(_BYTES), shape=ir.Shape([images, height, width, channels]))
    nodes = (_normalised if channels == _COLOURS else _normalised_groups)(graph, given, image)
    old.name = "pixels.replaced"
    readers = list(old.uses())
    graph.insert_before(graph[0], nodes)
    for node, at in readers:
        node.replace_input_with(at, nodes[-1].outputs[0])
    graph.inputs[list(graph.inputs).index(old)] = given


def _normalised(graph: ir.Graph, given: ir.Value, image: ImageSpec) -> list[ir.Node]:
    scale, shift = affine(image)
    turned = _turned(given)
    single = make_node("Cast", [turned.outputs[0]], "pixels.single", {"to": int(SINGLE)})
    return [turned, single, *_scaled(graph, single.outputs[0], scale, shift)]


def _normalised_groups(graph: ir.Graph, given: ir.Value, image: ImageSpec) -> list[ir.Node]:
    """Normalise pixels of which some are groups of a video's frames: three channels of each, frame after frame."""
    scale, shift = (values.reshape(_COLOURS) for values in affine(image))
    single = make_node("Cast", [given], "pixels.single", {"to": int(SINGLE)})
    frames = _reshaped(graph, single.outputs[0], "pixels.frames", [0, 0, 0, -1, _COLOURS])
    scaled = _scaled(graph, frames.outputs[0], scale, shift)
    flat = _reshaped(graph, scaled[-1].outputs[0], "pixels.flat", [0, 0, 0, -1])
    return [single, frames, *scaled, flat, _turned(flat.outputs[0])]


def _turned(given: ir.Value) -> ir.Node:
    turned = make_node("Transpose", [given], "pixels.turned", {})
    turned.attributes["perm"] = ir.AttrInt64s("perm", [0, 3, 1, 2])
    return turned


def _scaled(graph: ir.Graph, given: ir.Value, scale: Numbers, shift: Numbers) -> list[ir.Node]:
    scaled = make_node("Mul", [given, add_initializer(graph, "pixels.scale", scale)], "pixels.scaled")
    return [
        scaled,
        make_node("Add", [scaled.outputs[0], add_initializer(graph, "pixels.shift", shift)], "pixels.normed"),
    ]


def _reshaped(graph: ir.Graph, given: ir.Value, name: str, shape: Sequence[int]) -> ir.Node:
    return make_node("Reshape", [given, add_initializer(graph, f"{name}.shape", np.array(shape, np.int64))], name)


def affine(image: ImageSpec) -> Sequence[Numbers]:
    """Return scale and shift [3, 1, 1] float32 that turn a byte into an encoder's value."""
    mean, std = (np.array(values, np.float64)[:, None, None] for values in (image.mean, image.std))
    return (image.rescale_factor / std).astype(np.float32), (-mean / std).astype(np.float32)
