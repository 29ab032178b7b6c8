"""The systems that are compared: name -> environment, module, and what it runs.

A new one is one entry here, its environment among the first lines, and a module that calls `worker.serve`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtests.peers.environments import Environment, run_in
from loadtests.peers.measures import Kind
from loadtests.peers.models import Models

OURS = Environment("")
TORCH = Environment("torch", (("torch==2.13.0",), ("transformers==5.24.0", "numpy", "Pillow")))
"""torch first and by its exact version: any other spelling may bring gigabytes of CUDA."""
OPENVINO = Environment(
    "openvino",
    (("torch==2.13.0",), ("openvino==2026.4.1", "optimum-intel==2.2.0", "transformers==4.57.6", "nncf==3.4.0")),
    without=("openvino-telemetry",),
)
"""optimum-intel refuses the transformers that pip brings with it."""
GENAI = Environment(
    "genai",
    (
        ("torch==2.13.0",),
        ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "transformers==5.24.0", "onnx-ir==1.1.0"),
    ),
)
LLAMA = Environment("llama", (("llama-cpp-python==0.3.36", "xllamacpp==2026.10.11549"),), sees_ours=True)
"""Built from source, for the instructions of this machine: that takes minutes, and a compiler."""
FASTEMBED = Environment(
    "fastembed",
    (("torch==2.13.0",), ("fastembed==0.9.1", "onnxruntime==1.32.0"), ("transformers==5.24.0", "onnx==1.23.2")),
)
"""torch and transformers write the graph that it runs; its own is on a hub."""
INFINITY = Environment(
    "infinity", (("torch==2.13.0",), ("infinity-emb[torch]==0.0.78", "transformers==4.57.6", "aiohttp==3.14.5"))
)
OPEN_CLIP = Environment(
    "open-clip",
    (
        ("torch==2.13.0",),
        ("numpy", "Pillow", "ftfy", "regex", "tqdm", "huggingface-hub", "safetensors", "pyyaml"),
        ("--no-deps", "open_clip_torch==3.3.0", "timm==1.0.31"),
    ),
)
"""Without torchvision, whose wheel wants torch with CUDA."""

_TOKENS: frozenset[Kind] = frozenset({"prefill", "decode"})
_IMAGES: frozenset[Kind] = frozenset({"vision", "first_token"})
_VLM: frozenset[Kind] = _TOKENS | _IMAGES
_SERVED: frozenset[Kind] = _VLM | {"chats"}
_ENCODER: frozenset[Kind] = frozenset({"encode"})
_EMBEDDER: frozenset[Kind] = frozenset({"embed"})


@dataclass(frozen=True)
class Workshop:
    """Where systems find what they run.

    Attributes:
        models: Checkpoints and bundles.
        environments: The folder of environments.
    """

    models: Models
    environments: Path

    def run(self, environment: Environment, module: str, arguments: list[str], what: str) -> None:
        """Run a module in an environment, to make something."""
        run_in(environment.python(self.environments), module, arguments, what)


@dataclass(frozen=True)
class System:
    """One line of the table.

    Attributes:
        name: On the command line and in tables.
        environment: That its module runs in.
        module: Of this folder, calling `worker.serve`.
        kinds: Of measures that it does.
        arguments: Returns those of its module; what they name is made where it is missing.
    """

    name: str
    environment: Environment
    module: str
    kinds: frozenset[Kind]
    arguments: Callable[[Workshop], list[str]]

    @property
    def is_ours(self) -> bool:
        """True for PocketVLM itself."""
        return self.environment == OURS

    def command(self, workshop: Workshop, threads: int) -> list[str]:
        """Return what starts it."""
        python = self.environment.python(workshop.environments)
        module = f"loadtests.peers.{self.module}"
        return [python, "-m", module, *self.arguments(workshop), "--threads", str(threads)]


def _bundle(name: str, **engine: object) -> Callable[[Workshop], list[str]]:
    """Return what names a bundle, made where it is missing, and settings of its engine that are not the defaults."""
    told = ["--engine", *(f"{setting}={value}" for setting, value in engine.items())] if engine else []
    return lambda workshop: [str(workshop.models.bundle(name)), *told]


def _torch(dtype: str) -> Callable[[Workshop], list[str]]:
    return lambda workshop: [str(workshop.models.checkpoint()), "--dtype", dtype]


def _torch_siglip(dtype: str) -> Callable[[Workshop], list[str]]:
    return lambda workshop: [str(workshop.models.siglip), "--dtype", dtype]


def _torch_clip(dtype: str) -> Callable[[Workshop], list[str]]:
    return lambda workshop: [str(workshop.models.clip), "--dtype", dtype]


def _fastembed(workshop: Workshop) -> list[str]:
    def write(path: Path) -> None:
        told = [str(path), "--from", str(workshop.models.clip)]
        workshop.run(FASTEMBED, "loadtests.peers.clip_fastembed", told, path.name)

    return [str(workshop.models.made("clip-fastembed", write))]


def _optimum(workshop: Workshop) -> Path:
    """Return optimum-intel's export, in float32."""
    options = ["export", "openvino", "--task", "image-text-to-text", "--weight-format", "fp32"]

    def export(path: Path) -> None:
        arguments = [*options, "--model", str(workshop.models.checkpoint()), str(path)]
        workshop.run(OPENVINO, "optimum.commands.optimum_cli", arguments, path.name)

    return workshop.models.made("openvino-fp32", export)


def _openvino(weights: str) -> Callable[[Workshop], list[str]]:
    def arguments(workshop: Workshop) -> list[str]:
        if weights == "fp32":
            return [str(_optimum(workshop))]

        def compress(path: Path) -> None:
            told = [str(_optimum(workshop)), str(path), "--weights", weights]
            workshop.run(OPENVINO, "loadtests.peers.openvino_optimum", told, path.name)

        return [str(workshop.models.made(f"openvino-{weights}", compress))]

    return arguments


def _openvino_siglip(workshop: Workshop) -> list[str]:
    return [str(workshop.models.bundle("siglip-portable") / "vision_encoder.onnx")]


def _gguf(kind: str) -> Callable[[Workshop], list[str]]:
    def arguments(workshop: Workshop) -> list[str]:
        from loadtests.peers.llama_files import write_decoder

        checkpoint = workshop.models.checkpoint()
        whole = workshop.models.made("F32.gguf", lambda path: write_decoder(checkpoint, path))

        def quantize(path: Path) -> None:
            told = [str(whole), str(path), "--type", kind]
            workshop.run(LLAMA, "loadtests.peers.llama_cpp_native", told, path.name)

        return [str(workshop.models.made(f"{kind}.gguf", quantize))]

    return arguments


def _genai(precision: str) -> Callable[[Workshop], list[str]]:
    def arguments(workshop: Workshop) -> list[str]:
        from loadtests.peers.decoder_checkpoint import write_decoder_checkpoint

        source = workshop.models.checkpoint()
        decoder = workshop.models.made("decoder", lambda path: write_decoder_checkpoint(source, path))

        def build(path: Path) -> None:
            told = ["-i", str(decoder), "-o", str(path), "-p", precision, "-e", "cpu", "-c", str(path / "cache")]
            told += ["--extra_options", "prune_lm_head=true"]  # of prompts, the last row's logits alone
            workshop.run(GENAI, "onnxruntime_genai.models.builder", told, path.name)

        return [str(workshop.models.made(f"genai-{precision}", build))]

    return arguments


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System("pocketvlm-int8", OURS, "ours", _SERVED, _bundle("int8")),
        System("pocketvlm-int8-static-tower", OURS, "ours", _IMAGES, _bundle("int8-static-tower")),
        System("pocketvlm-int4", OURS, "ours", _SERVED, _bundle("int4")),
        System("pocketvlm-dual", OURS, "ours", _SERVED, _bundle("int4-dual")),
        System("pocketvlm-dual-kv8", OURS, "ours", _SERVED, _bundle("int4-dual-kv8")),
        System("pocketvlm-ternary", OURS, "ours", _VLM, _bundle("ternary")),
        System("pocketvlm-fp32", OURS, "ours", _VLM, _bundle("fp32")),
        System("pocketvlm-int8-onnxruntime", OURS, "ours", _IMAGES, _bundle("int8", encoder_runtime="onnxruntime")),
        System("pocketvlm-int4-sleep", OURS, "ours", _TOKENS, _bundle("int4", spin_us=0)),
        System("torch-fp32", TORCH, "torch_transformers", _VLM, _torch("float32")),
        System("torch-bf16", TORCH, "torch_transformers", _VLM, _torch("bfloat16")),
        System("openvino-fp32", OPENVINO, "openvino_optimum", _VLM, _openvino("fp32")),
        System("openvino-int8", OPENVINO, "openvino_optimum", _VLM, _openvino("int8")),
        System("openvino-int4", OPENVINO, "openvino_optimum", _VLM, _openvino("int4")),
        System("genai-int4", GENAI, "genai", _TOKENS, _genai("int4")),
        System("llama.cpp-Q8_0", LLAMA, "llama_cpp_native", _TOKENS | {"chats"}, _gguf("Q8_0")),
        System("llama.cpp-Q4_0", LLAMA, "llama_cpp_native", _TOKENS | {"chats"}, _gguf("Q4_0")),
        System("pocketvlm-siglip-fp32", OURS, "ours", _ENCODER, _bundle("siglip-fp32")),
        System("pocketvlm-siglip-int8", OURS, "ours", _ENCODER, _bundle("siglip-int8")),
        System(
            "pocketvlm-siglip-int8-onnxruntime",
            OURS,
            "ours",
            _ENCODER,
            _bundle("siglip-int8", encoder_runtime="onnxruntime"),
        ),
        System("torch-siglip-fp32", TORCH, "torch_transformers", _ENCODER, _torch_siglip("float32")),
        System("torch-siglip-bf16", TORCH, "torch_transformers", _ENCODER, _torch_siglip("bfloat16")),
        System("openvino-siglip", OPENVINO, "openvino_optimum", _ENCODER, _openvino_siglip),
        System("pocketvlm-clip-fp32", OURS, "ours", _EMBEDDER, _bundle("clip-fp32")),
        System("pocketvlm-clip-int8", OURS, "ours", _EMBEDDER, _bundle("clip-int8")),
        System(
            "pocketvlm-clip-int8-onnxruntime",
            OURS,
            "ours",
            _EMBEDDER,
            _bundle("clip-int8", encoder_runtime="onnxruntime"),
        ),
        System("transformers-clip-fp32", TORCH, "clip_transformers", _EMBEDDER, _torch_clip("float32")),
        System("transformers-clip-bf16", TORCH, "clip_transformers", _EMBEDDER, _torch_clip("bfloat16")),
        System("open-clip", OPEN_CLIP, "clip_open_clip", _EMBEDDER, lambda workshop: []),
        System("fastembed-clip", FASTEMBED, "clip_fastembed", _EMBEDDER, _fastembed),
        System("infinity-clip", INFINITY, "clip_infinity", _EMBEDDER, lambda workshop: [str(workshop.models.clip)]),
    )
}
"""In the order of the table."""
