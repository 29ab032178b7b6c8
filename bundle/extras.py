"""The extras of pyproject.toml: the modules that each brings, and how it is installed."""

from __future__ import annotations

MODULES_OF_EXTRA = {
    "cpu": ("onnxruntime",),
    "export": ("onnx", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub", "ml_dtypes", "gguf"),
    "serve": ("fastapi", "uvicorn", "h11", "httpx", "prometheus_client", "llguidance"),
    "ray": ("ray",),
    "quant": ("bitsandbytes",),
    "reference": ("sklearn",),
    "photographs": ("skimage",),
    "video": ("av",),
    "captions": ("pycocoevalcap",),
    "retrieval": ("faiss",),
    "loadtests": ("locust",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx_libs"),
    "tracing": ("opentelemetry",),
    "peers": ("llama_cpp",),
    "train": ("accelerate", "matplotlib", "torch", "transformers"),
}
"""Extra -> the modules that it brings, by the names under which they are imported; a module stands once.

Left out are `gpu`, whose module is that of `cpu`; `dev`; and what nothing here imports yet.
"""


def extra_of(module: str) -> str | None:
    """Return the extra that brings a module (a submodule's dotted name is taken too), or None where none does."""
    top = module.split(".")[0]
    return next((extra for extra, modules in MODULES_OF_EXTRA.items() if top in modules), None)


def install_line(extra: str) -> str:
    """Return the command that installs an extra, with the place to run it in.

    PocketVLM is on no package index: a command that named it there would install whatever someone puts there.
    """
    return f"pip install -e '.[{extra}]' in a checkout of PocketVLM"
