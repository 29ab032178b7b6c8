"""The shipped checkpoints are what their page says: small, half precision, loadable as anyone would, and right."""

from __future__ import annotations

import json
import pathlib

import pytest

torch = pytest.importorskip("torch", reason="checkpoints are loaded by the [train] extra")
pytest.importorskip("transformers", reason="checkpoints are loaded by the [train] extra")

from reference import clip_model, tokenizer  # noqa: E402
from reference.evaluate import CHECKPOINTS, DualEncoder, Reader  # noqa: E402

MAX_BYTES = 20 * 2**20
RESULTS = CHECKPOINTS / "results.json"


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(CHECKPOINTS / "vlm")


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    return DualEncoder(CHECKPOINTS / "clip")


@pytest.mark.parametrize("name", ["vlm", "clip"])
def test_checkpoint_is_small_and_in_half_precision(name: str) -> None:
    from safetensors import safe_open

    path = CHECKPOINTS / name / "model.safetensors"
    with safe_open(path, "pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 - not a mapping
    assert kinds == {"F16"}
    assert path.stat().st_size < MAX_BYTES


def test_vlm_is_a_smolvlm_of_the_stated_shape(reader: Reader) -> None:
    config = reader.model.config
    num_parameters = sum(p.numel() for p in reader.model.parameters())
    assert config.model_type == "smolvlm"
    assert 4_000_000 < num_parameters < 10_000_000
    assert config.text_config.num_key_value_heads < config.text_config.num_attention_heads
    assert config.text_config.max_position_embeddings >= 1024
    assert reader.processor.image_seq_len == 64


# Floors, not the accuracies themselves: forty examples tell a working model from a broken one.
@pytest.mark.parametrize(("task", "floor"), [("colour", 36), ("shape", 36), ("digit", 34), ("exist", 34), ("chat", 34)])
def test_vlm_answers_held_out_questions(reader: Reader, task: str, floor: int) -> None:
    assert reader.score(task, 40, seed=1).num_right >= floor


def test_clip_tells_held_out_shapes_and_colours(encoder: DualEncoder) -> None:
    assert encoder.zero_shot("shape", 40, seed=1).num_right >= 36
    assert encoder.zero_shot("colour", 40, seed=1).num_right >= 36


def test_shipped_tokenizers_are_the_ones_the_scripts_make(reader: Reader, encoder: DualEncoder) -> None:
    assert tokenizer.train().get_vocab() == reader.processor.tokenizer.get_vocab()
    assert clip_model.train_tokenizer().get_vocab() == encoder.processor.tokenizer.get_vocab()


def test_page_states_the_recorded_results() -> None:
    page = (CHECKPOINTS / "README.md").read_text()
    for name, score in json.loads(pathlib.Path(RESULTS).read_text())["scores"].items():
        low, high = score["interval_95"]
        assert f"| {name} | {score['share']:.1%} | {low:.1%} - {high:.1%} | {score['n']} |" in page
