"""Token graphs small enough for thousands of steps: the exporter's own modules, random weights scaled up."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from bundle import tensors
from bundle.cache_scales import save_cache_scales
from bundle.dims import DecoderDims
from bundle.directory import Bundle, seal
from bundle.manifest import Component, Manifest, TensorSpec, graph_name
from bundle.states import CacheScheme
from export.config import DecoderConfig
from export.decoders.causal import CausalDecoder
from export.decoders.llama import Llama
from export.family import GraphPlan
from export.graph import build_model, write_model
from export.nn.dialect import Dialect
from export.nn.dialects import DIALECTS
from export.nn.linear import Embedding
from export.rope import RopeConfig
from export.segments import write_segments
from export.vision_language import decoder_plan
from graphs.lowering.coded_cache import CodedCache
from graphs.lowering.decoder import lower_decoder
from graphs.segments import cut_segment
from graphs.store import open_graph, save_graph
from runtime.cache_shape import CacheShape, cache_shape, context_of
from runtime.decoder import Decoder, TokenGraphs
from serving.engine.runner import Runner
from serving.settings import EngineSettings

CONFIG = DecoderConfig(
    vocab_size=61,
    hidden_size=48,
    intermediate_size=64,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_size=8,
    max_positions=48,
    hidden_act="silu",
    rms_norm_eps=1e-5,
    rope=RopeConfig("default", 10_000.0),
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
)
_SCALE = {1: 0.1, 2: 0.25}
"""Standard deviation of weights by their number of axes; a vector's are about 1, as norms have them."""


@dataclass(frozen=True)
class TinyModel:
    """A bundle of token graphs alone, and the config that they were built from."""

    bundle: Bundle
    config: DecoderConfig

    def graphs(self, settings: EngineSettings) -> TokenGraphs:
        return TokenGraphs(self.bundle, settings)

    def runner(self, settings: EngineSettings) -> Runner:
        return Runner(Decoder(self.graphs(settings), self.shape(settings)))

    def shape(self, settings: EngineSettings) -> CacheShape:
        capacity_tokens = context_of(self.bundle.manifest, settings.context_tokens) or 0
        return cache_shape(self.bundle.manifest, settings.max_sequences, capacity_tokens)

    def with_manifest(self, **changes: Any) -> TinyModel:
        """Return the same files under another manifest."""
        manifest = self.bundle.manifest.model_copy(update=changes)
        return TinyModel(Bundle(self.bundle.directory, manifest), self.config)

    def with_prompt_graph(self, folder: Path) -> TinyModel:
        """Return a copy with a second decoder, of other weights, that runs prompts."""
        shutil.copytree(self.bundle.directory, folder, dirs_exist_ok=True)
        manifest, name = self.bundle.manifest, graph_name("decoder", "prompt")
        lowering = DIALECTS[manifest.dialect]()
        prompts = _written(name, _plans(self.config, lowering)["decoder"], lowering, folder, np.random.default_rng(1))
        components = {
            **manifest.components,
            "decoder": manifest.components["decoder"].model_copy(update={"phase": "step"}),
            name: prompts.model_copy(update={"phase": "prompt"}),
        }
        return TinyModel(seal(folder, manifest.model_copy(update={"components": components})), self.config)

    def with_coded_cache(self, folder: Path, scheme: CacheScheme) -> TinyModel:
        """Return a copy of the contrib dialect whose cache holds codes, with scales that hardly clip."""
        shutil.copytree(self.bundle.directory, folder, dirs_exist_ok=True)
        manifest, rng = self.bundle.manifest, np.random.default_rng(2)
        most = {"int8": 127, "int4": 7}[scheme]
        states = tuple(state.coded(scheme) for state in manifest.states)
        scales = {state.input: np.float32(rng.uniform(3, 6, state.scale_shape) / most) for state in states}
        whole, cache = self.bundle.graph_path("decoder"), CodedCache(scheme, scales)
        for segment in manifest.segments:
            part = open_graph(whole)
            cut_segment(part, segment, manifest.states_of(segment))
            lower_decoder(part, self.config.max_positions, "prompt", cache)
            save_graph(part, folder / segment.file)
        model = open_graph(whole)
        lower_decoder(model, self.config.max_positions, "any", cache)
        save_graph(model, folder / "decoder.onnx")
        save_cache_scales(folder, scales)
        return TinyModel(seal(folder, manifest.model_copy(update={"states": states})), self.config)


def write_tiny_model(
    folder: Path, config: DecoderConfig = CONFIG, dialect: str = "contrib", *, in_segments: bool = False
) -> TinyModel:
    """Write the graphs of one decoder, and a manifest, into an empty folder; its length groups may be segments."""
    lowering, rng = DIALECTS[dialect](), np.random.default_rng(0)
    plans = _plans(config, lowering)
    components = {name: _written(name, plan, lowering, folder, rng) for name, plan in plans.items()}
    states = plans["decoder"].states
    segments = write_segments(folder, components["decoder"], states, config, lambda line: None) if in_segments else ()
    manifest = Manifest(
        name="tiny",
        source="tiny",
        source_sha256="0" * 64,
        created_by="a test",
        model_type="llama",
        task="image-text-to-text",
        dialect=dialect,
        components=components,
        states=states,
        segments=segments,
        decoder=DecoderDims(
            hidden_size=config.hidden_size, vocab_size=config.vocab_size, max_positions=config.max_positions
        ),
    )
    return TinyModel(seal(folder, manifest), config)


def _plans(config: DecoderConfig, dialect: Dialect) -> dict[str, GraphPlan]:
    ids = TensorSpec(name=tensors.INPUT_IDS, dtype="int64", shape=("B", "T"))
    embeds = TensorSpec(name=tensors.INPUTS_EMBEDS, dtype="float32", shape=("B", "T", config.hidden_size))
    table = Embedding(config.vocab_size, config.hidden_size, name="model.embed_tokens")
    decoder = Llama(config)
    return {
        "embed_tokens": GraphPlan(table, "embed_tokens", (ids,), (embeds,)),
        "decoder": decoder_plan(decoder, embeds, CausalDecoder(decoder, dialect, "model")),
    }


def _written(name: str, plan: GraphPlan, dialect: Dialect, folder: Path, rng: np.random.Generator) -> Component:
    model = build_model(name, plan, dialect)
    fill(model, rng)
    return write_model(model, folder, plan)


def fill(model: ir.Model, rng: np.random.Generator) -> None:
    """Give random numbers to every weight that has none yet."""
    for value in model.graph.initializers.values():
        if value.const_value is None:
            shape: Any = tuple(int(size) for size in value.shape or ())
            numbers = rng.normal(size=shape, scale=_SCALE[len(shape)]).astype(np.float32)
            numbers += len(shape) == 1
            value.const_value = ir.tensor(numbers, name=value.name)
