"""From a folder to an answer with tiny models of every kind: embedded, found, put in order by a second model, asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss", reason="faiss is not installed here")

from bundle.errors import SettingsError
from export.embedding import EmbeddingOptions
from export.exporter import export_checkpoint
from serving.respondents.in_process import BundleRespondent
from serving.retrieval.citing import answered, found, reranked
from serving.retrieval.index import Hit, ImageIndex
from serving.retrieval.updating import update_index

QUERY = "a red"


@pytest.fixture(scope="module")
def folder(image_bytes: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    for number in range(4):
        (place / f"{number}.png").write_bytes(image_bytes(number, 60 + 9 * number, 50))
    return place


@pytest.fixture(scope="module")
def rankers(
    vilt_checkpoint: Path,
    smolvlm_checkpoint: Path,
    colidefics3: Callable[[Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A cross-encoder, a model with a vector for every token, and one with a single vector by a decoder."""
    place = tmp_path_factory.mktemp("rankers")
    export_checkpoint(vilt_checkpoint, place / "pairs", name="pairs")
    checkpoint = colidefics3(place / "checkpoint")
    export_checkpoint(checkpoint, place / "tokens", name="tokens", embedding=EmbeddingOptions("tokens"))
    export_checkpoint(smolvlm_checkpoint, place / "last", name="last", embedding=EmbeddingOptions("last"))
    return {name: place / name for name in ("pairs", "tokens", "last")}


@pytest.mark.parametrize("name", ["pairs", "tokens", "last"])
def test_what_is_found_is_put_in_order_and_asked_about(
    folder: Path, rankers: dict[str, Path], clip_bundle: Path, smolvlm_bundle: Path, tmp_path: Path, name: str
) -> None:
    async def main() -> tuple[list[Hit], list[Hit], list[float]]:
        async with BundleRespondent(clip_bundle, threads=1) as encoder:
            await update_index(tmp_path / "index", folder, encoder, str(clip_bundle), lambda line: None)
            hits = await found(ImageIndex.read(tmp_path / "index"), QUERY, encoder, 4)
        async with BundleRespondent(rankers[name], threads=1) as ranker:
            ordered = await reranked(hits, QUERY, ranker)
            if name == "last":
                (query,) = await ranker.embed([QUERY], "query")
                expected = [float(query @ each) for each in await ranker.embed([hit.path.read_bytes() for hit in hits])]
            else:
                expected = [float((await ranker.scores(QUERY, [hit.path.read_bytes()]))[0]) for hit in hits]
        async with BundleRespondent(smolvlm_bundle, threads=1) as model:
            answer = await answered("Which?", ordered[:1], model, 4)
        assert answer.shown == tuple(ordered[:1])
        return hits, ordered, expected

    hits, ordered, expected = asyncio.run(asyncio.wait_for(main(), 120))
    assert [hit.name for hit in ordered] == [hits[at].name for at in np.argsort(-np.array(expected))]
    np.testing.assert_allclose([hit.score for hit in ordered], sorted(expected, reverse=True), atol=1e-5)


def test_what_makes_no_single_vector_makes_no_index(folder: Path, rankers: dict[str, Path], tmp_path: Path) -> None:
    async def index(bundle: Path) -> None:
        async with BundleRespondent(bundle, threads=1) as respondent:
            await update_index(tmp_path / "index", folder, respondent, str(bundle), lambda line: None)

    with pytest.raises(SettingsError, match="tokens keeps a vector for every token"):
        asyncio.run(index(rankers["tokens"]))
    with pytest.raises(SettingsError, match="pairs scores pairs and makes no vectors"):
        asyncio.run(index(rankers["pairs"]))


def test_another_pooling_or_template_of_one_checkpoint_is_another_model(
    folder: Path, rankers: dict[str, Path], smolvlm_checkpoint: Path, tmp_path: Path
) -> None:
    """Their graphs are the same to the byte."""
    for name, options in (("mean", EmbeddingOptions("mean")), ("plain", EmbeddingOptions("last", template="plain"))):
        export_checkpoint(smolvlm_checkpoint, tmp_path / name, name="last", embedding=options)

    async def main() -> None:
        async with BundleRespondent(rankers["last"], threads=1) as encoder:
            await update_index(tmp_path / "index", folder, encoder, "last", lambda line: None)
        for name in ("mean", "plain"):
            async with BundleRespondent(tmp_path / name, threads=1) as other:
                with pytest.raises(SettingsError, match="those of two models cannot be compared"):
                    await found(ImageIndex.read(tmp_path / "index"), QUERY, other, 4)

    asyncio.run(main())
