"""KV policies as a request meets them: what is refused by name, what `usage` tells, and that answers are their own."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from bundle.directory import Bundle, open_bundle
from bundle.errors import ParameterError, SettingsError
from quant.kv.table import POLICIES
from serving.models.generative import GenerativeModel
from serving.models.kv import KVPolicies, compression_of
from serving.protocol import GenerateRequest, ImagePart, KVCompression, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=3, intra_threads=1, prefill_chunk_tokens=48)
OF_ONE_GROUP = [name for name, entry in POLICIES.items() if not entry.has_layer_budgets]


@pytest.fixture
def serve(smolvlm_bundle, pool):
    """The function that serves the tiny model with changed settings until the test ends."""
    models = []

    def make(**changes) -> GenerativeModel:
        models.append(GenerativeModel(open_bundle(smolvlm_bundle), SETTINGS.model_copy(update=changes), pool))
        models[-1].start()
        return models[-1]

    yield make
    for model in models:
        model.close()


def chat(image: bytes, kv: KVCompression | None = None, max_tokens: int = 8, **changes) -> GenerateRequest:
    messages = (Message("user", (ImagePart(image), TextPart("what is it, and what stands beside it?"))),)
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    return GenerateRequest("r", "tiny-smolvlm", messages, sampling, kv=kv, **changes)


def run(main) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


def test_usage_tells_rows_before_and_after_and_a_budget_of_one_changes_nothing(serve, answer, image_bytes) -> None:
    model, image = serve(), image_bytes(1)

    async def main() -> None:
        whole = await answer(model, chat(image))
        usage = whole.finished.usage
        assert usage.cache_rows_before == usage.cache_rows_after == usage.prompt_tokens
        for policy in POLICIES:
            same = await answer(model, chat(image, KVCompression(policy, 1.0)))
            assert same.token_ids == whole.token_ids
            assert same.finished.usage.cache_rows_after == usage.prompt_tokens
        for policy in OF_ONE_GROUP:
            small = (await answer(model, chat(image, KVCompression(policy, 0.3)))).finished.usage
            assert small.prompt_tokens == small.cache_rows_before == usage.prompt_tokens
            assert small.cache_rows_after == int(0.3 * usage.prompt_tokens)

    run(main)


def test_the_servers_default_holds_where_a_request_says_nothing(serve, answer, image_bytes) -> None:
    model, image = serve(kv_policy="knorm", kv_budget=0.25), image_bytes(1)

    async def main() -> None:
        usage = (await answer(model, chat(image))).finished.usage
        assert usage.cache_rows_after == int(0.25 * usage.prompt_tokens)
        own = (await answer(model, chat(image, KVCompression("snapkv", 0.5)))).finished.usage
        assert own.cache_rows_after == int(0.5 * usage.prompt_tokens)
        whole = (await answer(model, chat(image, KVCompression("knorm", 1.0)))).finished.usage
        assert whole.cache_rows_after == usage.prompt_tokens

    run(main)


def test_a_crowd_of_policies_says_what_each_says_alone(serve, answer, image_bytes) -> None:
    requests = [
        chat(image_bytes(number % 2), KVCompression(policy, 0.3), max_tokens=12)
        for number, policy in enumerate(OF_ONE_GROUP)
    ]
    requests += [chat(image_bytes(0), max_tokens=12)]

    async def main() -> None:
        alone = serve(prefix_cache=False)
        expected = [(await answer(alone, request)).token_ids for request in requests]
        together = serve()
        found = await asyncio.gather(*(answer(together, request) for request in requests))
        assert [each.token_ids for each in found] == expected
        assert together.gauges["num_requests_running"] == 0
        assert together.gauges["kv_cache_usage_perc"] == 0

    run(main)


def test_each_of_several_choices_is_compressed_and_says_the_same(serve, answer, image_bytes) -> None:
    model = serve()

    async def main() -> None:
        request = chat(image_bytes(1), KVCompression("look-m", 0.3))
        one, three = await answer(model, request), await answer(model, replace(request, num_choices=3))
        assert sorted(three.token_ids) == sorted(3 * one.token_ids)
        assert three.finished.usage.cache_rows_after == one.finished.usage.cache_rows_after

    run(main)


BAD = {
    "an unknown policy": (KVCompression("best", 0.5), "kv.policy", "'best' is unknown; it must be one of random"),
    "a budget of 0": (KVCompression("snapkv", 0.0), "kv.budget", "above 0 and at most 1"),
    "a budget that is no number": (KVCompression("snapkv", float("nan")), "kv.budget", "above 0 and at most 1"),
    "a budget above 1": (KVCompression("snapkv", 1.5), "kv.budget", "above 0 and at most 1"),
    "a budget that keeps no row": (KVCompression("snapkv", 0.001), "kv.budget", "keeps no row; send at least 0.0"),
    "budgets for layers of one group": (KVCompression("vl-cache", 0.5), "kv.policy", "--length-groups"),
}


@pytest.mark.parametrize(("kv", "param", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_done_is_refused_by_name_and_the_next_is_answered(
    serve, answer, image_bytes, kv: KVCompression, param: str, said: str
) -> None:
    model = serve()

    async def main() -> None:
        with pytest.raises(ParameterError) as caught:
            await answer(model, chat(image_bytes(1), kv))
        assert caught.value.param == param
        assert said in str(caught.value)
        assert (await answer(model, chat(image_bytes(1)))).token_ids

    run(main)


def changed(bundle: Bundle, **changes) -> object:
    """Return the manifest of a bundle with what a policy may need changed."""
    manifest = bundle.manifest
    if "queries" in changes:
        parts = {name: part.model_copy(update={"optional_outputs": ()}) for name, part in manifest.components.items()}
        return manifest.model_copy(update={"components": parts})
    states = tuple(state.model_copy(update=changes["states"]) for state in manifest.states)
    return manifest.model_copy(update={"states": states})


LACKING = {
    "queries": ({"queries": False}, "snapkv", "gives no last_queries.*: export the checkpoint again, or take one of"),
    "keys and values": ({"states": {"layer": None, "part": None}}, "knorm", "does not say which of its states"),
    "rows": ({"states": {"kind": "fixed"}}, "knorm", "states of kind fixed"),
    "float32": ({"states": {"dtype": "float16"}}, "knorm", "keeps float16 in its cache"),
}


@pytest.mark.parametrize(("changes", "policy", "said"), LACKING.values(), ids=LACKING)
def test_a_policy_whose_needs_a_bundle_lacks_is_refused_by_name(
    smolvlm_bundle, changes: dict, policy: str, said: str
) -> None:
    manifest = changed(open_bundle(smolvlm_bundle), **changes)
    with pytest.raises(ParameterError) as caught:
        KVPolicies(manifest, SETTINGS).wanted(KVCompression(policy, 0.5))
    assert said in str(caught.value)
    assert policy in str(caught.value)
    assert KVPolicies(manifest, SETTINGS).wanted(KVCompression(policy, 1.0)) is None
    with pytest.raises(SettingsError, match=f"kv_policy {policy}"):
        KVPolicies(manifest, SETTINGS.model_copy(update={"kv_policy": policy, "kv_budget": 0.5}))


def test_policies_without_queries_work_on_bundles_that_give_none(smolvlm_bundle) -> None:
    manifest = changed(open_bundle(smolvlm_bundle), queries=False)
    for policy, entry in POLICIES.items():
        if not entry.needs_queries:
            assert KVPolicies(manifest, SETTINGS).wanted(KVCompression(policy, 0.5)) is not None


def test_on_a_device_rows_stay(smolvlm_bundle) -> None:
    settings = SETTINGS.model_copy(update={"provider": "cuda"})
    with pytest.raises(ParameterError, match="runs on cuda"):
        KVPolicies(open_bundle(smolvlm_bundle).manifest, settings).wanted(KVCompression("knorm", 0.5))


def test_a_budget_that_rounds_to_all_rows_keeps_them() -> None:
    assert compression_of(KVCompression("knorm", 1 - 1e-12), 100) is None
    assert compression_of(None, 100) is None
    assert compression_of(KVCompression("knorm", 0.99), 100).num_kept == 99


def test_a_text_too_short_for_the_servers_budget_is_answered(serve, answer) -> None:
    model = serve(kv_policy="look-m", kv_budget=0.01)

    async def main() -> None:
        short = await answer(model, GenerateRequest("r", "m", (), SamplingParams(max_tokens=3), text="a few"))
        assert 1 == short.finished.usage.cache_rows_after < short.finished.usage.prompt_tokens

    run(main)


def test_an_answer_ends_where_positions_do_however_few_rows_its_prompt_keeps(serve, answer, checkpoints) -> None:
    model = serve(max_sequences=1)
    text, sampling = "a longer text " * 20, SamplingParams(temperature=0.0, ignores_eos=True)

    async def main() -> None:
        request = GenerateRequest("r", "m", (), sampling, text=text, kv=KVCompression("knorm", 0.05))
        usage = (await answer(model, request)).finished.usage
        assert usage.cache_rows_after < usage.prompt_tokens
        assert usage.prompt_tokens + usage.completion_tokens == checkpoints.CONTEXT_TOKENS

    run(main)
