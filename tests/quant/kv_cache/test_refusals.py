from __future__ import annotations

import pytest

from bundle.errors import MachineError, QuantizationError
from bundle.states import State
from quant.kv_cache import refusals
from quant.kv_cache.refusals import coded_states, require_operators

CONV = State(input="conv", output="conv2", kind="fixed", dtype="float32", shape=("B", 5))


def test_a_contrib_decoder_on_a_cpu_gets_codes(tiny_model) -> None:
    manifest = tiny_model.bundle.manifest
    for scheme, share in (("int8", 4), ("int4", 8)):
        states = coded_states(manifest, scheme, "cpu")
        coded = manifest.model_copy(update={"states": states})
        assert coded.state_bytes_per_token * share == manifest.state_bytes_per_token
        require_operators(scheme)


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_other_targets_keep_floats(tiny_model, target) -> None:
    with pytest.raises(QuantizationError, match=f"int8 is not for --target {target}.*leave --kv-cache out"):
        coded_states(tiny_model.bundle.manifest, "int8", target)


def test_what_cannot_hold_codes_is_refused_by_name(tiny_model, tiny_models) -> None:
    manifest = tiny_model.bundle.manifest
    hybrid = manifest.model_copy(update={"states": (*manifest.states, CONV)})
    odd = State(input="odd", output="odd2", dtype="float32", shape=("B", 2, "S", 3), group=0)
    refused = {
        "--kv-cache 'int2': known are int8, int4": (manifest, "int2"),
        "is in the portable dialect, whose Attention reads floats": (tiny_models("portable").bundle.manifest, "int8"),
        "tiny has no decoder": (manifest.model_copy(update={"decoder": None}), "int8"),
        "keeps conv, of kind fixed": (hybrid, "int8"),
        "share a byte, and it has 3 channels. Take int8": (manifest.model_copy(update={"states": (odd,)}), "int4"),
    }
    for told, (given, scheme) in refused.items():
        with pytest.raises(QuantizationError, match=told):
            coded_states(given, scheme, "cpu")


def test_a_runtime_without_the_operator_is_told(monkeypatch) -> None:
    monkeypatch.setattr(
        refusals, "failure_of", lambda probe, provider: "no such attribute" if "int4" in probe else None
    )
    require_operators("int8")
    with pytest.raises(MachineError, match=r"cannot run GroupQueryAttention-int4-cache: no such attribute.*doctor"):
        require_operators("int4")
