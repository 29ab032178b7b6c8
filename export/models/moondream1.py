"""Moondream 2 (vikhyatk/moondream2, revision 2025-06-21) as its authors publish it: `model_type` moondream1.

After the authors' code (vikhyat/moondream, moondream/torch): the defaults and templates of `config.py`, the prompts of
`moondream.py`. What stands in a checkpoint's `config` goes before the defaults; mostly nothing does. What it answers: a
question about an image, a question alone, and, where a message holds an image alone, a caption of the usual length.
Not built: detection and pointing, which read coordinates from hidden states by a head of their own (`model.region`),
reasoning, which does so as well, and short and long captions, which have other templates. The authors forbid answers
the token that begins them; here it is as likely as the model finds it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import tokenizers

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, StackedCrops
from bundle.layouts.moondream import MoondreamPrompt
from bundle.layouts.prompt import LooksAhead
from export.config import Raw, require
from export.family import Family
from export.found_processor import FoundProcessor
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.quantized.method import QuantizationMethod
from export.quantized.packed_projections import PackedProjections, one_after_another
from export.towers.moondream import DEFAULTS as VISION_DEFAULTS
from export.towers.moondream import MoondreamTower, MoondreamTowerConfig
from export.vision_language import VisionLanguage

_TEXT: Raw = {
    "dim": 2048,
    "ff_dim": 8192,
    "n_layers": 24,
    "vocab_size": 51_200,
    "max_context": 2048,
    "n_heads": 32,
    "n_kv_heads": 32,
    "prefix_attn": 730,
    "group_size": None,
}
_TOKENIZER: Raw = {
    "bos_id": 0,
    "eos_id": 0,
    "answer_id": 3,
    "thinking_id": 4,
    "coord_id": 5,
    "size_id": 6,
    "start_ground_points_id": 7,
    "end_ground_id": 9,
    "templates": {
        "caption": {
            "short": [1, 32708, 2, 12492, 3],
            "normal": [1, 32708, 2, 6382, 3],
            "long": [1, 32708, 2, 4059, 3],
        },
        "query": {"prefix": [1, 15381, 2], "suffix": [3]},
        "detect": {"prefix": [1, 7235, 476, 2], "suffix": [3]},
        "point": {"prefix": [1, 2581, 2], "suffix": [3]},
    },
}
_PARTS: Mapping[str, Collection[str]] = {
    "text": _TEXT,
    "vision": VISION_DEFAULTS,
    "tokenizer": _TOKENIZER,
    "region": ("dim", "coord_feat_dim", "coord_out_dim", "size_feat_dim", "size_out_dim", "inner_dim", "group_size"),
}
"""What the authors' config has, by part."""
_HEAD_SIZE = 64
"""Of which the authors' rotation turns 32, whatever the config says."""
_OLDER = (
    "Built is the revision 2025-06-21, whose tokenizer is moondream/starmie-v1: put tokenizer.json of that repository "
    "into the checkpoint's folder. The one beside the weights, and revisions before, are of other prompts."
)
# {bos}, {image}, {before}, {behind} and {caption} stand for texts of tokens
_TEMPLATE = (
    "{% if messages | length != 1 or messages[0].role != 'user' %}"
    "{{ raise_exception('this model answers one message of a user: a question, an image, or both; it knows no turns "
    "and no system message') }}{% endif %}"
    "{% set content = messages[0].content %}{{ {bos} }}"
    "{% if content is not string %}{% for part in content if part.type == 'image' %}{{ {image} }}{% endfor %}"
    "{% endif %}"
    "{% set asked %}{% if content is string %}{{ content }}{% else %}"
    "{% for part in content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif %}{% endset %}"
    "{% if asked | trim %}{{ {before} }}{{ asked }}{{ {behind} }}{% else %}{{ {caption} }}{% endif %}"
)


class Moondream(VisionLanguage):
    """`model_type` moondream1: a SigLIP tower over overlapping crops, and a Phi whose images see themselves."""

    text_prefix = "model.text"
    looks_ahead: ClassVar[LooksAhead] = MoondreamPrompt.looks_ahead
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(vision|text|region)\.", r"model.\1."),
        (r"^model\.vision\.blocks\.(\d+)\.attn\.proj\.", r"model.vision.encoder.layers.\1.self_attn.out_proj."),
        (r"^model\.vision\.blocks\.(\d+)\.attn\.qkv\.", r"model.vision.encoder.layers.\1.self_attn.seen_qkv."),
        (r"^model\.vision\.blocks\.(\d+)\.ln([12])\.", r"model.vision.encoder.layers.\1.layer_norm\2."),
        (r"^model\.vision\.blocks\.", "model.vision.encoder.layers."),
        (r"^model\.vision\.post_ln\.", "model.vision.post_layernorm."),
        (r"^model\.text\.blocks\.(\d+)\.attn\.proj\.", r"model.text.layers.\1.self_attn.dense."),
        (r"^model\.text\.blocks\.(\d+)\.attn\.qkv\.", r"model.text.layers.\1.self_attn.said_qkv."),
        (r"^model\.text\.blocks\.(\d+)\.ln\.", r"model.text.layers.\1.input_layernorm."),
        (r"^model\.text\.blocks\.", "model.text.layers."),
        (r"^model\.text\.post_ln\.", "model.text.final_layernorm."),
        (r"^model\.text\.wte$", "model.text.embed_tokens.weight"),
        (r"^model\.text\.lm_head\.", "lm_head."),
    )
    # the head that reads coordinates; buffers that some revisions saved
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"model\.region\..*", r"model\.text\.freqs_cis")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        if "text_config" in config or "Moondream" in (config.get("architectures") or ()):
            raise UnsupportedConfigError(
                f"architectures {config.get('architectures')!r}: a revision of 2024, whose decoder is Phi under other "
                "names; built is the layout of 2025 (HfMoondream). Take the newest revision of the checkpoint"
            )
        require(config, [("quantization_config", None)])
        self._stated = config.get("config") or {}
        self._refuse_unknown()
        text, tower = self._text, MoondreamTowerConfig.read(self._stated.get("vision") or {})
        require(text, [("group_size", None), ("prefix_attn", tower.vision.grid**2 + 1)])
        if tower.out_size != text["dim"]:
            raise UnsupportedConfigError(
                f"config.vision.proj_out_dim {tower.out_size}, but the decoder is {text['dim']} wide: features would "
                "have no place in it"
            )
        if text["dim"] != _HEAD_SIZE * text["n_heads"]:
            raise UnsupportedConfigError(
                f"config.text.dim {text['dim']} with n_heads {text['n_heads']}: built are heads of {_HEAD_SIZE}, of "
                "which the authors' code turns 32"
            )
        self._tower = tower

    def _refuse_unknown(self) -> None:
        """Refuse a config that is of another model's code.

        Raises:
            UnsupportedConfigError: Names the keys that Moondream 2's has not.
        """
        unknown = [part for part in self._stated if part not in _PARTS]
        for part, keys in _PARTS.items():
            unknown += [f"{part}.{key}" for key in self._stated.get(part) or {} if key not in keys]
        if unknown:
            raise UnsupportedConfigError(
                f"config.json: config has {', '.join(unknown)}, which Moondream 2's code of 2025-06-21 does not read; "
                "other models of its authors are not built"
            )

    @property
    def _text(self) -> Raw:
        """The authors' `text`, whole."""
        stated = self._stated.get("text") or {}
        heads = {"n_kv_heads": stated["n_heads"]} if "n_heads" in stated and "n_kv_heads" not in stated else {}
        return {**_TEXT, **heads, **stated}

    @property
    def _tokens(self) -> Raw:
        """The authors' `tokenizer`, whole."""
        return {**_TOKENIZER, **(self._stated.get("tokenizer") or {})}

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, in the words of a Phi."""
        text = self._text
        return {
            "model_type": "moondream_text",
            "vocab_size": text["vocab_size"],
            "hidden_size": text["dim"],
            "intermediate_size": text["ff_dim"],
            "num_hidden_layers": text["n_layers"],
            "num_attention_heads": text["n_heads"],
            "num_key_value_heads": text["n_kv_heads"],
            "max_position_embeddings": text["max_context"],
        }

    @property
    def image_size_px(self) -> None:
        """None: a canvas of as many crops as an image has."""
        return

    @property
    def tokens_per_tile(self) -> int:
        """Patches of a crop, however many crops an image has."""
        return int(self._tower.vision.grid**2)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The one that the authors' config names: files beside the weights are of the tokenizer of before."""
        return (int(self._tokens["eos_id"]),)

    @property
    def tokenizer_home(self) -> str:
        """Where the authors' code fetches it."""
        return "moondream/starmie-v1"

    def own_image_spec(self) -> ImageSpec:
        """Return the crops as the config counts them, scaled as where pyvips is not installed."""
        vision = self._tower.vision
        return ImageSpec(
            geometry=StackedCrops(
                crop_px=vision.image_size_px,
                margin_px=self._tower.margin * vision.patch_size_px,
                most_crops=self._tower.most_crops,
            ),
            resample="lanczos",
            rescale_factor=1 / 255,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        )

    def stored_weights(self) -> QuantizationMethod:
        """Return how weights are stored: projections of tower and decoder in one matrix each."""
        width, sizes = self._tower.vision.tower.hidden_size, self.decoder.config
        heads, kv = sizes.num_heads * sizes.head_size, sizes.num_kv_heads * sizes.head_size
        return PackedProjections(
            {
                "seen_qkv": one_after_another(q_proj=width, k_proj=width, v_proj=width),
                "said_qkv": one_after_another(q_proj=heads, k_proj=kv, v_proj=kv),
            }
        )

    def vision(self, dialect: Dialect) -> Module:
        """Return the tower, in which the connector is."""
        return MoondreamTower(self._tower, dialect, "model.vision")

    def image_prompt(self, found: FoundProcessor) -> MoondreamPrompt:
        """Return the token of a box's size, which stands in no prompt that is built, once for every row.

        Raises:
            UnsupportedConfigError: The tokenizer is another than the config's ids are of.
        """
        number = int(self._tokens["size_id"])
        return MoondreamPrompt(
            image_token=_special(found, number), image_token_id=number, tokens_per_tile=self.tokens_per_tile
        )

    def default_template(self, found: FoundProcessor) -> str:
        """Return the authors' `query` and `caption` as one template.

        Behind a question its suffix stands twice, as in the authors' code: once where a question ends, and once where
        an answer begins without reasoning.

        Raises:
            UnsupportedConfigError: The tokenizer is another than the config's ids are of, or the config has no such
                templates.
        """
        templates, start = self._tokens["templates"], [int(self._tokens["bos_id"])]
        query, captions = templates.get("query"), templates.get("caption")
        if not query or not captions or "normal" not in captions:
            raise UnsupportedConfigError(
                f"config.tokenizer.templates {templates!r}: built are models with a template 'query' and a 'normal' "
                "one of 'caption'"
            )
        for number in {*start, query["prefix"][-1], *query["suffix"]}:
            _special(found, number)
        backend = tokenizers.Tokenizer.from_str(found.vocabulary.text)
        words = {
            "bos": _words(backend, start),
            "before": _words(backend, query["prefix"]),
            "behind": _words(backend, [*query["suffix"]] * 2),
            "caption": _words(backend, captions["normal"]),
            "image": self.image_prompt(found).image_token,
        }
        template = _TEMPLATE
        for name, text in words.items():
            template = template.replace(f"{{{name}}}", json.dumps(text))
        return template


def _special(found: FoundProcessor, number: int) -> str:
    """Return the text of a special token.

    Raises:
        UnsupportedConfigError: It is none.
    """
    added: list[dict[str, Any]] = json.loads(found.vocabulary.text).get("added_tokens", [])
    for token in added:
        if token["id"] == number and token["special"]:
            return str(token["content"])
    raise UnsupportedConfigError(f"tokenizer.json has no special token with the id {number}. {_OLDER}")


def _words(backend: tokenizers.Tokenizer, ids: Sequence[int]) -> str:
    """Return the text that becomes these tokens.

    Raises:
        UnsupportedConfigError: None does.
    """
    text = str(backend.decode(list(ids), skip_special_tokens=False))
    found = backend.encode(text, add_special_tokens=False).ids
    if found != list(ids):
        raise UnsupportedConfigError(
            f"the tokens {list(ids)} of the config's templates are {text!r} by tokenizer.json, which becomes {found}. "
            f"{_OLDER}"
        )
    return text
