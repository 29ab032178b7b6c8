"""A stand-in for TensorRT's module: the calls that ours makes of it, with engines that ONNX Runtime's CPU runs.

Its engines are JSON: the graph as the parser was given it, where its weights lie, and the profiles. A run reads its
inputs from addresses and writes its outputs to addresses, which lie in the host's memory, on a "device" of that name.
`test_stand_in.py` holds every name here against the real module of TensorRT-RTX.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

__version__ = "10.16.1.11"

_NUMPY = {1: np.float32, 10: np.float16, 7: np.int64, 6: np.int32, 9: np.bool_}


def nptype(dtype: int) -> Any:
    return _NUMPY[dtype]


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class LayerType(enum.Enum):
    ATTENTION_INPUT = 1
    KV_CACHE_UPDATE = 2
    OTHER = 3


class CausalMaskKind(enum.Enum):
    NONE = 0
    UPPER_LEFT = 1


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class ComputeCapability(enum.Enum):
    SM80 = 80


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = "internal error", "error", "warning"

    def log(self, severity: str, message: str) -> None: ...


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

    def phase_finish(self, phase_name: str) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool: ...


class ITensor:
    def __init__(self, name: str, shape: tuple[int, ...] = ()) -> None:
        self.name, self.shape = name, shape


class ILayer:
    def __init__(self, node: onnx.NodeProto) -> None:
        self._node = node
        self.type = LayerType.ATTENTION_INPUT if node.op_type == "Attention" else LayerType.OTHER
        self.num_inputs, self.num_outputs = len(node.input), len(node.output)

    def get_input(self, at: int) -> ITensor | None:
        return ITensor(self._node.input[at]) if self._node.input[at] else None

    def get_output(self, at: int) -> ITensor:
        return ITensor(self._node.output[at])


class IAttention:
    def __init__(self, node: onnx.NodeProto) -> None:
        self.name, self.decomposable = node.name, False
        self.causal = any(each.name == "is_causal" and each.i for each in node.attribute)
        self.mask = ITensor(node.input[3]) if len(node.input) > 3 else None

    @property
    def causal_kind(self) -> CausalMaskKind:
        return CausalMaskKind.UPPER_LEFT if self.causal else CausalMaskKind.NONE


class IAttentionInputLayer(ILayer):
    @property
    def attention(self) -> IAttention:
        return IAttention(self._node)


def _sizes(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)


class INetworkDefinition:
    model: onnx.ModelProto
    path: str

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.model.graph.output)

    @property
    def num_layers(self) -> int:
        return len(self.model.graph.node)

    @property
    def _inputs(self) -> list[onnx.ValueInfoProto]:
        known = {tensor.name for tensor in self.model.graph.initializer}
        return [value for value in self.model.graph.input if value.name not in known]

    def get_input(self, at: int) -> ITensor:
        return ITensor(self._inputs[at].name, _sizes(self._inputs[at]))

    def get_output(self, at: int) -> ITensor:
        return ITensor(self.model.graph.output[at].name)

    def get_layer(self, at: int) -> ILayer:
        return ILayer(self.model.graph.node[at])


class OnnxParser:
    num_errors = 0

    def __init__(self, network: INetworkDefinition, log: ILogger) -> None:
        self._network = network

    def parse(self, model: bytes, path: str) -> bool:
        self._network.model, self._network.path = onnx.ModelProto.FromString(model), path
        return True


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        self.shapes[name] = [list(least), list(usual), list(most)]


class IBuilderConfig:
    progress_monitor: IProgressMonitor | None = None

    def __init__(self) -> None:
        self.profiles: list[dict[str, Any]] = []

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1


class Builder:
    def __init__(self, log: ILogger) -> None: ...

    def create_network(self, flags: int) -> INetworkDefinition:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        assert config.progress_monitor is not None
        config.progress_monitor.phase_start("Building engine", None, 1)
        config.progress_monitor.phase_start("Optimizing graph", "Building engine", 1)
        if not config.progress_monitor.step_complete("Optimizing graph", 0):
            return None
        plan = {
            "graph": base64.b64encode(network.model.SerializeToString()).decode(),
            "folder": str(Path(network.path).parent),
            "profiles": config.profiles,
        }
        return json.dumps(plan).encode()


class Runtime:
    def __init__(self, log: ILogger) -> None:
        self._log = log

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if not serialized_engine.startswith(b"{"):
            self._log.log(ILogger.ERROR, "Error Code 6: The engine plan file is\nnot compatible with this device")
            return None
        return ICudaEngine(json.loads(serialized_engine), self._log)


class IRuntimeCache:
    content = b""

    def deserialize(self, blob: bytes) -> bool:
        self.content = blob if blob.startswith(b"kernels of") else b""
        return bool(self.content)

    def serialize(self) -> bytes:
        return self.content or b"kernels of the stand-in"


class IRuntimeConfig:
    cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


class ICudaEngine:
    def __init__(self, plan: dict[str, Any], log: ILogger) -> None:
        self._log = log
        self._model = onnx.ModelProto.FromString(base64.b64decode(plan["graph"]))
        self.profiles = plan["profiles"]
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", plan["folder"])
        self.session = ort.InferenceSession(
            self._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        known = {tensor.name for tensor in self._model.graph.initializer}
        taken = [value for value in self._model.graph.input if value.name not in known]
        self.values = {value.name: (value, TensorIOMode.INPUT) for value in taken}
        self.values |= {value.name: (value, TensorIOMode.OUTPUT) for value in self._model.graph.output}
        scatters = [node for node in self._model.graph.node if node.op_type == "TensorScatter"]  # KVCacheUpdate
        self._aliases = {node.output[0]: node.input[0] for node in scatters}

    @property
    def num_io_tensors(self) -> int:
        return len(self.values)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, at: int) -> str:
        return list(self.values)[at]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.values[name][1]

    def get_tensor_dtype(self, name: str) -> int:
        return int(self.values[name][0].type.tensor_type.elem_type)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return _sizes(self.values[name][0])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return self.profiles[profile_index][name]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self._aliases.get(name)

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig | None = None) -> IExecutionContext:
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None
        least, _, most = self._engine.profiles[self._profile][name]
        self._shapes[name] = shape
        return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes: dict[str, int] = {}
        for given, shape in self._shapes.items():
            dims = self._engine.values[given][0].type.tensor_type.shape.dim
            sizes |= {dim.dim_param: size for dim, size in zip(dims, shape, strict=True) if dim.dim_param}
        dims = self._engine.values[name][0].type.tensor_type.shape.dim
        return tuple(dim.dim_value or sizes[dim.dim_param] for dim in dims)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._addresses.keys() != self._engine.values.keys():
            return False
        for output, given in self._engine._aliases.items():
            if self._addresses[output] != self._addresses[given]:
                self._engine._log.log(ILogger.ERROR, f"{output} must share the address of {given}")
                return False
        feeds = {name: self._memory(name, shape).copy() for name, shape in self._shapes.items()}
        names = [name for name, (_, mode) in self._engine.values.items() if mode is TensorIOMode.OUTPUT]
        for name, found in zip(names, self._engine.session.run(names, feeds), strict=True):
            assert found.shape == self.get_tensor_shape(name)
            self._memory(name, found.shape)[...] = found
        return True

    def _memory(self, name: str, shape: tuple[int, ...]) -> Any:
        dtype = np.dtype(nptype(self._engine.get_tensor_dtype(name)))
        memory = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(self._addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)
