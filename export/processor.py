"""A checkpoint's processor files to the bundle's own: preprocessing, tokenizer, chat template, sampling defaults.

Every setting that changes what a model sees is either reproduced or refused by name. Settings are read with the
defaults that the named processor class has in transformers, since checkpoints leave out what equals them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bundle.chat_template import CHAT_TEMPLATE, INPUT_TEMPLATE
from bundle.dims import QuestionDims
from bundle.errors import CheckpointError, UnsupportedConfigError
from bundle.generation import SamplingDefaults
from bundle.grounding import KnownGrounding
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.layouts.table import KnownImagePrompt
from bundle.question import QUESTION_TOKENIZER
from bundle.text import TOKENIZER, Tokenizer
from export.dual_encoder import DualEncoder
from export.family import Family
from export.found_processor import FoundProcessor
from export.found_template import FoundTemplate
from export.image_processor import read_image_spec
from export.settings_file import read_settings
from export.spoken_tokens import with_spoken
from export.vision_language import VisionLanguage
from export.vocabulary import Vocabulary

_VIDEO_FILE = "video_preprocessor_config.json"
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
        image_spec: As written to `preprocessor.json`; its `tile_size_px` is the vision encoder's (height, width);
            None of a model that takes no images.
        image_prompt: How an image is written into a prompt; None for dual encoders.
        template_tokens: Special tokens by the name a chat template uses ("bos_token", "eos_token", ...).
        bos_token_id: None where the tokenizer has none.
        eos_token_ids: Generation ends at any; the tokenizer's alone for dual encoders.
        pad_token_id: None where the tokenizer has none.
        last_token: Text and id of the token with the highest id; None of a model that reads no texts.
        pads_to_max: Dual encoders: texts are padded to the longest length there is (SigLIP).
        not_applied: What `generation_config.json` asks for and is left out, as "name value".
        grounding: How boxes stand in answers; None where the model says none.
        question: How the vision encoder reads the question; None where it sees images alone.
        note: What the bundle does that the checkpoint's files alone do not, in words; None where nothing.
    """

    image_spec: ImageSpec | None
    image_prompt: KnownImagePrompt | None
    template_tokens: dict[str, str]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    last_token: tuple[str, int] | None
    pads_to_max: bool
    not_applied: tuple[str, ...] = ()
    grounding: KnownGrounding | None = None
    question: QuestionDims | None = None
    note: str | None = None


def convert_processor(
    checkpoint: Path, family: Family, output: Path, most_image_px: int | None = None
) -> ProcessorFiles:
    """Write the checkpoint's preprocessing into a bundle folder and return what the manifest records of it.

    Writes `preprocessor.json` and `tokenizer.json`, each where the model reads such inputs; for vision-language models
    also `chat_template.jinja` and `generation.json`, and `input_template.jinja` where one that answers writes inputs to
    be embedded otherwise.

    Args:
        checkpoint: Folder with `preprocessor_config.json` or `processor_config.json`, `tokenizer.json`,
            `tokenizer_config.json` and, for vision-language models, a chat template.
        family: Opened on the checkpoint's config; it says what differs from model to model.
        output: The bundle folder; exists.
        most_image_px: Pixels of an image at most, where images keep their shape; None: as the processor says.

    Raises:
        CheckpointError: A file is missing or not JSON.
        UnsupportedConfigError: A setting that the preprocessing does not reproduce; the message names it.
    """
    processor = read_settings(checkpoint / "processor_config.json", required=False)
    spec = _checked_spec(checkpoint, family, processor, most_image_px) if family.sees else None
    if spec is not None:
        (output / PREPROCESSOR).write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if not family.reads_texts:
        return _without_texts(spec)
    _require_tokenizer(checkpoint, family)
    vocabulary = Vocabulary.read(checkpoint, lower_cases=family.lower_cases, cleans=family.cleans)
    vocabulary = vocabulary.with_names(family.default_tokens)
    if isinstance(family, VisionLanguage):
        vocabulary = vocabulary.with_tokens(family.own_tokens(vocabulary.ids))
        vocabulary = vocabulary.cut_at_specials() if family.cuts_at_images else vocabulary
    tokenizer = family.framed(vocabulary.text) if isinstance(family, DualEncoder) else vocabulary.text
    (output / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    if isinstance(family, VisionLanguage) and spec is not None:
        own = read_settings(checkpoint / "generation_config.json", required=False)
        generation = {**family.stated_generation, **own}
        return _vision_language(checkpoint, family, FoundProcessor(processor, spec, vocabulary, generation), output)
    return _dual_encoder(family, spec, vocabulary)


def _require_tokenizer(checkpoint: Path, family: Family) -> None:
    """Check that a tokenizer that is published apart from the weights was put beside them.

    Raises:
        CheckpointError: It was not; the message says where it is.
    """
    home = family.tokenizer_home if isinstance(family, VisionLanguage) else None
    if home is not None and not (checkpoint / TOKENIZER).is_file():
        raise CheckpointError(
            f"{checkpoint / TOKENIZER} is missing. The model reads with the tokenizer of {home}: download the "
            "checkpoint into a folder, and put tokenizer.json and tokenizer_config.json of that repository into it."
        )


def _checked_spec(
    checkpoint: Path, family: Family, processor: Mapping[str, Any], most_image_px: int | None
) -> ImageSpec:
    spec = family.own_image_spec() or _image_spec(checkpoint, family, processor)
    family.check_images(spec)
    if isinstance(family, VisionLanguage):
        spec = family.with_frames(spec, *_video_settings(checkpoint, processor))
    return spec if most_image_px is None else _within(spec, most_image_px)


def image_settings(checkpoint: Path) -> dict[str, Any]:
    """Return the image processor's settings as a checkpoint states them.

    Raises:
        CheckpointError: The file is missing or not JSON.
    """
    return _image_settings(checkpoint, read_settings(checkpoint / "processor_config.json", required=False))


def _image_spec(checkpoint: Path, family: Family, processor: Mapping[str, Any]) -> ImageSpec:
    settings, source = _image_settings(checkpoint, processor), _image_settings_file(checkpoint, processor)
    return read_image_spec({**settings, **family.image_settings}, source, family.image_processor)


def _within(spec: ImageSpec, most_px: int) -> ImageSpec:
    try:
        return spec.model_copy(update={"geometry": spec.geometry.within(most_px)})
    except ValueError as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UnsupportedConfigError(f"--image-pixels {most_px}: {first}") from error


def _vision_language(checkpoint: Path, family: VisionLanguage, found: FoundProcessor, output: Path) -> ProcessorFiles:
    prompt, vocabulary = family.image_prompt(found), found.vocabulary
    template = _template(checkpoint, family, found, prompt)
    prompt = _written(prompt, template)
    template.require_prompts(output / TOKENIZER, prompt, vocabulary.template_tokens)
    (output / CHAT_TEMPLATE).write_text(template.text, encoding="utf-8")
    asked = family.input_template(found, prompt) if family.answers else None
    if asked is not None:
        beside = FoundTemplate(asked, checkpoint, INPUT_TEMPLATE)
        beside.require_prompts(output / TOKENIZER, prompt, vocabulary.template_tokens)
        (output / INPUT_TEMPLATE).write_text(beside.text, encoding="utf-8")
    _sampling_defaults(found.generation).write(output)
    ends = _eos_token_ids(family, found.generation, vocabulary)
    spoken = with_spoken(vocabulary.text, family.spoken_tokens(found, prompt, ends))
    (output / TOKENIZER).write_text(spoken, encoding="utf-8")
    return ProcessorFiles(
        image_spec=found.spec,
        image_prompt=prompt,
        template_tokens=vocabulary.template_tokens,
        bos_token_id=vocabulary.named_id("bos_token"),
        eos_token_ids=ends,
        pad_token_id=vocabulary.named_id("pad_token"),
        last_token=vocabulary.last,
        pads_to_max=False,
        not_applied=_not_applied(found.generation),
        grounding=family.grounding(found),
        question=_question(checkpoint, family, found, output),
    )


def _question(checkpoint: Path, family: VisionLanguage, found: FoundProcessor, output: Path) -> QuestionDims | None:
    """Write the tokenizer of a vision encoder that reads questions, and return what the manifest says of it.

    Raises:
        CheckpointError: It is missing or cannot be read.
        UnsupportedConfigError: It has a token that the encoder has no row for.
    """
    reading = family.question
    if reading is None:
        return None
    if not reading.folder:
        framed, prefix = family.before_questions(found)
        before = Tokenizer.from_file(output / TOKENIZER).encode(framed) if framed else ()
        return QuestionDims(
            max_tokens=reading.max_tokens - len(before),
            tokenizer=TOKENIZER,
            tasks=dict(reading.tasks),
            before=tuple(before),
            prefix=prefix,
        )
    vocabulary = Vocabulary.read(checkpoint / reading.folder, lower_cases=False)
    token, token_id = vocabulary.last
    if token_id >= reading.vocab_size:
        raise UnsupportedConfigError(
            f"{reading.folder}/{TOKENIZER} gives {token!r} the id {token_id}, and the encoder that reads questions has "
            f"{reading.vocab_size} rows: a question with that token could not be read. Tokenizer and weights do not "
            "belong together."
        )
    (output / QUESTION_TOKENIZER).write_text(vocabulary.text, encoding="utf-8")
    return QuestionDims(max_tokens=reading.max_tokens, tokenizer=QUESTION_TOKENIZER, tasks=dict(reading.tasks))


def _template(
    checkpoint: Path, family: VisionLanguage, found: FoundProcessor, prompt: KnownImagePrompt
) -> FoundTemplate:
    """Return how conversations are written, or what a model that embeds is asked to embed."""
    given = None if family.answers else family.input_template(found, prompt)
    given = family.own_template() if given is None else given
    if given is not None:
        return FoundTemplate(given, checkpoint, CHAT_TEMPLATE)
    default = family.default_template(found)
    template = FoundTemplate.find(checkpoint, found.settings, found.vocabulary.settings, default)
    template = replace(template, text=family.adapted_template(template.text))
    template = template.behind(family.opening(found), once=family.opens_once)
    if family.template_placeholder is None:
        return template
    return template.with_text(family.template_placeholder, prompt.image_token)


def _image_settings(checkpoint: Path, processor: Mapping[str, Any]) -> dict[str, Any]:
    nested = processor.get("image_processor")
    return dict(nested) if nested is not None else read_settings(checkpoint / "preprocessor_config.json")


def _written(prompt: KnownImagePrompt, template: FoundTemplate) -> KnownImagePrompt:
    """Return how images are written; a template that knows no videos has their frames as images."""
    video = prompt.own_video
    if video is None or video.token in template.text:
        return prompt
    return prompt.model_copy(update={"video": None})


def _video_settings(checkpoint: Path, processor: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the settings of the processor of videos and where they stand; those of images where there are none."""
    if (nested := processor.get("video_processor")) is not None:
        return dict(nested), f"{checkpoint / 'processor_config.json'}: video_processor"
    if own := read_settings(checkpoint / _VIDEO_FILE, required=False):
        return own, str(checkpoint / _VIDEO_FILE)
    if processor.get("image_processor") is not None:
        return {}, str(checkpoint / "processor_config.json")
    older = read_settings(checkpoint / "preprocessor_config.json", required=False)
    return older, str(checkpoint / "preprocessor_config.json")


def _image_settings_file(checkpoint: Path, processor: Mapping[str, Any]) -> str:
    nested = processor.get("image_processor") is not None
    return (
        f"{checkpoint / 'processor_config.json'}: image_processor"
        if nested
        else str(checkpoint / "preprocessor_config.json")
    )


def _dual_encoder(family: Family, spec: ImageSpec | None, vocabulary: Vocabulary) -> ProcessorFiles:
    if vocabulary.settings.get("padding_side", "right") != "right":
        raise UnsupportedConfigError(
            f"tokenizer_config.json: padding_side {vocabulary.settings['padding_side']!r}; only 'right' is supported"
        )
    family.check_tokenizer(vocabulary.settings)
    own_pad = family.pad_token_id if isinstance(family, DualEncoder) else None
    pad_token_id = vocabulary.named_id("pad_token") if own_pad is None else own_pad
    if pad_token_id is None:
        raise UnsupportedConfigError("tokenizer_config.json names no pad_token; a text encoder's batches need one")
    eos = vocabulary.named_id("eos_token")
    return ProcessorFiles(
        image_spec=spec,
        image_prompt=None,
        template_tokens=vocabulary.template_tokens,
        bos_token_id=vocabulary.named_id("bos_token"),
        eos_token_ids=() if eos is None else (eos,),
        pad_token_id=pad_token_id,
        last_token=vocabulary.last,
        pads_to_max=isinstance(family, DualEncoder) and family.pads_to_max,
        note=vocabulary.note,
    )


def _without_texts(spec: ImageSpec | None) -> ProcessorFiles:
    return ProcessorFiles(
        image_spec=spec,
        image_prompt=None,
        template_tokens={},
        bos_token_id=None,
        eos_token_ids=(),
        pad_token_id=None,
        last_token=None,
        pads_to_max=False,
    )


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


def _eos_token_ids(family: VisionLanguage, generation: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return the ids that end generation: those that the files name, and the family's own."""
    if family.end_ids:
        return family.end_ids
    own = [vocabulary.id_of(token, "the token that ends an answer") for token in family.answer_ends(vocabulary.ids)]
    return tuple(dict.fromkeys([*_stated_eos_ids(family, generation, vocabulary), *own]))


def _stated_eos_ids(family: VisionLanguage, generation: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return the ids that end generation, as `generate` resolves them: generation config, config, tokenizer."""
    for source in (generation, family.config, family.text_config):
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
