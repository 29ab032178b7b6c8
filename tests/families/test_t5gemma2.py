"""T5Gemma 2: what its encoder reads of a message, token by token; and what is refused."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.errors import ContextLengthError, PromptError, UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.prompt import Placeholder, PromptBuilder, Turn
from bundle.question import QuestionReader
from export.architectures import load_family
from export.exporter import export_checkpoint

PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 50, 3), np.uint8))


def asked(text: str) -> list[Turn]:
    return [Turn("user", (Placeholder.IMAGE, text))]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("text", [" in this image, there is", "\n\nWhat?", ""])
def test_the_encoder_reads_what_the_processor_writes(number: int, text: str, sample_of: Any) -> None:
    sample = sample_of("t5gemma2", number)
    reader = QuestionReader.from_bundle(sample.bundle())
    assert reader is not None
    wanted = sample.processor(images=PICTURE, text=sample.family.START + text, return_tensors="pt")
    assert list(reader.ids(asked(text))) == wanted["input_ids"][0].tolist()


def test_what_a_user_writes_is_no_token_of_an_image(sample_of: Any) -> None:
    """Two images' tokens would be in the place of one's features."""
    sample = sample_of("t5gemma2", 0)
    reader = QuestionReader.from_bundle(sample.bundle())
    assert reader is not None
    ids = reader.ids(asked(f" {sample.family.IMAGE}{sample.family.END}"))
    assert (ids.count(261), ids.count(260)) == (16, 1)


def test_a_question_beyond_the_memory_is_refused(sample_of: Any) -> None:
    reader = QuestionReader.from_bundle(sample_of("t5gemma2", 0).bundle())
    assert reader is not None
    assert len(reader.ids(asked("a" * 233))) == 256  # 21 stand before, and two lines
    with pytest.raises(ContextLengthError, match=r"the question takes 236 tokens; .* holds 235"):
        reader.ids(asked("a" * 234))


def test_conversations_and_other_numbers_of_images_are_refused(sample_of: Any) -> None:
    bundle = sample_of("t5gemma2", 0).bundle()
    builder, spec = PromptBuilder.from_bundle(bundle), ImageSpec.read(bundle.path(PREPROCESSOR))
    layout = spec.layout(40, 50)
    assert builder.build(asked("What?"), [layout]).token_ids.tolist() == [258]
    with pytest.raises(PromptError, match="T5Gemma 2 goes on with one message"):
        builder.build([*asked("What?"), Turn("assistant", ("a dog",)), Turn("user", ("Why?",))], [layout])
    with pytest.raises(PromptError, match=r"hold 2 images.*Send exactly one"):
        builder.build([Turn("user", (Placeholder.IMAGE, Placeholder.IMAGE, "What?"))], [layout] * 2)


def test_older_names_of_weights_are_read(sample_of: Any, tmp_path: Any) -> None:
    import json

    from safetensors.numpy import load_file, save_file

    sample = sample_of("t5gemma2", 0)
    config = json.loads((sample.checkpoint / "config.json").read_text())
    older = tmp_path / "older"
    sample.family.save(older, config)
    weights = load_file(older / "model.safetensors")
    renamed = {
        name.replace(".text_model.", ".").replace(".vision_tower.", ".vision_tower.vision_model."): weight
        for name, weight in weights.items()
    }
    save_file(renamed, older / "model.safetensors", {"format": "pt"})
    files = export_checkpoint(older, tmp_path / "bundle", name="tiny").files
    whole = sample.bundle().manifest.files
    assert all(files[name] == whole[name] for name in files if name.endswith(".onnx.data"))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("encoder.mm_tokens_per_image", 15, "mm_tokens_per_image 15: built are squares"),
        ("encoder.text_config.hidden_size", 36, "states of 36 numbers .* decoder 48"),
        ("decoder.vocab_size", 300, "265 tokens, decoder 48 and 300"),
        ("decoder.final_logit_softcapping", 30.0, "final_logit_softcapping 30.0"),
        ("decoder.attn_logit_softcapping", 50.0, "attn_logit_softcapping 50.0"),
        ("encoder.text_config.use_bidirectional_attention", True, "use_bidirectional_attention"),
        ("tie_word_embeddings", False, "tie_word_embeddings false"),
    ],
)
def test_a_config_that_is_not_built_is_refused_by_name(
    path: str, value: Any, said: str, families: dict[str, ModuleType]
) -> None:
    config = copy.deepcopy(next(iter(families["t5gemma2"].geometries().values())))
    *parts, last = path.split(".")
    around = config
    for part in parts:
        around = around[part]
    around[last] = value
    with pytest.raises(UnsupportedConfigError, match=said):
        load_family(config)
