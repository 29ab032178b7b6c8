"""A run whose caches are written where they lie: TensorRT's update of a cache wants one address for both sides."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from runtime.fixed_run import device_value
from runtime.graph import Array, Graph, device_gate


def run_in_place(graph: Graph, feeds: Mapping[str, Array], shared: Mapping[str, str]) -> dict[str, Array]:
    """Return every output of a run by name; the arrays are new.

    Args:
        graph: Opened by ONNX Runtime.
        feeds: Every input.
        shared: From an input to the output that has its memory on the device, its shape and its dtype.

    Raises:
        MachineError: The run failed.
    """
    binding = graph.binding()
    values = {name: device_value(feeds[name], graph.device) for name in shared}
    for name, array in feeds.items():
        if name in values:
            binding.bind_ortvalue_input(name, values[name])
            binding.bind_ortvalue_output(shared[name], values[name])
        else:
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
    others = [port.name for port in graph.outputs if port.name not in shared.values()]
    for name in others:
        binding.bind_output(name, "cpu")
    graph.run_bound(binding)
    with device_gate(graph.device):
        order = [*(shared[name] for name in feeds if name in values), *others]
        return {name: np.array(value.numpy()) for name, value in zip(order, binding.get_outputs(), strict=True)}
