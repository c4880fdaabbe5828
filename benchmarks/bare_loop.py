"""The shortest honest loop over a Python runtime, without a line of edgebench: prints its median in ns."""

import os
import sys
import time
from collections.abc import Callable
from statistics import median


def onnx(path: str, threads: int) -> Callable[[], object]:
    """One onnxruntime session, input and output bound."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the library starts
    import numpy as np
    import onnxruntime as ort

    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options)
    given = session.get_inputs()[0]
    binding = session.io_binding()
    binding.bind_cpu_input(given.name, np.random.default_rng(0).standard_normal(given.shape, np.float32))
    binding.bind_output(session.get_outputs()[0].name)
    return lambda: session.run_with_iobinding(binding)


def onnx_run(path: str, threads: int) -> Callable[[], object]:
    """The same by Session.run, which converts arrays in every call."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the library starts
    import numpy as np
    import onnxruntime as ort

    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options)
    given = session.get_inputs()[0]
    feed = {given.name: np.random.default_rng(0).standard_normal(given.shape, np.float32)}
    return lambda: session.run(None, feed)


def tflite(path: str, threads: int) -> Callable[[], object]:
    """LiteRT's interpreter."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=threads)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    values = np.random.default_rng(0).standard_normal(given["shape"], np.float32)
    interpreter.set_tensor(given["index"], values)
    invoke: Callable[[], object] = interpreter.invoke
    return invoke


def tflite_compiled(path: str, threads: int) -> Callable[[], object]:
    """The same kernels by LiteRT's CompiledModel, called as benchmark_litert_model does."""
    import numpy as np
    from ai_edge_litert import compiled_model as lib

    cpu = lib.CpuOptions(num_threads=threads)
    options = lib.Options(hardware_accelerators=lib.HardwareAccelerator.CPU, cpu_options=cpu)
    model = lib.CompiledModel.from_file(path, options=options)
    key = next(iter(model.get_signature_list()))
    details = model.get_input_tensor_details(key)
    given = {name: model.create_input_buffer_by_name(key, name) for name in details}
    found = {
        name: model.create_output_buffer_by_name(key, name) for name in model.get_output_tensor_details(key)
    }
    for name, buffer in given.items():
        buffer.write(np.random.default_rng(0).standard_normal(details[name]["shape"], np.float32))
    return lambda: model.run_by_name(key, given, found)


def main(runtime: str, path: str, threads: str, warmup_s: str, seconds: str) -> None:
    """Warm up, then time every call for that long."""
    load = {"onnx": onnx, "onnx_run": onnx_run, "tflite": tflite, "tflite_compiled": tflite_compiled}[runtime]
    run = load(path, int(threads))
    end = time.perf_counter() + float(warmup_s)
    while time.perf_counter() < end:
        run()
    times = []
    end = time.perf_counter() + float(seconds)
    while time.perf_counter() < end:
        begin = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - begin)
    print(median(times))


if __name__ == "__main__":
    main(*sys.argv[1:])
