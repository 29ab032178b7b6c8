"""UnIVAL (arXiv 2307.16184) and OFA (2202.03052): a ResNet, and an encoder of image and question before a decoder.

Checkpoints are fairseq's weights in safetensors under their own names, and a `config.json` of its arguments under
theirs (docs/models.md). What reads videos and sounds, and what says images as codes, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.encoded import EncodedPrompt
from bundle.layouts.table import KnownImagePrompt
from export.config import DecoderConfig, Raw, require
from export.decoders.bart import MEMORY_ROWS
from export.family import Family
from export.found_processor import FoundProcessor
from export.nn.cross_attention import MemoryProjection
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.placed_encoder import EncoderSizes, PlacedEncoder
from export.nn.placed_parts import Switches
from export.towers.resnet import DEPTHS, ResNet, ResNetConfig
from export.vision_language import QuestionReading, VisionLanguage

_LARGE: Raw = {
    "encoder_embed_dim": 1024,
    "encoder_layers": 12,
    "encoder_attention_heads": 16,
    "decoder_layers": 12,
    "decoder_attention_heads": 16,
    "resnet_type": "resnet152",
    "max_source_positions": 1024,
    "max_target_positions": 1024,
    "no_scale_embedding": True,
    "layernorm_embedding": True,
    "patch_layernorm_embedding": True,
    "layernorm_image_embedding": False,
    "activation_fn": "gelu",
    "token_bucket_size": 256,
    "image_bucket_size": 42,
    "add_type_embedding": True,
    "add_mm_type_embedding": False,
    "attn_scale_factor": 2,
    "entangle_position_embedding": False,
    "disable_entangle": False,
    "scale_attn": False,
    "scale_fc": False,
    "scale_heads": False,
    "scale_resids": False,
    "image_encoder_name": None,
    "patch_image_size": 480,
    "resnet_width": 64,
}
_BASE: Raw = {
    **_LARGE,
    "encoder_embed_dim": 768,
    "encoder_layers": 6,
    "encoder_attention_heads": 12,
    "decoder_layers": 6,
    "decoder_attention_heads": 12,
    "resnet_type": "resnet101",
}
ARCHITECTURES: dict[str, Raw] = {"unival_base": _BASE, "unival_large": _LARGE}
"""Defaults of fairseq's arguments, by `arch` (the authors' code, `unival_base_architecture`)."""
_ONE_WAY = [
    ("encoder_normalize_before", True),
    ("decoder_normalize_before", True),
    ("share_decoder_input_output_embed", True),
    ("share_all_embeddings", True),
    ("qk_norm", False),
    ("adapter", False),
    ("encoder_prompt", False),
    ("decoder_prompt", False),
    ("interpolate_position", False),
    ("with_cls", False),
    ("use_xattn", False),
]
_MOST_ROWS = 1024
"""Of a question, as `_BASE` has it; an image's stand before them."""
_TABLE = "encoder.embed_tokens.weight"
CAPTION = "<CAPTION>"
_TASKS = {CAPTION: " what does the image describe?"}
"""The prompt of captions (the authors' code, `CaptionDataset`)."""
# A question is read by the encoder, and begins the answer as well (`prompt_type` prev_output); a caption has none
_TEMPLATE = (
    "{% if messages | length != 1 or messages[0].role != 'user' %}"
    "{{ raise_exception('the model answers one message of a user about one image, and knows no conversation') }}"
    "{% endif %}{% set parts = messages[0].content %}{% if parts is not string %}{% for part in parts %}"
    "{% if part.type == 'image' %}{image}{% endif %}{% endfor %}{% endif %}"
    "{% set text = parts if parts is string else parts | selectattr('type', 'equalto', 'text') | map(attribute='text') "
    "| join %}{{ bos_token }}{% if '<CAPTION>' not in text %}{{ text }}{% endif %}"
)


class _PlacedMemory(Module):
    """What the encoder made to the keys and values of one layer, places behind the numbers of each head of keys."""

    def __init__(self, config: DecoderConfig, rows: int, number: int) -> None:
        super().__init__("")
        name = f"decoder.layers.{number}.encoder_attn"
        self.projection = MemoryProjection(config, rows=rows, name=name, bias=True)
        self.heads = [0, 0, config.num_heads, -1]

    def forward(self, op: OpBuilder, x: ir.Value, places: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return keys [I, R, 2 * D] and values [I, R, D] of states [I, R, D] and projected places [I, R, D]."""
        keys, values = self.projection(op, x)
        wide = op.Concat(op.Reshape(keys, self.heads), op.Reshape(places, self.heads), axis=3)
        return op.Reshape(wide, [0, 0, -1]), values


class _Vision(Module):
    """Pixels and a question to the keys and values of every layer of the decoder, [I, P + Q, 3 * layers * D]."""

    def __init__(self, tower: ResNet, projection: Linear, encoder: PlacedEncoder, config: DecoderConfig, rows: int):
        super().__init__()
        self.tower, self.projection, self.encoder = tower, projection, encoder
        self.num_layers = config.num_layers
        self.places = Linear(config.hidden_size, config.hidden_size, rows=rows, name="decoder.cross_pos_k_linear")
        for number in range(config.num_layers):  # each under its own name: a list would number them anew
            setattr(self, f"layer_{number}", _PlacedMemory(config, rows, number))

    def forward(self, op: OpBuilder, pixel_values: ir.Value, question_ids: ir.Value) -> ir.Value:
        read = self.encoder(op, self.projection(op, self.tower(op, pixel_values)), question_ids)
        placed = self.places(op, read.places)
        # of every image the same
        places = op.Expand(op.Unsqueeze(placed, [0]), op.Shape(read.states))
        layers = [getattr(self, f"layer_{number}") for number in range(self.num_layers)]
        return op.Concat(*(part for layer in layers for part in layer(op, read.states, places)), axis=2)


class UnIVAL(VisionLanguage):
    """`model_type` unival: image and text of UnIVAL, or OFA under the same arguments."""

    text_prefix = "decoder"
    image_processor = "ViTImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^decoder\.output_projection\.", "lm_head."),
        (r"^(encoder|decoder)\.(token|image)_rel_pos_table_list\.(\d+)\.", r"\1.layers.\3.\2_rel_pos_table."),
    )
    unused: ClassVar[tuple[str, ...]] = (
        *Family.unused,
        r"(?:en|de)coder\.version",
        r"(?:en|de)coder\.(?:token|image)_rp_bucket",
        r"encoder\.embed_images\.fc\..*",
        r".*\.num_batches_tracked",
        # of videos and sounds
        r"encoder\.(?:embed|layernorm)_(?:video|audio).*",
        r"encoder\.(?:video|audio)_proj\..*",
        # of images that are said as codes
        r"decoder\.(?:image_position_idx|(?:embed_image_positions|image_pos_ln|code_layernorm_embedding)\..*)",
        r"decoder\.layers\.\d+\.image_rel_pos_table\..*",
        r"classification_heads\..*",
    )

    def __init__(self, config: Raw) -> None:
        arch = config.get("arch", "unival_base")
        if arch not in ARCHITECTURES:
            raise UnsupportedConfigError(f"arch {arch!r}; built are {', '.join(ARCHITECTURES)}")
        full = {**ARCHITECTURES[arch], **config}
        require(full, _ONE_WAY)
        for half in ("encoder", "decoder"):
            full.setdefault(f"{half}_ffn_embed_dim", 4 * full["encoder_embed_dim"])
        full.setdefault("decoder_embed_dim", full["encoder_embed_dim"])
        if full["decoder_embed_dim"] != full["encoder_embed_dim"]:
            raise UnsupportedConfigError(
                f"decoder_embed_dim {full['decoder_embed_dim']} beside encoder_embed_dim {full['encoder_embed_dim']}; "
                "built are halves of one width"
            )
        super().__init__(full)
        self._tower = _read_tower(full)
        if self._tower.grid > full["image_bucket_size"]:
            raise UnsupportedConfigError(
                f"patch_image_size {full['patch_image_size']}: a map of {self._tower.grid} places a side, and "
                f"positions are known of {full['image_bucket_size']}"
            )

    @property
    def text_config(self) -> Raw:
        """The arguments, and how large the decoder's memory is."""
        most = self._tower.grid**2 + int(self.config["max_source_positions"])
        return {**self.config, "model_type": "unival_text", MEMORY_ROWS: most}

    @property
    def image_size_px(self) -> int:
        """Side of an image."""
        return self._tower.image_px

    @property
    def tokens_per_tile(self) -> None:
        """None: features take no place in a prompt."""
        return

    @property
    def feature_size(self) -> int:
        """Keys with their places, and values, of all layers of the decoder."""
        return 3 * self.decoder.config.num_layers * self.decoder.config.hidden_size

    @property
    def question(self) -> QuestionReading:
        """What the encoder reads behind the image, in words of the same vocabulary."""
        return QuestionReading(self.vocab_size, min(_MOST_ROWS, int(self.config["max_source_positions"])), "", _TASKS)

    def stand_ins(self) -> dict[str, str]:
        """Return the one table for both halves and the output matrix."""
        return {"decoder.embed_tokens.weight": _TABLE, "lm_head.weight": _TABLE}

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, encoder, and the keys and values of the decoder's layers."""
        config, raw, tower = self.decoder.config, self.config, self._tower
        kinds = 4 if raw["add_mm_type_embedding"] else 2 if raw["add_type_embedding"] else 0
        size = int(raw["encoder_embed_dim"])
        sizes = EncoderSizes(
            size=size,
            inner_size=int(raw["encoder_ffn_embed_dim"]),
            num_layers=int(raw["encoder_layers"]),
            num_heads=int(raw["encoder_attention_heads"]),
            vocab_size=self.vocab_size,
            num_positions=int(raw["max_source_positions"]) + 2,
            num_kinds=kinds,
            grid=tower.grid,
            image_bucket_size=int(raw["image_bucket_size"]),
            norms_words=bool(raw["layernorm_embedding"]),
            norms_image=bool(raw["patch_layernorm_embedding"]),
            adds_places=bool(raw["entangle_position_embedding"]),
            scale=1.0 if raw["no_scale_embedding"] else math.sqrt(size),
        )
        rows = tower.grid**2
        projection = Linear(tower.out_size, size, rows=rows, name="encoder.image_proj")
        encoder = PlacedEncoder(sizes, Switches.read(raw), dialect, "encoder")
        return _Vision(ResNet(tower, "encoder.embed_images"), projection, encoder, config, rows)

    def image_prompt(self, found: FoundProcessor) -> EncodedPrompt:
        """Return no token for an image; the one that pads, which stands in no prompt, holds its place in a template.

        Raises:
            UnsupportedConfigError: The tokenizer names none.
        """
        token = found.vocabulary.template_tokens.get("pad_token")
        if token is None:
            raise UnsupportedConfigError("tokenizer_config.json names no pad_token, which holds an image's place")
        return EncodedPrompt(
            image_token=token,
            image_token_id=found.vocabulary.id_of(token, "pad_token"),
            tokens_per_tile=self._tower.grid**2,
        )

    def default_template(self, found: FoundProcessor) -> str:
        """Return a question as how the answer begins, or a caption, which begins with its first word."""
        return _TEMPLATE.replace("{image}", found.vocabulary.template_tokens.get("pad_token", ""))

    def spoken_tokens(self, found: FoundProcessor, prompt: KnownImagePrompt, ends: Collection[int]) -> Collection[str]:
        """Return the places of boxes."""
        return [token for token in found.vocabulary.ids if token.startswith("<bin_")]


def _read_tower(raw: Raw) -> ResNetConfig:
    """Return the tower of images: timm's with four stages, or OFA's with three.

    Raises:
        UnsupportedConfigError: Another one.
    """
    kind, name = raw["resnet_type"], raw["image_encoder_name"]
    depths = raw.get("resnet_layers") or DEPTHS.get(kind)
    if depths is None or (name is not None and "resnet" not in name):
        raise UnsupportedConfigError(
            f"image_encoder_name {name!r} with resnet_type {kind!r}; built are resnet and timm_resnet, of "
            f"{', '.join(DEPTHS)}"
        )
    stages = len(depths) if name is not None and "timm_resnet" in name else 3
    return ResNetConfig(tuple(depths[:stages]), int(raw["resnet_width"]), int(raw["patch_image_size"]))
