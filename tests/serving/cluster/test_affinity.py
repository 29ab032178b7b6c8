"""Which replica a request prefers: plain functions over what was sent where."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from bundle.frames.options import FrameOptions
from serving.cluster.affinity import Contents, Whereabouts, contents_of, home_of
from serving.protocol import (
    ClassifyRequest,
    EmbedRequest,
    GenerateRequest,
    ImagePart,
    Message,
    TextPart,
    TokenizeRequest,
    VideoPart,
)

IDLE = {"a": 0.0, "b": 0.0, "c": 0.0}


def chat(*turns: str | bytes, system: str = "", **fields: object) -> GenerateRequest:
    """Return a conversation: texts in turns of user and assistant, bytes as an image before the user's next text."""
    messages = [Message("system", (TextPart(system),))] if system else []
    parts: list[TextPart | ImagePart | VideoPart] = []
    for turn in turns:
        parts.append(ImagePart(turn) if isinstance(turn, bytes) else TextPart(turn))
        if isinstance(turn, str):
            role = "assistant" if messages and messages[-1].role == "user" else "user"
            messages.append(Message(role, tuple(parts)))
            parts = []
    return replace(GenerateRequest("r", "m", tuple(messages)), **fields)


def holding(replica: str, *requests: GenerateRequest) -> Whereabouts:
    whereabouts = Whereabouts()
    for request in requests:
        whereabouts.note(contents_of(request), replica)
    return whereabouts


def test_a_later_turn_begins_with_all_that_the_earlier_turn_began_with() -> None:
    first, later = contents_of(chat(b"png", "what?")), contents_of(chat(b"png", "what?", "a cat", "and now?"))
    assert later.beginnings[: len(first.beginnings)] == first.beginnings
    assert (len(first.beginnings), len(later.beginnings)) == (2, 4)
    assert later.home_key == first.home_key


def test_an_earlier_part_that_differs_changes_all_that_follow() -> None:
    one, other = contents_of(chat("x", "y", "z")), contents_of(chat("!", "y", "z"))
    assert not set(one.beginnings) & set(other.beginnings)


def test_a_system_message_is_in_every_beginning_and_none_itself() -> None:
    """All conversations share it: by itself it would lead them all to one replica."""
    one, other = contents_of(chat("x", system="s")), contents_of(chat("y", system="s"))
    assert not set(one.beginnings) & set(other.beginnings)
    assert contents_of(chat("x", system="t")).beginnings != one.beginnings


def test_functions_stand_in_front_of_the_prompt_and_roles_in_it() -> None:
    from bundle.tools import Tool

    plain = contents_of(chat("x"))
    assert contents_of(chat("x", tools=(Tool("f", "", {}),))).beginnings != plain.beginnings
    swapped = GenerateRequest("r", "m", (Message("assistant", (TextPart("x"),)),))
    assert contents_of(swapped).beginnings != plain.beginnings


def test_long_texts_that_begin_alike_share_a_beginning() -> None:
    document = "w " * 1000
    one, other = (contents_of(GenerateRequest("r", "m", (), text=document + end)) for end in ("A?", "B?"))
    assert one.beginnings[:3] == other.beginnings[:3]
    assert one.beginnings[-1] != other.beginnings[-1]


def test_encoders_are_asked_by_images_alone() -> None:
    image = ImagePart(b"png")
    embedded = contents_of(EmbedRequest("r", "m", (TextPart("x"), image)))
    assert embedded == contents_of(ClassifyRequest("r", "m", (image,), ("x",)))
    assert embedded.images == contents_of(chat(b"png", "x")).images
    assert contents_of(TokenizeRequest("r", "m", text="x")) == contents_of(None) == Contents()


def test_frames_of_a_video_are_its_content() -> None:
    video = VideoPart((b"one", b"two"), FrameOptions(list_fps=1.0))
    contents = contents_of(GenerateRequest("r", "m", (Message("user", (video,)),)))
    assert len(contents.images) == 2


def test_the_replica_with_the_longest_beginning_is_preferred() -> None:
    whereabouts = holding("a", chat("x"))
    whereabouts.note(contents_of(chat("x", "y", "z")), "b")
    assert whereabouts.preferred(contents_of(chat("x", "y", "z", "u", "v")), IDLE) == "b"


def test_another_question_about_an_image_goes_to_who_encoded_it() -> None:
    home = home_of(contents_of(chat("hello", "yes?", b"png", "x")).home_key, IDLE)
    holder = next(each for each in IDLE if each != home)
    whereabouts = holding(holder, chat("hello", "yes?", b"png", "x"))
    assert whereabouts.preferred(contents_of(chat("look", "where?", b"png", "y")), IDLE) == holder


def test_of_two_that_hold_it_the_less_busy_is_preferred() -> None:
    whereabouts = holding("a", chat("x"))
    whereabouts.note(contents_of(chat("x")), "b")
    assert whereabouts.preferred(contents_of(chat("x")), {"a": 1.0, "b": 2.0, "c": 0.0}) == "a"
    assert whereabouts.preferred(contents_of(chat("x")), {"a": 2.0, "b": 1.0, "c": 0.0}) == "b"


def test_who_holds_it_and_is_much_busier_is_passed_over() -> None:
    whereabouts, contents = holding("a", chat("x")), contents_of(chat("x"))
    assert whereabouts.preferred(contents, {"a": 4.0, "b": 0.0}) == "a"
    assert whereabouts.preferred(contents, {"a": 5.0, "b": 0.0}) != "a"


def test_who_is_not_there_any_more_is_not_preferred() -> None:
    whereabouts = holding("gone", chat("x"))
    assert whereabouts.preferred(contents_of(chat("x")), IDLE) in IDLE


def test_nothing_is_preferred_where_nothing_is_kept_or_there_is_no_choice() -> None:
    assert Whereabouts().preferred(Contents(), IDLE) is None
    assert holding("a", chat("x")).preferred(contents_of(chat("x")), {"a": 0.0}) is None


def test_processes_that_never_met_send_a_conversation_to_one_replica() -> None:
    """Two ingress replicas see its turns in no order."""
    for number in range(20):
        turns = (f"question {number}", "answer", "more")
        first = Whereabouts().preferred(contents_of(chat(turns[0])), IDLE)
        assert Whereabouts().preferred(contents_of(chat(*turns)), dict(reversed(IDLE.items()))) == first


def test_where_a_replica_goes_only_its_own_contents_move() -> None:
    keys = [number.to_bytes(8, "little") for number in range(200)]
    before = {key: home_of(key, "abcd") for key in keys}
    assert {before[key] for key in keys} == set("abcd")
    assert all(home_of(key, "abc") == before[key] for key in keys if before[key] != "d")


def test_what_was_used_least_lately_is_forgotten_first() -> None:
    whereabouts = Whereabouts(most_keys=2)
    for text in ("x", "y", "x", "z"):
        whereabouts.note(contents_of(chat(text)), "a")
    held = [key for text in "xyz" for key in contents_of(chat(text)).beginnings]
    assert [key in whereabouts._holders for key in held] == [True, False, True]


@given(st.integers(0, 2**32), st.integers(2, 5))
def test_whoever_is_preferred_is_ahead_by_no_more_than_the_slack(seed: int, num_replicas: int) -> None:
    """All conversations are about one image, none ends: whoever holds it would get them all."""
    loads = {f"r{at}": 0.0 for at in range(num_replicas)}
    whereabouts, rng = Whereabouts(), random.Random(seed)
    for number in range(40):
        contents = contents_of(chat(b"png", f"question {number}"))
        preferred = whereabouts.preferred(contents, loads)
        assert preferred is None or loads[preferred] <= min(loads.values()) + 4
        chosen = preferred or rng.choice(list(loads))
        whereabouts.note(contents, chosen)
        loads[chosen] += 1
