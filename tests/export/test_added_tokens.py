"""Tokens that stand beside tokenizer.json have the ids that transformers gives them, and are special if it says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bundle.directory import open_bundle
from bundle.errors import CheckpointError, UnsupportedConfigError
from bundle.prompt import PromptBuilder, Turn
from bundle.text import Tokenizer
from export.architectures import load_family
from export.exporter import export_checkpoint
from export.processor import convert_processor

FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
NEW_ID = 278
TEXT = "a <this> b<row_1_col_1>c <that> d"

Edit = Callable[[Path], object]


@pytest.fixture(scope="module")
def source(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens") / "smolvlm"
    checkpoints.save_smolvlm(folder, checkpoints.smolvlm_config(text={"vocab_size": 280}))
    return folder


def _edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _config(**entries: object) -> Edit:
    return lambda folder: _edited(folder / "tokenizer_config.json", lambda content: content.update(entries))


def _stated(content: str = "<this>", token_id: int = NEW_ID, **flags: object) -> Edit:
    return _config(added_tokens_decoder={str(token_id): {"content": content, **FLAGS, **flags}})


def _legacy(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<this>"]}))


def _legacy_alone(folder: Path) -> None:
    _legacy(folder)
    _edited(folder / "tokenizer_config.json", lambda content: content.pop("extra_special_tokens"))


def _unmarked(folder: Path) -> None:
    """A token whose own file says that it is not special, and tokenizer_config.json that it is."""

    def unmark(content: dict[str, Any]) -> None:
        for token in content["added_tokens"]:
            token["special"] = token["special"] and token["content"] != "<row_1_col_1>"

    _edited(folder / "tokenizer.json", unmark)
    _stated("<row_1_col_1>", 262, special=True)(folder)


CASES: dict[str, Edit] = {
    "as saved": lambda folder: None,
    "stated": _stated(),
    "stated, special": _stated(special=True),
    "stated, taking spaces": _stated(lstrip=True, rstrip=True),
    "extra": _config(extra_special_tokens=["<this>", "<that>"]),
    "extra of old": lambda folder: _edited(
        folder / "tokenizer_config.json",
        lambda content: (content.pop("extra_special_tokens"), content.update(additional_special_tokens=["<this>"])),
    ),
    "extra by name": _config(extra_special_tokens={"this_token": "<this>"}),
    "named": _config(mask_token="<this>"),
    "named by the model": _config(thought_token="<this>"),
    "named with flags": _config(mask_token={"content": "<this>", **FLAGS, "__type": "AddedToken"}),
    "legacy map": _legacy_alone,
    "legacy map that does not count": _legacy,
    "legacy file": lambda folder: (folder / "added_tokens.json").write_text(json.dumps({"<this>": NEW_ID})),
    "special there alone": _unmarked,
}


@pytest.mark.parametrize("name", CASES)
def test_ids_and_texts_equal_transformers(name: str, source: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    CASES[name](folder)
    (tmp_path / "bundle").mkdir()
    convert_processor(folder, load_family(json.loads((folder / "config.json").read_text())), tmp_path / "bundle")
    ours, theirs = Tokenizer.from_file(tmp_path / "bundle" / "tokenizer.json"), AutoTokenizer.from_pretrained(folder)
    ids = theirs(TEXT, add_special_tokens=False)["input_ids"]
    assert ours.encode(TEXT) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.vocab_size == len(theirs)
    is_untouched = (tmp_path / "bundle" / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()
    assert is_untouched == (name in ("as saved", "legacy map that does not count"))


def test_special_token_of_another_file_counts_in_the_template_and_not_in_a_callers_text(
    source: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    _config(extra_special_tokens=["<this>"])(folder)
    template = folder / "chat_template.jinja"
    template.write_text("<this>" + template.read_text())
    export_checkpoint(folder, tmp_path / "bundle")
    prompt = PromptBuilder.from_bundle(open_bundle(tmp_path / "bundle")).build([Turn("user", ("is it <this>?",))], [])
    assert prompt.token_ids.tolist().count(NEW_ID) == 1
    assert prompt.token_ids[0] == NEW_ID


def test_another_id_than_the_one_that_is_stated_is_refused_with_both(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    _stated(token_id=279)(folder)
    with pytest.raises(
        UnsupportedConfigError, match=r"'<this>' the id 279, but in tokenizer.json it is or would be 278"
    ):
        convert_processor(folder, load_family(json.loads((folder / "config.json").read_text())), tmp_path)


def test_token_beyond_the_embedding_table_is_refused(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    _config(extra_special_tokens=[f"<t{index}>" for index in range(5)])(folder)
    with pytest.raises(UnsupportedConfigError, match="'<t4>' the id 282, the model embeds 280 rows"):
        export_checkpoint(folder, tmp_path / "bundle")


@pytest.mark.parametrize("stated", [["<this>"], {"x": {"content": "<this>"}}, {"278": "<this>"}, {"278": {}}], ids=repr)
def test_tokens_in_a_form_that_is_none_are_refused(stated: object, source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    _config(added_tokens_decoder=stated)(folder)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json states its tokens in a form that is none"):
        convert_processor(folder, load_family(json.loads((folder / "config.json").read_text())), tmp_path)
