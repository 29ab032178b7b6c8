"""A bundle of profile `dual`: prompts through a W8A8 decoder, single tokens through a low-bit one, over one cache."""

import asyncio
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from bundle.directory import open_bundle, read_manifest, seal
from bundle.errors import BundleFileError, GoldenError
from bundle.form import Form
from bundle.gates import Gate
from bundle.golden import GOLDEN, load_golden, save_golden
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.manifest import Component
from bundle.prompt import Placeholder, PromptBuilder, Turn
from graphs.layers import find_linears
from graphs.store import open_graph, save_graph
from quant.weights.matmul_nbits import MatMulNBits
from quant.weights.w8a8 import PerTokenInt8
from runtime.providers import session_options
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=3, intra_threads=1)
NUM_TOKENS = 24


def write_decoder(bundle: Path, source: Path, component: Component, scheme: str, form: Form) -> Component:
    """Write a decoder's weights in another scheme into a bundle and return its manifest entry."""
    model = open_graph(source)
    passes = {"int8": PerTokenInt8, "int4": MatMulNBits}
    passes[scheme]({linear.name: form for linear in find_linears(model.graph)})(model)
    save_graph(model, bundle / component.file)
    return component.model_copy(update={"scheme": scheme})


@pytest.fixture(scope="module")
def dual_bundle(smolvlm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = Path(shutil.copytree(smolvlm_bundle, tmp_path_factory.mktemp("dual") / "tiny-dual"))
    manifest = read_manifest(bundle)
    decoder, source = manifest.components["decoder"], smolvlm_bundle / "decoder.onnx"
    decoder = decoder.model_copy(update={"phase": "step"})
    prompts = decoder.model_copy(update={"file": "decoder_prefill.onnx", "phase": "prompt"})
    components = {
        **manifest.components,
        "decoder": write_decoder(bundle, source, decoder, "int4", Form(4, 16)),
        "decoder_prefill": write_decoder(bundle, source, prompts, "int8", Form(8)),
    }
    # 4 bits of a net with enlarged random weights are far from its fp32 outputs: each graph has a limit of its own
    gates = tuple(
        Gate(name=f"canary_cosine/{name}", value=1, limit=limit, direction="min", n=1, passed=True)
        for name, limit in (("decoder", 0.5), ("decoder_prefill", 0.99))
    )
    seal(bundle, manifest.model_copy(update={"components": components, "gates": gates}))
    return bundle


class Oracle:
    """Greedy answers by plain runs of the graphs, the cache going in and coming back as new arrays."""

    def __init__(self, bundle: Path, prompts: str, steps: str) -> None:
        self._bundle, self._manifest = open_bundle(bundle, allow_ungated=True), read_manifest(bundle)
        self._prompts, self._steps = self._open(prompts), self._open(steps)
        self._embed, self._vision = self._open("embed_tokens.onnx"), self._open("vision_encoder.onnx")

    def _open(self, file: str) -> onnxruntime.InferenceSession:
        options = session_options(onnxruntime, RuntimeSettings(intra_threads=1))
        return onnxruntime.InferenceSession(
            str(self._bundle.directory / file), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, text: str, image: Image.Image | None) -> list[int]:
        builder = PromptBuilder.from_bundle(self._bundle)
        spec = ImageSpec.read(self._bundle.path(PREPROCESSOR))
        parts = (text,) if image is None else (Placeholder.IMAGE, text)
        prepared = None if image is None else spec.preprocess([image])
        layouts = [] if image is None else [spec.layout(*image.size)]
        ids = builder.build([Turn("user", parts)], layouts).token_ids
        embeds = self._embed.run(None, {"input_ids": ids[None]})[0]
        if prepared is not None:
            name = self._vision.get_inputs()[0].name
            features = self._vision.run(None, {name: prepared.pixel_values})[0]
            embeds[0, ids == self._manifest.image_prompt.image_token_id] = features.reshape(-1, features.shape[-1])
        return self._generate(embeds)

    def _generate(self, embeds: np.ndarray) -> list[int]:
        sizes, states = {"B": 1, "S": embeds.shape[1] + NUM_TOKENS}, self._manifest.states
        cache = {s.input: np.zeros([sizes.get(str(size), size) for size in s.shape], np.float32) for s in states}
        past, found = 0, []
        while len(found) < NUM_TOKENS and not set(found) & set(self._manifest.eos_token_ids):
            length = embeds.shape[1]
            session = self._prompts if past == 0 else self._steps
            feeds = {
                "inputs_embeds": embeds,
                "position_ids": np.arange(past, past + length)[None],
                "past_lengths": np.array([[past]]),
                "logits_indices": np.array([[length - 1]]),
                **cache,
            }
            logits, *presents = session.run(["logits", *(state.output for state in states)], feeds)
            cache, past = dict(zip(cache, presents, strict=True)), past + length
            found.append(int(logits[0, -1].argmax()))
            embeds = self._embed.run(None, {"input_ids": np.array([[found[-1]]])})[0]
        return found


PROMPTS = [("What is red?", None), ("What is it?", (70, 50)), ("How many are there, and where?", (33, 90))]


def picture(size: tuple[int, int] | None) -> Image.Image | None:
    if size is None:
        return None
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.fixture(scope="module")
def expected(dual_bundle) -> list[list[int]]:
    oracle = Oracle(dual_bundle, "decoder_prefill.onnx", "decoder.onnx")
    return [oracle(text, picture(size)) for text, size in PROMPTS]


def encoded(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def served(dual_bundle, pool, ask, answer):
    """The function that answers all prompts with a freshly opened model."""

    def answers(settings: EngineSettings) -> list[list[int]]:
        model = GenerativeModel(open_bundle(dual_bundle, allow_ungated=True), settings, pool)
        model.start()

        async def main() -> list[list[int]]:
            requests = [
                ask(*([] if size is None else [encoded(picture(size))]), text, max_tokens=NUM_TOKENS)
                for text, size in PROMPTS
            ]
            return [list((await answer(model, request)).token_ids) for request in requests]

        try:
            return asyncio.run(asyncio.wait_for(main(), 60))
        finally:
            model.close()

    return answers


def test_answers_are_those_of_the_prompt_graph_alone_and_then_the_step_graph_alone(served, expected) -> None:
    assert served(SETTINGS) == expected


@pytest.mark.parametrize("chunk_tokens", [2, 7, 16, 33])
def test_answers_do_not_depend_on_how_the_prompt_is_cut(served, expected, chunk_tokens: int) -> None:
    """Among these are chunks after which one token is left, which no graph for steps may read."""
    assert served(SETTINGS.model_copy(update={"prefill_chunk_tokens": chunk_tokens})) == expected


@pytest.mark.parametrize("file", ["decoder.onnx", "decoder_prefill.onnx"])
def test_neither_graph_alone_gives_these_answers(dual_bundle, expected, file) -> None:
    """Guards the test above: were the two graphs alike, it would pass whichever of them ran."""
    alone = Oracle(dual_bundle, file, file)
    assert [alone(text, picture(size)) for text, size in PROMPTS] != expected


def test_each_graph_is_held_to_its_own_limit_against_the_one_recorded_run(dual_bundle, pool, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(dual_bundle, tmp_path / "swapped"))
    manifest = read_manifest(bundle)
    shutil.copyfile(bundle / "decoder.onnx", bundle / "decoder_prefill.onnx")  # 4-bit weights where 8 are promised
    sealed = seal(bundle, manifest)
    with pytest.raises(GoldenError, match=r"decoder_prefill: output .* at least 0\.99 is expected"):
        GenerativeModel(sealed, SETTINGS, pool)


def test_a_recording_that_lacks_the_decoder_is_refused_by_name(dual_bundle, pool, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(dual_bundle, tmp_path / "unrecorded"))
    recordings = load_golden(bundle / GOLDEN)
    save_golden(bundle, {name: run for name, run in recordings.items() if name != "decoder"})
    with pytest.raises(BundleFileError, match=rf"{GOLDEN} holds no run of decoder"):
        GenerativeModel(seal(bundle, read_manifest(bundle)), SETTINGS, pool)


def test_the_models_card_names_both_schemes(dual_bundle, pool) -> None:
    card = GenerativeModel(open_bundle(dual_bundle, allow_ungated=True), SETTINGS, pool).card
    assert card.schemes["decoder"] == "int4"
    assert card.schemes["decoder_prefill"] == "int8"
