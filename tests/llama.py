"""transformers' Llama with the weights of a tiny decoder, in one pass over a whole text, some rows hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from graphs.store import open_graph


def of(model: Any) -> LlamaForCausalLM:
    """Return the reference of a model that tests/tiny_decoder.py wrote."""
    config = model.config
    reference = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_size,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    ).eval()
    weights = {}
    for file in ("embed_tokens", "decoder"):
        for name, value in open_graph(model.bundle.directory / f"{file}.onnx").graph.initializers.items():
            if name.endswith(".weight"):
                array = torch.from_numpy(value.const_value.numpy().copy())
                weights[name] = array.T if "proj" in name or "lm_head" in name else array
    reference.load_state_dict(weights)
    return reference


def show_only(layer: Any, seen: npt.NDArray[np.bool_]) -> None:
    """Let tokens of a layer see [T, T], or [H, T, T], of earlier ones, whatever the model would show them."""
    by_head = seen if seen.ndim == 3 else seen[None]
    mask = torch.from_numpy(np.where(by_head, 0.0, -np.inf).astype(np.float32))[None]
    layer.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
    )


def masked_logits(model: Any, ids: Sequence[int], hidden: Sequence[Sequence[Sequence[int]]], first: int) -> np.ndarray:
    """Return [T, V].

    Args:
        model: Whose weights it gets.
        ids: The text.
        hidden: Of each layer and key/value head, the rows that tokens do not see.
        first: The first token that does not see them.
    """
    reference, num_heads = of(model), model.config.num_heads
    group = num_heads // model.config.num_kv_heads
    for layer, of_layer in zip(reference.model.layers, hidden, strict=True):
        seen = np.tile(np.tril(np.ones((len(ids), len(ids)), bool)), (num_heads, 1, 1))
        for head, rows in enumerate(of_layer):
            seen[head * group : (head + 1) * group, first:, np.array(rows, int)] = False
        show_only(layer, seen)
    with torch.no_grad():
        return reference(torch.tensor([list(ids)])).logits[0].numpy()
