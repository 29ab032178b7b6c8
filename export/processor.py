"""A checkpoint's processor files to the bundle's own: preprocessing, tokenizer, chat template, sampling defaults.

Every setting that changes what a model sees is either reproduced or refused by name. Settings are read with the
defaults that the named processor class has in transformers, since checkpoints leave out what equals them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bundle.chat_template import CHAT_TEMPLATE
from bundle.errors import CheckpointError, PocketVLMError, UnsupportedConfigError
from bundle.generation import SamplingDefaults
from bundle.image import ImageSpec
from bundle.manifest import ImagePrompt
from bundle.text import TOKENIZER
from export.added_tokens import with_added_tokens
from export.found_template import FoundTemplate
from export.image_processor import read_image_spec
from export.lowercase import with_training_case
from export.settings_file import read_settings

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_DUAL_TYPES = ("clip", "siglip", "siglip2")
_LOWER_CASED = ("siglip", "siglip2")
_TILED_TYPES = ("idefics3", "smolvlm")
_CLASS, _TELLS_TIMES = "processor_class", "SmolVLMProcessor"
"""The processor that writes a video's length and the times of its frames into the prompt."""
_NOT_APPLIED: Mapping[str, Any] = {
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "min_length": 0,
    "typical_p": 1.0,
    "num_beams": 1,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
"""Settings of a generation config that change answers and are not built, each with the value that does nothing."""


@dataclass(frozen=True)
class ProcessorFiles:
    """What the manifest wants to know of the files that `convert_processor` wrote.

    Attributes:
        image_spec: As written to `preprocessor.json`; its `tile_size_px` is the vision encoder's (height, width).
        image_prompt: How an image is written into a prompt; None for dual encoders.
        template_tokens: Special tokens by the name a chat template uses ("bos_token", "eos_token", ...).
        bos_token_id: None where the tokenizer has none.
        eos_token_ids: Generation ends at any; the tokenizer's alone for dual encoders.
        pad_token_id: None where the tokenizer has none.
        last_token: Text and id of the token with the highest id.
        pads_to_max: Dual encoders: texts are padded to the longest length there is (SigLIP).
        not_applied: What `generation_config.json` asks for and is left out, as "name value".
        note: What the bundle does that the checkpoint's files alone do not, in words; None where nothing.
    """

    image_spec: ImageSpec
    image_prompt: ImagePrompt | None
    template_tokens: dict[str, str]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    last_token: tuple[str, int]
    pads_to_max: bool
    not_applied: tuple[str, ...] = ()
    note: str | None = None


def convert_processor(checkpoint: Path, config: Mapping[str, Any], output: Path) -> ProcessorFiles:
    """Write the checkpoint's preprocessing into a bundle folder and return what the manifest records of it.

    Writes `preprocessor.json` and `tokenizer.json`; for vision-language models also `chat_template.jinja` and
    `generation.json`.

    Args:
        checkpoint: Folder with `preprocessor_config.json` or `processor_config.json`, `tokenizer.json`,
            `tokenizer_config.json` and, for vision-language models, a chat template.
        config: The checkpoint's parsed `config.json`.
        output: The bundle folder; exists.

    Raises:
        CheckpointError: A file is missing or not JSON.
        UnsupportedConfigError: A setting that the preprocessing does not reproduce; the message names it.
    """
    model_type = str(config.get("model_type"))
    processor = read_settings(checkpoint / "processor_config.json", required=False)
    settings, source = _image_settings(checkpoint, processor), _image_settings_file(checkpoint, processor)
    spec = read_image_spec(settings, source, model_type)
    (output / "preprocessor.json").write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")
    vocabulary = _Vocabulary.read(checkpoint, model_type)
    (output / TOKENIZER).write_text(vocabulary.text, encoding="utf-8")
    if model_type in _DUAL_TYPES:
        return _dual_encoder(model_type, spec, vocabulary)
    prompt = _image_prompt(config, model_type, processor, spec, vocabulary)
    template = FoundTemplate.find(checkpoint, processor, vocabulary.settings)
    template.require_prompts(output / TOKENIZER, prompt, vocabulary.template_tokens)
    (output / CHAT_TEMPLATE).write_text(template.text, encoding="utf-8")
    generation = read_settings(checkpoint / "generation_config.json", required=False)
    _sampling_defaults(generation).write(output)
    return ProcessorFiles(
        image_spec=spec,
        image_prompt=prompt,
        template_tokens=vocabulary.template_tokens,
        bos_token_id=vocabulary.named_id("bos_token"),
        eos_token_ids=_eos_token_ids(config, generation, vocabulary),
        pad_token_id=vocabulary.named_id("pad_token"),
        last_token=vocabulary.last,
        pads_to_max=False,
        not_applied=_not_applied(generation),
    )


@dataclass(frozen=True)
class _Vocabulary:
    """The tokenizer's files, as far as a conversion reads them.

    Attributes:
        text: `tokenizer.json`, with the tokens that other files state and the case of the model's training.
        ids: Token text to id, added tokens included.
        settings: `tokenizer_config.json`.
        template_tokens: Special tokens by name.
        note: What was changed, in words; None where nothing.
    """

    text: str
    ids: dict[str, int]
    settings: dict[str, Any]
    template_tokens: dict[str, str]
    note: str | None = None

    @classmethod
    def read(cls, checkpoint: Path, model_type: str) -> _Vocabulary:
        path = checkpoint / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing. A sentencepiece model alone is not read; save the tokenizer with transformers' "
                "fast class, which writes tokenizer.json."
            )
        read_settings(path)
        settings = read_settings(checkpoint / "tokenizer_config.json", required=False)
        legacy = read_settings(checkpoint / "special_tokens_map.json", required=False)
        named = {name: settings.get(name, legacy.get(name)) for name in _TOKEN_NAMES}
        tokens = {name: _token_text(token) for name, token in named.items() if token is not None}
        added = read_settings(checkpoint / "added_tokens.json", required=False)
        try:
            text = with_added_tokens(path.read_text(encoding="utf-8"), settings, legacy, added)
            text, note = with_training_case(text, settings) if model_type in _LOWER_CASED else (text, None)
        except PocketVLMError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception for what it cannot read
            raise CheckpointError(f"{path} is not a tokenizer: {error}") from error
        return cls(text, _token_ids(json.loads(text)), settings, tokens, note)

    @property
    def last(self) -> tuple[str, int]:
        """Return text and id of the token with the highest id."""
        return max(self.ids.items(), key=lambda item: item[1], default=("", 0))

    def named_id(self, name: str) -> int | None:
        """Return the id of "bos_token", "eos_token", ..., None where the tokenizer has none."""
        text = self.template_tokens.get(name)
        return None if text is None else self.id_of(text, name)

    def id_of(self, text: str, role: str) -> int:
        """Return a token's id.

        Raises:
            UnsupportedConfigError: The vocabulary lacks it.
        """
        if text not in self.ids:
            raise UnsupportedConfigError(f"{role} {text!r} is not in the vocabulary of tokenizer.json")
        return self.ids[text]


def _token_ids(content: Mapping[str, Any]) -> dict[str, int]:
    vocab = content.get("model", {}).get("vocab", {})
    # Unigram models list [piece, score] pairs whose place is the id; all others map text to id
    ids = {piece[0]: index for index, piece in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    ids.update({token["content"]: token["id"] for token in content.get("added_tokens", [])})
    return ids


def _token_text(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _image_settings(checkpoint: Path, processor: Mapping[str, Any]) -> dict[str, Any]:
    nested = processor.get("image_processor")
    return dict(nested) if nested is not None else read_settings(checkpoint / "preprocessor_config.json")


def _image_settings_file(checkpoint: Path, processor: Mapping[str, Any]) -> str:
    nested = processor.get("image_processor") is not None
    return (
        f"{checkpoint / 'processor_config.json'}: image_processor"
        if nested
        else str(checkpoint / "preprocessor_config.json")
    )


def _dual_encoder(model_type: str, spec: ImageSpec, vocabulary: _Vocabulary) -> ProcessorFiles:
    if vocabulary.settings.get("padding_side", "right") != "right":
        raise UnsupportedConfigError(
            f"tokenizer_config.json: padding_side {vocabulary.settings['padding_side']!r}; only 'right' is supported"
        )
    if vocabulary.named_id("pad_token") is None:
        raise UnsupportedConfigError("tokenizer_config.json names no pad_token; a text encoder's batches need one")
    eos = vocabulary.named_id("eos_token")
    return ProcessorFiles(
        image_spec=spec,
        image_prompt=None,
        template_tokens=vocabulary.template_tokens,
        bos_token_id=vocabulary.named_id("bos_token"),
        eos_token_ids=() if eos is None else (eos,),
        pad_token_id=vocabulary.named_id("pad_token"),
        last_token=vocabulary.last,
        pads_to_max=model_type != "clip",
        note=vocabulary.note,
    )


def _image_prompt(
    config: Mapping[str, Any],
    model_type: str,
    processor: Mapping[str, Any],
    spec: ImageSpec,
    vocabulary: _Vocabulary,
) -> ImagePrompt:
    if model_type in _TILED_TYPES:
        return _tiled_prompt(config, processor, spec, vocabulary)
    if model_type == "llava":
        return _llava_prompt(config, processor, spec, vocabulary)
    raise UnsupportedConfigError(
        f"config.json: model_type {model_type!r} has no prompt layout; known are {', '.join(_TILED_TYPES)}, llava"
    )


def _tiled_prompt(
    config: Mapping[str, Any], processor: Mapping[str, Any], spec: ImageSpec, vocabulary: _Vocabulary
) -> ImagePrompt:
    vision = dict(config.get("vision_config") or {})
    scale = int(config.get("scale_factor", 2))
    tokens = (spec.tile_size_px[0] // int(vision.get("patch_size", 32)) // scale) ** 2
    stated = processor.get("image_seq_len")
    if stated is not None and int(stated) != tokens:
        raise UnsupportedConfigError(
            f"processor_config.json: image_seq_len {stated}, but tiles of {spec.tile_size_px[0]} pixels in patches of "
            f"{vision.get('patch_size', 32)} with scale_factor {scale} make {tokens} tokens"
        )
    settings = vocabulary.settings
    image_token = _token_text(settings.get("image_token") or "<image>")
    fake_token = _token_text(settings.get("fake_image_token") or "<fake_token_around_image>")
    global_token = _token_text(settings.get("global_image_token") or "<global-img>")
    vocabulary.id_of(fake_token, "the token around images")
    vocabulary.id_of(global_token, "the token before the whole image")
    return ImagePrompt(
        kind="idefics3",
        image_token=image_token,
        image_token_id=_image_token_id(config, "image_token_id", image_token, vocabulary),
        tokens_per_tile=tokens,
        frames="smolvlm" if _TELLS_TIMES in (processor.get(_CLASS), settings.get(_CLASS)) else "plain",
        fake_token=fake_token,
        global_token=global_token,
    )


def _llava_prompt(
    config: Mapping[str, Any], processor: Mapping[str, Any], spec: ImageSpec, vocabulary: _Vocabulary
) -> ImagePrompt:
    vision = dict(config.get("vision_config") or {})
    patch = int(processor.get("patch_size") or vision.get("patch_size", 14))
    strategy = processor.get("vision_feature_select_strategy") or config.get(
        "vision_feature_select_strategy", "default"
    )
    height, width = spec.tile_size_px
    patches = (height // patch) * (width // patch)
    has_class_token = vision.get("model_type", "clip_vision_model") == "clip_vision_model"
    kept = {"default": patches + has_class_token - 1, "full": patches + has_class_token}
    if strategy not in kept:
        raise UnsupportedConfigError(
            f"vision_feature_select_strategy {strategy!r} is not supported; known are {', '.join(kept)}"
        )
    token = str(processor.get("image_token") or vocabulary.settings.get("image_token") or "<image>")
    key = "image_token_index" if "image_token_index" in config else "image_token_id"
    return ImagePrompt(
        kind="llava",
        image_token=token,
        image_token_id=_image_token_id(config, key, token, vocabulary),
        tokens_per_tile=kept[strategy],
    )


def _image_token_id(config: Mapping[str, Any], key: str, token: str, vocabulary: _Vocabulary) -> int:
    found = vocabulary.id_of(token, "the image token")
    stated = config.get(key)
    if stated is not None and int(stated) != found:
        raise UnsupportedConfigError(f"config.json: {key} {stated}, but tokenizer.json gives {token!r} the id {found}")
    return found


def _sampling_defaults(generation: Mapping[str, Any]) -> SamplingDefaults:
    """Return the checkpoint's sampling defaults; None where it is silent, temperature 0: greedy."""
    stated = generation.get("temperature")
    temperature = 1.0 if stated is None else stated
    try:
        return SamplingDefaults(
            temperature=temperature if generation.get("do_sample") else 0.0,
            top_p=generation.get("top_p"),
            top_k=generation.get("top_k"),
            max_tokens=generation.get("max_new_tokens"),
            min_p=generation.get("min_p"),
            repetition_penalty=generation.get("repetition_penalty"),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UnsupportedConfigError(
            f"generation_config.json: {'.'.join(map(str, first['loc']))} {first['input']!r}: {first['msg']}"
        ) from error


def _not_applied(generation: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"{name} {generation[name]}"
        for name, neutral in _NOT_APPLIED.items()
        if generation.get(name) not in (None, neutral)
    )


def _eos_token_ids(
    config: Mapping[str, Any], generation: Mapping[str, Any], vocabulary: _Vocabulary
) -> tuple[int, ...]:
    """Return the ids that end generation, as `generate` resolves them: generation config, config, tokenizer."""
    text_config = dict(config.get("text_config") or {})
    for source in (generation, config, text_config):
        stated = source.get("eos_token_id")
        if stated is not None:
            listed = stated if isinstance(stated, list) else [stated]
            return tuple(int(token) for token in listed)
    eos = vocabulary.named_id("eos_token")
    if eos is None:
        raise UnsupportedConfigError(
            "no eos_token_id in generation_config.json or config.json and no eos_token in tokenizer_config.json; "
            "generation would never end"
        )
    return (eos,)
