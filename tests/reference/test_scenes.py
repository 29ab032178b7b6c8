"""Scenes, questions and captions."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest

from reference import captions, layout
from reference.drawing import CHARACTERS, COLOURS, SHAPES, shape_mask
from reference.scenes import TASKS, ask, held_out, scenes_for

MANY = range(200)


def test_evaluation_sets_need_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from reference import captions, scenes\n"
        "scenes.held_out('chat', 2); captions.held_out(2); captions.held_out_labels('shape', 2)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_images_questions_and_answers(task: str) -> None:
    for example in held_out(task, 20):
        assert example.task == task
        assert len(example.images) == (1 if task != "compare" else len(example.images))
        assert all(image.size == (128, 128) and image.mode == "RGB" for image in example.images)
        assert example.question
        assert example.is_right(f" {example.answer}\n")
        assert not example.is_right(f"not {example.answer}")


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="known: colour, shape"):
        held_out("smell", 1)


def test_messages_put_images_first_and_end_with_the_last_question() -> None:
    example = held_out("chat", 1)[0]
    messages = example.messages()
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert messages[0]["content"][0] == {"type": "image"}
    assert messages[-1]["content"] == [{"type": "text", "text": example.question}]


def test_things_never_touch_and_stay_inside() -> None:
    for seed in MANY:
        scene = layout.sample_scene(random.Random(seed), 6, texts=("ABCD",), num_digits=1)
        taken = np.zeros((layout.IMAGE_PX, layout.IMAGE_PX), dtype=int)
        for t in scene.things:
            assert min(t.left_px, t.top_px) >= 0
            assert max(t.left_px + t.width_px, t.top_px + t.height_px) <= layout.IMAGE_PX
            taken[t.top_px : t.top_px + t.height_px, t.left_px : t.left_px + t.width_px] += 1
        assert taken.max() == 1


def test_counted_shapes_are_in_the_picture() -> None:
    for seed in MANY:
        rng = random.Random(seed)
        (scene,) = scenes_for("count", rng, "train")
        turns = ask("count", (scene,), rng)
        words = turns[0].question.removesuffix("?").split()[2:]  # after "How many"
        right = [
            t for t in scene.shapes
            if words[0] in ("shapes", "objects") or words[0] == t.colour or words[0].startswith(t.name)
        ]  # fmt: skip
        assert turns[0].answer == str(len(right))


def test_left_and_above_mean_smaller_coordinates() -> None:
    checked = 0
    for seed in MANY:
        rng = random.Random(seed)
        (scene,) = scenes_for("relation", rng, "train")
        turns = ask("relation", (scene,), rng)
        if turns is None or " or " not in turns[0].question:
            continue
        words = turns[0].question.removesuffix("?").split()
        first, second = " ".join(words[2:4]), " ".join(words[-2:])
        at = {f"{t.colour} {t.name}": t.centre_px for t in scene.shapes}
        axis = 0 if "left" in words else 1
        is_before = at[first][axis] < at[second][axis]
        assert turns[0].answer == (("left", "right"), ("above", "below"))[axis][not is_before]
        checked += 1
    assert checked > 30


def test_yes_and_no_are_both_common() -> None:
    answers = [e.answer for e in held_out("exist", 200)]
    assert 60 <= answers.count("yes") <= 140


def test_dense_labels_say_what_each_patch_shows() -> None:
    for seed in MANY:
        scene = layout.sample_scene(random.Random(seed), 3)
        labels = layout.dense_labels(scene)
        assert labels.shape == (4, 16, 16)
        assert labels[3].sum() == len(scene.things)
        for t in scene.things:
            row, column = int(t.centre_px[1]) // 8, int(t.centre_px[0]) // 8
            assert layout.KIND_CLASSES[labels[0, row, column]] == t.name
            assert layout.COLOUR_CLASSES[labels[1, row, column]] == t.colour
            assert layout.SIZE_CLASSES[labels[2, row, column]] == t.size


def test_drawn_colour_is_the_named_colour() -> None:
    for seed in MANY:
        scene = layout.sample_scene(random.Random(seed), 1)
        pixels = np.asarray(layout.render(scene)).reshape(-1, 3).astype(int)
        far = np.abs(pixels - scene.background).sum(1)
        ink = np.median(pixels[far > far.max() * 0.8], axis=0)
        nearest = min(COLOURS, key=lambda name: np.abs(ink - COLOURS[name]).sum())
        assert nearest == scene.things[0].colour


def test_every_shape_and_character_differs_from_the_others() -> None:
    from reference.drawing import character_mask

    shapes = {np.asarray(shape_mask(s, 34)).tobytes() for s in SHAPES}
    characters = {np.asarray(character_mask(c, 26)).tobytes() for c in CHARACTERS}
    assert len(shapes) == len(SHAPES)
    assert len(characters) == len(CHARACTERS)
    with pytest.raises(ValueError, match="known: circle"):
        shape_mask("blob", 20)


def test_captions_name_things_from_left_to_right() -> None:
    scene = layout.sample_scene(random.Random(5), 3)
    names = [t.name for t in sorted(scene.things, key=lambda t: t.centre_px[0])]
    caption = captions.describe(scene)
    assert [word for word in caption.replace(",", "").split() if word in SHAPES] == names


def test_two_hundred_held_out_captions_are_distinct() -> None:
    found = captions.held_out(200)
    assert len({c.caption for c in found}) == 200
    assert [c.caption for c in found] == [c.caption for c in captions.held_out(200)]


@pytest.mark.parametrize(("kind", "labels"), [("shape", captions.SHAPE_LABELS), ("colour", captions.COLOUR_LABELS)])
def test_labelled_images_cover_every_label(kind: str, labels: dict[str, str]) -> None:
    found = captions.held_out_labels(kind, 200)
    assert {c.label for c in found} == set(labels)
    assert all(c.caption == labels[c.label] for c in found)
    with pytest.raises(ValueError, match="known: shape, colour"):
        captions.held_out_labels("smell", 1)
