"""GIT (arXiv 2205.14100): CLIP's tower, and a BERT that sees an image's rows at once and says text one by one."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.git import GitPrompt
from bundle.layouts.prompt import LooksAhead
from export.config import Raw, VisionConfig, require, sub_config
from export.decoders.git import DEFAULTS
from export.found_processor import FoundProcessor
from export.nn.bert_decoder import bert_renames
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.towers.clip import ClipTower
from export.vision_language import VisionLanguage

_VISION: Raw = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# {image} stands for the image token, {start} for the one that begins every text
_TEMPLATE = (
    "{% if messages | length != 1 or messages[0].role != 'user' %}"
    "{{ raise_exception('GIT answers one message of a user about one image, and knows no conversation') }}"
    "{% endif %}{% set parts = messages[0].content %}{% if parts is not string %}{% for part in parts %}"
    "{% if part.type == 'image' %}{image}{% endif %}{% endfor %}{% endif %}{start}"
    "{% if parts is string %}{{ parts }}{% else %}{% for part in parts %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}"
)


class _Tower(ClipTower):
    """The tower, and a norm of all that its last layer makes."""

    def __init__(self, config: VisionConfig, dialect: Dialect, name: str) -> None:
        super().__init__(config, dialect, name)
        self.post_layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, 1 + patches, D] from [I, 3, height, width]."""
        return self.post_layernorm(op, super().forward(op, pixel_values).states[-1])


class _Projection(Module):
    """A matrix and a norm of what it makes."""

    def __init__(self, config: VisionConfig, size: int, rows: int) -> None:
        super().__init__("git.visual_projection.visual_projection")
        self.linear = Linear(config.tower.hidden_size, size, rows=rows, name="0")
        self.norm = LayerNorm(size, config.tower.layer_norm_eps, name="1")

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.norm(op, self.linear(op, x))


class _Vision(Module):
    def __init__(self, tower: _Tower, projection: _Projection) -> None:
        super().__init__()
        self.tower, self.projection = tower, projection

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.projection(op, self.tower(op, pixel_values))


class Git(VisionLanguage):
    """`model_type` git, of images; a text is how the answer begins: a caption's first words, or a question."""

    text_prefix = "text"
    image_processor = "CLIPImageProcessor"
    looks_ahead: ClassVar[LooksAhead] = GitPrompt.looks_ahead
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        *bert_renames(r"git\.", "text"),
        (r"^output\.", "lm_head."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        require({**DEFAULTS, **config}, [("num_image_with_embedding", None), ("position_embedding_type", "absolute")])
        self._vision = VisionConfig.read(sub_config(config, "vision_config"), _VISION)

    @property
    def text_config(self) -> Raw:
        """What of the config is the decoder's, which stands beside the tower's."""
        return {**DEFAULTS, **self.config, "model_type": "git_text"}

    @property
    def image_size_px(self) -> int:
        """Side of an image."""
        return self._vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """The class token and the patches."""
        return self._vision.grid**2 + 1

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        tower = _Tower(self._vision, dialect, "git.image_encoder.vision_model")
        return _Vision(tower, _Projection(self._vision, self.decoder.config.hidden_size, self.tokens_per_tile))

    def image_prompt(self, found: FoundProcessor) -> GitPrompt:
        """Return the token that pads, which stands in no text, once for every row.

        Raises:
            UnsupportedConfigError: The tokenizer names none.
        """
        token = found.vocabulary.template_tokens.get("pad_token")
        if token is None:
            raise UnsupportedConfigError("tokenizer_config.json names no pad_token, which holds an image's place")
        return GitPrompt(
            image_token=token,
            image_token_id=found.vocabulary.id_of(token, "pad_token"),
            tokens_per_tile=self.tokens_per_tile,
        )

    def default_template(self, found: FoundProcessor) -> str:
        """Return the image, and how the answer begins behind it.

        Raises:
            UnsupportedConfigError: The token that begins every text is not in the vocabulary.
        """
        number = self.text_config["bos_token_id"]
        start = next((text for text, own in found.vocabulary.ids.items() if own == number), None)
        if start is None:
            raise UnsupportedConfigError(f"bos_token_id {number}, which begins every text, is not in the vocabulary")
        pad = found.vocabulary.template_tokens.get("pad_token", "")
        return _TEMPLATE.replace("{image}", pad).replace("{start}", start)
