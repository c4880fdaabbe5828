"""
agent.py with one call exchanged: ``CompiledModel.run_by_name``, which LiteRT's own benchmark times.

All else is the agent's: arguments, course of a block, check, loop, clock, events. For fidelity.py alone, no
bench runs this: on a CPU the kernels are the interpreter's, and a call of this API costs 1 to 2 µs more.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

agent: Any = import_module("device_agents.agent")  # it is not typed


def compiled_model(_module: str) -> Callable[..., Any]:
    """An engine as agent.py has them, for models with a signature and fixed shapes."""
    from ai_edge_litert import compiled_model as lib

    def load(path: str, _backend: str, threads: int, _tensors: object) -> tuple[int, Callable[..., Any]]:
        options = lib.Options(
            hardware_accelerators=lib.HardwareAccelerator.CPU,
            cpu_options=lib.CpuOptions(num_threads=threads),
        )
        model = lib.CompiledModel.from_file(path, options=options)
        key = next(iter(model.get_signature_list()))
        details = model.get_output_tensor_details(key)
        inputs = model.get_input_tensor_details(key)
        given = {name: model.create_input_buffer_by_name(key, name) for name in inputs}
        found = {name: model.create_output_buffer_by_name(key, name) for name in details}

        def outputs() -> list[Any]:
            kinds = [(detail["shape"], detail["dtype"]) for detail in details.values()]
            flat = [b.read(prod(s), t) for b, (s, t) in zip(found.values(), kinds, strict=True)]
            return [values.reshape(shape) for values, (shape, _) in zip(flat, kinds, strict=True)]

        def set_inputs(arrays: list[Any]) -> tuple[None, Callable[[], object], Callable[[], list[Any]]]:
            for buffer, value in zip(given.values(), arrays, strict=True):
                buffer.write(value)
            return None, partial(model.run_by_name, key, given, found), outputs

        return len(given), set_inputs

    return load


if __name__ == "__main__":
    runtime, _, backends, modules = agent.ENGINES["tflite"]
    agent.ENGINES["tflite"] = (runtime, compiled_model, backends, modules)
    sys.exit(agent.main(sys.argv[1:]))
