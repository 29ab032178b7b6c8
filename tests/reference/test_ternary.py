"""Ternary layers: their arithmetic, gradients and packed form, against closed forms and transformers' own."""

from __future__ import annotations

import json
import math
import pathlib
import warnings
from collections.abc import Iterator

import pytest

from commands.shipped import CHECKPOINTS

STORED = CHECKPOINTS["vlm"].parent / "vlm-ternary"


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    """Import what trains here, so that collecting takes none of it."""
    global torch, load_file, SmolVLMConfig, SmolVLMForConditionalGeneration, BitNetQuantConfig, transformers_bitnet
    global bitnet, ternary, train_ternary, IDS
    torch = pytest.importorskip("torch", reason="training needs the [train] extra")
    pytest.importorskip("transformers", reason="training needs the [train] extra")

    from safetensors.torch import load_file
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.utils.quantization_config import BitNetQuantConfig

    from reference import bitnet, ternary, train_ternary

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler, which it imports, uses torch.jit
        from transformers.integrations import bitnet as transformers_bitnet

    IDS = torch.tensor([[1, 20, 30, 40, 50, 60]])


@pytest.fixture(autouse=True)
def _eager(_late_imports: None) -> Iterator[None]:
    """Let transformers' ternary layers run as they are written: compiling them takes longer than all these tests."""
    with torch.compiler.set_stance("force_eager"):
        yield


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_absmean_equals_the_definition() -> None:
    codes, scale = ternary.absmean(torch.tensor([[0.9, -0.1, 0.4], [-2.0, 0.3, -0.5]]))
    assert scale == pytest.approx(0.7)
    assert codes.tolist() == [[1, 0, 1], [-1, 0, -1]]  # 0.4 / 0.7 and 0.5 / 0.7 round up, 0.3 / 0.7 down


def test_absmean_of_gaussian_weights_has_the_closed_forms_error() -> None:
    weight = matrix(1000, 1000)
    codes, scale = ternary.absmean(weight)
    level = math.sqrt(2 / math.pi)  # E|w|
    tail = math.erfc(level / 2 / math.sqrt(2))  # P(|w| > level / 2)
    moment = 2 * math.exp(-((level / 2) ** 2) / 2) / math.sqrt(2 * math.pi)  # E[|w|; |w| > level / 2]
    wanted = 1 - 2 * level * moment + level**2 * tail
    # a million samples: the mean of squared errors has a standard deviation of about 4e-4
    assert float((weight - codes * scale).square().mean()) == pytest.approx(wanted, abs=2e-3)


def test_nearest_ternary_of_gaussian_weights_has_the_known_error() -> None:
    weight = matrix(1000, 1000)
    error = (weight - ternary.nearest_ternary(weight, 1000)).square().mean()
    assert float(error) == pytest.approx(0.1902, abs=2e-3)  # three-level Lloyd-Max quantizer of a unit Gaussian


def test_nearest_ternary_equals_brute_force_in_each_block() -> None:
    weight = matrix(3, 10, seed=5)
    got = ternary.nearest_ternary(weight, 4)
    for row in range(3):
        for block in (slice(0, 4), slice(4, 8), slice(8, 10)):
            values = weight[row, block]
            errors = []
            for number in range(3 ** len(values)):
                signs = torch.tensor([number // 3**i % 3 - 1.0 for i in range(len(values))])
                scale = float(signs @ values / signs.square().sum().clamp(min=1))
                errors.append(float((values - scale * signs).square().sum()))
            assert float((values - got[row, block]).square().sum()) == pytest.approx(min(errors), abs=1e-6)


def test_activations_equal_transformers_int8_rounding() -> None:
    values = matrix(5, 64) * torch.tensor([[1e-9], [0.1], [1], [30], [1e4]])
    torch.testing.assert_close(
        ternary.int8_per_token(values), transformers_bitnet.ActQuant.apply(values), rtol=1e-6, atol=0
    )


def test_a_loud_row_leaves_others_alone() -> None:
    values = matrix(2, 64)
    alone = ternary.int8_per_token(values[:1])
    values[1] *= 1000
    assert torch.equal(ternary.int8_per_token(values)[:1], alone)


def test_layer_equals_transformers_own_in_training_form() -> None:
    layer = ternary.TernaryLinear.of(torch.nn.Linear(64, 32, bias=False))
    theirs = transformers_bitnet.AutoBitLinear(64, 32, bias=False, online_quant=True)
    theirs.weight = layer.weight
    values = matrix(7, 64)
    torch.testing.assert_close(layer(values), theirs(values))


def test_gradients_pass_both_roundings_straight_through() -> None:
    layer = ternary.TernaryLinear.of(torch.nn.Linear(64, 32, bias=False))
    values = matrix(7, 64).requires_grad_()
    upstream = matrix(7, 32, seed=1)
    layer(values).backward(upstream)
    codes, scale = ternary.absmean(layer.weight.detach())
    torch.testing.assert_close(values.grad, upstream @ (codes * scale))
    torch.testing.assert_close(layer.weight.grad, upstream.T @ ternary.int8_per_token(values.detach()))


def test_blend_moves_from_float_to_ternary_weights() -> None:
    layer = ternary.TernaryLinear.of(torch.nn.Linear(64, 32, bias=False))
    values = matrix(7, 64)
    layer.blend = 0.0
    float_weights = layer(values)
    torch.testing.assert_close(float_weights, ternary.int8_per_token(values) @ layer.weight.T)
    layer.blend = 1.0
    ternary_weights = layer(values)
    layer.blend = 0.25
    torch.testing.assert_close(layer(values), 0.75 * float_weights + 0.25 * ternary_weights)


@pytest.mark.parametrize("shape", [(4, 1), (8, 3), (704, 256), (256, 704)])
def test_packing_equals_transformers_and_comes_back(shape: tuple[int, int]) -> None:
    codes = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(0))
    packed = ternary.pack(codes)
    assert torch.equal(packed, transformers_bitnet.pack_weights(codes.clone()))
    assert torch.equal(ternary.unpack(packed).float(), transformers_bitnet.unpack_weights(packed, torch.float32))
    assert torch.equal(ternary.unpack(packed).long(), codes)


def test_packing_puts_rows_a_quarter_apart_into_one_byte() -> None:
    packed = ternary.pack(torch.tensor([[-1], [0], [1], [1], [0], [0], [1], [-1]]))
    assert packed.flatten().tolist() == [0b10_01_10_00, 0b00_01_10_01]


def test_rows_that_fill_no_byte_are_refused() -> None:
    with pytest.raises(ValueError, match="6 rows of ternary codes must be a multiple of 4"):
        ternary.pack(torch.zeros(6, 3))


@pytest.fixture
def exact_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave activations as they are, in our layers and in transformers'.

    Rounded to int8, one that lies near a tie goes to another step where a sum is taken in another order, as other
    processors do, and logits near 12 move by 0.1.
    """
    monkeypatch.setattr(ternary, "int8_per_token", lambda values: values)
    one = torch.ones(1)
    monkeypatch.setattr(transformers_bitnet.BitLinear, "activation_quant", lambda _layer, values: (values, one))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("ternary")
    train_ternary.main(["--smoke", "--out", str(folder)])
    return folder


def loaded_as_transformers_does(folder: pathlib.Path) -> SmolVLMForConditionalGeneration:
    """Do by hand what `from_pretrained` does to a `bitnet` checkpoint once `accelerate` is there."""
    config = SmolVLMConfig.from_pretrained(folder)
    quantization = BitNetQuantConfig(**config.quantization_config)
    model = SmolVLMForConditionalGeneration(config)
    model = transformers_bitnet.replace_with_bitnet_linear(model, quantization.modules_to_not_convert, quantization)
    tensors = load_file(folder / "model.safetensors")
    floats = {name: tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()}
    model.load_state_dict(tensors | floats, strict=True, assign=True)
    return model.eval()


@pytest.mark.usefixtures("exact_activations")
def test_stored_model_computes_what_transformers_does_with_it() -> None:
    theirs = loaded_as_transformers_does(STORED)
    layers = list(theirs.model.text_model.layers.modules())
    assert sum(isinstance(module, transformers_bitnet.BitLinear) for module in layers) == 7 * 4
    assert not any(isinstance(m, transformers_bitnet.BitLinear) for m in theirs.model.vision_model.modules())
    with torch.inference_mode():
        ours = bitnet.load_bitnet(STORED)(input_ids=IDS).logits
        # one divides by the product of two scales, the other multiplies by each: float32 rounding of logits near 12
        torch.testing.assert_close(ours, theirs(input_ids=IDS).logits, atol=1e-4, rtol=1e-5)


def test_every_stored_layer_computes_what_transformers_own_does_with_its_input() -> None:
    """With activations in int8: both round the same numbers, so that no step can fall the other way."""
    ours, theirs = bitnet.load_bitnet(STORED), loaded_as_transformers_does(STORED)
    compared = []

    def compare(name: str, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        torch.testing.assert_close(output, theirs.get_submodule(name)(*inputs))
        compared.append(name)

    for name, module in ours.named_modules():
        if isinstance(module, ternary.StoredTernaryLinear):
            module.register_forward_hook(lambda _, inputs, output, name=name: compare(name, inputs, output))
    with torch.inference_mode():
        ours(input_ids=IDS)
    assert len(set(compared)) == 7 * 4


@pytest.mark.usefixtures("exact_activations")
def test_stored_model_computes_what_the_trained_one_did(tmp_path: pathlib.Path) -> None:
    trained = SmolVLMForConditionalGeneration.from_pretrained(CHECKPOINTS["vlm"], dtype=torch.float32).eval()
    bitnet.make_ternary(trained.model.text_model.layers)
    with torch.inference_mode():
        for layer in trained.modules():
            if isinstance(layer, ternary.TernaryLinear):
                _, scale = ternary.absmean(layer.weight)
                layer.weight *= scale.half() / scale  # as after training, when scales are ones that float16 holds
        bitnet.save_bitnet(trained, CHECKPOINTS["vlm"], tmp_path)
        # float16 on disk holds every one of these weights: float32 rounding, as in the first of these tests
        torch.testing.assert_close(
            bitnet.load_bitnet(tmp_path)(input_ids=IDS).logits, trained(input_ids=IDS).logits, atol=1e-4, rtol=1e-5
        )


def test_other_checkpoints_are_not_taken_for_bitnet() -> None:
    with pytest.raises(ValueError, match="vlm is no bitnet checkpoint of linear class bitlinear"):
        bitnet.load_bitnet(CHECKPOINTS["vlm"])


def test_stored_codes_are_those_the_training_computed_with() -> None:
    model = torch.nn.Sequential(ternary.TernaryLinear.of(torch.nn.Linear(64, 32, bias=False))).bfloat16()
    values = matrix(7, 64).bfloat16()
    with torch.no_grad():
        trained = model(values)
    tensors = ternary.checkpoint_tensors(model)
    layer = ternary.StoredTernaryLinear(64, 32)
    layer.weight, layer.weight_scale = ternary.unpack(tensors["0.weight"]).float(), tensors["0.weight_scale"].float()
    # outputs round to bfloat16, 8 bits
    torch.testing.assert_close(layer(ternary.int8_per_token(values).float()), trained.float(), atol=2e-2, rtol=1e-2)
    codes, scale = ternary.absmean(model[0].weight.detach())
    assert torch.equal(layer.weight, codes.float())
    assert layer.weight_scale.item() == scale.item()


def test_configuration_names_what_stays_in_full_precision(smoke: pathlib.Path) -> None:
    config = json.loads((smoke / "config.json").read_text())["quantization_config"]
    kept = config["modules_to_not_convert"]
    for name, tensor in load_file(smoke / "model.safetensors").items():
        is_kept = any(name.startswith(f"{module}.") for module in kept)
        is_matrix = name.endswith("_proj.weight")
        assert (tensor.dtype == torch.uint8) == (is_matrix and not is_kept), name


@pytest.mark.usefixtures("exact_activations")
def test_transformers_loads_the_checkpoint_and_computes_the_same(smoke: pathlib.Path) -> None:
    pytest.importorskip("accelerate", reason="transformers loads bitnet checkpoints only where accelerate is installed")
    model = SmolVLMForConditionalGeneration.from_pretrained(smoke, dtype=torch.float32).eval()
    with torch.inference_mode():
        torch.testing.assert_close(
            model(input_ids=IDS).logits, loaded_as_transformers_does(smoke)(input_ids=IDS).logits
        )
