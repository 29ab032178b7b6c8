"""How a conversation is written where a checkpoint's files do not say it: its authors' code does, in a few texts."""

from __future__ import annotations

import json
from dataclasses import dataclass

IMAGE = "<image>"
"""What stands for an image in the authors' prompts, and is cut out of them before they become tokens."""


@dataclass(frozen=True)
class Conversation:
    """Texts around what is said; each image stands before a line end.

    Attributes:
        system: What a conversation without a system message begins with; "": nothing.
        around_system: Before and behind a system message.
        around_user: Before and behind what a user says.
        around_answer: Before and behind an answer.
        opening: How an answer begins.
        end: The token that ends one.
        says_system_to_user: A system message stands within the first user's, and not before it.
        gathers_images: A message's images stand before all of its text, whose edges lose blanks and line ends then.
    """

    system: str
    around_system: tuple[str, str]
    around_user: tuple[str, str]
    around_answer: tuple[str, str]
    opening: str
    end: str
    says_system_to_user: bool = False
    gathers_images: bool = False

    def template(self) -> str:
        """Return the conversation as a chat template."""
        before, behind = map(_said, self.around_system)
        own = f"{before}{_said(self.system)}{behind}" if self.system else ""
        told = f"{before}{self._content('messages[0]')}{behind}"
        first = f"{{% if messages[0].role == 'system' %}}{told}{{% else %}}{own}{{% endif %}}"
        within = f"{{% if loop.first %}}{first}{{% endif %}}" if self.says_system_to_user else ""
        content = self._content("message")
        asked = f"{_said(self.around_user[0])}{within}{content}{_said(self.around_user[1])}"
        answered = f"{_said(self.around_answer[0])}{content}{_said(self.around_answer[1])}"
        return (
            ("" if self.says_system_to_user else first)
            + "{% for message in messages if message.role != 'system' %}{% if message.role == 'assistant' %}"
            + f"{answered}{{% else %}}{asked}{{% endif %}}{{% endfor %}}"
            + f"{{% if add_generation_prompt %}}{_said(self.opening)}{{% endif %}}"
        )

    def _content(self, message: str) -> str:
        """Return what writes a message's content."""
        content, image = f"{message}.content", _said(f"{IMAGE}\n")
        each = f"{{% if part.type == 'image' %}}{image}{{% else %}}{{{{ part.text }}}}{{% endif %}}"
        parts = f"{{% for part in {content} %}}{each}{{% endfor %}}"
        if self.gathers_images:
            images, texts = (f"{content} | {kind}attr('type', 'equalto', 'image')" for kind in ("select", "reject"))
            gathered = f"{{% for part in {images} %}}{image}{{% endfor %}}"
            gathered += f"{{{{ {texts} | map(attribute='text') | join | trim }}}}"
            parts = f"{{% if {images} | list %}}{gathered}{{% else %}}{parts}{{% endif %}}"
        return f"{{% if {content} is string %}}{{{{ {content} }}}}{{% else %}}{parts}{{% endif %}}"


def _said(text: str) -> str:
    """Return what writes a text, whatever its edges are."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def two_roles(end: str, system: str, *, gathers_images: bool = False) -> Conversation:
    """Return Vicuna's conversation: USER and ASSISTANT on one line, each answer before its end."""
    return Conversation(
        system=system,
        around_system=("", " "),
        around_user=("USER: ", " "),
        around_answer=("ASSISTANT: ", end),
        opening="ASSISTANT:",
        end=end,
        gathers_images=gathers_images,
    )


def chat_ml(system: str, behind: str) -> Conversation:
    """Return ChatML's conversation.

    Args:
        system: The system message where there is none.
        behind: What follows the end of every message: a line end, or nothing.
    """
    end = "<|im_end|>"
    user, answer = ((f"<|im_start|>{role}\n", f"{end}{behind}") for role in ("user", "assistant"))
    return Conversation(
        system=system,
        around_system=("<|im_start|>system\n", f"{end}{behind}"),
        around_user=user,
        around_answer=answer,
        opening="<|im_start|>assistant\n",
        end=end,
    )


CURIOUS_USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
"""Vicuna's system message."""
