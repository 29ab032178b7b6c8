"""Tokens that a checkpoint states beside `tokenizer.json`, put into it as transformers' fast tokenizers do at load.

They stand in `tokenizer_config.json` (`added_tokens_decoder`, `extra_special_tokens`, the named tokens) and, in older
checkpoints, in `special_tokens_map.json` and `added_tokens.json`. A fine-tune that lost them has other prompts: the
token becomes text, and one that is special is shown in answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

from bundle.errors import CheckpointError, UnsupportedConfigError

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
_FIRST_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""In the order in which transformers adds those that are missing."""
_STATED = "added_tokens_decoder"
_EXTRA, _EXTRA_OF_OLD = "extra_special_tokens", "additional_special_tokens"


def with_added_tokens(
    text: str, settings: Mapping[str, Any], legacy: Mapping[str, Any], added: Mapping[str, Any]
) -> str:
    """Return `tokenizer.json` with every token that the checkpoint states; the same text where none is missing.

    Args:
        text: `tokenizer.json`.
        settings: `tokenizer_config.json`.
        legacy: `special_tokens_map.json`, read where the settings have no `added_tokens_decoder`.
        added: `added_tokens.json`, likewise.

    Raises:
        CheckpointError: A token is stated in a form that is none.
        UnsupportedConfigError: A token would get another id than is stated.
    """
    try:
        backend = tokenizers.Tokenizer.from_str(text)
        named = dict(_special(settings)) | ({} if _STATED in settings else dict(_special(_counted(legacy, settings))))
        stated = dict(_stated(settings, added, named))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"tokenizer_config.json states its tokens in a form that is none: {error}") from error
    is_changed = False
    for token_id, token in sorted(stated.items()):
        is_changed |= _add(backend, token, token_id)
    for token in named.values():
        if backend.token_to_id(token.content) is None:
            is_changed |= _add(backend, token, None)
    return str(backend.to_str(pretty=True)) if is_changed else text


def _counted(legacy: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what counts of a `special_tokens_map.json`: its old list only where the settings have none."""
    if settings.get(_EXTRA) or settings.get(_EXTRA_OF_OLD):
        return {key: value for key, value in legacy.items() if key != _EXTRA_OF_OLD}
    return legacy


def _stated(
    settings: Mapping[str, Any], added: Mapping[str, Any], named: Mapping[str, Any]
) -> Iterator[tuple[int, tokenizers.AddedToken]]:
    """Yield the tokens that are stated with their ids."""
    if _STATED in settings:
        for token_id, entry in settings[_STATED].items():
            is_special = bool(entry.get("special", False)) or entry["content"] in named
            yield int(token_id), _token(entry, is_special)
        return
    for content, token_id in added.items():
        yield int(token_id), _token({"content": content}, content in named)


def _special(settings: Mapping[str, Any]) -> Iterator[tuple[str, tokenizers.AddedToken]]:
    """Yield the special tokens by their text: those with a name, and the nameless."""
    stated = settings.get(_EXTRA) or settings.get(_EXTRA_OF_OLD) or []
    extra = list(stated.values()) if isinstance(stated, Mapping) else list(stated)
    keys = dict.fromkeys((*_FIRST_NAMES, *(key for key in settings if key.endswith("_token"))))
    named = [settings[key] for key in keys if isinstance(settings.get(key), (str, Mapping))]
    for entry in (*named, *extra):
        token = _token({"content": entry} if isinstance(entry, str) else entry, True)
        yield token.content, token


def _token(entry: Mapping[str, Any], is_special: bool) -> tokenizers.AddedToken:
    flags = {name: bool(entry[name]) for name in _FLAGS if name in entry}
    return tokenizers.AddedToken(str(entry["content"]), special=is_special, **flags)


def _add(backend: tokenizers.Tokenizer, token: tokenizers.AddedToken, token_id: int | None) -> bool:
    """Add a token, or change the flags of one that is there; return whether anything changed.

    Raises:
        UnsupportedConfigError: It has, or would get, another id.
    """
    before = backend.get_added_tokens_decoder()
    (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    found = backend.token_to_id(token.content)
    if token_id is not None and found != token_id:
        raise UnsupportedConfigError(
            f"tokenizer_config.json gives {token.content!r} the id {token_id}, but in tokenizer.json it is or would be "
            f"{found}. Save the tokenizer again with transformers."
        )
    after = backend.get_added_tokens_decoder()
    return {key: repr(each) for key, each in before.items()} != {key: repr(each) for key, each in after.items()}
