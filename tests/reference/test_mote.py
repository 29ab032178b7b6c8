"""Mixture of ternary experts: routing, load balance, checkpoints."""

from __future__ import annotations

import json
import pathlib

import pytest

from commands.shipped import CHECKPOINTS

WIDTHS = {"ternary": 704, "float": 88}


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    """Import what trains here, so that collecting takes none of it."""
    global torch, transformers, load_file, mote, train_mote, ternary, load_vlm, IDS
    torch = pytest.importorskip("torch", reason="training needs the [train] extra")
    transformers = pytest.importorskip("transformers", reason="training needs the [train] extra")

    from safetensors.torch import load_file

    from reference import mote, ternary, train_mote
    from reference.lessons import load_vlm

    IDS = torch.tensor([[1, 20, 30, 40, 50, 60]])


def shape_of(weights: str) -> mote.ExpertShape:
    return mote.ExpertShape(4, WIDTHS[weights], weights)


@pytest.fixture(scope="module", params=WIDTHS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("mote")
    mote.write_upcycled(CHECKPOINTS["vlm"], folder, shape_of(request.param))
    return folder


def test_gate_is_a_share_of_all_experts_not_of_the_chosen_one() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    _, gate, chosen = mote.route(logits)
    of_chosen_alone = logits.gather(1, chosen[:, None]).softmax(-1)
    assert of_chosen_alone.flatten().tolist() == [1.0, 1.0]  # what a softmax over the selected logits gives
    weights = torch.tensor([2.0, 1.0, 0.0, -1.0]).exp()
    torch.testing.assert_close(gate, torch.stack([weights[0] / weights.sum(), torch.tensor(0.25)]))
    assert chosen[0] == 0


def test_router_learns_from_the_answer() -> None:
    model = load_vlm(CHECKPOINTS["vlm"])
    layers = mote.upcycle(model, shape_of("ternary"), seed=0)
    model(input_ids=IDS).logits.square().sum().backward()
    assert all(float(layer.router.weight.grad.abs().max()) > 0 for layer in layers)
    assert all(p.grad is None for layer in layers for p in layer.shared_expert.parameters())


def test_load_balance_is_one_for_uniform_routing_and_more_for_a_favourite() -> None:
    uniform = torch.full((8, 4), 0.25)
    assert float(mote.load_balance(uniform, torch.arange(8) % 4)) == pytest.approx(1.0)
    favourite = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(8, 4)
    assert float(mote.load_balance(favourite, torch.zeros(8, dtype=torch.long))) == pytest.approx(4.0)


def test_mixture_equals_a_loop_over_rows_in_double_precision() -> None:
    """Both in float64: in float32 the order of a sum decides to which int8 step an activation near a tie goes."""
    model = load_vlm(CHECKPOINTS["vlm"])
    layer = mote.upcycle(model, shape_of("ternary"), seed=3, noise=0.5)[1].double()
    values = torch.randn(2, 7, 256, generator=torch.Generator().manual_seed(0)).double()
    wanted = torch.stack([_one_row(layer, row) for row in values.flatten(0, 1)]).view_as(values)
    with torch.no_grad():
        got = layer(values)
    # the share of the chosen expert is a float32 number
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def _one_row(layer: mote.MixtureMlp, row: torch.Tensor) -> torch.Tensor:
    def product(linear: torch.nn.Module, x: torch.Tensor, is_ternary: bool) -> torch.Tensor:
        weight = linear.weight.detach()
        if is_ternary:
            codes, scale = ternary.absmean(weight)
            weight, x = codes * scale, ternary.int8_per_token(x)
        return weight @ x

    def feed_forward(expert: torch.nn.Module, is_ternary: bool) -> torch.Tensor:
        gate = product(expert.gate_proj, row, is_ternary)
        return product(
            expert.down_proj, gate / (1 + (-gate).exp()) * product(expert.up_proj, row, is_ternary), is_ternary
        )

    scores = (layer.router.weight.detach() @ row).exp()
    chosen = int(scores.argmax())
    share = scores[chosen] / scores.sum()
    return feed_forward(layer.shared_expert, False) + share * feed_forward(layer.experts[chosen], True)


def test_stored_mixture_computes_what_the_trained_one_does(
    written: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without rounding activations to int8: near a tie, what float16 cost a weight would move them a whole step."""
    monkeypatch.setattr(ternary, "int8_per_token", lambda values: values)
    text = json.loads((written / "config.json").read_text())["text_config"]
    shape = mote.ExpertShape(text["num_experts"], text["expert_intermediate_size"], text["expert_weights"])
    trained = transformers.SmolVLMForConditionalGeneration.from_pretrained(CHECKPOINTS["vlm"], dtype=torch.float32)
    mote.upcycle(trained, shape, seed=0, noise=0.5)
    with torch.inference_mode():
        # experts and routers are rounded to float16 on disk, logits reach 12
        torch.testing.assert_close(
            mote.load_mote(written)(input_ids=IDS).logits, trained(input_ids=IDS).logits, atol=5e-3, rtol=1e-3
        )


def test_narrow_float_experts_take_as_many_bytes_as_ternary_ones(tmp_path: pathlib.Path) -> None:
    def expert_bytes(shape: mote.ExpertShape) -> int:
        mote.write_upcycled(CHECKPOINTS["vlm"], tmp_path / shape.weights, shape)
        tensors = load_file(tmp_path / shape.weights / "model.safetensors")
        return sum(t.numel() * t.element_size() for k, t in tensors.items() if ".experts." in k)

    packed, narrow = (expert_bytes(shape_of(weights)) for weights in ("ternary", "float"))
    assert packed - narrow == 4 * 4 * 3 * 2  # a float16 scale a matrix


def test_transformers_refuses_the_mixture_by_name(written: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="llama_mote"):
        transformers.AutoModelForImageTextToText.from_pretrained(written)


def test_dense_checkpoint_is_not_taken_for_a_mixture() -> None:
    with pytest.raises(ValueError, match="text model of type 'llama', not 'llama_mote'"):
        mote.load_mote(CHECKPOINTS["vlm"])


def test_checkpoint_that_lacks_an_expert_is_refused(written: pathlib.Path, tmp_path: pathlib.Path) -> None:
    from safetensors.torch import save_file

    tensors = load_file(written / "model.safetensors")
    lost = "model.text_model.layers.2.mlp.experts.3.up_proj.weight"
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((written / "config.json").read_text())
    with pytest.raises(ValueError, match=lost):
        mote.load_mote(tmp_path)


def test_slices_beyond_the_dense_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="expert 2 of width 300 ends beyond the 704 units"):
        mote.upcycle(load_vlm(CHECKPOINTS["vlm"]), mote.ExpertShape(4, 300, "float"), seed=0)
    with pytest.raises(ValueError, match="'int3', known: 'ternary', 'float'"):
        mote.ExpertShape(4, 704, "int3")


@pytest.mark.parametrize("kind", ["mote", "dense"])
def test_five_steps_of_training_leave_a_checkpoint_that_loads(kind: str, tmp_path: pathlib.Path) -> None:
    train_mote.main(["--smoke", "--kind", kind, "--out", str(tmp_path)])
    before, after = (load_file(folder / "model.safetensors") for folder in (CHECKPOINTS["vlm"], tmp_path))
    assert mote.is_mote(tmp_path) == (kind == "mote")
    for name, weight in before.items():
        shared = name.replace(".mlp.", ".mlp.shared_expert.") if kind == "mote" and "text_model" in name else name
        is_frozen = shared != name or "vision_model" in name or "connector" in name
        assert torch.equal(after[shared], weight) or not is_frozen, shared
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    logits = mote.load_mote(tmp_path)(input_ids=IDS).logits if kind == "mote" else load_vlm(tmp_path).lm_head.weight
    assert torch.isfinite(logits).all()
