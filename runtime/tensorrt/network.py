"""A graph as TensorRT's parser read it, and whether that is the graph that was meant."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle import tensors
from bundle.errors import MachineError
from bundle.manifest import Role
from runtime.tensorrt.library import Library

_MASKED: tuple[Role, ...] = ("decoder", "text_encoder")
"""Whose tokens do not all see each other, unless a text encoder reads no mask (LIMoE)."""


@dataclass(frozen=True)
class Network:
    """A graph, parsed.

    Attributes:
        library: Whose.
        path: The bundle's graph, for messages.
        builder: Owns the network.
        definition: TensorRT's own.
        log: Keeps errors.
    """

    library: Library
    path: Path
    builder: Any
    definition: Any
    log: Any

    def layers(self) -> Iterator[Any]:
        """Yield its layers, those of an attention with the attention's own attributes."""
        attention = self._attention_type()
        for at in range(self.definition.num_layers):
            layer = self.definition.get_layer(at)
            if attention is not None and layer.type == attention:
                layer.__class__ = self.library.module.IAttentionInputLayer  # get_layer gives the base class
            yield layer

    def attentions(self) -> Iterator[Any]:
        """Yield its attentions."""
        attention = self._attention_type()
        if attention is None:
            return
        for layer in self.layers():
            if layer.type == attention:
                yield layer.attention

    def _attention_type(self) -> Any:
        """Return the type of an attention's layer; None before TensorRT 10.14, which has no such layer."""
        return getattr(self.library.module.LayerType, "ATTENTION_INPUT", None)


def parse(library: Library, graph: bytes, path: Path) -> Network:
    """Return a graph as the parser reads it, every tensor of the type that the graph says.

    Args:
        library: Whose parser.
        graph: As `graphs.lowering.tensorrt` writes it.
        path: Where it comes from; its weights lie beside.

    Raises:
        MachineError: No builder can be had here, or the parser refuses a node.
    """
    module, log = library.module, library.log()
    try:
        builder = module.Builder(log)
        definition = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    except Exception as error:  # TensorRT's errors share no class; without a device its builder is null
        raise MachineError(f"{library.name} {library.version} gives no builder here: {_told(log, error)}") from error
    parser = module.OnnxParser(definition, log)
    if not parser.parse(graph, str(path)):
        raise MachineError(
            f"{path}: the parser of {library.name} {library.version} refuses {_refused(parser)}. What its versions "
            "take is told by: pocketvlm doctor --tensorrt VERSION BUNDLE"
        )
    return Network(library, path, builder, definition, log)


def check_network(network: Network, role: Role, left_unread: Collection[str] = ()) -> None:
    """Check that the parser dropped nothing and masks attention as the graph does.

    Args:
        network: Parsed.
        role: Of the graph.
        left_unread: Inputs that the graph itself does not read.

    Raises:
        MachineError: A tensor that nobody reads, or an attention with another mask than ours.
    """
    if dropped := [name for name in unread(network) if name not in left_unread]:
        raise MachineError(
            f"{network.path}: the parser of {network.library.name} {network.library.version} dropped "
            f"{', '.join(dropped[:3])}, so that an engine would compute something else. Export the checkpoint again "
            "with --dialect portable"
        )
    is_masked = role in _MASKED and tensors.ATTENTION_MASK not in left_unread
    for attention in network.attentions():
        if _is_causal(network.library.module, attention) or (attention.mask is None and is_masked):
            raise MachineError(
                f"{network.path}: attention {attention.name} was read with another mask than the graph's. Export the "
                "checkpoint again with --dialect portable"
            )


def _is_causal(module: Any, attention: Any) -> bool:
    """Return whether an attention masks by itself: TensorRT 10.16 tells how, 10.14 and 10.15 whether."""
    if hasattr(module, "CausalMaskKind"):
        return bool(attention.causal_kind != module.CausalMaskKind.NONE)
    return bool(attention.causal)


def unread(network: Network) -> list[str]:
    """Return the inputs, and the outputs of layers, that no layer reads and the network does not give.

    Of a layer with several outputs (TopK) one is enough.
    """
    definition = network.definition
    read = {definition.get_output(at).name for at in range(definition.num_outputs)}
    for layer in network.layers():
        inputs = (layer.get_input(at) for at in range(layer.num_inputs))
        read |= {tensor.name for tensor in inputs if tensor is not None}
    made = [[definition.get_input(at).name] for at in range(definition.num_inputs)]
    made += [[layer.get_output(at).name for at in range(layer.num_outputs)] for layer in network.layers()]
    return sorted(names[0] for names in made if names and read.isdisjoint(names))


def decompose(network: Network) -> None:
    """Let attention be built of simpler kernels where no fused one exists, as for float32."""
    for attention in network.attentions():
        attention.decomposable = True


def _refused(parser: Any) -> str:
    """Return which node, and why, in one line."""
    if not parser.num_errors:
        return "the graph, and does not say why"
    error = parser.get_error(0)
    name, operator, reason = error.node_name(), error.node_operator(), " ".join(str(error.desc()).split())
    return f"{operator or 'a node'} {name}".strip() + f": {reason or 'it does not say why'}"


def _told(log: Any, error: Exception) -> str:
    return next(iter([*log.errors, *str(error).splitlines()]), type(error).__name__)
