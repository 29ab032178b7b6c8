"""Towers and encoders before decoders: what is refused, by name, and what stands in prompts and answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bundle.errors import PromptError, UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec, TileLayout
from bundle.prompt import Placeholder, PromptBuilder, Turn
from bundle.text import TOKENIZER, Tokenizer
from bundle.tools import Tool
from export.architectures import load_family
from export.models.vision_encoder_decoder import VisionEncoderDecoder
from export.nn.dialects import DIALECTS


def config_of(sample: Any) -> dict[str, Any]:
    return json.loads((sample.checkpoint / "config.json").read_text())


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a config with some keys of its parts changed."""
    parts = {key: {**config[key], **value} if isinstance(value, dict) else value for key, value in changes.items()}
    return {**config, **parts}


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("trocr", {"encoder": {"model_type": "beit"}}, "beit"),
        ("trocr", {"decoder": {"model_type": "gpt2"}}, "gpt2"),
        ("trocr", {"decoder": {"cross_attention_hidden_size": 40}}, "cross_attention_hidden_size 40"),
        ("trocr", {"decoder": {"use_learned_position_embeddings": False, "d_model": 45}}, "even width"),
        ("trocr", {"encoder": {"image_size": [32, 40]}}, "only square images"),
        ("donut", {"encoder": {"use_absolute_embeddings": True}}, "use_absolute_embeddings"),
        ("donut", {"encoder": {"image_size": [76, 50]}}, "whole patches"),
        ("donut", {"encoder": {"window_size": 20}}, "holds a window at least"),
        ("donut", {"encoder": {"num_heads": [2, 3, 4]}}, "num_heads"),
        ("donut", {"encoder": {"patch_size": [4, 2]}}, "squares"),
        ("blip", {"architectures": ["BlipForImageTextRetrieval"]}, "BlipForImageTextRetrieval"),
        ("blip", {"text_config": {"encoder_hidden_size": 40}}, "encoder_hidden_size 40"),
        ("blip", {"text_config": {"is_decoder": False}}, "is_decoder"),
        ("blip", {"text_config": {"tie_word_embeddings": False}}, "tie_word_embeddings"),
        ("git", {"num_image_with_embedding": 6}, "num_image_with_embedding"),
        ("unival", {"arch": "ofa_tiny"}, "ofa_tiny"),
        ("unival", {"qk_norm": True}, "qk_norm"),
        ("unival", {"encoder_prompt": True}, "encoder_prompt"),
        ("unival", {"share_all_embeddings": False}, "share_all_embeddings"),
        ("unival", {"encoder_normalize_before": False}, "encoder_normalize_before"),
        ("unival", {"decoder_embed_dim": 40}, "decoder_embed_dim 40"),
        ("unival", {"image_encoder_name": "vit_base_patch16_224"}, "vit_base_patch16_224"),
        ("unival", {"patch_image_size": 640}, "patch_image_size 640"),
    ],
)
def test_what_is_not_built_is_refused_by_name(family: str, changes: dict[str, Any], named: str, sample_of: Any) -> None:
    config = changed(config_of(sample_of(family, 0)), changes)
    with pytest.raises(UnsupportedConfigError, match=named):
        load_family(config).graphs(DIALECTS["contrib"]())


@pytest.mark.parametrize("family", ["trocr", "donut", "blip", "unival"])
def test_one_message_about_one_image_is_what_they_answer(family: str, sample_of: Any) -> None:
    builder = PromptBuilder.from_bundle(sample_of(family, 0).bundle())
    image = Turn("user", (Placeholder.IMAGE, "x"))
    for turns, layouts in (
        ([Turn("user", ("x",))], []),
        ([Turn("user", (Placeholder.IMAGE, Placeholder.IMAGE, "x"))], [TileLayout()] * 2),
        ([Turn("system", ("x",)), image], [TileLayout()]),
        ([image, Turn("assistant", ("x",)), Turn("user", ("x",))], [TileLayout()]),
    ):
        with pytest.raises(PromptError, match=r"one image|one message"):
            builder.build(turns, layouts)


@pytest.mark.parametrize("family", ["donut", "blip", "git", "florence2"])
def test_functions_are_refused_by_their_own_name(family: str, sample_of: Any) -> None:
    """A template that knows no functions is told of them in a message before the user's, which such models refuse."""
    builder = PromptBuilder.from_bundle(sample_of(family, 0).bundle())
    with pytest.raises(PromptError, match="leave tools out") as refused:
        builder.build([Turn("user", (Placeholder.IMAGE, "x"))], [TileLayout()], tools=[Tool("see", "", "{}")])
    assert refused.value.param == "tools"


def test_marks_of_fields_are_said_and_may_be_asked_for(sample_of: Any) -> None:
    bundle = sample_of("donut", 0).bundle()
    tokenizer = Tokenizer.from_file(bundle.path(TOKENIZER))
    marks = "<s_receipt></s_answer><sep/><yes/>"
    assert tokenizer.decode(tokenizer.encode_callers(marks)[1:-1]) == marks
    builder = PromptBuilder.from_bundle(bundle)
    for text in ("<s_receipt>", "<s_docvqa><s_question>what</s_question><s_answer>"):
        built = builder.build([Turn("user", (Placeholder.IMAGE, text))], [TileLayout()])
        assert built.token_ids.tolist() == tokenizer.encode(text)
    written = builder.build([Turn("user", (Placeholder.IMAGE, "</s>"))], [TileLayout()])
    end = tokenizer.token_id("</s>")
    assert end not in written.token_ids.tolist()  # a token that is special is text where a caller writes it


def test_processors_of_another_size_are_refused(sample_of: Any) -> None:
    sample = sample_of("donut", 0)
    config = config_of(sample)
    family = VisionEncoderDecoder(changed(config, {"encoder": {"image_size": [80, 52]}}))
    with pytest.raises(UnsupportedConfigError, match=r"\(76, 52\) pixels, the vision tower takes \(80, 52\)"):
        family.check_images(ImageSpec.read(sample.bundle().path(PREPROCESSOR)))


def test_places_of_a_text_are_counted_without_the_image_before_it(sample_of: Any) -> None:
    builder = PromptBuilder.from_bundle(sample_of("git", 0).bundle())
    built = builder.build([Turn("user", (Placeholder.IMAGE, "a"))], [TileLayout()])
    assert built.positions.tolist() == [*[-1] * 17, 0, 1]
    assert built.next_position == 2
    assert built.seen is not None
    assert built.seen[:, 0].tolist() == [0, 17]
    with pytest.raises(PromptError, match="2 images"):
        builder.build([Turn("user", (Placeholder.IMAGE, Placeholder.IMAGE, "a"))], [TileLayout()] * 2)


def test_the_token_that_begins_captions_is_added_behind_a_vocabulary_that_lacks_it(sample_of: Any) -> None:
    sample = sample_of("blip", 0)
    tokenizer = Tokenizer.from_file(sample.bundle().path(TOKENIZER))
    assert tokenizer.token_id("[DEC]") == config_of(sample)["text_config"]["bos_token_id"]
    assert tokenizer.token_id("[SEP]") in sample.bundle().manifest.eos_token_ids
