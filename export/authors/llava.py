"""LLaVA 1.5 and 1.6 as their authors publish them (github.com/haotian-liu/LLaVA, model/ and conversation.py)."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from export.authors.conversation import CURIOUS_USER, Conversation, chat_ml, two_roles
from export.authors.towers import tower_of
from export.authors.translation import Translation, translated
from export.config import Raw

_MISTRAL_TYPE, _MISTRAL_CLASS = "llava_mistral", "LlavaMistralForCausalLM"
_FEATURES: Mapping[str, str] = {"patch": "default", "cls_patch": "full"}
_MISTRAL = Conversation(
    system="",
    around_system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
    around_user=("[INST] ", " [/INST]"),
    around_answer=(" ", " </s>"),
    opening="",
    end="</s>",
    says_system_to_user=True,
)
CONVERSATIONS: Mapping[str, Conversation] = {
    "vicuna_v1": two_roles("</s>", CURIOUS_USER),
    "mistral_instruct": _MISTRAL,
    "chatml_direct": chat_ml("Answer the questions.", ""),
}
"""Of `conv_templates` those that published checkpoints of 1.5 and 1.6 were trained and evaluated with."""
_NAMED = (("34b", "chatml_direct"),)
"""What a checkpoint is called says which it is, as in the authors' `run_llava.py`; all others are Vicuna's."""


def open_layout(config: Raw) -> Translation:
    """Return a checkpoint whose `model_type` is llava_llama, llava_mistral, or llava with a class of the authors'.

    Raises:
        UnsupportedConfigError: A setting that is not built, or a tower that is not known.
    """
    if config.get("s2"):
        raise UnsupportedConfigError("s2 (an image at several scales) is not built for LLaVA's own layout")
    chosen, tower = config.get("mm_vision_select_feature") or "patch", tower_of(config)
    if chosen not in _FEATURES:
        raise UnsupportedConfigError(f"mm_vision_select_feature {chosen!r}; built are {', '.join(_FEATURES)}")
    if not tower.is_clip:
        raise UnsupportedConfigError("mm_vision_tower: LLaVA's own code reads images by CLIP alone")
    return translated(
        config,
        "mistral" if _is_mistral(config) else "llama",
        tower,
        CONVERSATIONS[_conversation(config)],
        layer=int(config.get("mm_vision_select_layer", -2)),
        strategy=_FEATURES[chosen],
        connector=config.get("mm_projector_type") or "linear",
    )


def _is_mistral(config: Raw) -> bool:
    return config.get("model_type") == _MISTRAL_TYPE or _MISTRAL_CLASS in (config.get("architectures") or ())


def _conversation(config: Raw) -> str:
    """Return the name of the conversation: one that `conversation` of the config gives, or the checkpoint's."""
    stated = config.get("conversation")
    if stated is not None and stated not in CONVERSATIONS:
        raise UnsupportedConfigError(f"conversation {stated!r}; built are {', '.join(CONVERSATIONS)}")
    if stated is not None:
        return str(stated)
    called = str(config.get("_name_or_path", "")).lower()
    named = next((conversation for word, conversation in _NAMED if word in called), "vicuna_v1")
    return "mistral_instruct" if _is_mistral(config) else named
