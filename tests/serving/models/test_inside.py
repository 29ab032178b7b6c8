"""Requests whose image tokens leave inside the decoder, through a whole model; and what a bundle is refused for."""

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from bundle.directory import Bundle, open_bundle, seal
from bundle.errors import ParameterError, SettingsError
from bundle.visual_exit import VISUAL_EXIT, Router, save_routers
from export.exporter import export_checkpoint
from runtime.decoder import TokenGraphs
from serving.models.generative import GenerativeModel
from serving.models.inside import Inside, check_alone
from serving.protocol import KVCompression, Usage, VisionReduction
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=3, max_waiting=8, intra_threads=1, prefill_chunk_tokens=32)
METHODS = ("fastv", "aim-pruning", "aim", "dyvte")


@pytest.fixture(scope="module")
def segmented(smolvlm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle cut behind its first layer, whose router lets everything leave."""
    folder = tmp_path_factory.mktemp("inside") / "tiny-smolvlm"
    export_checkpoint(smolvlm_checkpoint, folder, segments=[1])
    bundle = open_bundle(folder)
    width = bundle.manifest.decoder.hidden_size
    sure = Router(np.zeros((1, 2 * width + 1), np.float32), np.ones(2, np.float32))
    save_routers(folder / VISUAL_EXIT, {1: sure})
    return seal(folder, bundle.manifest)


@pytest.fixture
def model(segmented: Bundle, pool):
    model = GenerativeModel(segmented, SETTINGS, pool)
    model.start()
    yield model
    model.close()


@pytest.fixture
def asked(ask, image_bytes):
    def make(method: str | None, keep: float = 0.25, seed: int = 0, **sampling):
        request = ask(image_bytes(seed), "What is it?", max_tokens=8, ignores_eos=True, temperature=0, **sampling)
        return dataclasses.replace(request, vision=None if method is None else VisionReduction(method, keep))

    return make


def run(main) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


def model_text_rows(usage: Usage, method: str) -> int:
    """Return how many tokens of a prompt are no image's; `aim` read half of the image's before the decoder."""
    return usage.prompt_tokens - (usage.image_tokens // 2 if method == "aim" else usage.image_tokens)


@pytest.mark.parametrize("method", METHODS)
def test_keeping_all_changes_nothing(model, asked, answer, method: str) -> None:
    async def main() -> None:
        plain, kept = await answer(model, asked(None)), await answer(model, asked(method, 1.0))
        assert kept.token_ids == plain.token_ids
        usage = kept.finished.usage
        assert usage.kept_image_tokens == usage.image_tokens == plain.finished.usage.kept_image_tokens

    run(main)


@pytest.mark.parametrize(("method", "share"), [("fastv", 0.25), ("aim-pruning", 0.25), ("aim", 0.25), ("dyvte", 0.0)])
def test_usage_tells_what_the_last_layers_read(model, asked, answer, method: str, share: float) -> None:
    async def main() -> None:
        usage = (await answer(model, asked(method))).finished.usage
        assert usage.image_tokens > 0
        assert usage.kept_image_tokens == usage.image_tokens * share
        assert usage.cached_tokens == 0
        # cut behind the first of three layers: it holds what it read, and the others what went on
        before, after = usage.cache_rows_before, usage.cache_rows_after
        text = model_text_rows(usage, method)
        assert before == usage.prompt_tokens
        assert after == round((before + 2 * (text + usage.kept_image_tokens)) / 3)

    run(main)


def test_aim_is_merging_before_the_decoder_and_pruning_inside(model, asked, answer) -> None:
    async def main() -> None:
        merged, pruned, both = [await answer(model, asked(name)) for name in ("merging", "aim-pruning", "aim")]
        usage = both.finished.usage
        assert usage.image_tokens == merged.finished.usage.image_tokens
        # a quarter is left of both, and a half after merging: what the first layers read, the prompt's tokens tell
        text = pruned.finished.usage.prompt_tokens - usage.image_tokens
        assert usage.prompt_tokens - text == usage.image_tokens / 2
        assert merged.finished.usage.prompt_tokens - text == usage.image_tokens / 4

    run(main)


def test_an_unknown_method_is_told_all_that_there_are(model, asked, answer) -> None:
    async def main() -> None:
        with pytest.raises(ParameterError, match=r"'best' is unknown; .*uniform.*fastv, aim-pruning, aim, dyvte"):
            await answer(model, asked("best"))
        with pytest.raises(ParameterError, match=r"vision\.keep is nan"):
            await answer(model, asked("fastv", float("nan")))

    run(main)


def test_answers_of_many_requests_are_those_of_each_alone(model, asked, answer) -> None:
    requests = [asked(method, keep, seed) for seed, method in enumerate([*METHODS, None]) for keep in (0.5, 0.1)]

    async def main() -> None:
        alone = [await answer(model, request) for request in requests]
        together = await asyncio.gather(*(answer(model, request) for request in requests))
        assert [each.token_ids for each in together] == [each.token_ids for each in alone]
        assert len({each.token_ids for each in alone}) > 4

    run(main)


def test_choices_of_one_reduced_prompt_are_each_its_own(model, asked, answer) -> None:
    async def main() -> None:
        one = await answer(model, asked("fastv"))
        two = [event async for event in model.generate(dataclasses.replace(asked("fastv"), num_choices=2))]
        for index in (0, 1):
            ids = tuple(i for event in two[:-1] if event.index == index for i in event.token_ids)
            assert ids == one.token_ids

    run(main)


def test_text_alone_is_read_whole_and_shares_its_prefix(model, ask, answer) -> None:
    text = "What is red? " * 12

    async def main() -> None:
        request = dataclasses.replace(ask(text, max_tokens=2), vision=VisionReduction("fastv", 0.5))
        await answer(model, request)
        assert (await answer(model, request)).finished.usage.cached_tokens > 0

    run(main)


def test_text_alone_may_have_a_kv_policy_where_images_leave_inside(model, ask, answer) -> None:
    async def main() -> None:
        request = ask("What is red? " * 6, max_tokens=2)
        both = {"vision": VisionReduction("fastv", 0.5), "kv": KVCompression("knorm", 0.5)}
        usage = (await answer(model, dataclasses.replace(request, **both))).finished.usage
        assert usage.cache_rows_after < usage.cache_rows_before

    run(main)


def test_a_bundle_without_segments_says_what_makes_them(smolvlm_bundle: Path) -> None:
    bundle = open_bundle(smolvlm_bundle)
    inside = Inside(bundle, TokenGraphs(bundle, SETTINGS))
    assert inside.choice(VisionReduction("fastv", 1.0)) is None
    with pytest.raises(ParameterError, match=r"'fastv'.*not exported in segments.*--decoder-segments") as raised:
        inside.choice(VisionReduction("fastv", 0.5))
    assert raised.value.param == "vision.method"


def test_a_bundle_without_routers_says_what_trains_them(segmented: Bundle) -> None:
    files = {name: record for name, record in segmented.manifest.files.items() if name != VISUAL_EXIT}
    bare = Bundle(segmented.directory, segmented.manifest.model_copy(update={"files": files}))
    inside = Inside(bare, TokenGraphs(bare, SETTINGS))
    assert inside.choice(VisionReduction("fastv", 0.5)) is not None
    with pytest.raises(ParameterError, match=r"'dyvte' needs routers.*reference\.train_exit"):
        inside.choice(VisionReduction("dyvte", 0.5))


def test_segments_on_a_device_are_refused_by_name(segmented: Bundle) -> None:
    graphs = TokenGraphs(segmented, SETTINGS)
    graphs.segments = ()
    with pytest.raises(ParameterError, match="runs on the CPU alone"):
        Inside(segmented, graphs).choice(VisionReduction("fastv", 0.5))


def test_a_default_that_the_bundle_cannot_keep_is_told_at_the_start(smolvlm_bundle: Path, pool) -> None:
    settings = SETTINGS.model_copy(update={"vision_method": "fastv", "vision_keep": 0.5})
    with pytest.raises(SettingsError, match=r"--vision-method: .*not exported in segments"):
        GenerativeModel(open_bundle(smolvlm_bundle), settings, pool)


def test_a_kv_policy_beside_is_refused(segmented: Bundle) -> None:
    inside = Inside(segmented, TokenGraphs(segmented, SETTINGS))
    vision, policy = VisionReduction("fastv", 0.5), KVCompression("knorm", 0.5)
    check_alone(vision, None, policy)
    check_alone(vision, inside.choice(vision), None)
    with pytest.raises(ParameterError, match=r"'fastv' and kv\.policy 'knorm' both drop"):
        check_alone(vision, inside.choice(vision), policy)
    inside.check_default(SETTINGS)
    both = {"vision_method": "fastv", "vision_keep": 0.5, "kv_policy": "knorm", "kv_budget": 0.5}
    with pytest.raises(SettingsError, match="set one of them"):
        inside.check_default(SETTINGS.model_copy(update=both))


def test_segments_that_compute_something_else_are_found_at_the_start(segmented: Bundle, tmp_path: Path, pool) -> None:
    import shutil

    from bundle.errors import GoldenError
    from graphs.store import open_graph, save_graph

    folder = tmp_path / "broken"
    shutil.copytree(segmented.directory, folder)
    part = segmented.manifest.segments[0]
    model = open_graph(folder / part.file)
    first = next(node for node in model.graph if node.op_type == "RMSNormalization")
    first.attributes["epsilon"] = type(first.attributes["epsilon"])("epsilon", first.attributes["epsilon"].type, 9.0)
    save_graph(model, folder / part.file)
    with pytest.raises(GoldenError, match="logits differs"):
        GenerativeModel(seal(folder, segmented.manifest), SETTINGS, pool)
