"""An index of images on disk: made, searched, brought up to date, refused; and answers that cite what was found."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("faiss", reason="faiss is not installed here")

from bundle.errors import MissingExtraError, SettingsError
from quant.evaluation.asking import RefusedError, Said, Vectors
from serving.retrieval.citing import INSTRUCTION, answered, answered_each, found, reranked
from serving.retrieval.files import Stamp
from serving.retrieval.index import INDEX, Hit, ImageIndex
from serving.retrieval.updating import Update, update_index

WORDS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "purple": (128, 0, 128)}


@dataclass
class Colours:
    """Embeds a word for a colour, and an image as the colour of its first pixel; answers by rule."""

    identity: str = "colours"
    embeds: bool = True
    ranks: bool | None = None
    answers: bool | None = None
    name: str = "colours"
    template: str = "{}"
    reply: str = ""
    embedded: list[str | bytes] = field(default_factory=list)
    asked: list[Sequence[Said]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ranks = self.embeds if self.ranks is None else self.ranks
        self.answers = not self.ranks if self.answers is None else self.answers

    async def scores(self, query: str | bytes, documents: Sequence[str | bytes]) -> np.ndarray:
        first, *others = await self.embed([query, *documents])
        return np.array(others) @ first

    async def embed(self, inputs: Sequence[str | bytes], kind: str | None = None) -> Vectors:
        rows = np.array([_colour(each) for each in inputs], np.float32)
        self.embedded += inputs
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    async def answer(self, conversation: Sequence[Said], max_tokens: int) -> str:
        self.asked.append(conversation)
        return self.reply


def _colour(given: str | bytes) -> tuple[int, ...]:
    if isinstance(given, str):
        return WORDS[given]
    try:
        with Image.open(io.BytesIO(given)) as image:
            pixel = image.convert("RGB").getpixel((0, 0))
    except OSError as error:
        raise RefusedError("no image") from error
    assert isinstance(pixel, tuple)
    return tuple(map(int, pixel))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    (place / "more").mkdir(parents=True)
    for name, word in (("r.png", "red"), ("g.jpg", "green"), ("more/b.PNG", "blue")):
        Image.new("RGB", (4, 4), WORDS[word]).save(place / name, quality=100) if name.endswith("jpg") else Image.new(
            "RGB", (4, 4), WORDS[word]
        ).save(place / name)
    (place / "notes.txt").write_text("no image")
    (place / ".hidden.png").write_bytes((place / "r.png").read_bytes())
    return place


def updated(directory: Path, folder: Path, model: Colours | None = None, **options: Any) -> Update:
    return asyncio.run(update_index(directory, folder, model or Colours(), "a bundle", lambda line: None, **options))


def names(directory: Path, query: str | bytes, k: int = 9) -> list[str]:
    return [hit.name for hit in asyncio.run(found(ImageIndex.read(directory), query, Colours(), k))]


def test_the_nearest_images_come_first_with_their_cosines(folder: Path, tmp_path: Path) -> None:
    updated(tmp_path / "index", folder)
    hits = asyncio.run(found(ImageIndex.read(tmp_path / "index"), "purple", Colours(), 2))
    assert {hit.name for hit in hits} == {"r.png", "more/b.PNG"}
    assert [hit.score for hit in hits] == pytest.approx([2**-0.5] * 2, abs=0.01)
    assert hits[0].path.is_file()
    assert names(tmp_path / "index", (folder / "g.jpg").read_bytes(), 1) == ["g.jpg"]


def test_an_update_embeds_what_is_new_or_changed_alone(folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    assert updated(index, folder).num_embedded == 3
    model = Colours()
    assert updated(index, folder, model).num_kept == 3
    assert model.embedded == []
    (folder / "r.png").unlink()
    Image.new("RGB", (4, 4), WORDS["purple"]).save(folder / "g.jpg")
    Image.new("RGB", (5, 5), WORDS["red"]).save(folder / "new.png")
    update = updated(index, folder, model)
    assert (update.num_kept, update.num_embedded, update.num_gone) == (1, 2, 1)
    assert len(model.embedded) == 2
    assert names(index, "red") == ["new.png", "g.jpg", "more/b.PNG"]
    numbers = [entry.number for entry in ImageIndex.read(index).facts.entries.values()]
    assert sorted(numbers) == [1, 3, 4]  # a number is never given again
    assert len(list(index.glob("vectors-*"))) == 1


def test_an_unreadable_image_is_left_out_and_named_and_the_others_stay(folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    updated(index, folder)
    (folder / "r.png").write_bytes(b"broken")
    (folder / "a.png").write_bytes(b"broken too")
    update = updated(index, folder)
    assert update.unread == {"a.png": "no image", "r.png": "no image"}
    assert sorted(names(index, "red")) == ["g.jpg", "more/b.PNG"]


def test_a_name_that_is_no_text_is_left_out(folder: Path, tmp_path: Path) -> None:
    try:
        (folder / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "r.png").read_bytes())
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no such names")
    update = updated(tmp_path / "index", folder)
    assert update.unread == {"caf\ufffd.png": "its name is no UTF-8; rename it"}
    assert sorted(names(tmp_path / "index", "red")) == ["g.jpg", "more/b.PNG", "r.png"]


def test_a_file_that_is_written_while_it_is_read_seems_changed(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"before")
    os.utime(file, ns=(1, 1))
    read = Path.read_bytes

    def read_and_written(path: Path) -> bytes:
        data = read(path)
        path.write_bytes(b"behind")
        return data

    monkeypatch.setattr(Path, "read_bytes", read_and_written)
    stamp, data = Stamp.read(file)
    assert (data, stamp.is_of(file)) == (b"before", False)


def test_an_index_whose_images_are_all_gone_says_so(folder: Path, tmp_path: Path) -> None:
    updated(tmp_path / "index", folder)
    for name in ("r.png", "g.jpg", "more/b.PNG"):
        (folder / name).unlink()
    assert updated(tmp_path / "index", folder).num_gone == 3
    with pytest.raises(SettingsError, match="holds no image: all that"):
        names(tmp_path / "index", "red")


def test_an_index_may_lie_among_its_images_and_move_with_them(folder: Path, tmp_path: Path) -> None:
    index = folder / "index"
    updated(index, folder)
    Image.new("RGB", (4, 4), "red").save(index / "chart.png")
    assert updated(index, folder).num_embedded == 0
    folder.rename(tmp_path / "moved")
    (hit, *_) = asyncio.run(found(ImageIndex.read(tmp_path / "moved" / "index"), "blue", Colours(), 1))
    assert hit.path == tmp_path / "moved" / "more" / "b.PNG"
    assert hit.path.is_file()


def test_a_stopped_update_leaves_the_index_as_it_was(folder: Path, tmp_path: Path, monkeypatch) -> None:
    index = tmp_path / "index"
    updated(index, folder)
    before = names(index, "red")
    (folder / "r.png").unlink()
    from serving.retrieval import index as module

    write = module.write_whole

    def stops(path: Path, content: bytes) -> None:
        if path.name == INDEX:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(module, "write_whole", stops)
    with pytest.raises(KeyboardInterrupt):
        updated(index, folder)
    assert names(index, "red") == before


def test_an_index_of_another_model_or_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    updated(index, folder)
    other = Colours(identity="other", name="other")
    with pytest.raises(SettingsError, match=r"vectors of colours \(colours\), and this is other \(other\)"):
        updated(index, folder, other)
    with pytest.raises(SettingsError, match="those of two models cannot be compared"):
        asyncio.run(found(ImageIndex.read(index), "red", other, 1))
    with pytest.raises(SettingsError, match="answers and makes no vectors"):
        asyncio.run(found(ImageIndex.read(index), "red", Colours(embeds=False), 1))
    with pytest.raises(SettingsError, match=r"scores pairs and makes no vectors; .* by --rerank"):
        updated(index, folder, Colours(embeds=False, ranks=True))
    with pytest.raises(SettingsError, match=r"is of .*pictures, and not of .*more"):
        updated(index, folder / "more")
    assert updated(index, folder / "more", other, anew=True).num_embedded == 1
    with pytest.raises(SettingsError, match="the query has 2 numbers, the index 3"):
        ImageIndex.read(index).search(np.ones(2, np.float32), 1)


def test_a_damaged_index_is_named(folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    with pytest.raises(SettingsError, match=r"is no index: .*make one with pocketvlm index"):
        ImageIndex.read(index)
    updated(index, folder)
    (vectors,) = index.glob("vectors-*")
    content = vectors.read_bytes()
    vectors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(SettingsError, match="was altered: sha256"):
        ImageIndex.read(index)
    vectors.unlink()
    with pytest.raises(SettingsError, match="cannot be read"):
        ImageIndex.read(index)
    (index / INDEX).write_text('{"format_version": 9}')
    with pytest.raises(SettingsError, match="damaged or of another version"):
        ImageIndex.read(index)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="holds no image that could be embedded"):
        updated(tmp_path / "index", tmp_path / "empty")
    (tmp_path / "empty" / "x.png").write_bytes(b"x")
    with pytest.raises(SettingsError, match=r"could be embedded; x\.png: no image"):
        updated(tmp_path / "index", tmp_path / "empty")
    with pytest.raises(SettingsError, match="absent is no folder"):
        updated(tmp_path / "index", tmp_path / "absent")


def test_without_faiss_its_extra_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"faiss, which is not here: pip install -e '.\[retrieval\]'"):
        ImageIndex.read(tmp_path)


@pytest.fixture
def hits(folder: Path) -> list[Hit]:
    return [Hit(name, folder / name, 0.5) for name in ("r.png", "more/b.PNG")]


def test_a_second_encoder_puts_hits_in_its_own_order(hits: list[Hit]) -> None:
    after = asyncio.run(reranked(hits, "blue", Colours()))
    assert [(hit.name, round(hit.score, 3)) for hit in after] == [("more/b.PNG", 1.0), ("r.png", 0.0)]
    with pytest.raises(SettingsError, match="answers and ranks nothing; --rerank wants"):
        asyncio.run(reranked(hits, "blue", Colours(embeds=False)))


@pytest.mark.parametrize(
    ("reply", "numbers", "unknown"),
    [
        ("Red [1].", (1,), ()),
        ("Both [2], [1] and again [2].", (2, 1), ()),
        ("Both [1, 2].", (1, 2), ()),
        ("See [3] and [0].", (), (3, 0)),
        ("None.", (), ()),
    ],
)
def test_citations_are_the_numbers_that_the_answer_names(
    hits: list[Hit], reply: str, numbers: tuple[int, ...], unknown: tuple[int, ...]
) -> None:
    model = Colours(embeds=False, reply=reply)
    answer = asyncio.run(answered("Which?", hits, model, 8))
    assert (answer.text, answer.numbers, answer.unknown, answer.shown) == (reply, numbers, unknown, tuple(hits))
    images = [hit.path.read_bytes() for hit in hits]
    assert model.asked == [[Said("user", ("[1]", images[0], "[2]", images[1], f"Which?\n{INSTRUCTION}"))]]


def test_a_model_that_embeds_may_answer_too(hits: list[Hit]) -> None:
    model = Colours(answers=True, reply="Red [1].")
    assert asyncio.run(answered("Which?", hits, model, 8)).numbers == (1,)


def test_each_image_alone_is_its_own_citation(hits: list[Hit]) -> None:
    model = Colours(embeds=False, reply="yes")
    answers = asyncio.run(answered_each("Is it red?", hits, model, 8))
    assert [(answer.text, answer.shown, answer.numbers) for answer in answers] == [
        ("yes", (hit,), (1,)) for hit in hits
    ]
    assert [said[0].parts[1] for said in model.asked] == ["Is it red?"] * 2


def test_too_many_images_for_a_model_are_told_with_the_way_out(hits: list[Hit]) -> None:
    class Small(Colours):
        async def answer(self, conversation: Sequence[Said], max_tokens: int) -> str:
            raise RefusedError("64 tokens are too many")

    with pytest.raises(SettingsError, match="did not take 2 images: 64 tokens are too many; show fewer with --images"):
        asyncio.run(answered("Which?", hits, Small(embeds=False), 8))
    with pytest.raises(SettingsError, match="makes vectors and no answers"):
        asyncio.run(answered("Which?", hits, Colours(), 8))
    with pytest.raises(SettingsError, match="scores pairs and no answers"):
        asyncio.run(answered("Which?", hits, Colours(embeds=False, ranks=True), 8))
    os.remove(hits[0].path)
    with pytest.raises(FileNotFoundError):
        asyncio.run(answered("Which?", hits, Colours(embeds=False), 8))
