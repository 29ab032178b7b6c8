"""The networks that let image tokens leave early: what they learn, how sure they have to be, those that are shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.directory import Bundle, open_bundle
from bundle.visual_exit import VISUAL_EXIT, load_routers
from export.exporter import export_checkpoint

SHIPPED = Path(__file__).parents[2] / "reference" / "checkpoints" / "vlm"
WIDTH = 256


@pytest.fixture(scope="module")
def train_exit() -> Any:
    pytest.importorskip("torch", reason="routers are trained by the [train] extra")
    from reference import train_exit

    return train_exit


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("exit") / "cut"
    export_checkpoint(SHIPPED, folder, segments=[2])
    return open_bundle(folder)


def test_a_router_learns_when_the_answer_stays(train_exit) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(600, 8)).astype(np.float32)
    is_same = features[:, 0] > 0.3
    router = train_exit.train(train_exit.Seen(features, is_same), seed=0)
    leaves = np.array([router.logit(each) > 0 for each in features])
    assert is_same[leaves].mean() > 0.98
    assert leaves.sum() > 0.6 * is_same.sum()
    again = train_exit.train(train_exit.Seen(features, is_same), seed=0)
    np.testing.assert_array_equal(again.out, router.out)


def test_nothing_leaves_where_every_exit_changes_the_answer(train_exit) -> None:
    features = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    router = train_exit.train(train_exit.Seen(features, np.zeros(100, bool)), seed=0)
    assert not any(router.logit(each) > 0 for each in features)


def test_few_exits_on_scenes_set_aside_change_an_answer(train_exit) -> None:
    logits = np.arange(1000, dtype=np.float32)
    is_same = np.ones(1000, bool)
    is_same[[100, 500, 995]] = False
    bar = train_exit._sure(logits, is_same)
    assert (~is_same[logits > bar]).mean() <= 0.01
    assert bar == 0  # 3 of 999 are few


def test_what_is_observed_is_what_leaving_does(train_exit, cut: Bundle) -> None:
    from reference.scenes import calibration
    from runtime.one_request import VisionLanguageRunner

    questions = [*calibration("colour", 3), *calibration("chat", 3)]
    seen = train_exit.observe(VisionLanguageRunner(cut), questions, [2])[2]
    assert seen.features.shape == (6, 2 * WIDTH)
    assert seen.is_same.sum() > 0
    # each half has unit rms
    np.testing.assert_allclose((seen.features.reshape(6, 2, WIDTH) ** 2).mean(axis=2), 1, rtol=1e-3)


def test_shipped_routers_are_of_the_shipped_decoder_and_come_with_its_bundle(cut: Bundle) -> None:
    assert list(load_routers(SHIPPED / VISUAL_EXIT, WIDTH)) == [1, 2, 3]
    assert list(load_routers(cut.path(VISUAL_EXIT), WIDTH)) == [1, 2, 3]
