"""Feed-forwards that image tokens skip, against transformers' model with hooks that make them nothing there.

The reference is the definition of arXiv 2405.16700 (in the authors' code
`onlycontext_skip_ffn`): in the chosen layers, hidden states of perceptual tokens get nothing from the feed-forward, and
attention is as ever.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from bundle.directory import open_bundle
from bundle.errors import ParameterError, QuantizationError, UnsupportedConfigError
from export.exporter import export_checkpoint
from export.skipping import listed_layers
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from quant.visual_tokens.offered import offered_methods
from quant.visual_tokens.skipping import num_skipped
from runtime.cache_shape import cache_shape
from runtime.decoder import Decoder, TokenGraphs
from runtime.feeds import Placed, TokenRun
from runtime.settings import RuntimeSettings

ONE_THREAD = RuntimeSettings(intra_threads=1)
# float32 sums in another order, on logits whose largest are above 10; an error in a graph makes 1e-1 and more
LOGIT_TOLERANCE = 1e-3
IDS = np.random.default_rng(3).integers(0, 200, 12)
IMAGE = slice(3, 9)
LAYERS = [0, 1]


def decoder_of(bundle: Path) -> Decoder:
    opened = open_bundle(bundle, allow_ungated=True)
    return Decoder(TokenGraphs(opened, ONE_THREAD), cache_shape(opened.manifest, 2, 16))


def features_of(width: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((IMAGE.stop - IMAGE.start, width)).astype(np.float32)


def run_of(width: int, num_skipped: int, start: int = 0, end: int = len(IDS)) -> TokenRun:
    """A stretch of a prompt of text around an image."""
    first, last = max(start, IMAGE.start), min(end, IMAGE.stop)
    rows = features_of(width)[first - IMAGE.start : last - IMAGE.start]
    placed = [Placed(first - start, rows, num_skipped)] if first < last else []
    return TokenRun(IDS[start:end], np.arange(start, end), [start], range(end - start), placed)


def expected_logits(model: Any, layers: list[int]) -> np.ndarray:
    """transformers' logits where the feed-forwards of some layers add nothing to image tokens."""
    import torch

    def without_image(module: Any, inputs: Any, output: Any) -> Any:
        output = output.clone()
        output[:, IMAGE] = 0
        return output

    language = next(module for name, module in model.named_modules() if name.endswith(("text_model", "language_model")))
    hooks = [language.layers[layer].mlp.register_forward_hook(without_image) for layer in layers]
    embeds = language.embed_tokens(torch.from_numpy(IDS[None]))
    embeds[:, IMAGE] = torch.from_numpy(features_of(embeds.shape[-1]))
    with torch.no_grad():
        logits = model.lm_head(language(inputs_embeds=embeds).last_hidden_state)
    for hook in hooks:
        hook.remove()
    return logits[0].numpy()


@pytest.fixture(scope="module")
def skipping(checkpoint_of, tmp_path_factory):
    made: dict[tuple[str, str], Path] = {}

    def bundle(family: str, dialect: str = "contrib") -> Path:
        if (family, dialect) not in made:
            made[family, dialect] = folder = tmp_path_factory.mktemp("skipping") / "bundle"
            export_checkpoint(checkpoint_of(family), folder, dialect=dialect, skip_visual=LAYERS)
        return made[family, dialect]

    return bundle


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
@pytest.mark.parametrize("family", ["smolvlm", "llava-siglip-qwen2"])
def test_image_tokens_skip_feed_forwards_as_the_paper_says(skipping, checkpoint_of, load_reference, family, dialect):
    model, decoder = load_reference(checkpoint_of(family)), decoder_of(skipping(family, dialect))
    width = model.config.text_config.hidden_size
    whole = expected_logits(model, [])
    for num, layers in enumerate(([], [1], [0, 1])):  # the last first
        expected = expected_logits(model, layers)
        assert_allclose(decoder.run("prompt", 0, [run_of(width, num)])[0], expected, atol=LOGIT_TOLERANCE)
        assert not layers or np.abs(expected - whole).max() > 100 * LOGIT_TOLERANCE


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
def test_where_nothing_is_skipped_every_logit_is_the_same_bit_for_bit(skipping, bundle_of, dialect) -> None:
    plain, able = decoder_of(bundle_of("smolvlm", dialect)), decoder_of(skipping("smolvlm", dialect))
    width = open_bundle(bundle_of("smolvlm")).manifest.decoder.hidden_size
    assert_array_equal(able.run("prompt", 0, [run_of(width, 0)]), plain.run("prompt", 0, [run_of(width, 0)]))


def test_prompts_of_a_batch_skip_each_on_its_own(skipping) -> None:
    decoder = decoder_of(skipping("smolvlm"))
    width = decoder.graphs.embed_text(IDS).shape[1]
    alone = [decoder.run("prompt", 0, [run_of(width, num)])[0].copy() for num in (0, 2)]
    assert_allclose(decoder.run("prompt", 0, [run_of(width, 0), run_of(width, 2)]), alone, atol=1e-4)


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_a_stretch_of_image_tokens_alone_runs_no_row_of_a_feed_forward(skipping, tmp_path, weights) -> None:
    bundle = skipping("smolvlm")
    if weights != "fp32":
        quantize_bundle(bundle, tmp_path / "small", weights=weights)
        bundle = tmp_path / "small"
    decoder = decoder_of(bundle)
    width = decoder.graphs.embed_text(IDS).shape[1]
    whole = decoder.run("prompt", 0, [run_of(width, 2)])[0].copy()
    cuts = [0, IMAGE.start, IMAGE.start + 1, IMAGE.stop, len(IDS)]
    cut = [decoder.run("prompt", 1, [run_of(width, 2, a, b)])[0].copy() for a, b in pairwise(cuts)]
    # one row more or less a product rounds otherwise; without a row's own numbers it is wrong by 1 and more
    assert_allclose(np.concatenate(cut), whole, atol=LOGIT_TOLERANCE if weights == "fp32" else 0.2)


def test_a_share_says_how_many_layers_are_run_in_full(skipping) -> None:
    manifest = open_bundle(skipping("smolvlm")).manifest
    assert [num_skipped(manifest, keep) for keep in (1, 0.75, 0.5, 0.1)] == [0, 0, 1, 2]
    assert offered_methods(manifest)[-1] == "ima"
    with pytest.raises(ParameterError, match=r"vision\.keep is 0"):
        num_skipped(manifest, 0)


def test_what_cannot_skip_says_so(bundle_of, tmp_path, checkpoint_of, skipping) -> None:
    assert "ima" not in offered_methods(open_bundle(bundle_of("smolvlm")).manifest)
    with pytest.raises(UnsupportedConfigError, match=r"--skip-visual 1,7: the decoder has the layers 0 to 2"):
        export_checkpoint(checkpoint_of("smolvlm"), tmp_path / "a", skip_visual=[1, 7])
    with pytest.raises(UnsupportedConfigError, match="is of a decoder, and the checkpoint's architecture has none"):
        export_checkpoint(checkpoint_of("clip"), tmp_path / "a", skip_visual=[1])
    with pytest.raises(QuantizationError, match="--skip-visual, which is for the CPU alone"):
        quantize_bundle(skipping("smolvlm"), tmp_path / "b", weights="int8", options=Options(target="cuda"))


@pytest.mark.parametrize(("text", "layers"), [("2", [2]), ("2,4,8-11", [2, 4, 8, 9, 10, 11]), ("0-1, 3", [0, 1, 3])])
def test_layers_are_listed_alone_and_in_stretches(text: str, layers: list[int]) -> None:
    assert listed_layers(text) == layers


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-2", "0-99999999999"])
def test_what_lists_no_layers_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedConfigError, match="give layers and stretches of them"):
        listed_layers(text)
