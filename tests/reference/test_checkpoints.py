"""The shipped checkpoints are what their page says: small, half precision, loadable as anyone would, and right."""

from __future__ import annotations

import json

import pytest
from PIL import Image, ImageDraw

from commands.shipped import CHECKPOINTS as SHIPPED
from reference.enquiries import Enquiry
from reference.real import held_out as wide
from reference.scenes import held_out

MAX_BYTES = 20 * 2**20
CHECKPOINTS = SHIPPED["vlm"].parent
SAMPLES = CHECKPOINTS.parent / "samples"


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    """Import what loads models here, so that collecting takes none of it."""
    global torch, load_file, clip_model, tokenizer, train_wide, Compared, Matcher, Reader, RealReader
    torch = pytest.importorskip("torch", reason="checkpoints are loaded by the [train] extra")
    pytest.importorskip("transformers", reason="checkpoints are loaded by the [train] extra")

    from safetensors.torch import load_file

    from reference import clip_model, tokenizer, train_wide
    from reference.compare_experts import Compared
    from reference.evaluate import Matcher, Reader
    from reference.evaluate_real import RealReader


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(CHECKPOINTS / "vlm")


@pytest.fixture(scope="module")
def wider() -> RealReader:
    return RealReader(CHECKPOINTS / "vlm-wide", "cpu")


@pytest.fixture(scope="module")
def ternary() -> Reader:
    return Reader(CHECKPOINTS / "vlm-ternary")


@pytest.fixture(scope="module")
def mixture() -> Reader:
    return Reader(CHECKPOINTS / "vlm-mote")


@pytest.fixture(scope="module")
def encoder() -> Matcher:
    return Matcher(CHECKPOINTS / "clip")


@pytest.mark.parametrize("name", ["vlm", "vlm-wide", "vlm-real", "clip"])
def test_checkpoint_is_small_and_in_half_precision(name: str) -> None:
    from safetensors import safe_open

    path = CHECKPOINTS / name / "model.safetensors"
    with safe_open(path, "pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 - not a mapping
    assert kinds == {"F16"}
    assert path.stat().st_size < MAX_BYTES


@pytest.mark.parametrize(
    ("name", "packed", "max_mb"), [("vlm-ternary", "_proj.weight", 4), ("vlm-mote", ".experts.", 12)]
)
def test_ternary_matrices_are_packed_and_all_else_is_in_half_precision(name: str, packed: str, max_mb: int) -> None:
    tensors = load_file(CHECKPOINTS / name / "model.safetensors")
    scales = {key for key in tensors if key.endswith(".weight_scale")}
    for key in tensors.keys() - scales:
        is_packed = packed in key and "text_model" in key
        assert tensors[key].dtype == (torch.uint8 if is_packed else torch.float16), key
        assert (f"{key}_scale" in scales) == is_packed, key
    assert (CHECKPOINTS / name / "model.safetensors").stat().st_size < max_mb * 10**6


def test_shared_experts_are_the_dense_models_layers_unchanged() -> None:
    dense, mixture = (load_file(CHECKPOINTS / name / "model.safetensors") for name in ("vlm", "vlm-mote"))
    feed_forward = [key for key in dense if ".mlp." in key and "text_model" in key]
    assert len(feed_forward) == 3 * 4
    for key in feed_forward:
        assert torch.equal(mixture[key.replace(".mlp.", ".mlp.shared_expert.")], dense[key])


def test_every_expert_is_used(mixture: Reader) -> None:
    examples = [example for task in ("caption", "count", "text") for example in held_out(task, 2, seed=1)]
    layers = [layer.mlp for layer in mixture.model.model.text_model.layers]
    chosen: dict[int, set[int]] = {}

    def note(number: int, logits: torch.Tensor) -> None:
        chosen.setdefault(number, set()).update(logits.argmax(-1).flatten().tolist())

    for number, layer in enumerate(layers):
        layer.router.register_forward_hook(lambda _, __, logits, number=number: note(number, logits))
    mixture.replies(examples, max_new_tokens=2)
    assert chosen == {number: {0, 1, 2, 3} for number in range(4)}


def test_vlm_is_a_smolvlm_of_the_stated_shape(reader: Reader) -> None:
    config = reader.model.config
    num_parameters = sum(p.numel() for p in reader.model.parameters())
    assert config.model_type == "smolvlm"
    assert 4_000_000 < num_parameters < 10_000_000
    assert config.text_config.num_key_value_heads < config.text_config.num_attention_heads
    assert config.text_config.max_position_embeddings >= 1024
    assert reader.processor.image_seq_len == 64


# Floors, not the accuracies themselves: forty examples tell a working model from a broken one.
@pytest.mark.parametrize(("task", "floor"), [("colour", 36), ("shape", 36), ("digit", 34), ("exist", 34), ("chat", 34)])
def test_vlm_answers_held_out_questions(reader: Reader, task: str, floor: int) -> None:
    assert reader.score(task, 40, seed=1).num_right >= floor


@pytest.mark.parametrize("task", ["colour", "digit", "exist", "chat"])
@pytest.mark.parametrize("fixture", ["ternary", "mixture"])
def test_small_experts_and_layers_answer_held_out_questions(
    fixture: str, task: str, request: pytest.FixtureRequest
) -> None:
    assert request.getfixturevalue(fixture).score(task, 20, seed=1).num_right >= 17


def test_clip_tells_held_out_shapes_and_colours(encoder: Matcher) -> None:
    assert encoder.zero_shot("shape", 40, seed=1).num_right >= 36
    assert encoder.zero_shot("colour", 40, seed=1).num_right >= 36


def test_shipped_tokenizers_are_the_ones_the_scripts_make(reader: Reader, encoder: Matcher) -> None:
    assert tokenizer.train().get_vocab() == reader.processor.tokenizer.get_vocab()
    assert clip_model.train_tokenizer().get_vocab() == encoder.processor.tokenizer.get_vocab()


@pytest.mark.slow
def test_the_wider_models_tokenizer_is_the_one_the_script_makes(wider: RealReader) -> None:
    made = tokenizer.train(train_wide.sentences(), train_wide.VOCABULARY_TOKENS)
    assert made.get_vocab() == wider.processor.tokenizer.get_vocab()


# Floors again, of forty; wordings, sizes, fonts, words and digits are those that training never has.
@pytest.mark.parametrize(
    ("kind", "floor"),
    [("colour", 36), ("shape", 36), ("relation", 30), ("where", 34), ("describe", 26), ("it", 34), ("greeting", 20)],
)
def test_the_wider_model_answers_held_out_questions(wider: RealReader, kind: str, floor: int) -> None:
    assert wider.score(wide.held_out(kind, 40), 0).num_right >= floor


NEWCOMERS = (
    (None, "hello", ("hello", "describe")),
    ("scene.png", "hello", ("hello", "describe")),
    ("relation.png", "Describe this picture", ("red circle", "blue star")),
    ("relation.png", "What color is the shape on the left?", ("red",)),
    ("two squares", "How many squares are there?", ("two",)),
    ("two squares", "how many shapes do you see", ("two",)),
)
"""What a stranger typed once, to an earlier model in vain, and words of a right reply."""


@pytest.mark.parametrize("is_text_first", [False, True])
@pytest.mark.parametrize(("sample", "question", "said"), NEWCOMERS)
def test_the_wider_model_understands_a_newcomer(
    wider: RealReader, sample: str | None, question: str, said: tuple[str, ...], is_text_first: bool
) -> None:
    images = () if sample is None else (two_squares() if sample == "two squares" else Image.open(SAMPLES / sample),)
    asked = wide.Question(images, Enquiry("", question, "", said), is_text_first)
    (reply,) = wider.replies([asked])
    assert asked.is_right(reply), reply


def two_squares() -> Image.Image:
    """Return two equal squares, twice as large a picture as the samples are."""
    image = Image.new("RGB", (256, 256), "white")
    pen = ImageDraw.Draw(image)
    for left in (30, 150):
        pen.rectangle((left, 90, left + 70, 160), fill="blue")
    return image


@pytest.mark.parametrize(
    "recorded", ["results.json", "results-wide.json", "results-wide-grounds.json", "results-real.json"]
)
def test_page_states_the_recorded_results(recorded: str) -> None:
    page = (CHECKPOINTS / "README.md").read_text()
    for name, score in json.loads((CHECKPOINTS / recorded).read_text())["scores"].items():
        low, high = score["interval_95"]
        assert f"| {name} | {score['share']:.1%} | {low:.1%} - {high:.1%} | {score['n']} |" in page


def test_page_states_the_recorded_comparison() -> None:
    page = (CHECKPOINTS / "README.md").read_text()
    for name, row in json.loads((CHECKPOINTS / "experts.json").read_text())["rows"].items():
        assert Compared(**row).line(name) in page
