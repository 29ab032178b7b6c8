"""PocketVLM's side of the comparison, on tiny bundles."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from bundle.directory import open_bundle
from loadtests.peers import ours
from loadtests.peers.measures import STEPS, Measure
from loadtests.peers.ours import Embedder, Generative, open_bundle_of, open_encoder
from loadtests.peers.photographs import Photographs
from runtime.decoder import Decoder
from serving.models import vision


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ran, since the fixture was asked for or the list was emptied."""
    seen: list[str] = []
    run_tokens, encode = Decoder._run, vision.encode_images
    monkeypatch.setattr(
        Decoder, "_run", lambda own, *told, **named: (seen.append(told[0]), run_tokens(own, *told, **named))[1]
    )
    monkeypatch.setattr(
        vision, "encode_images", lambda *told, **named: (seen.append("vision"), encode(*told, **named))[1]
    )
    return seen


@pytest.fixture
def generative(smolvlm_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Generative]:
    """With room for a tiny model's context."""
    longest = [ours.Station("prefill", 64), ours.Station("decode", 8, 63)]
    monkeypatch.setattr(ours, "_LONGEST", tuple(longest))
    generative = Generative(smolvlm_bundle, 1, {})
    yield generative
    generative.close()


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (Measure("vision", "vision", 1), ["vision"]),
        (Measure("prefill", "prefill", 16), ["prompt"]),
        (Measure("decode", "decode", 8, 16), ["step"] * STEPS),
    ],
)
def test_what_is_timed_is_as_many_runs_as_are_divided_by(
    generative: Generative, runs: list[str], measure: Measure, expected: list[str]
) -> None:
    work, steps = generative.prepared[measure.kind](measure)
    runs.clear()  # of writing the rows that steps run behind
    work()
    assert runs == expected
    assert steps == len(expected)


def test_an_image_is_new_unless_it_is_asked_for_again(generative: Generative, runs: list[str]) -> None:
    """A repeated one is encoded by the turn that does not count, and then no more."""
    new, again = (Measure(str(said), "first_token", 1, is_repeated=said) for said in (False, True))
    found = []
    for measure in (new, new, again, again):
        work, _ = generative.prepared["first_token"](measure)
        runs.clear()
        work()
        found.append(runs.count("vision"))
    assert found == [1, 1, 1, 0]


def test_a_dual_encoder_encodes_images_in_one_run(bundle_of, runs: list[str]) -> None:  # type: ignore[no-untyped-def]
    folder = bundle_of("siglip")
    assert open_bundle_of(folder, 1, {}).keys() == {"encode", "embed"}
    work, steps = open_encoder(open_bundle(folder), 1, {"encoder_runtime": "onnxruntime"})["encode"](
        Measure("siglip-8", "encode", 8)
    )
    work()
    assert (runs, steps) == (["vision"], 1)


def test_a_dual_encoder_embeds_new_images_each_time(bundle_of, runs: list[str]) -> None:  # type: ignore[no-untyped-def]
    embedder = Embedder(bundle_of("clip"), 1, {"encoder_runtime": "onnxruntime"})
    try:
        for _ in "12":
            work, steps = embedder.embed(Measure("clip-2", "embed", 2))
            runs.clear()
            work()
            assert runs  # were an image known, nothing would be encoded
            assert steps == 1
    finally:
        embedder.close()


def test_photographs_are_jpegs_of_one_size_and_never_the_same() -> None:
    photographs = Photographs()
    files = photographs.take(2) + photographs.take(1)
    assert len(set(files)) == 3
    assert {Image.open(BytesIO(file)).size for file in files} == {(640, 480)}
