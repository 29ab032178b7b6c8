"""The real model's training: what visual tokens say, the decoder's start apart, and all stages with a tiny decoder."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import pathlib

import pytest

from reference import dialogues
from reference.drawing import SHAPES
from reference.pictures import COLOURS, Item, Picture
from reference.real import held_out as scored

WIDTH = 32
VOCABULARY = 320
IMAGE_ID = 300


@pytest.fixture(scope="module", autouse=True)
def _fonts_and_photographs() -> None:
    """Both come with packages of the [train] extra."""
    for package in ("matplotlib", "skimage", "sklearn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; it comes with the extra train")


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    """Import what trains here, so that collecting takes none of it."""
    global torch, transformers, train_real, FrozenDecoder, graded, Symbols, Labels, Tower
    global CELL_ROLES, CELLS, GRID, ROLES, inventory
    torch = pytest.importorskip("torch", reason="training needs the [train] extra")
    transformers = pytest.importorskip("transformers", reason="training needs the [train] extra")

    from reference import train_real
    from reference.real.decoder import FrozenDecoder
    from reference.real.symbols import CELL_ROLES, CELLS, GRID, ROLES, Symbols, inventory
    from reference.real.tower import Labels, Tower
    from reference.training import graded


def encode(text: str) -> list[int]:
    """Return bytes, and `IMAGE_ID` for an image's place."""
    pieces = text.split("<image>")
    tokens = [byte for piece in pieces for byte in [*piece.encode(), IMAGE_ID]]
    return tokens[:-1]


@pytest.fixture
def model() -> object:
    torch.manual_seed(0)
    text = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.5,  # so large that what attends to what shows in the logits
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 128,
        "patch_size": 8,
    }
    config = transformers.SmolVLMConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE_ID, scale_factor=2, tie_word_embeddings=True
    )
    return transformers.SmolVLMForConditionalGeneration(config)


def _words() -> dict[str, object]:
    names = sorted({name for role in ROLES.values() for name in role if name})
    return {name: torch.full((WIDTH,), float(number + 1)) for number, name in enumerate(names)}


def test_an_inventory_says_of_each_shape_how_many_which_colour_and_where() -> None:
    star = Item("shape", "star", "red", (255, 0, 0), "small", (0.1, 0.1, 0.2, 0.2))
    rings = [Item("shape", "ring", "blue", (0, 0, 255), "small", (x, 0.8, x + 0.1, 0.9)) for x in (0.1, 0.7)]
    picture = Picture((128, 128), (star, *rings), "plain", ((255, 255, 255),) * 2, "train")
    cells = inventory(picture)
    words = [ROLES[role][cell] for role, cell in zip(CELL_ROLES, cells, strict=True)]
    rows = {name: words[row * GRID : row * GRID + 5] for row, name in enumerate(SHAPES)}
    assert rows["star"] == ["one", "red", "star", "top", "left"]
    assert rows["ring"] == ["two", "blue", "ring", "", ""]
    assert rows["heart"] == ["no", "", "", "", ""]
    assert words[CELL_ROLES.index("total")] == "three"


def test_a_patch_is_labelled_by_what_covers_its_middle_and_a_word_letter_by_letter() -> None:
    star = Item("shape", "star", "red", (255, 0, 0), "small", (0.1, 0.1, 0.3, 0.3))
    word = Item("text", "AB", "blue", (0, 0, 255), "", (0.5, 0.5, 1.0, 0.6), "DejaVuSansMono.ttf")
    found = Labels.of([Picture((128, 128), (star, word), "plain", ((255, 255, 255),) * 2, "train"), 3]).patches
    patches = found[0].view(GRID, GRID, 2, 2, 2).permute(0, 2, 1, 3, 4).reshape(2 * GRID, 2 * GRID, 2)
    kinds, colours = patches.unbind(-1)
    is_star = kinds == SHAPES.index("star") + 1
    assert {(int(row), int(column)) for row, column in is_star.nonzero()} == {
        (row, column) for row in (2, 3, 4) for column in (2, 3, 4)
    }
    assert colours[is_star].unique().tolist() == [list(COLOURS).index("red") + 1]
    assert kinds[8, 8:].unique_consecutive().tolist() == [len(SHAPES) + 1, len(SHAPES) + 2]  # A, then B
    assert int((kinds[:8, 8:] > 0).sum()) == 0
    assert not found[1].any()  # a photograph


def test_visual_tokens_begin_as_the_words_of_the_inventory() -> None:
    words, blank = _words(), torch.zeros(WIDTH)
    symbols = Symbols(words, blank)
    item = Item("shape", "star", "red", (255, 0, 0), "small", (0.1, 0.1, 0.2, 0.2))
    labels = Labels.of([Picture((128, 128), (item,), "plain", ((255, 255, 255),) * 2, "train"), 3])
    tokens = symbols(*labels.said)
    row = SHAPES.index("star") * GRID
    wanted = torch.stack([words[word] for word in ("one", "red", "star", "top", "left")])
    assert torch.equal(tokens[0, row : row + 5], wanted)
    assert torch.equal(tokens[1], symbols.photographs[3])


def test_the_start_computed_once_gives_the_logits_of_the_whole_sequence(model: object) -> None:
    sample = next(s for s in (dialogues.sample(seed, 1) for seed in range(99)) if not s.is_text_first)
    batch = dialogues.pack([sample], dialogues.REAL, encode, 10_000)
    decoder = FrozenDecoder(model, encode)
    features = torch.randn(len(sample.shown), CELLS, WIDTH).to(decoder.table.dtype)
    got = decoder.logits(features, batch)
    start = encode(dialogues.REAL.start)
    ids = torch.tensor([[*start, *batch.ids[0]]])
    embeds = model.get_input_embeddings()(ids).masked_scatter((ids == IMAGE_ID)[..., None], features)  # type: ignore[attr-defined]
    model.set_attn_implementation("eager")  # type: ignore[attr-defined]
    hidden = model.model.text_model(inputs_embeds=embeds).last_hidden_state[0]  # type: ignore[attr-defined]
    rows = torch.from_numpy(batch.rows[:, 1]) + len(start)
    wanted = hidden[rows].float() @ decoder.table.float().T
    torch.testing.assert_close(got, wanted, atol=0.05, rtol=0.05)  # bfloat16 has 8 bits


def test_questions_packed_together_are_answered_as_if_alone(model: object) -> None:
    samples = (dialogues.sample(seed, 3) for seed in range(99))
    sample = next(s for s in samples if len(s.asked) == 3 and not s.before)
    decoder = FrozenDecoder(model, encode)
    features = torch.randn(len(sample.shown), CELLS, WIDTH).to(decoder.table.dtype)
    together = dialogues.pack([sample], dialogues.REAL, encode, 10_000)
    alone = dataclasses.replace(sample, asked=(sample.asked[0], sample.asked[2]))
    apart = dialogues.pack([alone], dialogues.REAL, encode, 10_000)
    got = decoder.logits(features, together)[torch.from_numpy(together.answers == 2)]
    wanted = decoder.logits(features, apart)[torch.from_numpy(apart.answers == 1)]
    torch.testing.assert_close(got, wanted, atol=0.05, rtol=0.05)


def test_only_visual_tokens_are_given_gradients(model: object) -> None:
    sample = dialogues.sample(0, 2)
    batch = dialogues.pack([sample], dialogues.REAL, encode, 10_000)
    features = torch.randn(len(sample.shown), CELLS, WIDTH, requires_grad=True)
    loss, _ = graded(FrozenDecoder(model, encode).logits(features, batch), batch)
    loss.backward()
    assert features.grad is not None
    assert float(features.grad.abs().sum()) > 0
    assert all(p.grad is None for p in model.model.text_model.parameters())  # type: ignore[attr-defined]


def test_the_connector_is_set_to_what_a_regression_gives(model: object) -> None:
    tower = Tower(model)
    sight = torch.randn(3, CELLS, 64)
    matrix = torch.randn(64, WIDTH)
    tower.set_connector(sight, sight @ matrix)
    torch.testing.assert_close(
        tower.features(sight), sight @ matrix, atol=0.05, rtol=0.05
    )  # the ridge shrinks a little


def test_all_stages_run_and_write_a_tower_that_resumes_as_it_was(model: object, tmp_path: pathlib.Path) -> None:
    args = _small_arguments(tmp_path)
    train_real.train(model, encode, args)
    written = (args.out / "model.safetensors").read_bytes()
    assert json.loads((args.out / "config.json").read_text())["text_config"]["hidden_size"] == WIDTH
    train_real.train(model, encode, args)
    assert (args.out / "model.safetensors").read_bytes() == written


def _small_arguments(folder: pathlib.Path) -> argparse.Namespace:
    steps = [f"--{stage}-steps=2" for stage in train_real.STAGES]
    size = ["--images=2", "--batch=1", "--questions=1", "--sequence-tokens=2000"]
    return train_real.arguments().parse_args([*steps, *size, f"--work={folder}/work", f"--out={folder}/out"])


def test_seconds_are_shared_among_the_stages_asked_for() -> None:
    args = train_real.arguments().parse_args(["--stages", "tower", "say", "--seconds", "120", "--symbols-minutes", "9"])
    train_real.share_time(args)
    assert args.tower_minutes + args.say_minutes == pytest.approx(2)
    assert args.tower_minutes / args.say_minutes == pytest.approx(5)
    assert args.symbols_minutes == 9  # not asked for
    every = train_real.arguments().parse_args(["--seconds", "60"])
    train_real.share_time(every)
    assert sum(getattr(every, f"{stage}_minutes") for stage in train_real.STAGES) == pytest.approx(1)


def test_a_stage_ends_when_its_time_is_over(model: object, tmp_path: pathlib.Path) -> None:
    args = _small_arguments(tmp_path)
    args.stages, args.tower_steps, args.tower_minutes = ["tower"], 10**6, 1e-3
    train_real.train(model, encode, args)
    assert (args.work / "tower.pt").is_file()


def test_a_stage_whose_forerunner_is_missing_says_which(model: object, tmp_path: pathlib.Path) -> None:
    args = _small_arguments(tmp_path)
    args.stages = ["say"]
    with pytest.raises(FileNotFoundError, match="run stage tower first"):
        train_real.train(model, encode, args)


@pytest.mark.parametrize("kind", scored.SMALL_KINDS)
def test_held_out_questions_are_the_same_each_time(kind: str) -> None:
    first, second = (scored.held_out(kind, 3) for _ in range(2))
    assert [q.enquiry for q in first] == [q.enquiry for q in second]
    assert [[i.tobytes() for i in q.images] for q in first] == [[i.tobytes() for i in q.images] for q in second]
    assert all(len(q.messages()) == (3 if kind == "it" else 1) for q in first)
