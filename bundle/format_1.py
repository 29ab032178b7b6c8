"""Manifests of format 1, told in the words of format 2: what they left to names is written out.

Format 1 knew a graph's role by its name, found the cache by the spelling of tensors, and had one number of rows for all
layers.
"""

from __future__ import annotations

from typing import Any

VERSION = 1
_PROMPT_DECODER = "decoder_prefill"
_DECODERS = ("decoder", _PROMPT_DECODER)
_PAST, _PRESENT = "past_key_values.", "present."
_DROPPED_DIMS = ("num_layers", "num_heads", "num_kv_heads", "head_size", "kv_dtype")


def upgraded(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a parsed manifest of format 1 as one of format 2.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: It is none.
    """
    decoder = raw["components"].get("decoder")
    dims = raw.get("decoder")
    return {
        **raw,
        "format_version": 2,
        "components": {name: _component(name, part, raw["components"]) for name, part in raw["components"].items()},
        "states": [] if decoder is None else _states(decoder),
        "decoder": dims and {key: value for key, value in dims.items() if key not in _DROPPED_DIMS},
    }


def _component(name: str, part: dict[str, Any], all_parts: dict[str, Any]) -> dict[str, Any]:
    if name not in _DECODERS:
        return {**part, "role": name}
    phase = "any" if _PROMPT_DECODER not in all_parts else "prompt" if name == _PROMPT_DECODER else "step"
    return {
        **part,
        "role": "decoder",
        "phase": phase,
        "inputs": [spec for spec in part["inputs"] if not spec["name"].startswith(_PAST)],
        "outputs": [spec for spec in part["outputs"] if not spec["name"].startswith(_PRESENT)],
    }


def _place(name: str) -> dict[str, Any]:
    """Return the layer and the part that a cache is of: "past_key_values.3.key"."""
    layer, part = name.removeprefix(_PAST).split(".")
    return {"layer": int(layer), "part": part}


def _states(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    pasts = [spec for spec in decoder["inputs"] if spec["name"].startswith(_PAST)]
    presents = [spec for spec in decoder["outputs"] if spec["name"].startswith(_PRESENT)]
    return [
        {
            "input": past["name"],
            "output": present["name"],
            "kind": "rows",
            "dtype": past["dtype"],
            "shape": past["shape"],
            "group": 0,
            **_place(past["name"]),
        }
        for past, present in zip(pasts, presents, strict=True)
    ]
