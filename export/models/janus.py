"""Janus and Janus-Pro (arXiv 2410.13848, 2501.17811) as they read images: SigLIP's layers, matrices, and a Llama.

What draws images (a quantizer of patches, tables and heads of its own) is no part of a bundle.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.internvl import InternVLPrompt
from export.config import Raw, require, sub_config
from export.family import Family
from export.found_processor import FoundProcessor
from export.models.deepseek_vl import ALIGNER, DeepSeekVL
from export.nn.linear import Linear, activation
from export.nn.module import Module, ModuleList

_VISION_DEFAULTS: Raw = {
    "model_type": "janus_vision_model",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "mlp_ratio": 4.0,
    "attention_bias": True,
    "use_qk_norm": False,
    "projection_dim": 2048,
    "depth": 2,
}
_OPENING = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language.\n\n"
)
"""What JanusProcessor writes before a conversation where `use_default_system_prompt` is set."""


class _Aligner(Module):
    """Matrices with an activation between each two."""

    def __init__(self, sizes: tuple[int, int], depth: int, hidden_act: str, *, rows: int) -> None:
        super().__init__(ALIGNER)
        width, out_size = sizes
        self.fc1 = Linear(width, out_size, rows=rows)
        self.hidden_layers = ModuleList([Linear(out_size, out_size, rows=rows) for _ in range(depth - 1)])
        self.hidden_act = hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [..., out_size] from [..., width]."""
        x = self.fc1(op, x)
        for layer in self.hidden_layers:
            x = layer(op, activation(op, self.hidden_act, x))
        return x


class Janus(DeepSeekVL):
    """`model_type` janus, in transformers' layout; the authors' (`multi_modality`) has to be converted."""

    default_text = "llama"
    image_processor = "JanusImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^model\.vision_model\.(.*)\.projection_layer\.", r"model.vision_model.\1.out_proj."),
    )
    # images are read, never drawn
    unused: ClassVar[tuple[str, ...]] = (
        *Family.unused,
        r"model\.vqmodel\..*",
        r"model\.generation_(embeddings|aligner|head)\..*",
    )

    def __init__(self, config: Raw) -> None:
        vision = {**_VISION_DEFAULTS, **sub_config(config, "vision_config")}
        # norms of queries and keys are as wide as all heads in transformers' model, and meet one head
        require(vision, [("model_type", "janus_vision_model"), ("attention_bias", True), ("use_qk_norm", False)])
        inner = {"intermediate_size": int(vision["hidden_size"] * vision["mlp_ratio"])}
        super().__init__({**config, "vision_config": {**vision, **inner, "model_type": "siglip_vision_model"}})
        self._of_vision = vision

    def aligner(self) -> Module:
        """Return the connector.

        Raises:
            UnsupportedConfigError: It makes rows of another width than the decoder's.
        """
        vision, size = self._of_vision, self.decoder.config.hidden_size
        if vision["projection_dim"] != size:
            raise UnsupportedConfigError(
                f"vision_config.projection_dim {vision['projection_dim']}, but the decoder's hidden_size is {size}; "
                "they must be one"
            )
        sizes = vision["hidden_size"], size
        return _Aligner(sizes, int(vision["depth"]), vision["hidden_act"], rows=self.tokens_per_tile)

    def image_prompt(self, found: FoundProcessor) -> InternVLPrompt:
        """Return the tokens of an image between a start and an end.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or a token is not in the vocabulary.
        """
        self.require_counted(found)
        token = found.token("image_token", "<image_placeholder>")
        start, end = found.token("boi_token", "<begin_of_image>"), found.token("eoi_token", "<end_of_image>")
        found.vocabulary.id_of(start, "the token before an image")
        found.vocabulary.id_of(end, "the token behind an image")
        return InternVLPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self.tokens_per_tile,
            start_token=start,
            end_token=end,
        )

    def opening(self, found: FoundProcessor) -> str:
        """Return the words with which the processor begins, where its settings say so."""
        return _OPENING if found.settings.get("use_default_system_prompt", False) else ""
