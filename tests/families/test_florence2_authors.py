"""Florence-2 in Microsoft's layout is the bundle that the same weights make in transformers' layout."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bundle.directory import Bundle, open_bundle
from bundle.errors import CheckpointError, UnsupportedConfigError
from bundle.image import TileLayout
from bundle.manifest import Dialect
from bundle.prompt import Placeholder, PromptBuilder, Turn
from bundle.question import QuestionReader
from bundle.text import TOKENIZER, Tokenizer
from export.architectures import load_family
from export.checkpoint import Checkpoint
from export.exporter import export_checkpoint
from export.weights import WeightSource

BASE = ["<s>", "<pad>", "</s>", "<mask>"]
# as processing_florence2.py adds them, whenever it is opened
ADDED = (
    ["<od>", "</od>", "<ocr>", "</ocr>"]
    + [f"<loc_{x}>" for x in range(1000)]
    + ["<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>", "<seg>", "</seg>"]
    + ["<sep>", "<region_cap>", "</region_cap>", "<region_to_desciption>", "</region_to_desciption>"]
    + ["<proposal>", "</proposal>", "<poly>", "</poly>", "<and>"]
)
ROWS = 256 + len(BASE) + len(ADDED)
Exported: TypeAlias = tuple[Bundle, Bundle, list[str]]


@pytest.fixture(scope="module")
def pair_of(families: dict[str, Any], checkpoints: Any, tmp_path_factory: Any) -> Callable[[int], tuple[Path, Path]]:
    """Return folders of one model in transformers' layout and in Microsoft's, whose table has one name or four."""
    module = families["florence2"]

    @functools.cache
    def pair(number: int) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("florence2")
        config = list(module.geometries().values())[number]
        text, tower = config["text_config"] | {"vocab_size": ROWS}, config["vision_config"] | {"mlp_ratio": 4.0}
        config |= {"text_config": text, "vision_config": tower, "tie_word_embeddings": True}
        module.save(folder / "plain", config)
        rewrite(folder / "plain", folder / "authors", checkpoints, every_name=number == 1)
        return folder / "plain", folder / "authors"

    return pair


@pytest.fixture(scope="module")
def exported(pair_of: Callable[[int], tuple[Path, Path]], tmp_path_factory: Any) -> Callable[[int, str], Exported]:
    """Return both bundles of a geometry in a dialect, and what the exports said; made once."""

    @functools.cache
    def bundles(number: int, dialect: Dialect) -> Exported:
        folder, said = tmp_path_factory.mktemp("bundles"), list[str]()
        for each in pair_of(number):
            export_checkpoint(each, folder / each.name, name="tiny", dialect=dialect, progress=said.append)
        return open_bundle(folder / "plain"), open_bundle(folder / "authors"), said

    return bundles


@pytest.fixture
def both(pair_of: Callable[[int], tuple[Path, Path]]) -> tuple[Path, Path]:
    return pair_of(0)


def rewrite(plain: Path, folder: Path, checkpoints: Any, *, every_name: bool) -> None:
    """Write a checkpoint as microsoft/Florence-2-base has it, file by file."""
    folder.mkdir()
    config = json.loads((plain / "config.json").read_text())
    tower, text = config["vision_config"], config["text_config"]
    places, times = tower.pop("max_position_embeddings"), tower.pop("max_temporal_embeddings")
    stated = {
        "architectures": ["Florence2ForConditionalGeneration"],
        "model_type": "florence2",
        "bos_token_id": 256,
        "pad_token_id": 257,
        "eos_token_id": 258,
        "projection_dim": tower["projection_dim"],
        "vocab_size": ROWS,
        "text_config": {**text, "model_type": "florence2_language", "num_beams": 3, "no_repeat_ngram_size": 3},
        "vision_config": {
            **{key: value for key, value in tower.items() if key != "embed_dim"},
            "model_type": "davit",
            "drop_path_rate": 0.1,
            "enable_checkpoint": False,
            "dim_embed": tower["embed_dim"],
            "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": places},
            "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": times},
            "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
        },
    }
    checkpoints.write_json(folder / "config.json", stated)
    tensors = published(load_file(plain / "model.safetensors"), every_name=every_name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    images = json.loads((plain / "processor_config.json").read_text())["image_processor"]
    more = {"auto_map": {"AutoProcessor": "processing_florence2.Florence2Processor"}, "do_convert_rgb": None}
    checkpoints.write_json(folder / "preprocessor_config.json", {**images, **more})
    checkpoints.write_json(folder / "generation_config.json", {"num_beams": 3, "early_stopping": False})
    checkpoints.save_byte_tokenizer(folder, BASE)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "RobertaProcessing",
        "sep": ["</s>", 258],
        "cls": ["<s>", 256],
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    checkpoints.write_json(folder / "tokenizer_config.json", {"model_max_length": 1024})


def published(tensors: dict[str, np.ndarray], *, every_name: bool) -> dict[str, np.ndarray]:
    """Return tensors under the names of Microsoft's modules."""
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        key = name.removeprefix("model.")
        if key.startswith("multi_modal_projector."):
            key = key.removeprefix("multi_modal_projector.").replace("image_position_embed", "image_pos_embed")
        elif key.startswith("language_model."):
            key = f"language_model.model.{key.removeprefix('language_model.')}"
        elif key.startswith("vision_tower.convs"):
            key = key.replace(".conv.", ".proj.")
        else:
            attention = "window_attn" if ".spatial_block." in key else "channel_attn"
            key = re.sub(r"\.(conv\d)\.", r".\1.fn.dw.", key)
            key = key.replace(f".{attention}.", f".{attention}.fn.").replace(".ffn.", ".ffn.fn.net.")
            key = key.replace(".norm1.", f".{attention}.norm.").replace(".norm2.", ".ffn.norm.")
        found[key] = tensor
    found["image_projection"] = np.ascontiguousarray(found.pop("image_projection.weight").T)
    found["language_model.final_logits_bias"] = np.zeros((1, ROWS), np.float32)
    table = found.pop("language_model.model.shared.weight")
    if every_name:
        names = ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
        return found | {f"language_model.{name}.weight": table.copy() for name in names}
    return found | {"language_model.lm_head.weight": table}  # of one table, the first name by the alphabet


@pytest.mark.parametrize(("number", "dialect"), [(0, "contrib"), (1, "portable")])
def test_the_graphs_are_those_of_transformers_layout_byte_by_byte(
    exported: Callable[[int, str], Exported], number: int, dialect: str
) -> None:
    *bundles, said = exported(number, dialect)
    plain, authors = (bundle.manifest for bundle in bundles)
    assert authors.components == plain.components
    assert authors.eos_token_ids == plain.eos_token_ids
    for name in (*(part.file for part in plain.components.values()), "preprocessor.json"):
        assert authors.files[name] == plain.files[name], name
        assert authors.files.get(f"{name}.data") == plain.files.get(f"{name}.data"), name
    assert [line for line in said if "no_repeat_ngram_size 3 is left out" in line]


def test_tokens_are_those_that_the_processor_adds(
    both: tuple[Path, Path], exported: Callable[[int, str], Exported]
) -> None:
    """Held to transformers' tokenizer with the tokens added to it, and to ids: 4 marks, 1000 places, 20 marks."""
    from transformers import PreTrainedTokenizerFast

    _, bundle, _ = exported(0, "contrib")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(both[1] / "tokenizer.json"))
    theirs.add_special_tokens({"additional_special_tokens": ADDED})
    ours = Tokenizer.from_file(bundle.path(TOKENIZER))
    assert ours.token_id("<loc_0>") == 264
    assert ours.token_id("<loc_999>") == 1263
    assert ours.token_id("<and>") == ROWS - 1
    answer = "</s><s>cat<loc_3><loc_40><loc_999><loc_0><poly><loc_1></poly><sep>"
    ids = theirs(answer, add_special_tokens=False)["input_ids"]
    assert ours.encode(answer) == ids
    assert ours.decode(ids) == "cat<loc_3><loc_40><loc_999><loc_0><poly><loc_1></poly><sep>"
    builder, reader = PromptBuilder.from_bundle(bundle), QuestionReader.from_bundle(bundle)
    assert reader is not None
    assert builder.build([Turn("user", (Placeholder.IMAGE, "<OD>"))], [TileLayout()]).token_ids.tolist() == [258, 256]
    for text, question in (
        ("<OD>", "Locate the objects with category name in the image."),
        ("<REGION_TO_CATEGORY><loc_52><loc_332>", "What is the region <loc_52><loc_332>?"),
    ):
        assert list(reader.ids([Turn("user", (text,))])) == theirs(question)["input_ids"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"embed_dim": [8]}, "vision_config has dim_embed, embed_dim, model_type: Microsoft's layout says dim_embed"),
        ({"dim_embed": None}, "take config.json and weights of one repository"),
        ({"image_pos_embed": {"type": "sine"}}, "image_pos_embed of type 'sine'"),
        ({"visual_temporal_embedding": None}, "visual_temporal_embedding of type None"),
        ({"image_feature_source": ["last_frame"]}, r"image_feature_source \['last_frame'\]"),
    ],
)
def test_mixtures_and_other_settings_are_refused_by_name(
    both: tuple[Path, Path], changes: dict[str, Any], named: str
) -> None:
    config = json.loads((both[1] / "config.json").read_text())
    tower = {**config["vision_config"], **changes}
    config["vision_config"] = {key: value for key, value in tower.items() if key != "dim_embed" or value is not None}
    with pytest.raises(UnsupportedConfigError, match=named):
        load_family(config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("transformers", "no image_projection: its config.json is of Microsoft's layout"),
        ("biases", "language_model.final_logits_bias is not 0 everywhere"),
        ("head", "lm_head.weight differs from model.language_model.shared.weight"),
    ],
)
def test_other_weights_are_refused_by_name(both: tuple[Path, Path], change: str, named: str, tmp_path: Path) -> None:
    plain, authors = both
    folder = Path(shutil.copytree(authors, tmp_path / "broken"))
    tensors = load_file(folder / "model.safetensors")
    if change == "transformers":
        tensors = load_file(plain / "model.safetensors")
    elif change == "biases":
        tensors["language_model.final_logits_bias"][0, 3] = 1
    else:
        table = tensors["language_model.lm_head.weight"]
        tensors["language_model.model.shared.weight"] = table + np.float32(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    source = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match=named):
        WeightSource(source, load_family(source.config), ())


def test_a_tokenizer_that_leaves_no_rows_for_places_is_refused(both: tuple[Path, Path]) -> None:
    family = load_family(json.loads((both[1] / "config.json").read_text()))
    ids = {str(number): number for number in range(300)}
    with pytest.raises(UnsupportedConfigError, match="the processor adds 1024 behind it; the table has 1284 rows"):
        family.own_tokens(ids)  # type: ignore[attr-defined]
    saved = {token: number for number, token in enumerate([*map(str, range(260)), *ADDED])}
    assert family.own_tokens(saved) == {}  # type: ignore[attr-defined]
    del saved["<and>"]
    assert family.own_tokens(saved) == {"<and>": ROWS - 1}  # type: ignore[attr-defined]
