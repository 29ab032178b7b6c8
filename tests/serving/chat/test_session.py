from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from serving.chat.session import HELP
from serving.chat.talk import SETTINGS


@pytest.fixture
def cat(tmp_path: Path, image_bytes: Any) -> Path:
    """A picture whose name has a blank."""
    (tmp_path / "my cat.png").write_bytes(image_bytes())
    return tmp_path / "my cat.png"


def shown(message: dict[str, Any]) -> int:
    """How many pictures a message shows."""
    content = message["content"]
    return 0 if isinstance(content, str) else sum(part["type"] == "image_url" for part in content)


def test_a_question_goes_with_what_was_said_before(heard: Any, parrot: Any) -> None:
    heard.take("one", "two three")
    assert "".join(heard.answers) == " one\n two three\n"
    assert [(each["role"], each["content"]) for each in parrot.asked[1]] == [
        ("user", "one"),
        ("assistant", "one"),
        ("user", "two three"),
    ]
    assert heard.notes[-1] == "7 prompt tokens (0 of images), first token 100 ms, 9 tokens, 8 tokens/s"


def test_a_model_that_cannot_go_on_is_told_of_with_how_to_begin_anew(heard: Any, parrot: Any) -> None:
    parrot.knows_turns = False
    heard.take("one", "two")
    assert heard.troubles == ["this model answers one message"]
    assert "/clear" in heard.notes[-1]
    heard.take("/clear", "two")
    assert heard.answers[-2:] == [" two", "\n"]
    parrot.knows_turns = parrot.fails = True
    heard.take("three four")  # what breaks off is no fault of the conversation
    assert heard.session.talk.turns
    assert "/clear" not in heard.notes[-1]


def test_a_picture_goes_with_the_next_question_and_stays_in_the_history(heard: Any, parrot: Any, cat: Path) -> None:
    heard.take(f"/image {cat}", "what?", "and now?")
    assert [shown(message) for message in parrot.asked[0]] == [1]
    assert [shown(message) for message in parrot.asked[1]] == [1, 0, 0]
    assert "PNG, 70 x 50 px" in heard.notes[0]


@pytest.mark.parametrize("form", ["{}", "'{}'", "{escaped}", "file://{url}", "/image '{}'"])
def test_a_path_is_taken_as_terminals_paste_it(heard: Any, parrot: Any, cat: Path, form: str) -> None:
    path = str(cat)
    heard.take(form.format(path, escaped=path.replace(" ", "\\ "), url=path.replace(" ", "%20")))
    assert [picture.name for picture in heard.session.talk.pictures] == [path]
    assert parrot.asked == []


def test_a_path_within_a_question_is_a_picture_and_no_word_of_it(
    heard: Any, parrot: Any, tmp_path: Path, image_bytes: Any
) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes())
    heard.take(f"what is in {tmp_path}/a.png and in absent.png?")
    assert parrot.asked[0][0]["content"][1]["text"] == "what is in  and in absent.png?"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/image", "wants a file"),
        ("/image absent.png", "absent.png cannot be read"),
        ("/image {text}", "are not an image that is read here"),
        ("/imgae x", "/imgae is no command; there are /image"),
        ("/set temperature", "wants a value"),
        ("/set temperature 3", "temperature must be a number from 0 to 2, not '3'"),
        ("/set temperature nan", "temperature must be a number from 0 to 2"),
        ("/set top_p 0", "above 0"),
        ("/set colour blue", "'colour' cannot be set; what can be: temperature"),
        ("/save {folder}", "cannot be written"),
        ("/save ~a-user-that-is-not-here/talk.json", "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_told_and_the_session_goes_on(heard: Any, tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    heard.take(line.format(text=tmp_path / "notes.png", folder=tmp_path), "hello")
    assert len(heard.troubles) == heard.session.num_failed == 1
    assert words in heard.troubles[0]
    assert "".join(heard.answers) == " hello\n"


def test_a_failed_question_is_no_turn_and_its_picture_goes_with_the_next(heard: Any, parrot: Any, cat: Path) -> None:
    parrot.fails = True
    heard.take(f"/image {cat}", "one two")
    assert heard.troubles == ["the parrot flew away"]
    parrot.fails = False
    heard.take("again")
    assert [shown(message) for message in parrot.asked[1]] == [1]


def test_a_stopped_answer_stays_as_far_as_it_came(heard: Any, parrot: Any) -> None:
    parrot.hangs = True

    async def stop_soon() -> None:
        task = asyncio.create_task(heard.session.take("one two"))
        while not heard.answers:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(stop_soon())
    assert heard.notes == ["stopped"]
    assert [(turn.question, turn.answer) for turn in heard.session.talk.turns] == [("one two", "one")]


def test_several_lines_are_one_question(heard: Any, parrot: Any) -> None:
    heard.take('"""first', "/image is no command here", 'last"""', '"""one line"""')
    assert [asked[-1]["content"] for asked in parrot.asked] == ["first\n/image is no command here\nlast", "one line"]


def test_clear_forgets_what_was_said_and_system_stays(heard: Any, parrot: Any) -> None:
    heard.take("/system be brief", "one", "/clear", "two", "/system", "three")
    assert [message["role"] for message in parrot.asked[1]] == ["system", "user"]
    assert parrot.asked[1][0]["content"] == "be brief"
    assert [message["role"] for message in parrot.asked[2]] == ["user", "assistant", "user"]


def test_choices_are_set_told_and_taken_back(heard: Any) -> None:
    heard.take("/set temperature 0.2", "/set vision_keep 0.5", "/set")
    assert heard.notes[-1] == "temperature 0.2, vision_keep 0.5"
    assert heard.session.talk.choices.vision == ("uniform", 0.5)
    heard.take("/set temperature default", "/set vision_keep default")
    assert heard.notes[-1] == "all by the model's own defaults"


def test_a_saved_conversation_is_what_the_chat_route_takes(
    heard: Any, cat: Path, tmp_path: Path, make_client: Any
) -> None:
    heard.take(f"/image {cat}", "what?", "/system be brief", f"/save {tmp_path}/talk.json")
    body = json.loads((tmp_path / "talk.json").read_text())
    assert body["model"] == "parrot"
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant"]
    body["messages"].append({"role": "user", "content": "more"})
    answered = make_client("POST", "/v1/chat/completions", {**body, "model": "fake-vlm"})
    assert answered.status_code == 200, answered.text


def test_help_names_every_command_and_setting(heard: Any) -> None:
    heard.take("/help")
    assert heard.notes == [HELP]
    missing = {*heard.session.commands, *SETTINGS} - {word.strip(",;") for word in HELP.split()}
    assert missing == {"/exit"}


def test_quit_ends(heard: Any) -> None:
    heard.take("/quit")
    assert heard.session.is_over
