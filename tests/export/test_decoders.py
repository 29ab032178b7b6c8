"""Every decoder geometry against transformers: prefill, chunks, ragged batches, decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from export.exporter import export_checkpoint

# float32 sums in another order, on logits whose largest are above 10; an error in a graph makes 1e-1 and more
LOGIT_TOLERANCE = 1e-3
GREEDY_TOKENS = 64
IMAGE_TOKEN = 260


@pytest.fixture(scope="module", autouse=True)
def _torch() -> None:
    """Import torch here, so that collecting takes none."""
    global torch
    import torch


@dataclass(frozen=True)
class Pair:
    """A model in transformers and its bundle's graphs."""

    model: Any
    graphs: Any

    def reference(self, ids: np.ndarray, **more: torch.Tensor) -> np.ndarray:
        """Logits [B, T, V] of ids [B, T], computed without a cache."""
        with torch.no_grad():
            return self.model(input_ids=torch.from_numpy(ids), **more).logits.numpy()


def geometries(checkpoints: ModuleType) -> dict[str, Callable[[Path], None]]:
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    odd = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 24}
    return {
        "six-heads-two-kv-tied": checkpoints.save_smolvlm,
        "untied-biases-wide-heads": lambda folder: checkpoints.save_smolvlm(
            folder,
            checkpoints.smolvlm_config({**odd, "attention_bias": True, "mlp_bias": True}, tie_word_embeddings=False),
        ),
        "llama3-rope": lambda folder: checkpoints.save_smolvlm(
            folder, checkpoints.smolvlm_config({"rope_parameters": llama3, "rms_norm_eps": 1e-3})
        ),
        "linear-rope-all-heads": lambda folder: checkpoints.save_smolvlm(
            folder,
            checkpoints.smolvlm_config(
                {
                    "rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 2.0},
                    "num_key_value_heads": 6,
                }
            ),
        ),
        "llava-llama": checkpoints.save_llava,
        "llava-qwen2": lambda folder: checkpoints.save_llava(folder, checkpoints.llava_config("siglip", "qwen2")),
    }


NAMES = (
    "six-heads-two-kv-tied",
    "untied-biases-wide-heads",
    "llama3-rope",
    "linear-rope-all-heads",
    "llava-llama",
    "llava-qwen2",
)


DIALECTS = ("contrib", "portable")


@pytest.fixture(scope="module", params=[(name, dialect) for name in NAMES for dialect in DIALECTS], ids="-".join)
def pair(
    request: pytest.FixtureRequest,
    checkpoints: ModuleType,
    load_reference: Callable[[Path], Any],
    open_graphs: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    name, dialect = request.param
    folder = tmp_path_factory.mktemp(name)
    geometries(checkpoints)[name](folder / "checkpoint")
    export_checkpoint(folder / "checkpoint", folder / "bundle", dialect=dialect)
    return Pair(load_reference(folder / "checkpoint"), open_graphs(folder / "bundle"))


def random_ids(seed: int, batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, length))


def test_every_geometry_is_listed(checkpoints: ModuleType) -> None:
    assert tuple(geometries(checkpoints)) == NAMES


def test_prefill_gives_the_reference_logits(pair: Pair) -> None:
    ids = random_ids(0, 3, 33)
    found = pair.graphs.decoder(3, 40).step(pair.graphs.embed(ids))
    assert_allclose(found, pair.reference(ids), atol=LOGIT_TOLERANCE)


def test_prefill_with_images_gives_the_reference_logits(pair: Pair) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.standard_normal((2, 3, 32, 32)).astype(np.float32)
    (features,) = pair.graphs.run("vision_encoder", pixel_values=pixels)
    count = pair.graphs.manifest.image_prompt.tokens_per_tile
    assert features.shape[:2] == (2, count)
    ids = random_ids(1, 1, 2 * count + 20)
    ids[0, 3 : 3 + count] = IMAGE_TOKEN
    ids[0, 9 + count : 9 + 2 * count] = IMAGE_TOKEN
    is_tiled = pair.model.config.model_type == "smolvlm"
    images = torch.from_numpy(pixels[None] if is_tiled else pixels)
    found = pair.graphs.decoder(1, ids.shape[1]).step(pair.graphs.embed(ids, features))
    assert_allclose(found, pair.reference(ids, pixel_values=images), atol=LOGIT_TOLERANCE)


def test_prefill_in_chunks_equals_prefill_at_once(pair: Pair) -> None:
    ids = random_ids(2, 1, 40)
    embeds = pair.graphs.embed(ids)
    decoder = pair.graphs.decoder(1, 64)
    found = [decoder.step(embeds[:, start:end]) for start, end in [(0, 17), (17, 18), (18, 33), (33, 40)]]
    assert_allclose(np.concatenate(found, axis=1), pair.reference(ids), atol=LOGIT_TOLERANCE)


def test_ragged_batch_equals_each_row_alone(pair: Pair) -> None:
    """Prefill padded on the right, then decode at three different lengths at once."""
    lengths = np.array([5, 21, 12])
    ids = random_ids(3, 3, 30)
    decoder = pair.graphs.decoder(3, 32)
    embeds = pair.graphs.embed(ids)
    first = decoder.step(embeds[:, :21], lengths)
    steps = [decoder.step(np.stack([embeds[row, [lengths[row] + step]] for row in range(3)])) for step in range(4)]
    for row, length in enumerate(lengths):
        expected = pair.reference(ids[row : row + 1, : length + 4])[0]
        found = np.concatenate([first[row, :length], *(step[row] for step in steps)])
        assert_allclose(found, expected, atol=LOGIT_TOLERANCE)


@pytest.mark.parametrize("pair", [(name, "portable") for name in NAMES], ids=NAMES, indirect=True)
def test_portable_decoder_appends_several_tokens_to_several_sequences(pair: Pair) -> None:
    """What GroupQueryAttention cannot do (docs/bundle-format.md)."""
    lengths = np.array([6, 13])
    ids = random_ids(7, 2, 24)
    embeds = pair.graphs.embed(ids)
    decoder = pair.graphs.decoder(2, 24)
    decoder.step(embeds[:, :13], lengths)
    found = decoder.step(np.stack([embeds[row, length : length + 5] for row, length in enumerate(lengths)]))
    for row, length in enumerate(lengths):
        expected = pair.reference(ids[row : row + 1, : length + 5])[0, length:]
        assert_allclose(found[row], expected, atol=LOGIT_TOLERANCE)


def test_greedy_decoding_gives_the_reference_tokens(pair: Pair) -> None:
    """Or one whose logit is as high: which of two such is the largest, the order of a sum decides."""
    ids = random_ids(4, 1, 12)
    decoder = pair.graphs.decoder(1, 12 + GREEDY_TOKENS)
    logits = decoder.step(pair.graphs.embed(ids))
    for _ in range(GREEDY_TOKENS):
        token = int(logits[0, -1].argmax())
        expected = pair.reference(ids)[0, -1]
        assert expected[token] > expected.max() - 2 * LOGIT_TOLERANCE
        ids = np.append(ids, [[token]], axis=1)
        if ids.shape[1] < decoder.capacity:
            logits = decoder.step(pair.graphs.embed(ids[:, -1:]))
    # a decoder that repeats one token would agree however wrong its positions and cache
    assert len(set(ids[0, 12:].tolist())) > 10


def test_positions_turn_the_rotary_embedding_and_nothing_else(pair: Pair) -> None:
    """Logical positions with gaps, as after pruning, while the cache's rows have none."""
    ids = random_ids(5, 1, 24)
    positions = np.sort(np.random.default_rng(5).choice(200, 24, replace=False))[None]
    embeds = pair.graphs.embed(ids)
    decoder = pair.graphs.decoder(1, 24)
    found = [
        decoder.step(embeds[:, start:end], positions=positions[:, start:end]) for start, end in [(0, 23), (23, 24)]
    ]
    expected = pair.reference(ids, position_ids=torch.from_numpy(positions))
    assert_allclose(np.concatenate(found, axis=1), expected, atol=LOGIT_TOLERANCE)
    assert np.abs(expected - pair.reference(ids)).max() > 100 * LOGIT_TOLERANCE


def test_logits_come_for_the_rows_asked_for(pair: Pair) -> None:
    ids = random_ids(6, 2, 9)
    decoder = pair.graphs.decoder(2, 9)
    every = pair.graphs.decoder(2, 9).step(pair.graphs.embed(ids))
    wanted = np.array([[8, 0, 3], [2, 2, 7]])
    logits, *_ = pair.graphs.run(
        "decoder",
        inputs_embeds=pair.graphs.embed(ids),
        position_ids=np.arange(9)[None].repeat(2, 0),
        past_lengths=np.zeros((1, 2), np.int64),
        logits_indices=wanted,
        **decoder.cache,
    )
    assert_allclose(logits, np.take_along_axis(every, wanted[:, :, None], axis=1), atol=1e-5)
