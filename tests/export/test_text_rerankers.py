"""Cross-encoders of two texts against transformers' models, tokenizers and truncation."""

from __future__ import annotations

import json
from itertools import pairwise, product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bundle.directory import Bundle, open_bundle
from bundle.errors import UnsupportedConfigError
from bundle.text import TOKENIZER, Tokenizer
from bundle.text_pairs import TextPairs
from export.exporter import export_checkpoint
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from runtime.pair_encoder import Pair, PairEncoder
from runtime.settings import RuntimeSettings

FAMILIES = {
    "bert": ({}, {"hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 3, "hidden_act": "relu"}),
    "xlm-roberta": ({}, {"hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 1}),
    "roberta": ({}, {"max_position_embeddings": 60, "intermediate_size": 40}),
    "modernbert": (
        {},
        {
            "num_hidden_layers": 5,
            "global_attn_every_n_layers": 3,
            "local_attention": 5,
            "classifier_pooling": "mean",
            "global_rope_theta": 500.0,
        },
    ),
}
PAIRS = [
    ("what is a cat", "a cat is an animal"),
    ("what is a cat", "boats"),
    ("q", "the same words as many times as it takes"),
    ("cats and dogs", "q"),
]


@pytest.fixture(scope="module")
def made(rerankers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return checkpoint and bundle of a family in a geometry and dialect; made once."""
    folder, known = tmp_path_factory.mktemp("rerankers"), {}

    def make(family: str, number: int, dialect: Any = "contrib") -> tuple[Path, Bundle]:
        checkpoint = folder / f"{family}-{number}"
        if not checkpoint.exists():
            rerankers.save(checkpoint, family, **FAMILIES[family][number])
        if (family, number, dialect) not in known:
            known[family, number, dialect] = export_checkpoint(
                checkpoint, folder / f"{family}-{number}-{dialect}", name="tiny", dialect=dialect
            )
        return checkpoint, open_bundle(folder / f"{family}-{number}-{dialect}")

    return make


def reference(checkpoint: Path) -> tuple[Any, Any]:
    import transformers

    kind = json.loads((checkpoint / "config.json").read_text())["architectures"][0]
    model, found = getattr(transformers, kind).from_pretrained(checkpoint, output_loading_info=True)
    assert not any(found.values()), found
    return model.eval(), transformers.AutoTokenizer.from_pretrained(checkpoint)


@pytest.mark.parametrize(("family", "number", "dialect"), [*product(FAMILIES, (0, 1), ("contrib", "portable"))])
def test_scores_are_the_references_side_by_side(family: str, number: int, dialect: str, made: Any) -> None:
    torch = pytest.importorskip("torch")
    checkpoint, bundle = made(family, number, dialect)
    model, tokenizer = reference(checkpoint)
    told = tokenizer(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**told).logits[:, 0].numpy()
    longest = bundle.manifest.pairs.max_text_tokens
    pairs = TextPairs(Tokenizer.from_file(bundle.path(TOKENIZER)), longest)
    encoder = PairEncoder(bundle, RuntimeSettings(intra_threads=1))
    found = [Pair(pairs.row(*pair)) for pair in PAIRS]
    np.testing.assert_allclose(encoder.raw_scores(found), expected, atol=1e-4)  # float32, summed in another order
    np.testing.assert_allclose(encoder.score(found), 1 / (1 + np.exp(-expected)), atol=1e-5)
    assert min(abs(a - b) for a, b in pairwise(expected)) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_the_tokenizers_cut_or_whole(family: str, made: Any) -> None:
    pytest.importorskip("transformers")
    checkpoint, bundle = made(family, 0)
    _, tokenizer = reference(checkpoint)
    pairs = TextPairs(Tokenizer.from_file(bundle.path(TOKENIZER)), bundle.manifest.pairs.max_text_tokens)
    texts = ["abc", "a b c d e f g h i", "the quick brown fox jumps", "z"]
    for (first, second), most in product(product(texts, texts), [None, *range(pairs.fewest_tokens, 34)]):
        cut = {} if most is None else {"truncation": "longest_first", "max_length": most}
        if most is None and len(tokenizer(first, second)["input_ids"]) > bundle.manifest.pairs.max_text_tokens:
            continue
        told = tokenizer(first, second, **cut)
        row = pairs.row(first, second, most)
        assert row.input_ids[0].tolist() == told["input_ids"]
        assert row.token_type_ids[0].tolist() == told.get("token_type_ids", [0] * len(told["input_ids"]))
        assert row.num_tokens == len(told["input_ids"])


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("bert", {"architectures": ["BertModel"]}, "BertForSequenceClassification. A model that makes vectors"),
        ("bert", {"id2label": {"0": "no", "1": "yes", "2": "maybe"}}, "the head has 3 labels"),
        ("bert", {"id2label": None}, "the head has 2 labels"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("xlm-roberta", {"type_vocab_size": 2}, "type_vocab_size is 2"),
        ("modernbert", {"layer_types": ["full_attention"]}, "one for each of 3 layers"),
        ("modernbert", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    family: str, change: dict[str, Any], message: str, made: Any, tmp_path: Path
) -> None:
    from export.architectures import load_family

    checkpoint, _ = made(family, 0)
    with pytest.raises(UnsupportedConfigError, match=message):
        load_family(json.loads((checkpoint / "config.json").read_text()) | change)


def test_a_tokenizer_that_tells_no_texts_apart_is_refused(rerankers: ModuleType, tmp_path: Path) -> None:
    rerankers.save(tmp_path / "checkpoint", "bert")
    path = tmp_path / "checkpoint" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_input_names": ["input_ids", "attention_mask"]}))
    with pytest.raises(UnsupportedConfigError, match="has no token_type_ids, and the model has 2 of them"):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle")


def test_a_variant_for_cuda_reads_texts_alone(made: Any, tmp_path: Path) -> None:
    _, parent = made("bert", 0)
    quantize_bundle(parent.directory, tmp_path / "cuda", weights="fp16", options=Options(target="cuda"))
    variant = open_bundle(tmp_path / "cuda", allow_ungated=True)
    texts = Tokenizer.from_file(parent.path(TOKENIZER))
    row = texts.encode_batch(["what is a cat"], max_tokens=24, pad_token_id=0, pads_to_max=False)
    expected, found = (
        PairEncoder(each, RuntimeSettings(intra_threads=1)).score([Pair(row)]) for each in (parent, variant)
    )
    np.testing.assert_allclose(found, expected, atol=5e-3)  # of float16
