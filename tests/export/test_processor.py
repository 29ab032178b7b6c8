"""A checkpoint's processor files become bundle files that do what transformers' processor does with the checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.errors import CheckpointError, UnsupportedConfigError
from bundle.golden import canary_image
from bundle.image import Cropped, ImageSpec, Tiled
from bundle.prompt import Placeholder, PromptBuilder, Turn
from bundle.text import Tokenizer
from export.architectures import load_family
from export.processor import ProcessorFiles, convert_processor

Edit = Callable[[dict[str, Any]], object]


def _config(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    return found


def _convert(checkpoint: Path, output: Path) -> ProcessorFiles:
    output.mkdir(exist_ok=True)
    return convert_processor(checkpoint, load_family(_config(checkpoint)), output)


def _edit(path: Path, change: Edit) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _copy(checkpoint: Path, target: Path) -> Path:
    """Copy all but the weights."""
    return Path(shutil.copytree(checkpoint, target, ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.fixture
def smolvlm(smolvlm_checkpoint: Path, tmp_path: Path) -> Path:
    return _copy(smolvlm_checkpoint, tmp_path / "smolvlm")


@pytest.fixture
def clip(clip_checkpoint: Path, tmp_path: Path) -> Path:
    return _copy(clip_checkpoint, tmp_path / "clip")


@pytest.fixture
def llava_checkpoint(checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of("llava-clip-llama")


@pytest.fixture
def siglip_checkpoint(checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of("siglip")


def _builder(output: Path, files: ProcessorFiles) -> PromptBuilder:
    assert files.image_prompt is not None
    template = (output / "chat_template.jinja").read_text()
    return PromptBuilder(
        Tokenizer.from_file(output / "tokenizer.json"), template, files.image_prompt, files.template_tokens
    )


def _reference_ids(processor: Any, image: Image.Image) -> list[int]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what is this?"}]
    ids = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    return list(ids[0])


TURNS = [Turn("user", (Placeholder.IMAGE, "what is this?"))]


def test_smolvlm_bundle_prompts_as_the_checkpoint_s_processor(smolvlm: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Idefics3ImageProcessorPil, Idefics3Processor

    files = _convert(smolvlm, tmp_path / "out")
    images = Idefics3ImageProcessorPil.from_pretrained(smolvlm)
    processor = Idefics3Processor(
        images,
        AutoTokenizer.from_pretrained(smolvlm),
        image_seq_len=files.image_prompt.tokens_per_tile,
        chat_template=(tmp_path / "out" / "chat_template.jinja").read_text(),
    )
    image = canary_image()
    layout = files.image_spec.layout(*image.size)
    assert layout.num_tiles > 1
    found = _builder(tmp_path / "out", files).build(TURNS, [layout])
    assert list(found.token_ids) == _reference_ids(processor, image)
    expected = images(images=[[image]], return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(files.image_spec.preprocess([image]).pixel_values, expected)


def test_llava_bundle_prompts_as_the_checkpoint_s_processor(llava_checkpoint: Path, tmp_path: Path) -> None:
    from transformers import LlavaProcessor

    files = _convert(llava_checkpoint, tmp_path / "out")
    processor = LlavaProcessor.from_pretrained(llava_checkpoint, backend="pil")
    image = canary_image()
    found = _builder(tmp_path / "out", files).build(TURNS, [files.image_spec.layout(*image.size)])
    assert list(found.token_ids) == _reference_ids(processor, image)
    expected = processor.image_processor(images=[image], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(files.image_spec.preprocess([image]).pixel_values, expected)


@pytest.mark.parametrize("file", ["processor_config.json", "tokenizer_config.json"])
def test_frames_are_written_as_the_checkpoint_s_processor_writes_them(
    smolvlm: Path, llava_checkpoint: Path, tmp_path: Path, file: str
) -> None:
    for other in ("processor_config.json", "tokenizer_config.json"):
        _edit(smolvlm / other, lambda content: content.update(processor_class="Idefics3Processor"))
    assert _convert(smolvlm, tmp_path / "plain").image_prompt.frames == "plain"
    _edit(smolvlm / file, lambda content: content.update(processor_class="SmolVLMProcessor"))
    assert _convert(smolvlm, tmp_path / "told").image_prompt.frames == "smolvlm"
    assert _convert(llava_checkpoint, tmp_path / "llava").image_prompt.frames == "plain"


def test_files_written_are_those_that_the_format_names(smolvlm: Path, clip: Path, tmp_path: Path) -> None:
    files = _convert(smolvlm, tmp_path / "vlm")
    written = {path.name for path in (tmp_path / "vlm").iterdir()}
    assert written == {"preprocessor.json", "tokenizer.json", "chat_template.jinja", "generation.json"}
    stored = ImageSpec.model_validate_json((tmp_path / "vlm" / "preprocessor.json").read_text())
    assert stored == files.image_spec
    assert isinstance(stored.geometry, Tiled)
    _convert(clip, tmp_path / "dual")
    assert {path.name for path in (tmp_path / "dual").iterdir()} == {"preprocessor.json", "tokenizer.json"}


def test_tokenizer_file_is_the_checkpoint_s_byte_for_byte(smolvlm: Path, tmp_path: Path) -> None:
    _convert(smolvlm, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (smolvlm / "tokenizer.json").read_bytes()


def test_clip_pads_with_masks_and_siglip_to_its_full_length(
    clip: Path, siglip_checkpoint: Path, tmp_path: Path
) -> None:
    files = _convert(clip, tmp_path / "clip-out")
    assert isinstance(files.image_spec.geometry, Cropped)
    assert (files.pads_to_max, files.pad_token_id) == (False, 513)
    assert (files.bos_token_id, files.eos_token_ids, files.image_prompt) == (512, (513,), None)
    assert _convert(siglip_checkpoint, tmp_path / "siglip-out").pads_to_max


def _settings_file(checkpoint: Path) -> Path:
    nested = checkpoint / "processor_config.json"
    return nested if nested.is_file() else checkpoint / "preprocessor_config.json"


def _as_old_files(checkpoint: Path) -> None:
    """Rewrite a checkpoint as transformers 4 wrote it."""
    new = json.loads((checkpoint / "processor_config.json").read_text())
    old = new.pop("image_processor")
    old["image_processor_type"] = str(old["image_processor_type"]).removesuffix("Pil").removesuffix("Fast")
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(old))
    (checkpoint / "processor_config.json").write_text(json.dumps(new))
    template = (checkpoint / "chat_template.jinja").read_text()
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (checkpoint / "chat_template.jinja").unlink()
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    tokens = {name: settings.pop(name) for name in ("bos_token", "eos_token", "pad_token") if name in settings}
    (checkpoint / "special_tokens_map.json").write_text(
        json.dumps({name: {"content": text, "lstrip": False} for name, text in tokens.items()})
    )
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))


def test_old_and_new_file_layouts_convert_alike(smolvlm: Path, tmp_path: Path) -> None:
    new = _convert(smolvlm, tmp_path / "new")
    _as_old_files(smolvlm)
    assert _convert(smolvlm, tmp_path / "old") == new
    for name in ("preprocessor.json", "tokenizer.json", "chat_template.jinja", "generation.json"):
        assert (tmp_path / "old" / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


@pytest.mark.parametrize("form", ["string", "named list"])
def test_chat_template_inside_the_tokenizer_s_settings_is_found(smolvlm: Path, tmp_path: Path, form: str) -> None:
    template = (smolvlm / "chat_template.jinja").read_text()
    (smolvlm / "chat_template.jinja").unlink()
    stored: Any = template if form == "string" else [{"name": "default", "template": template}]
    _edit(smolvlm / "tokenizer_config.json", lambda content: content.update(chat_template=stored))
    _convert(smolvlm, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == template


JOINED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
"""As a language model's own template, which knows of no image."""


@pytest.mark.parametrize(
    ("file", "target"),
    [
        ("chat_template.jinja", "chat_template.jinja"),
        ("chat_template.json", "chat_template.json"),
        ("processor_config.json", "processor_config.json"),
        ("tokenizer_config.json", "chat_template.jinja"),
    ],
)
def test_template_that_cannot_place_tiles_is_refused_with_the_file_to_mend(
    file: str, target: str, smolvlm: Path, tmp_path: Path
) -> None:
    (smolvlm / "chat_template.jinja").unlink()
    if file.endswith(".jinja"):
        (smolvlm / file).write_text(JOINED)
    else:
        content = json.loads((smolvlm / file).read_text()) if (smolvlm / file).exists() else {}
        (smolvlm / file).write_text(json.dumps({**content, "chat_template": JOINED}))
    message = rf"{smolvlm / file}: .*as one string.*writes <image> for each image\. It goes into {smolvlm / target}\."
    with pytest.raises(UnsupportedConfigError, match=message):
        _convert(smolvlm, tmp_path / "out")


def test_template_that_writes_no_image_is_refused(llava_checkpoint: Path, tmp_path: Path) -> None:
    llava = _copy(llava_checkpoint, tmp_path / "llava")
    (llava / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content[-1].text }}{% endfor %}")
    with pytest.raises(UnsupportedConfigError, match="writes 0 <image> for one image"):
        _convert(llava, tmp_path / "out")


def test_template_of_strings_is_taken_where_one_token_stands_for_an_image(
    llava_checkpoint: Path, tmp_path: Path
) -> None:
    llava = _copy(llava_checkpoint, tmp_path / "llava")
    (llava / "chat_template.jinja").write_text(JOINED)
    assert _convert(llava, tmp_path / "out").image_prompt is not None


def test_missing_chat_template_is_refused(smolvlm: Path, tmp_path: Path) -> None:
    (smolvlm / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="holds no chat template"):
        _convert(smolvlm, tmp_path / "out")


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 40}, (0.7, 0.9, 40, None, None, None)),
        ({"do_sample": True, "max_new_tokens": 64}, (1.0, None, None, 64, None, None)),
        ({"do_sample": True, "min_p": 0.05, "repetition_penalty": 1.1}, (1.0, None, None, None, 0.05, 1.1)),
        ({"do_sample": True, "temperature": None}, (1.0, None, None, None, None, None)),
        ({"temperature": 0.7}, (0.0, None, None, None, None, None)),
        ({}, (0.0, None, None, None, None, None)),
    ],
)
def test_sampling_defaults_are_the_checkpoint_s(
    smolvlm: Path, tmp_path: Path, stated: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    (smolvlm / "generation_config.json").write_text(json.dumps(stated))
    _convert(smolvlm, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "generation.json").read_text())
    names = ("temperature", "top_p", "top_k", "max_tokens", "min_p", "repetition_penalty")
    assert tuple(found[name] for name in names) == expected
    assert len(found) == len(names)


@pytest.mark.parametrize(("stated", "expected"), [([258, 257], (258, 257)), (7, (7,))])
def test_end_of_generation_is_the_generation_config_s(
    smolvlm: Path, tmp_path: Path, stated: Any, expected: tuple[int, ...]
) -> None:
    (smolvlm / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    assert _convert(smolvlm, tmp_path / "out").eos_token_ids == expected


def test_end_of_generation_falls_back_to_the_tokenizer_s(smolvlm: Path, tmp_path: Path) -> None:
    (smolvlm / "generation_config.json").unlink(missing_ok=True)
    _edit(smolvlm / "config.json", lambda content: content.pop("eos_token_id", None))
    _edit(smolvlm / "config.json", lambda content: content["text_config"].pop("eos_token_id", None))
    files = _convert(smolvlm, tmp_path / "out")
    assert files.eos_token_ids == (258,)


@pytest.mark.parametrize("name", ["tokenizer.json", "image settings"])
def test_missing_file_is_refused_by_name(clip: Path, tmp_path: Path, name: str) -> None:
    path = _settings_file(clip) if name == "image settings" else clip / name
    path.unlink()
    with pytest.raises(CheckpointError, match=r"(tokenizer|preprocessor_config)\.json is missing"):
        _convert(clip, tmp_path / "out")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_file_that_is_no_json_object_is_refused(clip: Path, tmp_path: Path, content: str) -> None:
    (clip / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        _convert(clip, tmp_path / "out")


def _set(key: str, value: Any) -> Edit:
    return lambda content: content.update({key: value})


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("config.json", _set("image_token_id", 5), "image_token_id 5"),
        ("processor_config.json", _set("image_seq_len", 999), "image_seq_len 999"),
        ("tokenizer_config.json", _set("image_token", "<none>"), "<none>"),
    ],
)
def test_contradiction_between_files_is_refused_by_name(
    smolvlm: Path, tmp_path: Path, file: str, change: Edit, named: str
) -> None:
    _edit(smolvlm / file, change)
    with pytest.raises(UnsupportedConfigError, match=named):
        _convert(smolvlm, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_set("padding_side", "left"), "padding_side 'left'"),
        (lambda content: content.pop("pad_token"), "no pad_token"),
    ],
)
def test_dual_encoder_whose_batches_cannot_be_padded_is_refused(
    clip: Path, tmp_path: Path, change: Edit, named: str
) -> None:
    _edit(clip / "tokenizer_config.json", change)
    (clip / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(UnsupportedConfigError, match=named):
        _convert(clip, tmp_path / "out")


def test_llava_counts_tokens_of_the_chosen_features(llava_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = _copy(llava_checkpoint, tmp_path / "llava")
    patches = (32 // 8) ** 2
    assert _convert(checkpoint, tmp_path / "out").image_prompt.tokens_per_tile == patches
    _edit(_settings_file(checkpoint), _set("vision_feature_select_strategy", "full"))
    assert _convert(checkpoint, tmp_path / "out").image_prompt.tokens_per_tile == patches + 1
    _edit(_settings_file(checkpoint), _set("vision_feature_select_strategy", "odd"))
    with pytest.raises(UnsupportedConfigError, match="vision_feature_select_strategy 'odd'"):
        _convert(checkpoint, tmp_path / "out")
