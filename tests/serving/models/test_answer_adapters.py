"""Adapters that requests choose as models, held to bundles of checkpoints that a formula of ours merged them into."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from bundle.directory import read_manifest
from bundle.errors import CheckpointError, ModelNotFoundError, ParameterError, SettingsError, UnsupportedConfigError
from bundle.golden import GOLDEN, load_golden
from bundle.manifest import Manifest
from commands.app import app
from commands.serve import _refuse_early, with_aliases
from export.embedding import EmbeddingOptions
from export.exporter import export_checkpoint
from graphs.store import open_graph, save_graph
from quant.quantizer import quantize_bundle
from quant.scaling.rotation import rotate
from runtime.graph import Graph
from runtime.settings import RuntimeSettings
from serving.api.app import create_app
from serving.models.client import LocalClient
from serving.protocol import (
    M3ID,
    FinishedEvent,
    GenerateRequest,
    Message,
    ModelCard,
    SamplingParams,
    TextPart,
    TokenEvent,
    VisionReduction,
    with_adapters,
)
from serving.settings import ApiSettings, EngineSettings, ServerSettings

SETTINGS = EngineSettings(
    max_sequences=8, intra_threads=1, prefill_chunk_tokens=48, encoder_runtime="onnxruntime", allow_ungated=True
)
GREEDY = {"max_tokens": 12, "temperature": 0.0, "ignores_eos": True}
TEXT = r"model\.text_model\.layers\.\d\."
LAYERS = {
    "words": TEXT + r"(self_attn\.[qkv]_proj|mlp\.down_proj)\.weight",
    "eyes": rf"({TEXT}self_attn\.o_proj|.*vision_model.*(q_proj|fc1)|.*modality_projection.*)\.weight",
}
SCALES: dict[str, dict[str, Any]] = {
    "words": {"r": 4, "lora_alpha": 8},
    "eyes": {"r": 2, "lora_alpha": 3, "use_rslora": True},
}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QUESTION = "What is this, and why is it so large?"


def save_adapter(folder: Path, checkpoint: Path, pattern: str, seed: int, **config: Any) -> Path:
    """Write random matrices for the weights of a checkpoint that a pattern names, as PEFT names them."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        if re.fullmatch(pattern, name):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            sizes = {"A": (config["r"], weight.shape[1]), "B": (weight.shape[0], config["r"])}
            drawn = {part: 0.3 * rng.standard_normal(size) for part, size in sizes.items()}
            tensors |= {f"{stem}.lora_{part}.weight": value.astype(np.float32) for part, value in drawn.items()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


def merged(checkpoint: Path, adapter: Path, folder: Path) -> Path:
    """Write the checkpoint with W + s B A in the place of each W (Hu et al. 2021, section 4.1)."""
    shutil.copytree(checkpoint, folder)
    weights, changes = load_file(folder / "model.safetensors"), load_file(adapter / WEIGHTS)
    config = json.loads((adapter / CONFIG).read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    for key in (key for key in changes if ".lora_A." in key):
        name = key.removeprefix("base_model.model.").replace(".lora_A", "")
        change = scale * changes[key.replace("lora_A", "lora_B")] @ changes[key]
        weights[name] = (weights[name] + change).astype(np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def adapters(smolvlm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of adapters of random weights: of the decoder alone, and of both decoder and vision encoder."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: save_adapter(folder / name, smolvlm_checkpoint, pattern, seed, **SCALES[name])
        for seed, (name, pattern) in enumerate(LAYERS.items(), 1)
    }


@pytest.fixture(scope="module")
def bundles(
    adapters: dict[str, Path], smolvlm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A bundle with both adapters in each dialect, and of each checkpoint with one merged."""
    folder = tmp_path_factory.mktemp("bundles")
    for dialect in ("contrib", "portable"):
        export_checkpoint(smolvlm_checkpoint, folder / dialect, name="tiny-smolvlm", dialect=dialect, adapters=adapters)
    for name, adapter in adapters.items():
        export_checkpoint(merged(smolvlm_checkpoint, adapter, folder / f"{name}-merged"), folder / name, name=name)
    return {name: folder / name for name in ("contrib", "portable", *adapters)}


@pytest.fixture(scope="module")
def expected(bundles: dict[str, Path], smolvlm_bundle: Path, ask, image_bytes) -> dict[str, tuple[int, ...]]:
    """What the base and each merged checkpoint say of an image, and by "NAME 2" of another question."""
    found = {}
    for name, bundle in {"tiny-smolvlm": smolvlm_bundle, "words": bundles["words"], "eyes": bundles["eyes"]}.items():

        async def said(client: LocalClient, model: str = name) -> list[tuple[int, ...]]:
            asked = ask(image_bytes(3), QUESTION, model=model, **GREEDY), ask("and now?", model=model, **GREEDY)
            return [(await whole(client, each))[0] for each in asked]

        found[name], found[f"{name} 2"] = served(bundle, said)
    assert len(set(found.values())) == len(found)
    return found


def served(bundle: Path, main: Callable[[LocalClient], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
    """Return what a coroutine makes of a client over a bundle."""

    async def run() -> Any:
        async with LocalClient([bundle], SETTINGS.model_copy(update=settings)) as client:
            return await asyncio.wait_for(main(client), 60)

    return asyncio.run(run())


async def whole(client: LocalClient, request: GenerateRequest) -> tuple[tuple[int, ...], FinishedEvent]:
    events = [event async for event in client.generate(request)]
    assert isinstance(events[-1], FinishedEvent)
    return tuple(i for event in events if isinstance(event, TokenEvent) for i in event.token_ids), events[-1]


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
def test_each_request_of_a_batch_says_what_its_merged_checkpoint_says(
    bundles, expected, ask, image_bytes, dialect: str
) -> None:
    names = ("words", "tiny-smolvlm", "eyes", "words", "eyes")

    async def main(client: LocalClient) -> None:
        for question, suffix in (((image_bytes(3), QUESTION), ""), (("and now?",), " 2")):
            asked = [ask(*question, model=name, **GREEDY) for name in names]
            together = await asyncio.gather(*(whole(client, each) for each in asked))
            assert [ids for ids, _ in together] == [expected[name + suffix] for name in names]
            for name in names[:3]:
                assert (await whole(client, ask(*question, model=name, **GREEDY)))[0] == expected[name + suffix]

    served(bundles[dialect], main)


def test_no_rows_are_found_of_another_adapter_and_features_of_images_where_the_tower_is_the_same(
    bundles, expected, ask, image_bytes
) -> None:
    async def main(client: LocalClient) -> None:
        told = {}
        for turn in ("first", "again"):
            for name in ("tiny-smolvlm", "words", "eyes"):
                ids, finished = await whole(client, ask(image_bytes(3), QUESTION, model=name, **GREEDY))
                assert ids == expected[name]
                told[turn, name] = finished.usage
        assert [told["first", name].cached_tokens for name in ("tiny-smolvlm", "words", "eyes")] == [0, 0, 0]
        assert all(told["again", name].cached_tokens > 100 for name in ("tiny-smolvlm", "words", "eyes"))
        assert told["first", "words"].cached_image_tokens == told["first", "words"].image_tokens > 0
        assert told["first", "eyes"].cached_image_tokens == 0

    served(bundles["contrib"], main)


def test_prompts_in_chunks_and_choices_and_what_is_preempted_keep_their_adapter(bundles, expected, ask) -> None:
    async def main(client: LocalClient) -> None:
        one = ask("and now?", model="words", **GREEDY)
        sampled = SamplingParams(max_tokens=8, temperature=1.0, seed=5, ignores_eos=True)
        alone = await whole(client, GenerateRequest("a", "words", one.messages, sampled))
        events = [
            each async for each in client.generate(GenerateRequest("b", "words", one.messages, sampled, num_choices=3))
        ]
        first = tuple(i for each in events if isinstance(each, TokenEvent) and not each.index for i in each.token_ids)
        assert first == alone[0]
        held = [ask("and now?", model=name, **GREEDY) for name in ("words", "eyes", "tiny-smolvlm") * 2]
        found = await asyncio.gather(*(whole(client, each) for each in held))
        assert [ids for ids, _ in found] == [expected[f"{each.model} 2"] for each in held]

    served(bundles["contrib"], main, prefill_chunk_tokens=5, kv_memory_bytes=40 << 10, context_tokens=80)


def test_what_an_answer_is_held_against_runs_through_its_adapter(bundles, ask, image_bytes) -> None:
    async def said(client: LocalClient, name: str) -> tuple[int, ...]:
        request = ask(image_bytes(3), QUESTION, model=name, **GREEDY, contrast=M3ID(decay=0.3, confidence=1.0))
        return (await whole(client, request))[0]

    for name in ("words", "eyes"):
        alone = served(bundles[name], lambda client, name=name: said(client, name))
        assert served(bundles["contrib"], lambda client, name=name: said(client, name)) == alone


def test_segments_know_the_adapter(adapters, smolvlm_checkpoint, bundles, ask, image_bytes, tmp_path) -> None:
    export_checkpoint(smolvlm_checkpoint, tmp_path / "cut", name="tiny-smolvlm", adapters=adapters, segments=(1,))
    merged_words = tmp_path / "words-cut"
    export_checkpoint(bundles["words"].parent / "words-merged", merged_words, name="words", segments=(1,))

    async def said(client: LocalClient) -> tuple[int, ...]:
        request = ask(image_bytes(3), QUESTION, model="words", **GREEDY)
        vision = VisionReduction("fastv", 0.5)
        return (await whole(client, GenerateRequest("r", "words", request.messages, request.sampling, vision=vision)))[
            0
        ]

    assert served(tmp_path / "cut", said) == served(merged_words, said)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_variants_round_the_base_alone(bundles, ask, image_bytes, tmp_path, weights: str, expected) -> None:
    quantize_bundle(bundles["contrib"], tmp_path / "variant", weights=weights)
    graph = ir.load(tmp_path / "variant" / "decoder.onnx").graph
    kept = [name for name in graph.initializers if "adapters_" in name]
    assert kept
    assert all(graph.initializers[name].dtype == ir.DataType.FLOAT for name in kept)
    assert any("q_proj+k_proj+v_proj" in name for name in graph.initializers)  # products are joined all the same
    manifest = read_manifest(tmp_path / "variant")
    assert manifest.decoder is not None
    assert manifest.decoder.adapter_names == ("words", "eyes")

    async def main(client: LocalClient) -> list[tuple[int, ...]]:
        asked = [ask(image_bytes(3), QUESTION, model=name, **GREEDY) for name in (manifest.name, "words", "eyes")]
        return [ids for ids, _ in await asyncio.gather(*(whole(client, each) for each in asked))]

    found = served(tmp_path / "variant", main)
    assert len(set(found)) == 3


def test_a_stream_with_adapters_is_turned_and_computes_what_it_did(bundles, tmp_path) -> None:
    """Loud channels are spread over all (quant.scaling.rotation), which adapters read and write as well."""
    model = open_graph(bundles["contrib"] / "decoder.onnx")
    assert rotate(model)
    assert "rotation.in" in model.graph.initializers
    save_graph(model, tmp_path / "decoder.onnx")
    recorded = load_golden(bundles["contrib"] / GOLDEN)["decoder"]
    assert recorded.inputs["adapters"].tolist() == [2]
    found = Graph(tmp_path / "decoder.onnx", RuntimeSettings(intra_threads=1)).run(recorded.inputs)
    np.testing.assert_allclose(found["logits"], recorded.outputs["logits"], atol=1e-3)


def test_a_manifest_whose_graphs_take_no_adapters_is_refused(bundles, smolvlm_bundle) -> None:
    told = read_manifest(bundles["contrib"]).model_dump()
    base = read_manifest(smolvlm_bundle).model_dump()
    with pytest.raises(ValueError, match="takes no adapters, and the manifest says"):
        Manifest.model_validate({**base, "decoder": told["decoder"]})
    twice = {**told["decoder"], "adapters": [told["decoder"]["adapters"][0]] * 2}
    with pytest.raises(ValueError, match="each has a name of its own"):
        Manifest.model_validate({**told, "decoder": twice})


def test_the_commands_take_an_adapter_and_tell_of_those_there_are(bundles, expected, tmp_path) -> None:
    def say(*arguments: str) -> Any:
        return CliRunner().invoke(app, [arguments[0], str(bundles["contrib"]), *arguments[1:]])

    asked = ("and now?", "--max-tokens", "8", "--temperature", "0", "--threads", "1", "--json")
    found = [json.loads(say("run", *asked, *adapter).stdout)["token_ids"] for adapter in ((), ("--adapter", "words"))]
    assert found[0] != found[1] == list(expected["words 2"])[: len(found[1])]
    refused = say("run", *asked, "--adapter", "french")
    assert refused.exit_code == 2
    assert "holds no adapter 'french'; it holds words, eyes" in refused.output
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "and now?", "answer": "x"}) + "\n")
    page = ("-o", str(tmp_path / "page.html"), "--max-tokens", "8", "--threads", "1")
    scored = say("evaluate", str(questions), *page, "--adapter", "words")
    assert scored.exit_code == 0, scored.output
    (reply,) = (tmp_path / "page.replies.jsonl").read_text().splitlines()[-1:]
    assert json.loads(reply)["text"] == json.loads(say("run", *asked, "--adapter", "words").stdout)["text"].strip()
    assert say("evaluate", str(questions), *page, "--adapter", "french").exit_code == 2
    shown = " ".join(say("inspect").stdout.split())
    assert "words (rank 4, 12 linear layers), eyes (rank 2, 8 linear layers, vision)" in shown


def test_adapters_are_models_to_whoever_asks(bundles, image_bytes) -> None:
    async def main(client: LocalClient) -> None:
        served_app = create_app(client, ApiSettings(aliases={"gpt": "words", "o": "tiny-smolvlm:eyes"}))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served_app), base_url="http://test") as http:
            listed = (await http.get("/v1/models")).json()["data"]
            assert [(each["id"], each["parent"], each["root"]) for each in listed] == [
                ("tiny-smolvlm", None, "tiny-smolvlm"),
                ("words", "tiny-smolvlm", "words"),
                ("eyes", "tiny-smolvlm", "eyes"),
                ("gpt", "tiny-smolvlm", "words"),
                ("o", "tiny-smolvlm", "eyes"),
            ]
            assert listed[0]["adapters"] == ["words", "eyes"]
            told = {}
            for model in (None, "tiny-smolvlm", "words", "gpt", "tiny-smolvlm:words", "eyes"):
                body = {"messages": [{"role": "user", "content": "and now?"}], "max_tokens": 8, "temperature": 0}
                answer = await http.post("/v1/chat/completions", json=body | ({"model": model} if model else {}))
                assert answer.status_code == 200, answer.text
                told[model] = answer.json()["choices"][0]["message"]["content"]
                assert answer.json()["model"] == (model or "tiny-smolvlm")
            assert told[None] == told["tiny-smolvlm"] != told["words"] != told["eyes"]
            assert told["words"] == told["gpt"] == told["tiny-smolvlm:words"]
            unknown = await http.post("/v1/chat/completions", json=body | {"model": "french"})
            assert unknown.status_code == 404
            assert unknown.json()["error"]["code"] == "model_not_found"
            assert "served: tiny-smolvlm, words, eyes" in unknown.json()["error"]["message"]
            counted = await http.post("/tokenize", json={"model": "words", "prompt": "and now?"})
            assert counted.json()["count"] > 0
            vectors = await http.post("/v1/embeddings", json={"model": "words", "input": "x"})
            assert vectors.status_code == 400
            metrics = (await http.get("/metrics")).text
            assert 'pocketvlm:request_success_total{finished_reason="length",model_name="words"} 3.0' in metrics
            status = (await http.get("/v1/status")).json()["models"]
            assert [(each["id"], each["adapters"]) for each in status] == [("tiny-smolvlm", ["words", "eyes"])]

    served(bundles["contrib"], main)


def test_prefixes_are_of_one_adapter(bundles, ask, tmp_path) -> None:
    async def main(client: LocalClient) -> None:
        served_app = create_app(client, ApiSettings(prefix_folder=tmp_path))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served_app), base_url="http://test") as http:
            shown = [{"role": "user", "content": "What is snow?"}, {"role": "assistant", "content": "white"}]
            question = {"messages": [{"role": "user", "content": "and now?"}], "max_tokens": 8, "temperature": 0}
            for method in ("plain", "fused"):
                made = {"name": method, "model": "words", "messages": shown, "method": method}
                stored = await http.post("/v1/prefixes", json=made)
                assert stored.status_code == 200, stored.text
                assert stored.json()["model"] == "words"
                said = await http.post("/v1/chat/completions", json=question | {"model": "words", "prefix": method})
                sent = {**question, "model": "words", "messages": [*shown, *question["messages"]]}
                whole_chat = await http.post("/v1/chat/completions", json=sent)
                assert said.json()["choices"][0]["message"] == whole_chat.json()["choices"][0]["message"]
                other = await http.post("/v1/chat/completions", json=question | {"model": "eyes", "prefix": method})
                assert other.status_code == 400
                assert "was made for the model 'words', not 'eyes'" in other.json()["error"]["message"]
        fused = (tmp_path / "fused.prefix").read_bytes().partition(b"\n")[2]
        request = GenerateRequest("r", "eyes", ask("x").messages, SamplingParams(max_tokens=2), behind=fused)
        with pytest.raises(ParameterError, match="or through another adapter"):
            await whole(client, request)
        with pytest.raises(ModelNotFoundError, match="holds no adapter 'french'; it holds words, eyes"):
            await whole(client, GenerateRequest("r", "tiny-smolvlm", ask("x").messages, adapter="french"))
        with pytest.raises(ParameterError, match="is an adapter of tiny-smolvlm"):
            await client.unload("words", 0.0)

    served(bundles["contrib"], main)


def test_a_task_vector_is_found_through_an_adapter_of_output_projections(
    adapters, smolvlm_checkpoint, bundles, ask, tmp_path
) -> None:
    eyes = {"eyes": adapters["eyes"]}
    export_checkpoint(smolvlm_checkpoint, tmp_path / "beside", name="tiny-smolvlm", adapters=eyes, task_vectors=True)
    export_checkpoint(bundles["eyes"].parent / "eyes-merged", tmp_path / "whole", name="eyes", task_vectors=True)
    pairs = [("What is snow?", "white"), ("What is coal?", "black"), ("What is sea?", "blue")]
    turns = [(role, said) for pair in pairs for role, said in zip(("user", "assistant"), pair, strict=True)]
    shown = tuple(Message(role, (TextPart(said),)) for role, said in turns)

    async def learned(client: LocalClient) -> tuple[int, tuple[int, ...]]:
        made = GenerateRequest("r", "eyes", shown, SamplingParams(max_tokens=1), learns=True)
        _, finished = await whole(client, made)
        asked = GenerateRequest("r", "eyes", ask("and now?").messages, SamplingParams(**GREEDY), behind=finished.fused)
        return finished.replaced_heads, (await whole(client, asked))[0]

    assert served(tmp_path / "beside", learned) == served(tmp_path / "whole", learned)


def card(name: str, *adapters: str) -> ModelCard:
    return ModelCard(name, "image-text-to-text", "fake", {}, 0, 64, adapters=adapters)


def test_names_that_two_models_give_are_told_apart() -> None:
    names = [each.name for each in with_adapters([card("m", "a", "b"), card("m-int4", "a"), card("b")])]
    assert names == ["m", "m:a", "m:b", "m-int4", "m-int4:a", "b"]


def test_an_alias_of_a_name_that_two_models_give_is_refused_before_a_port_is_opened(bundles) -> None:
    settings = ServerSettings(engine=SETTINGS)
    names, adapters = _refuse_early([bundles["contrib"]], settings)
    assert with_aliases(settings, names, ["words=gpt"], adapters).api.aliases == {"gpt": "words"}
    twice, adapters = _refuse_early([bundles["contrib"], bundles["portable"]], settings)
    assert with_aliases(settings, twice, ["tiny-smolvlm:words=gpt"], adapters).api.aliases == {
        "gpt": "tiny-smolvlm:words"
    }
    with pytest.raises(SettingsError, match="the alias 'gpt' stands for 'words'; served: tiny-smolvlm"):
        with_aliases(settings, twice, ["words=gpt"], adapters)


def altered(adapter: Path, folder: Path, tensors: dict[str, Any] | None = None, **settings: Any) -> Path:
    shutil.copytree(adapter, folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | settings))
    if tensors:
        save_file(load_file(folder / WEIGHTS) | tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


PAIR = "base_model.model.model.{}.lora_{}.weight"


@pytest.mark.parametrize(
    ("name", "settings", "tensors", "told"),
    [
        ("a", {"use_dora": True}, {}, "use_dora, which cannot be merged: DoRA scales"),
        ("a", {"peft_type": "IA3"}, {}, "is of 'IA3'"),
        ("a", {}, {"base_model.model.lm_head.weight": (4, 4)}, r"lm_head.* is no low-rank change of a linear layer"),
        ("a", {}, {"base_model.model.model.text_model.layers.0.self_attn.q_proj.bias": (48,)}, "is no low-rank change"),
        (
            "a",
            {},
            {PAIR.format("other.q_proj", "A"): (4, 48), PAIR.format("other.q_proj", "B"): (48, 4)},
            "was made for",
        ),
        (
            "a",
            {},
            {
                PAIR.format("text_model.layers.0.self_attn.q_proj", "A"): (4, 64),
                PAIR.format("text_model.layers.0.self_attn.q_proj", "B"): (48, 4),
            },
            "it was made for another model",
        ),
        ("tiny", {}, {}, "the model itself is served as tiny"),
        ("a/../b", {}, {}, "is of no use"),
    ],
)
def test_what_cannot_be_chosen_is_refused(
    adapters, smolvlm_checkpoint, tmp_path, name: str, settings: Any, tensors: Any, told: str
) -> None:
    arrays = {key: np.zeros(size, np.float32) for key, size in tensors.items()}
    adapter = altered(adapters["words"], tmp_path / "adapter", arrays, **settings)
    with pytest.raises((UnsupportedConfigError, CheckpointError), match=told):
        export_checkpoint(smolvlm_checkpoint, tmp_path / "bundle", name="tiny", adapters={name: adapter})


def test_layers_of_a_tower_that_no_graph_reads_are_left_out(checkpoint_of, tmp_path) -> None:
    """LLaVA reads CLIP's last layer but one, and PEFT changes the last one as it changes all."""
    checkpoint = checkpoint_of("llava-clip-llama")
    tower = r".*vision_tower.*layers\.{}\.self_attn\.q_proj\.weight"
    whole_tower = save_adapter(tmp_path / "all", checkpoint, tower.format(r"\d"), 1, r=2, lora_alpha=2)
    manifest = export_checkpoint(checkpoint, tmp_path / "bundle", adapters={"a": whole_tower})
    assert manifest.decoder is not None
    (held,) = manifest.decoder.adapters
    assert held.changes_vision
    last = save_adapter(tmp_path / "last", checkpoint, tower.format(held.num_layers), 1, r=2, lora_alpha=2)
    with pytest.raises(CheckpointError, match="changes nothing that a graph reads"):
        export_checkpoint(checkpoint, tmp_path / "other", adapters={"a": last})


def test_what_adapters_do_not_go_with_is_refused(adapters, smolvlm_checkpoint, tmp_path) -> None:
    both = EmbeddingOptions("last", also_answers=True)
    with pytest.raises(UnsupportedConfigError, match="not of one that does both"):
        export_checkpoint(smolvlm_checkpoint, tmp_path / "b", adapters=adapters, embedding=both)
    with pytest.raises(UnsupportedConfigError, match="--skip-visual"):
        export_checkpoint(smolvlm_checkpoint, tmp_path / "b", adapters=adapters, skip_visual=[1])
