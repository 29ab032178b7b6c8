"""LLaVA, Bunny, TinyLLaVA and FastVLM in their authors' layouts are the bundles of transformers' layout.

A writer of its own puts each tiny checkpoint into the names of the authors' modules; graphs are compared byte by byte.
Prompts are held to the authors' conversation code, written down here once more.
"""

from __future__ import annotations

import asyncio
import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from bundle.directory import Bundle, open_bundle
from bundle.errors import CheckpointError, UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.prompt import Placeholder, PromptBuilder, Turn
from export.architectures import load_family
from export.authors.towers import TOWERS, Tower
from export.authors.translation import grids_of
from export.checkpoint import TOWER_KEY, Checkpoint
from export.exporter import export_checkpoint
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

PAD, BOS, EOS = "<|pad|>", "<|im_start|>", "<end_of_utterance>"
USUAL = [PAD, BOS, EOS, "<fake_token_around_image>"]
ENDS = ["</s>", "<|endoftext|>", "<|im_end|>", "<|end_of_text|>"]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ROWS = 280
FLAT = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head."}
SETTINGS = RuntimeSettings(intra_threads=1)
Tensors: TypeAlias = dict[str, np.ndarray]


def flat(tensors: Tensors) -> Tensors:
    """Return tensors in the names of `LlavaLlamaForCausalLM` and its kin."""
    names = {
        **FLAT,
        "model.language_model.": "model.",
        "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "multi_modal_projector.": "model.mm_projector.",
        "image_newline": "model.image_newline",
    }
    return renamed(tensors, names)


def of_factory(tensors: Tensors) -> Tensors:
    """Return tensors in the names of TinyLLaVA Factory's model."""
    names = {
        "vision_tower.": "vision_tower._vision_tower.vision_model.",
        "multi_modal_projector.linear_1.": "connector._connector.0.",
        "multi_modal_projector.linear_2.": "connector._connector.2.",
    }
    bias = {"language_model.lm_head.bias": np.linspace(-1, 1, ROWS, dtype=np.float32)}
    return renamed(tensors, names) | bias


def of_fastvlm(tensors: Tensors) -> Tensors:
    """Return tensors in the names of Apple's `FastViT`: parts of a sequence, by number."""
    order = ["0.blocks", "1.downsample", "1.blocks", "2.downsample", "2.blocks", "3.downsample", "3.pos_emb"]
    order += ["3.blocks", "4.downsample", "4.pos_emb", "4.blocks"]
    root, found = "model.vision_tower.vision_tower.model.", Tensors()
    for name, tensor in tensors.items():
        key = name.removeprefix("model.vision_tower.timm_model.")
        if key == name:
            found |= renamed({name.removeprefix("model."): tensor}, {"language_model.": "model."})
            continue
        for number, part in enumerate(order):
            key = key.replace(f"stages.{part}.", f"network.{number}.")
        key = key.replace("stem.", "patch_embed.").replace("final_conv.", "conv_exp.").replace(".mlp.", ".convffn.")
        key = key.replace(".se.fc1.", ".se.reduce.").replace(".se.fc2.", ".se.expand.").removesuffix(".gamma")
        if ".proj.0.reparam_conv" in key:
            key = key.replace("reparam_conv", "lkb_reparam")
        found[f"{root}{key}"] = tensor
    projected = {"multi_modal_projector.linear_1.": "model.mm_projector.0."}
    projected |= {"multi_modal_projector.linear_2.": "model.mm_projector.2."}
    found = renamed(found, projected)
    width = found[f"{root}conv_exp.reparam_conv.bias"].shape[0]
    return {**found, f"{root}head.proj": np.ones((width, 3), np.float32)}


def renamed(tensors: Tensors, names: dict[str, str]) -> Tensors:
    found: Tensors = {}
    for name, tensor in tensors.items():
        old = next((old for old in names if name.startswith(old)), "")
        found[names.get(old, "") + name.removeprefix(old)] = tensor
    return found


@dataclass(frozen=True)
class Case:
    """A layout.

    Attributes:
        family: The module of this folder whose checkpoint it is; "": the usual writer's.
        config: Returns that one's config.
        named: Settings of the authors' config beside the decoder's.
        rewritten: Puts its tensors into their names.
        conversation: How their code writes one.
        tower_is_apart: Its weights are in a folder of their own.
    """

    family: str
    config: Callable[[Any, Any], dict[str, Any]]
    named: dict[str, Any]
    rewritten: Callable[[Tensors], Tensors]
    conversation: str
    tower_is_apart: bool = False


def _of_llava(tower: str, text: str, **top: Any) -> Callable[[Any, Any], dict[str, Any]]:
    def config(module: Any, checkpoints: Any) -> dict[str, Any]:
        made: dict[str, Any] = checkpoints.llava_config(tower, text, **top)
        return made

    return config


def _first_of(**top: Any) -> Callable[[Any, Any], dict[str, Any]]:
    return lambda module, checkpoints: {**next(iter(module.geometries().values())), **top}


_PATCHES = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_projector_type": "mlp2x_gelu"}
_SIGLIP = {"mm_vision_tower": "google/tiny-siglip", "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu"}
CASES = {
    "llava": Case(
        "",
        _of_llava("clip", "llama"),
        {"model_type": "llava_llama", "mm_vision_tower": "openai/tiny", "image_aspect_ratio": "pad", **_PATCHES},
        flat,
        "vicuna",
        tower_is_apart=True,
    ),
    "llava-tiles": Case(
        "llava_next",
        _first_of(),
        {
            "model_type": "llava",
            "architectures": ["LlavaLlamaForCausalLM"],
            "mm_vision_tower": "openai/tiny",
            "image_aspect_ratio": "anyres",
            "mm_patch_merge_type": "spatial_unpad",
            "conversation": "chatml_direct",
            **_PATCHES,
        },
        flat,
        "chatml",
    ),
    "llava-one-matrix-mistral": Case(
        "llava_linear",
        _of_llava("clip", "mistral", mm_projector_type="linear", tie_word_embeddings=False),
        {"model_type": "llava_mistral", "mm_vision_tower": "openai/tiny", "mm_vision_select_layer": -2},
        flat,
        "mistral",
    ),
    "bunny": Case(
        "llava_phi",
        _first_of(vision_feature_select_strategy="full"),
        {"model_type": "bunny-phi", "image_aspect_ratio": "pad", **_SIGLIP},
        flat,
        "vicuna-endoftext",
    ),
    "bunny-qwen2": Case(
        "",
        _of_llava("siglip", "qwen2", vision_feature_layer=-2, vision_feature_select_strategy="full"),
        {"model_type": "bunny-qwen2", "image_aspect_ratio": "pad", **_SIGLIP},
        flat,
        "vicuna-endoftext",
    ),
    "bunny-llama": Case(
        "",
        _of_llava("siglip", "llama", vision_feature_layer=-2, vision_feature_select_strategy="full"),
        {"model_type": "bunny-llama", "image_aspect_ratio": "pad", **_SIGLIP},
        flat,
        "vicuna-end_of_text",
    ),
    "onevision": Case(
        "llava_onevision",
        _first_of(vision_feature_layer=-2),
        {
            "model_type": "llava",
            "architectures": ["LlavaQwenForCausalLM"],
            "image_aspect_ratio": "anyres_max_2",
            "mm_patch_merge_type": "spatial_unpad",
            **_SIGLIP,
        },
        flat,
        "qwen_2",
    ),
    "tinyllava": Case(
        "llava_phi",
        _first_of(),
        {
            "model_type": "tinyllava",
            "connector_type": "mlp2x_gelu",
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "patch",
            "image_aspect_ratio": "square",
            "llm_model_name_or_path": "microsoft/phi-2",
            "vision_model_name_or_path": "google/tiny-siglip",
        },
        of_factory,
        "vicuna-endoftext",
    ),
    "tinyllava-bench": Case(
        "llava_phi",
        _first_of(vision_feature_select_strategy="full", vision_feature_layer=-1),
        {"model_type": "tiny_llava_phi", "image_aspect_ratio": "square", "mm_vision_select_layer": -2, **_SIGLIP},
        flat,
        "vicuna-endoftext",
    ),
    "fastvlm": Case(
        "fast_vlm",
        _first_of(),
        {
            "model_type": "llava_qwen2",
            "mm_vision_tower": "mobileclip_l_128",
            "mm_projector_type": "mlp2x_gelu",
            "mm_patch_merge_type": "flat",
            "image_aspect_ratio": "pad",
        },
        of_fastvlm,
        "qwen_2",
    ),
}


@dataclass(frozen=True)
class Pair:
    """One model twice.

    Attributes:
        plain: Its folder in transformers' layout.
        authors: In the authors'.
        conversation: As of `Case`.
    """

    plain: Path
    authors: Path
    conversation: str

    @functools.cached_property
    def bundles(self) -> tuple[Bundle, Bundle]:
        """Of both."""
        folders = [folder.with_name(f"bundle-{folder.name}") for folder in (self.plain, self.authors)]
        for source, folder in zip((self.plain, self.authors), folders, strict=True):
            export_checkpoint(source, folder, name="tiny", overwrite=True)
        return open_bundle(folders[0]), open_bundle(folders[1])


@pytest.fixture(scope="module")
def pair_of(families: dict[str, Any], checkpoints: Any, tmp_path_factory: Any) -> Callable[[str], Pair]:
    """Return a layout's pair of folders, made once."""

    @functools.cache
    def pair(name: str) -> Pair:
        case, folder = CASES[name], tmp_path_factory.mktemp("authors")
        module = families.get(case.family)
        config = case.config(module, checkpoints)
        config["text_config"] = config["text_config"] | {"vocab_size": ROWS}
        (checkpoints.save_llava if module is None else module.save)(folder / "plain", config)
        _write(case, folder / "plain", folder / "authors", checkpoints)
        return Pair(folder / "plain", folder / "authors", case.conversation)

    return pair


@pytest.fixture(autouse=True)
def tiny_towers(monkeypatch: pytest.MonkeyPatch, families: dict[str, Any], checkpoints: Any) -> None:
    """Let the names of these checkpoints stand for towers of their size."""
    tower, side = checkpoints.llava_config("siglip", "phi")["vision_config"], checkpoints.TILE_PX
    images = {"image_processor_type": "SiglipImageProcessor", "size": {"height": side, "width": side}}
    half = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
    monkeypatch.setitem(TOWERS, "tiny-siglip", Tower(tower, {**images, **half}))  # type: ignore[arg-type]
    tiny = next(iter(families["fast_vlm"].geometries().values()))["vision_config"]
    monkeypatch.setattr("export.authors.fastvlm.TOWER", tiny)


def _write(case: Case, plain: Path, folder: Path, checkpoints: Any) -> None:
    folder.mkdir()
    config = json.loads((plain / "config.json").read_text())
    text, tower = config["text_config"], config["vision_config"]
    if case.named["model_type"] == "tinyllava":
        stated = {"text_config": text, "vision_config": tower, **case.named}
    else:
        stated = {**text, "tie_word_embeddings": config["tie_word_embeddings"], **case.named}
    if "image_grid_pinpoints" in config:
        stated["image_grid_pinpoints"] = [[width, height] for height, width in config["image_grid_pinpoints"]]
    checkpoints.write_json(folder / "config.json", stated)
    tensors = case.rewritten(load_file(plain / "model.safetensors"))
    if tower["model_type"] == "clip_vision_model":
        _write_tower(case, folder / "vision_tower", tower, tensors, checkpoints)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoints.save_byte_tokenizer(folder, [*USUAL, *ENDS], pad_token=PAD, eos_token=EOS)


def _write_tower(case: Case, folder: Path, tower: dict[str, Any], tensors: Tensors, checkpoints: Any) -> None:
    """Write what openai's repository of a CLIP holds, as far as it is of images; weights where they are apart."""
    folder.mkdir()
    checkpoints.write_json(folder / "config.json", {"model_type": "clip", "vision_config": tower})
    side = tower["image_size"]
    images = {"feature_extractor_type": "CLIPFeatureExtractor", "size": side, "crop_size": side, "do_center_crop": True}
    colours = {"image_mean": checkpoints.CLIP_MEAN, "image_std": checkpoints.CLIP_STD}
    checkpoints.write_json(folder / "preprocessor_config.json", {**images, **colours, "resample": 3})
    if case.tower_is_apart:
        root = "model.vision_tower.vision_tower."
        own = {name.removeprefix(root): tensors.pop(name) for name in list(tensors) if name.startswith(root)}
        own |= {"text_model.final_layer_norm.weight": np.ones(8, np.float32), "logit_scale": np.ones((), np.float32)}
        save_file(own, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", CASES)
def test_the_graphs_are_those_of_transformers_layout_byte_by_byte(name: str, pair_of: Callable[[str], Pair]) -> None:
    plain, authors = (bundle.manifest for bundle in pair_of(name).bundles)
    assert name == "tinyllava" or authors.components == plain.components
    for kind, part in plain.components.items():
        if (name, kind) == ("tinyllava", "decoder"):  # whose scores have biases
            continue
        for file in (part.file, f"{part.file}.data"):
            assert authors.files.get(file) == plain.files.get(file), file


def test_scores_of_tinyllavas_phi_have_biases(pair_of: Callable[[str], Pair]) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 70, 3), np.uint8))
    plain, authors = (VisionLanguageRunner(bundle, SETTINGS) for bundle in pair_of("tinyllava").bundles)
    prompt = authors.prompt([Turn("user", (Placeholder.IMAGE, "What is in it?"))], [image])
    scores = [each.answer_logits(prompt, [5, 6, 7]) for each in (plain, authors)]
    np.testing.assert_allclose(scores[1] - scores[0], np.tile(np.linspace(-1, 1, ROWS), (3, 1)), atol=1e-4)


def _asked(roles: tuple[str, ...] = ("user",)) -> list[tuple[str, list[str]]]:
    """Return messages, "" where an image stands."""
    said = {
        "system": ["Be brief."],
        "user": ["", "What is in it?"],
        "assistant": ["A cat."],
        "again": ["Which colour?"],
    }
    return [("user" if role == "again" else role, said[role]) for role in roles]


CONVERSATIONS = [
    _asked(),
    _asked(("system", "user")),
    _asked(("user", "assistant", "again")),
    [("user", ["2 + 2?"])],
]


@pytest.mark.parametrize("name", CASES)
def test_prompts_are_what_the_authors_code_makes(name: str, pair_of: Callable[[str], Pair]) -> None:
    pair = pair_of(name)
    bundle = pair.bundles[1]
    cut = Tokenizer.from_file(str(pair.authors / "tokenizer.json"))
    _hold_to_reference(bundle, pair.conversation, cut, None)


def _hold_to_reference(bundle: Bundle, style: str, tokenizer: Tokenizer, bos_id: int | None) -> None:
    builder, spec = PromptBuilder.from_bundle(bundle), ImageSpec.read(bundle.path(PREPROCESSOR))
    prompt = bundle.manifest.image_prompt
    assert prompt is not None
    layout = spec.layout(70, 40)
    for messages in CONVERSATIONS:
        turns = [Turn(role, tuple(part or Placeholder.IMAGE for part in parts)) for role, parts in messages]
        shown = [layout] * sum(parts.count("") for _, parts in messages)
        text = written(style, [(role, "".join(part or "<image>\n" for part in parts)) for role, parts in messages])
        ids: list[int] = []
        for place, chunk in enumerate(text.split("<image>")):
            cut = tokenizer.encode(chunk).ids
            ids += [prompt.image_token_id] * prompt.num_tokens(layout) if place else []
            ids += cut[1:] if place and bos_id is not None else cut
        assert builder.build(turns, shown).token_ids.tolist() == ids, (style, messages)


def written(style: str, messages: list[tuple[str, str]]) -> str:
    """Return a prompt as `Conversation.get_prompt` makes it; an own system message takes the place of the usual one."""
    system = {"chatml": "Answer the questions.", "qwen_2": "You are a helpful assistant.", "mistral": ""}
    own, *rest = messages if messages[0][0] == "system" else [("system", system.get(style, SYSTEM)), *messages]
    if style in ("chatml", "qwen_2"):
        behind = "<|im_end|>" + ("\n" if style == "qwen_2" else "")
        said = "".join(f"<|im_start|>{role}\n{text}{behind}" for role, text in [own, *rest])
        return f"{said}<|im_start|>assistant\n"
    if style == "mistral":
        said = ""
        for at, (role, text) in enumerate(rest):
            before = f"<<SYS>>\n{own[1]}\n<</SYS>>\n\n" if at == 0 and own[1] else ""
            said += f"[INST] {before}{text} [/INST]" if role == "user" else f" {text} </s>"
        return said
    end = {"vicuna-endoftext": "<|endoftext|>", "vicuna-end_of_text": "<|end_of_text|>"}.get(style, "</s>")
    said = "".join(f"USER: {text} " if role == "user" else f"ASSISTANT: {text}{end}" for role, text in rest)
    return f"{own[1]} {said}ASSISTANT:"


def test_tinyllavas_image_stands_before_all_of_a_message(pair_of: Callable[[str], Pair]) -> None:
    """`Template._prompt` cuts it out, strips the question and writes it again at the front."""
    bundle = pair_of("tinyllava").bundles[1]
    builder, spec = PromptBuilder.from_bundle(bundle), ImageSpec.read(bundle.path(PREPROCESSOR))
    orders = [("  What is ", Placeholder.IMAGE, "in it?\n"), (Placeholder.IMAGE, "What is in it?")]
    first, second = (builder.build([Turn("user", parts)], [spec.layout(70, 40)]) for parts in orders)
    assert first.token_ids.tolist() == second.token_ids.tolist()
    alone = builder.build([Turn("user", (" 2 + 2? ",))], []).token_ids
    assert builder.tokenizer.decode(alone.tolist()).endswith("USER:  2 + 2?  ASSISTANT:")


def test_texts_around_an_image_begin_as_texts_do(pair_of: Callable[[str], Pair], tmp_path: Path) -> None:
    """Of a vocabulary that puts a blank before a text, once: each piece of a prompt is a text of its own."""
    folder = Path(shutil.copytree(pair_of("llava").authors, tmp_path / "blanks"))
    letters = ["<unk>", "<s>", "</s>", "▁", *map(chr, range(32, 127)), "\n"]
    tokenizer = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<s>", "</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    export_checkpoint(folder, tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)  # after </s> as well
    _hold_to_reference(bundle, "vicuna", tokenizer, 1)


def test_images_are_padded_by_the_mean_and_scaled(pair_of: Callable[[str], Pair]) -> None:
    bundle = pair_of("llava").bundles[1]
    spec = ImageSpec.read(bundle.path(PREPROCESSOR))
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 70, 3), np.uint8))
    square = Image.new("RGB", (70, 70), (122, 116, 104))
    square.paste(image, (0, 15))
    scaled = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC), np.float32)
    mean, std = (np.array(each, np.float32) for each in (spec.mean, spec.std))
    found = np.concatenate([each.reshape(-1, 3, 32, 32) for each in spec.groups(spec.cut(image))])
    np.testing.assert_allclose(found[0], ((scaled / 255 - mean) / std).transpose(2, 0, 1), atol=1e-5)


def test_a_table_without_a_row_for_the_image_token_gets_one(
    pair_of: Callable[[str], Pair], checkpoints: Any, tmp_path: Path
) -> None:
    """Bunny's of Phi-2 has exactly as many rows as its tokenizer has tokens."""
    pair = pair_of("bunny")
    folder = Path(shutil.copytree(pair.authors, tmp_path / "full"))
    more = [f"<more_{number}>" for number in range(ROWS - 256 - len(USUAL) - len(ENDS))]
    checkpoints.save_byte_tokenizer(folder, [*USUAL, *ENDS, *more], pad_token=PAD, eos_token=EOS)
    export_checkpoint(folder, tmp_path / "bundle", name="tiny")
    bundle, plain = open_bundle(tmp_path / "bundle"), pair.bundles[0].manifest
    prompt, decoder = bundle.manifest.image_prompt, bundle.manifest.decoder
    assert prompt is not None
    assert decoder is not None
    assert (prompt.image_token_id, decoder.vocab_size) == (ROWS, ROWS)
    assert bundle.manifest.files["decoder.onnx.data"] == plain.files["decoder.onnx.data"]
    _hold_to_reference(bundle, "vicuna-endoftext", Tokenizer.from_file(str(folder / "tokenizer.json")), None)
    runner = VisionLanguageRunner(bundle, SETTINGS)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 70, 3), np.uint8))
    asked = runner.prompt([Turn("user", (Placeholder.IMAGE, "What is in it?"))], [image])
    said = runner.reply_ids(runner.prefill(asked, 8), 8)
    assert max(said) < ROWS
    assert asyncio.run(_served(bundle, image)) == [said] * 2


async def _served(bundle: Bundle, image: Image.Image) -> list[list[int]]:
    """Return what two requests at once are answered, the same image in both."""
    settings, file = EngineSettings(max_sequences=2, intra_threads=1), BytesIO()
    image.save(file, "PNG")
    content = (ImagePart(file.getvalue()), TextPart("What is in it?"))
    request = GenerateRequest("r", "tiny", (Message("user", content),), SamplingParams(max_tokens=8, temperature=0.0))
    pool = PreprocessPool(settings)
    model = GenerativeModel(bundle, settings, pool)
    model.start()

    async def answer() -> list[int]:
        events = [event async for event in model.generate(request)]
        tokens = [token for event in events[:-1] for token in event.token_ids]
        return [token for token in tokens if token not in bundle.manifest.eos_token_ids]

    try:
        return list(await asyncio.gather(answer(), answer()))
    finally:
        model.close()
        pool.close()


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("llava", {"mm_vision_select_feature": "cls"}, "mm_vision_select_feature 'cls'"),
        ("llava", {"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type 'mlp3x_gelu'"),
        ("llava", {"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ("llava", {"s2": True}, "s2 "),
        ("llava", {"conversation": "mpt"}, "conversation 'mpt'; built are vicuna_v1"),
        ("llava", {"image_aspect_ratio": "anyres"}, "'anyres' with mm_patch_merge_type 'flat'"),
        ("llava", {"mm_patch_merge_type": "spatial_unpad"}, "'pad' with mm_patch_merge_type 'spatial_unpad'"),
        ("llava-tiles", {"image_grid_pinpoints": "336"}, "pairs of width and height"),
        ("llava", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llava", {"mm_vision_tower": "google/unknown"}, "put the tower's config.json, preprocessor_config.json"),
        ("bunny", {"use_s2": True}, "use_s2"),
        ("bunny", {"mm_vision_tower": "openai/clip-vit-large-patch14"}, "of Bunny's towers SigLIP is built"),
        ("bunny", {"mm_projector_type": "ldp"}, "mm_projector_type 'ldp'"),
        ("onevision", {"mm_resampler_type": "qformer"}, "mm_resampler_type"),
        ("llava-tiles", {"mm_resampler_type": "spatial_pool"}, "mm_resampler_type"),
        ("onevision", {"mm_spatial_pool_mode": "average"}, "mm_spatial_pool_mode"),
        ("onevision", {"mm_newline_position": "grid"}, "mm_newline_position"),
        ("onevision", {"image_aspect_ratio": "highres"}, "image_aspect_ratio 'highres'"),
        ("onevision", {"image_grid_pinpoints": None}, "pairs of width and height"),
        ("tinyllava", {"text_config": {"model_type": "openelm"}}, "text_config.model_type 'openelm'"),
        ("tinyllava", {"connector_type": "resampler"}, "mm_projector_type 'resampler'"),
        ("tinyllava", {"vision_model_name_or_path": "facebook/dinov2-large"}, "'dinov2-large'"),
        ("fastvlm", {"mm_vision_tower": "mobileclip_l_1000"}, "a side of whole 64 pixels"),
        ("fastvlm", {"mm_projector_type": "linear"}, "mm_projector_type"),
        ("fastvlm", {"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
        ("fastvlm", {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "s2": True}, "s2"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    name: str, changes: dict[str, Any], named: str, pair_of: Callable[[str], Pair]
) -> None:
    config = Checkpoint.open(pair_of(name).authors).config
    if "mm_vision_tower" in changes:
        config.pop(TOWER_KEY, None)
    with pytest.raises(UnsupportedConfigError, match=named):
        load_family({**config, **changes})


def test_a_span_of_grids_is_written_out_as_the_authors_code_does() -> None:
    assert grids_of("(1x1),...,(2x3)", 384) == [
        [384, 384],
        [768, 384],
        [1152, 384],
        [384, 768],
        [768, 768],
        [1152, 768],
    ]
    assert grids_of("[(336, 672), (672, 336)]", 336) == [[672, 336], [336, 672]]


def test_pictures_of_onevision_take_as_many_tokens_as_in_transformers_layout(pair_of: Callable[[str], Pair]) -> None:
    plain, authors = pair_of("onevision").bundles
    prompts = [bundle.manifest.image_prompt for bundle in (plain, authors)]
    specs = [ImageSpec.read(bundle.path(PREPROCESSOR)) for bundle in (plain, authors)]
    for size in ((70, 37), (33, 90), (300, 100), (64, 64)):
        ours, theirs = (spec.layout(*size) for spec in specs)
        assert prompts[0] is not None
        assert prompts[1] is not None
        assert prompts[0].num_tokens(ours) == prompts[1].num_tokens(theirs), size


def test_a_tower_that_is_nowhere_is_asked_for(pair_of: Callable[[str], Pair], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair_of("llava").authors, tmp_path / "alone"))
    shutil.rmtree(folder / "vision_tower")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "./checkpoints/a/tower"}))
    with pytest.raises(CheckpointError, match=r"no weights of its tower, mm_vision_tower './checkpoints/a/tower'"):
        export_checkpoint(folder, tmp_path / "bundle")
