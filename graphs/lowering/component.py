"""What becomes of a variant's graphs once their weights are what they will be."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from bundle.image import ImageSpec
from bundle.manifest import Component, Manifest, Phase, Role, Target, TensorSpec
from bundle.states import State
from graphs.lowering.coded_cache import CodedCache
from graphs.lowering.cuda_decoder import lower_decoder_for_cuda
from graphs.lowering.cuda_encoder import lower_encoder_for_cuda, lower_vision_for_cuda
from graphs.lowering.cuda_kernels import require_kernels
from graphs.lowering.decoder import lower_decoder
from graphs.lowering.last_queries import drop_last_queries, without_last_queries
from graphs.lowering.rotary_in_attention import table_bytes
from graphs.lowering.silu import join_silu
from graphs.lowering.tensorrt_halves import halve_for_tensorrt
from graphs.lowering.tower_view import drop_tower_view, without_tower_view
from graphs.store import CONTRIB, drop_unused

_SPLIT_BYTES = 64
"""At most, of the sizes that joined layers are split by."""
_CODE_BYTES = 1024
"""At most, of the numbers that attention over codes is written with beside its scales."""
_SCALE_BYTES = 4
"""Of a scale."""


@dataclass(frozen=True)
class Lowering:
    """How the graphs of one variant are written.

    Attributes:
        parent: The fp32 bundle that it is made of.
        target: Where it will run.
        image: The parent's preprocessing; None where it sees no images.
        float32_roles: Of graphs that keep the weights of the parent.
        cache: Where a cache on the CPU keeps codes.
    """

    parent: Manifest
    target: Target
    image: ImageSpec | None
    float32_roles: frozenset[Role] = frozenset()
    cache: CodedCache | None = None

    @property
    def is_for_cuda(self) -> bool:
        """Whether graphs get the form of docs/cuda-form.md."""
        return self.target == "cuda" and self.parent.dialect == "contrib"

    def halves(self, role: Role) -> bool:
        """Return whether the graphs of a role become float16 where they are not in codes."""
        return self.is_for_cuda or (self.target == "tensorrt" and role not in self.float32_roles)

    @property
    def states(self) -> tuple[State, ...]:
        """What the decoder hands from step to step."""
        if self.cache is not None:
            return tuple(state.coded(self.cache.scheme) for state in self.parent.states)
        if not self.halves("decoder"):
            return self.parent.states
        return tuple(
            state.model_copy(update={"dtype": "float16"}) if state.is_halved else state for state in self.parent.states
        )

    def apply(self, model: ir.Model, component: Component, phase: Phase) -> Component:
        """Write a graph as it runs fastest where it will run, in place, and return what it takes and gives now.

        The portable dialect joins nothing: TensorRT's builder does that itself, and knows standard operators alone.

        Args:
            model: Quantized or not.
            component: The parent's graph that it was.
            phase: When it runs.

        Raises:
            QuantizationError: It is for CUDA, and holds an operator that has no kernel there.
        """
        if component.role == "decoder" and (phase == "step" or self.target != "cpu"):
            drop_last_queries(model)
            component = without_last_queries(component)
        if component.role == "vision_encoder" and self.target == "tensorrt":  # an engine computes all its outputs
            drop_tower_view(model)
            component = without_tower_view(component)
        if self.parent.dialect != "contrib":
            if self.halves(component.role):
                halve_for_tensorrt(model, self.parent.states if component.role == "decoder" else ())
            return component
        if self.is_for_cuda:
            self._lower_for_cuda(model, component)
            require_kernels(model.graph)
            return self._described(model, component)
        if component.role == "decoder" and self.parent.decoder is not None:
            lower_decoder(model, self.parent.decoder.max_positions, phase, self.cache)
        elif join_silu(model.graph):
            model.graph.opset_imports.setdefault(CONTRIB, 1)
            drop_unused(model)
        return component

    def _lower_for_cuda(self, model: ir.Model, component: Component) -> None:
        gives_half = self.parent.decoder is not None
        if component.role == "decoder" and self.parent.decoder is not None:
            lower_decoder_for_cuda(model, self.parent.states, self.parent.decoder.max_positions)
        elif component.role == "vision_encoder" and self.image is not None:
            lower_vision_for_cuda(model, self.image, gives_half=gives_half)
        else:
            lower_encoder_for_cuda(model, gives_half=gives_half)

    def _described(self, model: ir.Model, component: Component) -> Component:
        """Return a component with the inputs and outputs that its graph has now."""
        states = self.parent.states if component.role == "decoder" else ()
        taken, given = ({getattr(state, side) for state in states} for side in ("input", "output"))
        first = {spec.name for spec in component.outputs}
        outputs = [_spec(value) for value in model.graph.outputs if value.name not in given]
        return component.model_copy(
            update={
                "inputs": tuple(_spec(value) for value in model.graph.inputs if value.name not in taken),
                "outputs": tuple(spec for spec in outputs if spec.name in first),
                "optional_outputs": tuple(spec for spec in outputs if spec.name not in first),
            }
        )


def added_bytes(parent: Manifest, *, has_step_graph: bool) -> int:
    """Return what lowering adds at most to the weights of a variant.

    Args:
        parent: The fp32 bundle, with the states that the variant will have.
        has_step_graph: One of its decoders runs steps alone.
    """
    if parent.dialect != "contrib" or parent.decoder is None:
        return 0
    coded = [state for state in parent.states if state.scheme != "float"]
    added = _SPLIT_BYTES
    if coded:  # in each of the decoder's graphs, of which there are two where one runs steps alone
        scales = sum(prod(state.scale_shape) for state in coded) * _SCALE_BYTES + _CODE_BYTES
        added += scales * (2 if has_step_graph else 1)
    if has_step_graph or coded:
        sizes = {state.scale_shape[-1] for state in parent.states if state.kind == "rows"}
        added += sum(table_bytes(parent.decoder.max_positions, size) for size in sizes)
    return added


def _spec(value: ir.Value) -> TensorSpec:
    if value.dtype is None or value.shape is None:
        raise ValueError(f"{value.name} has no type")
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorSpec(name=str(value.name), dtype=value.dtype.numpy().name, shape=shape)
