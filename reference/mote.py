"""Mixture of ternary experts (MoTE, arXiv 2506.14435) on a SmolVLM: the layer, its checkpoint, and how to load it.

Every feed-forward layer becomes `shared(x) + p * expert(x)`: a frozen full-precision shared expert, which is the dense
model's layer, and one of E routed experts, where p is the chosen expert's probability among all E. The routed experts
start as copies of the dense layer and compute with ternary weights and int8 activations.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from reference.shipping import derive
from reference.ternary import StoredTernaryLinear, TernaryLinear, checkpoint_tensors, unpack

MODEL_TYPE = "llama_mote"
"""Of the checkpoint's text model; transformers knows no such model and refuses it."""
_ROUTER_STD = 0.02


@dataclasses.dataclass(frozen=True)
class ExpertShape:
    """What the routed experts of every layer are.

    Attributes:
        num_experts: E.
        width: Hidden units of one expert.
        weights: "ternary" or "float".
    """

    num_experts: int
    width: int
    weights: str

    def __post_init__(self) -> None:
        """Refuse unknown weights.

        Raises:
            ValueError: `weights` is neither "ternary" nor "float".
        """
        if self.weights not in ("ternary", "float"):
            raise ValueError(f"expert weights are {self.weights!r}, known: 'ternary', 'float'")


class Expert(nn.Module):
    """A gated feed-forward layer: down(silu(gate(x)) * up(x))."""

    def __init__(self, gate_proj: nn.Module, up_proj: nn.Module, down_proj: nn.Module) -> None:
        """Keep the three projections."""
        super().__init__()
        self.gate_proj = gate_proj
        self.up_proj = up_proj
        self.down_proj = down_proj

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return [..., D] of values [..., D]."""
        return self.down_proj(functional.silu(self.gate_proj(values)) * self.up_proj(values))


class MixtureMlp(nn.Module):
    """A shared expert plus the most probable of the routed ones.

    `balance` holds the load-balance loss of the last forward pass.
    """

    def __init__(self, shared_expert: nn.Module, experts: list[Expert], router: nn.Linear) -> None:
        """Keep the parts."""
        super().__init__()
        self.shared_expert = shared_expert
        self.experts = nn.ModuleList(experts)
        self.router = router
        self.balance = torch.zeros(())

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return [B, T, D] of values [B, T, D]."""
        rows = values.flatten(0, -2)
        probabilities, gate, chosen = route(self.router(rows))
        self.balance = load_balance(probabilities, chosen)
        out = self.shared_expert(rows)
        for number, expert in enumerate(self.experts):
            own = (chosen == number).nonzero().squeeze(1)
            out = out.index_add(0, own, expert(rows[own]) * gate[own, None].to(rows.dtype))
        return out.view_as(values)


def route(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return where rows go, from router logits [N, E].

    The softmax runs over all experts before one is chosen. Over the chosen one alone it would be 1 for every row, and
    the router would get no gradient from the answer.

    Returns:
        Probabilities [N, E] float32, the chosen expert's probability [N], its number [N] int64.
    """
    probabilities = logits.float().softmax(-1)
    gate, chosen = probabilities.max(-1)
    return probabilities, gate, chosen


def load_balance(probabilities: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return E * sum over e of (share of rows sent to e) * (mean probability of e); 1 when both are uniform.

    Source: W. Fedus et al., "Switch Transformers" (arXiv 2101.03961), equation 4.

    Args:
        probabilities: [N, E].
        chosen: [N] int64.
    """
    num_experts = probabilities.shape[1]
    share = functional.one_hot(chosen, num_experts).float().mean(0)
    return num_experts * (share * probabilities.mean(0)).sum()


def upcycle(
    model: SmolVLMForConditionalGeneration, shape: ExpertShape, seed: int, noise: float = 0.0
) -> list[MixtureMlp]:
    """Replace the feed-forward layers of a dense model in place; return the new ones.

    A routed expert as wide as the dense layer starts as a copy of it, a narrower one as its own slice of it.

    Args:
        model: A dense SmolVLM whose decoder has gated feed-forward layers.
        shape: The routed experts.
        seed: Of the routers and the noise.
        noise: Standard deviation of what is added to expert weights, as a multiple of theirs; for tests, in which
            experts should differ.

    Raises:
        ValueError: The experts' slices do not fit into the dense layer.
    """
    random = torch.Generator().manual_seed(seed)
    made = []
    for layer in model.model.text_model.layers:
        dense = layer.mlp
        router = nn.Linear(dense.hidden_size, shape.num_experts, bias=False)
        with torch.no_grad():
            router.weight.normal_(0, _ROUTER_STD, generator=random)
        experts = [_sliced(dense, shape, number, noise, random) for number in range(shape.num_experts)]
        layer.mlp = MixtureMlp(dense.requires_grad_(False), experts, router)
        made.append(layer.mlp)
    return made


def _sliced(dense: nn.Module, shape: ExpertShape, number: int, noise: float, random: torch.Generator) -> Expert:
    whole = dense.intermediate_size
    start = 0 if shape.width == whole else number * shape.width
    if start + shape.width > whole:
        raise ValueError(f"expert {number} of width {shape.width} ends beyond the {whole} units of the dense layer")
    units = slice(start, start + shape.width)
    pieces = (dense.gate_proj.weight[units], dense.up_proj.weight[units], dense.down_proj.weight[:, units])
    return Expert(*(_linear(piece.detach(), shape.weights, noise, random) for piece in pieces))


def _linear(piece: torch.Tensor, weights: str, noise: float, random: torch.Generator) -> nn.Linear:
    layer = nn.Linear(piece.shape[1], piece.shape[0], bias=False, device="meta")
    shift = torch.randn(piece.shape, generator=random) * (noise * piece.float().std())
    layer.weight = nn.Parameter(piece.float() + shift)
    return TernaryLinear.of(layer) if weights == "ternary" else layer


def save_mote(model: SmolVLMForConditionalGeneration, source: pathlib.Path, folder: pathlib.Path) -> None:
    """Write an upcycled model as a checkpoint.

    Args:
        model: As `upcycle` left it and training changed it; ternary experts are stored from their weights as they are.
        source: Checkpoint of the dense model, which gives the configuration, tokenizer and preprocessing.
        folder: Created when missing.
    """
    first: MixtureMlp = model.model.text_model.layers[0].mlp
    gate = first.experts[0].gate_proj
    config = json.loads((source / "config.json").read_text())
    config["text_config"] |= {
        "model_type": MODEL_TYPE,
        "num_experts": len(first.experts),
        "num_experts_per_tok": 1,
        "expert_intermediate_size": gate.out_features,
        "expert_weights": "ternary" if isinstance(gate, TernaryLinear) else "float",
    }
    derive(source, folder, config, checkpoint_tensors(model))


def is_mote(folder: pathlib.Path) -> bool:
    """Say whether a folder holds a checkpoint that `load_mote` reads."""
    return json.loads((folder / "config.json").read_text()).get("text_config", {}).get("model_type") == MODEL_TYPE


def load_mote(folder: pathlib.Path) -> SmolVLMForConditionalGeneration:
    """Return the model of a checkpoint that `save_mote` wrote, in float32, ready to answer.

    Its forward pass takes what SmolVLM's takes (`input_ids`, `pixel_values`, ...).

    Raises:
        ValueError: The checkpoint is of another kind, or its tensors and the model differ.
    """
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    if not is_mote(folder):
        raise ValueError(f"{folder} holds a text model of type {text['model_type']!r}, not {MODEL_TYPE!r}")
    shape = ExpertShape(text["num_experts"], text["expert_intermediate_size"], text["expert_weights"])
    known = {k: v for k, v in text.items() if "expert" not in k}
    model = SmolVLMForConditionalGeneration(SmolVLMConfig(**config | {"text_config": known | {"model_type": "llama"}}))
    for layer in model.model.text_model.layers:
        layer.mlp = _empty(layer.mlp, shape)
    tensors = {k: _as_computed(v) for k, v in load_file(folder / "model.safetensors").items()}
    missing, unknown = model.load_state_dict(tensors, strict=False)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    if unknown or set(missing) - tied:
        raise ValueError(f"{folder} and its configuration differ in {sorted({*unknown, *missing} - tied)}")
    return model.eval()


def _empty(dense: nn.Module, shape: ExpertShape) -> MixtureMlp:
    hidden, width = dense.hidden_size, shape.width
    sizes = ((hidden, width), (hidden, width), (width, hidden))

    def linear(inputs: int, outputs: int) -> nn.Module:
        if shape.weights == "ternary":
            return StoredTernaryLinear(inputs, outputs)
        return nn.Linear(inputs, outputs, bias=False)

    experts = [Expert(*(linear(*size) for size in sizes)) for _ in range(shape.num_experts)]
    return MixtureMlp(dense, experts, nn.Linear(hidden, shape.num_experts, bias=False))


def _as_computed(tensor: torch.Tensor) -> torch.Tensor:
    return (unpack(tensor) if tensor.dtype == torch.uint8 else tensor).float()


def write_upcycled(
    source: pathlib.Path, folder: pathlib.Path, shape: ExpertShape, seed: int = 0, noise: float = 0.5
) -> None:
    """Write an untrained mixture made of a dense checkpoint: for tests of whatever reads such checkpoints.

    Args:
        source: Any dense SmolVLM checkpoint of the size wanted.
        folder: Created when missing.
        shape: The routed experts.
        seed: Of the routers and the noise.
        noise: How much the experts differ, see `upcycle`.
    """
    model = SmolVLMForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    upcycle(model, shape, seed, noise)
    save_mote(model, source, folder)
