"""A session in the terminal: lines in, answers out, and what a line with a slash does."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bundle.errors import ImageError, MachineError, ParameterError, PocketVLMError, RequestError
from serving.chat.answerer import Answerer, Took
from serving.chat.fetch import is_web_address, read_picture
from serving.chat.figures import speed
from serving.chat.talk import SETTINGS, Picture, Talk, Turn

HELP = f"""\
/image FILE or URL    show a picture with the next question; a path that is pasted or dropped does the same
/clear                forget what was said and shown
/system WORDS         what the model is told before everything else; without words: nothing
/set NAME VALUE       {", ".join(SETTINGS)}; VALUE default takes it back
/save FILE            write the conversation as JSON, as /v1/chat/completions takes it
/help                 this list
/quit                 end, as Ctrl-D does

\"\"\" begins and ends a question of several lines. Ctrl-C stops an answer."""
_FENCE = '"""'
_ANEW = "what was said before goes with every question; /clear forgets it, and the next one begins anew"
_SHOWN_CHARACTERS = 200
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass
class Voice:
    """How a session speaks.

    Attributes:
        write: Takes pieces of an answer, as they come.
        end: Called when an answer has ended.
        note: Takes a line that is no answer.
        trouble: Takes a line that tells what went wrong.
    """

    write: Callable[[str], None]
    end: Callable[[], None]
    note: Callable[[str], None]
    trouble: Callable[[str], None]


class Session:
    """A conversation under way.

    Attributes:
        talk: What was said and chosen.
        is_over: The user ended it.
        num_failed: Lines that could not be done.

    Args:
        answerer: Started.
        voice: Of the terminal.
        talk: What to begin with.
    """

    def __init__(self, answerer: Answerer, voice: Voice, talk: Talk | None = None) -> None:
        self._answerer = answerer
        self._voice = voice
        self.talk = talk or Talk()
        self.is_over = False
        self.num_failed = 0
        self._lines: list[str] | None = None  # of a question of several lines, while it is typed
        self._commands: dict[str, Callable[[str], None]] = {
            "image": self.show,
            "clear": self._clear,
            "system": self._tell_system,
            "set": self._set,
            "save": self._save,
            "help": lambda words: self._voice.note(HELP),
            "quit": self._end,
            "exit": self._end,
        }

    @property
    def commands(self) -> tuple[str, ...]:
        """What a line may begin with."""
        return tuple(f"/{name}" for name in self._commands)

    @property
    def is_within_question(self) -> bool:
        """Whether a question of several lines is being typed."""
        return self._lines is not None

    def forget_lines(self) -> None:
        """Drop a question that was begun over several lines."""
        self._lines = None

    async def take(self, line: str) -> None:
        """Do what a line says; what goes wrong is told, and the session goes on."""
        question = None
        try:
            if (question := self._question(line)) is not None:
                await self._ask(question)
        except PocketVLMError as error:
            self.num_failed += 1
            self._voice.trouble(str(error))
            if question is not None and self.talk.turns and isinstance(error, RequestError):
                self._voice.note(_ANEW)

    def _question(self, line: str) -> str | None:
        """Return what is to be asked; None where the line was a command, a picture, or a part of a question."""
        if self._lines is not None or line.lstrip().startswith(_FENCE):
            return self._gathered(line)
        text = line.strip()
        if text.startswith("/") and (name := text[1:].split(maxsplit=1)[:1]) and not _is_file(text):
            self._command(name[0], text[1 + len(name[0]) :].strip())
            return None
        words = self._without_pictures(text)
        return words if words else None

    def _gathered(self, line: str) -> str | None:
        before, fence, behind = line.partition(_FENCE)
        if self._lines is None:
            self._lines, before, fence = [], *behind.partition(_FENCE)[:2]
        self._lines.append(before)
        if not fence:
            return None
        question, self._lines = "\n".join(self._lines).strip(), None
        return question or None

    def _command(self, name: str, words: str) -> None:
        if name not in self._commands:
            raise ParameterError(f"/{name} is no command; there are {' '.join(self.commands)}")
        self._commands[name](words)

    def show(self, source: str) -> None:
        """Put a picture beside the next question.

        Raises:
            ImageError: It is none, or too large.
            MachineError: It cannot be read or fetched.
        """
        if not source:
            raise ParameterError("/image wants a file or a web address, such as /image cat.jpg")
        name = source if is_web_address(source) else _path_of(source)
        try:
            picture = Picture.of(name, read_picture(name))
        except ImageError as error:
            raise ImageError(f"{name[:_SHOWN_CHARACTERS]}: {error}") from error
        self.talk.pictures.append(picture)
        self._voice.note(f"{name} ({picture.told}) goes with the next question")

    def _without_pictures(self, text: str) -> str:
        """Show the pictures whose paths or addresses a line holds, and return its other words."""
        if is_web_address(text) and len(text.split()) == 1 and urlsplit(text).path.lower().endswith(_ENDINGS):
            self.show(text)
            return ""
        if _is_file(text):
            self.show(text)
            return ""
        words = []
        for word in re.findall(r"\S+|\s+", text):
            if word.lower().endswith(_ENDINGS) and _is_file(word):
                self.show(word)
            else:
                words.append(word)
        return "".join(words).strip()

    async def _ask(self, question: str) -> None:
        """Ask, and make a turn of the answer, also of one that was stopped; a failed question can be asked again."""
        said: list[str] = []
        took: Took | None = None
        try:
            async with aclosing(self._answerer.answer(self.talk, question)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Took):
                        took = piece
                    else:
                        said.append(piece)
                        self._voice.write(piece)
        except asyncio.CancelledError:
            self._keep(question, "".join(said).strip())
            self._voice.note("stopped")
            raise
        finally:
            if said:
                self._voice.end()
        self._keep(question, "".join(said).strip())
        self._tell(took, is_empty=not "".join(said).strip())

    def _keep(self, question: str, answer: str) -> None:
        if answer:
            self.talk.turns.append(Turn(question, tuple(self.talk.pictures), answer))
            self.talk.pictures.clear()

    def _tell(self, took: Took | None, *, is_empty: bool) -> None:
        if is_empty:
            self._voice.note("the answer is empty: the model had nothing to say to these words")
        if took is not None and took.usage is not None:
            cut = "; cut at max_tokens (/set max_tokens)" if took.reason == "length" else ""
            self._voice.note(speed(took.usage, took.timings) + cut)

    def _clear(self, words: str) -> None:
        self.talk.clear()
        self._voice.note("nothing was said yet")

    def _tell_system(self, words: str) -> None:
        self.talk.system = words
        self._voice.note(f"the model is told: {words}" if words else "the model is told nothing beforehand")

    def _set(self, words: str) -> None:
        name, _, value = words.partition(" ")
        if name and not value.strip():
            raise ParameterError(f"/set {name} wants a value, such as /set temperature 0.2")
        if name:
            self.talk.choices = self.talk.choices.with_text(name, value.strip())
        self._voice.note(self.talk.choices.told())

    def _save(self, words: str) -> None:
        file = Path(words or f"chat-{time.strftime('%Y%m%d-%H%M%S')}.json")
        messages = self.talk.said()
        try:
            file = file.expanduser()
            file.write_text(
                json.dumps({"model": self._answerer.name, "messages": messages}, indent=1), encoding="utf-8"
            )
        except (OSError, ValueError, RuntimeError) as error:  # of a user who has no home, or a name with a zero in it
            reason = getattr(error, "strerror", None) or error
            raise MachineError(f"{file} cannot be written: {reason}") from error
        self._voice.note(f"{len(self.talk.turns)} turns are written to {file}")

    def _end(self, words: str) -> None:
        self.is_over = True


def _path_of(text: str) -> str:
    """Return the path that a terminal writes when a file is dropped on it: quoted, with backslashes, or a file URL."""
    if text.startswith("file://"):
        return unquote(urlsplit(text).path)
    try:
        words = shlex.split(text)
    except ValueError:
        return text
    return words[0] if len(words) == 1 else text


def _is_file(text: str) -> bool:
    try:
        return bool(text) and Path(_path_of(text)).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False
