"""Cross-encoders made smaller: what they lose is measured in ranks and scores, and a broken one is caught."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bundle.directory import open_bundle
from bundle.errors import QuantizationError
from bundle.report import read_report
from commands.app import app
from export.exporter import export_checkpoint
from quant.calibration.feeds import FeedSource
from quant.quality.evaluation import Evaluation, Passage
from quant.quality.pairs import asked_of, measure_pairs, rank_correlation
from quant.quantizer import quantize_bundle
from quant.samples.built_in import built_in_samples
from runtime.pair_runner import PairRunner

WORDS = "cat dog boat red two walks sits far near over"
PASSAGES = [
    Passage(f"where is {word}", f"the {word} sits {other}") for word in WORDS.split() for other in ("far", "on")
]


class Captioned:
    def __init__(self, seed: int) -> None:
        self.caption = f"{WORDS.split()[seed % 10]} {seed}"
        random = np.random.default_rng(seed)
        shape = (*random.integers(24, 80, 2), 3)
        self.image = Image.fromarray(random.integers(0, random.integers(20, 256), shape, np.uint8))


CAPTIONS = [Captioned(seed) for seed in range(8)]


@pytest.fixture(scope="module")
def bundles(
    rerankers: ModuleType,
    all_in_one: ModuleType,
    vilt_checkpoint: Path,
    bridgetower_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pairs")
    all_in_one.save(folder / "all_in_one-checkpoint", all_in_one.geometries()["retrieval-three-frames"])
    rerankers.save(folder / "bert-checkpoint", "bert")
    rerankers.save(folder / "modernbert-checkpoint", "modernbert")
    checkpoints = {"vilt": vilt_checkpoint, "bridgetower": bridgetower_checkpoint}
    checkpoints |= {name: folder / f"{name}-checkpoint" for name in ("bert", "modernbert", "all_in_one")}
    for name, checkpoint in checkpoints.items():
        export_checkpoint(checkpoint, folder / name, name=f"tiny-{name}")
    return {name: folder / name for name in checkpoints}


EVALUATION = Evaluation(captions=CAPTIONS, passages=PASSAGES, source="tiny", no_accuracy="they are few")


@pytest.mark.parametrize("name", ["bert", "modernbert", "vilt", "bridgetower", "all_in_one"])
def test_int8_keeps_order_and_scores(name: str, bundles: dict[str, Path], tmp_path: Path) -> None:
    manifest = quantize_bundle(bundles[name], tmp_path / "int8", weights="int8", evaluation=EVALUATION)
    gates = {gate.name: gate for gate in manifest.gates}
    assert {"score_difference", "canary_cosine/pair_encoder"} <= gates.keys()
    assert ("clear_order" in gates) == (name != "bridgetower")  # whose drawn weights prefer no image by that much
    assert all(gate.passed for gate in gates.values()), gates
    assert manifest.components["pair_encoder"].scheme == "int8"
    report = read_report(open_bundle(tmp_path / "int8"))
    assert report.pairs is not None
    assert 0 < report.pairs.score_difference < 0.03


def test_int4_is_had_by_name_and_judged(bundles: dict[str, Path], tmp_path: Path) -> None:
    weights = "int4,pair_encoder=int4"
    manifest = quantize_bundle(bundles["bert"], tmp_path / "int4", weights=weights, evaluation=EVALUATION)
    assert manifest.components["pair_encoder"].scheme == "int4"
    assert {"clear_order", "score_difference"} <= {gate.name for gate in manifest.gates}


def test_a_broken_variant_is_caught(bundles: dict[str, Path]) -> None:
    parent = PairRunner(open_bundle(bundles["bert"]))

    class Reversed:
        def scores(self, query: str, documents: Any) -> Any:
            return -parent.scores(query, documents)

    found = measure_pairs(parent, Reversed(), EVALUATION, lambda line: None, sees=False).pairs  # type: ignore[arg-type]
    assert found is not None
    assert found.rank_correlation == pytest.approx(-1)
    assert found.clear_order == 0
    assert found.score_difference > 0.03
    same = measure_pairs(parent, parent, EVALUATION, lambda line: None, sees=False).pairs
    assert same is not None
    assert (same.rank_correlation, same.score_difference, same.same_first) == (pytest.approx(1), 0, 1)
    assert same.clear_order == 1
    assert same.num_clear > 100


def test_rank_correlation_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    for _ in range(20):
        a, b = random.integers(0, 6, (2, 9)).astype(float)
        assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert rank_correlation(np.ones(3), np.arange(3.0)) is None
    assert rank_correlation(np.arange(3.0), np.ones(3)) == 0


def test_weights_are_fitted_to_pairs(bundles: dict[str, Path]) -> None:
    feeds = FeedSource(open_bundle(bundles["bert"]), EVALUATION).of("pair_encoder")
    assert len(feeds) == 2 * len(PASSAGES)
    assert {"input_ids", "attention_mask", "token_type_ids"} == feeds[0].keys()
    assert "pixel_values" in FeedSource(open_bundle(bundles["vilt"]), EVALUATION).of("pair_encoder")[0]


def test_samples_of_the_other_kind_are_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    for name, given in (("bert", Evaluation(captions=CAPTIONS)), ("vilt", Evaluation(passages=PASSAGES))):
        with pytest.raises(QuantizationError, match="which this cross-encoder is measured on"):
            quantize_bundle(bundles[name], tmp_path / "out", weights="int8", evaluation=given)


def test_built_in_samples_are_questions_and_answers(bundles: dict[str, Path]) -> None:
    halves = [built_in_samples(open_bundle(bundles["bert"]), half) for half in ("calibration", "evaluation")]
    queries = [{each.query for each in half.passages} for half in halves]
    assert min(map(len, queries)) > 20
    assert not queries[0] & queries[1]
    assert len(asked_of(halves[0], sees=False)[0].documents) == 12


def test_a_users_file_of_questions_and_answers_is_read(bundles: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(f'{{"question": "{each.query}", "answer": "{each.document}"}}' for each in PASSAGES))
    arguments = ["quantize", str(bundles["bert"]), "-o", str(tmp_path / "int8"), "--weights", "int8", "--no-tune"]
    done = CliRunner().invoke(app, [*arguments, "--eval", str(file), "--calibration", str(file)])
    assert done.exit_code == 0, done.output
    assert "clear_order" in done.output
