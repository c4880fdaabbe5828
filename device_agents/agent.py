#!/usr/bin/env python3
"""Measure one model file in one runtime on this device and tell the host in JSON lines (PROTOCOL.md)."""

import array
import gc
import glob
import json
import math
import os
import re
import resource
import sys
import time
from functools import partial
from importlib import import_module, metadata

clock_ns = time.perf_counter_ns  # CLOCK_MONOTONIC on Linux
ARGUMENTS = {"format": str, "backend": str, "model": str, "check": str, "check_sets": int}
ARGUMENTS.update(check_min_sqnr_db=float, threads=int, warmup_iterations=int, warmup_time_s=float)
ARGUMENTS.update(min_iterations=int, min_time_s=float)
#: How each runtime says that it lacks an operator, and that it got no memory.
MISSING_OP = re.compile(
    r"No Op registered for (\S+)|(\S+)\(-?\d+\) is not a registered|find an implementation for (\w+)"
    r"|custom op: ([^.\s]+)|builtin opcode '(\w+)'|code out of range: (\d+)|Missing operator: \[\d+\] (\S+)"
)
NO_MEMORY = re.compile(r"bad_alloc|MemoryError|[Ff]ailed to allocate memory|[Cc]annot allocate|error 0x21\b")
#: What is read before and after the timed loop: name -> (files, factor to SI).
STATE = {
    "temperatures_c": ("/sys/class/thermal/thermal_zone*/temp", 1e-3),
    "cooling_states": ("/sys/class/thermal/cooling_device*/cur_state", 1),
    "frequencies_hz": ("/sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq", 1000),
    "throttle_counts": ("/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count", 1),
}
MARK = {"peak_rss": "VmHWM", "rss": "VmRSS", "anon": "RssAnon", "file": "RssFile", "swap": "VmSwap"}


class Failure(Exception):
    """(status, sentence): ends the run with a Status of harness/core/types.py."""


class Wire:
    """Events to the host. What a runtime prints on stdout goes to stderr, so that no line is foreign."""

    def __init__(self):
        self.out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.stage = "arguments"

    def send(self, event, **fields):
        """One event."""
        self.out.write(json.dumps({"event": event, **fields}, separators=(",", ":"), allow_nan=False) + "\n")
        self.out.flush()

    def hello(self, **fields):
        """Who speaks, and how often this system ran out of memory until now."""
        self.send("hello", protocol=1, agent="python", pid=os.getpid(), **fields)
        kills = re.search(r"^oom_kill (\d+)$", read("/proc/vmstat"), re.M)
        self.fact("oom_kills", int(kills.group(1)) if kills else None, "/proc/vmstat does not count them")

    def fact(self, name, value, reason="this system does not tell"):
        """An absent fact is null with a reason, never 0."""
        self.send("fact", name=name, value=value, **({} if value is not None else {"reason": reason}))


# An engine imports its runtime and gives load(path, backend, threads, tensors) -> (number of inputs,
# set_inputs); set_inputs(arrays) -> (prepare, run, outputs). Only run is timed.


def onnxruntime(_module):
    """Inputs and outputs are bound once; the timed call is run_with_iobinding."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the library starts: no uploader, no device id
    import onnxruntime as ort

    ort.disable_telemetry_events()  # before any session; older wheels know only this one

    def load(path, _backend, threads, _tensors):
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        # Session.run would convert the feed and make new numpy arrays in every call (2 of 12 µs for a
        # small net on x86): the work of Python, not of the model.
        def set_inputs(arrays):
            binding = session.io_binding()
            for given, value in zip(session.get_inputs(), arrays):
                binding.bind_cpu_input(given.name, value)
            for output in session.get_outputs():
                binding.bind_output(output.name)
            return None, partial(session.run_with_iobinding, binding), binding.copy_outputs_to_cpu

        return len(session.get_inputs()), set_inputs

    return load


def litert(module):
    """The interpreter keeps inputs in its arena between calls; the timed call is invoke()."""
    lib = import_module(module + ".interpreter")
    kinds = {"xnnpack": lib.OpResolverType.AUTO}
    kinds["cpu"] = lib.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES

    def load(path, backend, threads, tensors):
        model = lib.Interpreter(path, num_threads=threads, experimental_op_resolver_type=kinds[backend])
        details = model.get_input_details()
        for detail, value in zip(details, tensors):  # a file may leave sizes open
            if tuple(detail["shape"]) != value.shape:
                model.resize_tensor_input(detail["index"], value.shape)
        model.allocate_tensors()

        def set_inputs(arrays):
            for detail, value in zip(details, arrays):
                model.set_tensor(detail["index"], value)
            ids = [detail["index"] for detail in model.get_output_details()]
            return None, model.invoke, lambda: [model.get_tensor(i) for i in ids]

        return len(details), set_inputs

    return load


def executorch(_module):
    """The Python binding, for hosts without a compiler; it needs torch."""
    import executorch.kernels.quantized  # noqa: F401  registers them
    import torch
    from executorch.extension.pybindings import portable_lib as lib

    def load(path, _backend, threads, _tensors):
        lib._unsafe_reset_threadpool(threads)  # before load: that is when XNNPACK takes the pool
        keep, log = os.dup(2), os.memfd_create("log")
        os.dup2(log, 2)
        try:
            program = lib._load_program(path)
            names = [program.get_method_name(i) for i in range(program.num_methods())]
            method = program.load_method("forward" if "forward" in names else names[0])
        except RuntimeError as error:  # the name of a missing operator is only in the log
            text = os.pread(log, 1 << 16, 0).decode("utf-8", "replace")
            raise RuntimeError("{} {}".format(error, text)) from error
        finally:
            os.dup2(keep, 2)

        # A planned input may share its memory with later values, so inputs are set before every run.
        # That is not timed: the other runtimes find their inputs in place too.
        def set_inputs(arrays):
            prepare = partial(method.set_inputs, [torch.from_numpy(value) for value in arrays])
            outputs = method.get_outputs
            return prepare, method.execute, lambda _=program: [v.numpy() for v in outputs()]

        return method.method_meta().num_inputs(), set_inputs

    return load


#: format -> (runtime, engine, backends, modules of which one brings it; a wheel is called as its module)
ENGINES = {
    "onnx": ("onnxruntime", onnxruntime, ["cpu"], ["onnxruntime"]),
    "tflite": ("litert", litert, ["xnnpack", "cpu"], ["ai_edge_litert", "tflite_runtime"]),
    "executorch": ("executorch", executorch, ["xnnpack"], ["executorch"]),
}


def installed(modules):
    """(module, version) of the wheel that is there, version None if none is; imports nothing."""
    for module in modules:
        try:
            return module, metadata.version(module)
        except metadata.PackageNotFoundError:
            continue
    return modules[0], None


def measure(wire, mode, args):
    """The whole of a latency or a memory block."""
    load = start(wire, args)
    wire.stage = "check_file"
    tensors, sets = read_tensors(args["check"]), args["check_sets"]
    mark = send_mark if mode == "memory" else lambda *_: None
    mark(wire, "baseline")
    tasks = len(os.listdir("/proc/self/task"))
    n_in, set_inputs = timed_load(wire, load, args, tensors)
    mark(wire, "loaded")
    inputs, wanted = tensors[: sets * n_in], tensors[sets * n_in :]
    n_out = len(wanted) // sets
    if not n_out or len(wanted) % sets:
        raise Failure("agent_failed", "{} tensors do not make {} check sets.".format(len(tensors), sets))
    pairs = [(inputs[i * n_in :][:n_in], wanted[i * n_out :][:n_out]) for i in range(sets)]
    wire.stage = "first_inference"
    wire.send("span", name="first_inference", ns=repeat(set_inputs(pairs[0][0]), 1, 0.0)[0][0])
    mark(wire, "first_inference")
    # Each runtime's pool counts the calling thread, so its size is one more than the threads it made.
    observed = 1 + len(os.listdir("/proc/self/task")) - tasks
    wire.send("setting", name="threads", requested=args["threads"], observed=observed)
    if mode == "latency":
        check(wire, set_inputs, pairs, args["check_min_sqnr_db"])
    wire.stage = "steady"
    wire.fact("state_before", state())
    calls = set_inputs(pairs[0][0])
    warmup = repeat(calls, args["warmup_iterations"], args["warmup_time_s"])[0]
    values, wall, cpu = repeat(calls, args["min_iterations"], args["min_time_s"])
    mark(wire, "steady")
    wire.fact("state_after", state())
    if mode == "memory":  # the check comes last, as it takes memory of its own
        return check(wire, set_inputs, pairs, args["check_min_sqnr_db"])
    for event, ns in (("warmup", warmup), ("value", values)):
        for i in range(0, len(ns), 1000):
            wire.send(event, ns=ns[i : i + 1000].tolist())
    return wire.send("span", name="steady", ns=wall, cpu_ns=cpu, iterations=len(values))


def start(wire, args):
    """The load function of a format, its runtime imported."""
    runtime, engine, backends, modules = ENGINES[args["format"]]
    module, version = installed(modules)
    wire.hello(runtime=runtime, version=version)
    wire.stage = "import"
    if args["backend"] not in backends:
        raise Failure("load_failed", "{} has no backend {} here.".format(runtime, args["backend"]))
    try:
        return engine(module)
    except ImportError as error:
        text = "{} cannot import {} ({}). Install it: pip install {}"
        raise Failure("runtime_missing", text.format(sys.executable, runtime, error, modules[0])) from error


def read_tensors(path):
    """The arrays of a tensor file."""
    import numpy

    with open(path, "rb") as file:
        word, count = file.readline().split()
        if word != b"EBT1":
            raise Failure("agent_failed", "{} is not a tensor file.".format(path))
        heads = [file.readline().decode("ascii").rstrip("\n").split(" ") for _ in range(int(count))]
        kinds = [(numpy.dtype(d).newbyteorder("<"), [int(n) for n in s.split(",") if n]) for d, s in heads]
        return [numpy.fromfile(file, dtype, math.prod(shape)).reshape(shape) for dtype, shape in kinds]


def timed_load(wire, load, args, tensors):
    """What load gives, its time sent, its failure typed."""
    wire.stage = "load"
    begin = clock_ns()
    try:
        model = load(args["model"], args["backend"], args["threads"], tensors)
    except Exception as error:  # each runtime raises classes of its own
        ops = sorted({next(filter(None, found)) for found in MISSING_OP.findall(str(error))})
        if ops:
            text = "{} lacks the operator {}.".format(ENGINES[args["format"]][0], ", ".join(ops))
            raise Failure("unsupported_op", text) from error
        kind = "out_of_memory" if NO_MEMORY.search(repr(error)) else "load_failed"
        raise Failure(kind, str(error)) from error
    wire.send("span", name="load", ns=clock_ns() - begin)
    return model


def repeat(calls, min_iterations, min_time_s):
    """Run at least that often and that long: (ns of every run, wall ns, CPU ns of all threads)."""
    prepare, run, _ = calls
    ns, min_ns = array.array("q"), int(min_time_s * 1e9)
    gc.collect()
    gc.disable()
    cpu = time.process_time_ns()
    begin = now = clock_ns()
    while len(ns) < min_iterations or now - begin < min_ns:
        if prepare is not None:
            prepare()
        before = clock_ns()
        run()
        now = clock_ns()
        ns.append(now - before)  # here, where nothing is timed
    return ns, now - begin, time.process_time_ns() - cpu


def check(wire, set_inputs, pairs, min_sqnr_db):
    """Compare every output with the host's, over all sets; the worst output decides."""
    import numpy

    wire.stage = "check"
    sums = [[0.0, 0.0, 0.0] for _ in pairs[0][1]]  # of each output: signal, noise, largest difference
    for inputs, wanted in pairs:
        calls = set_inputs(inputs)
        repeat(calls, 2, 0.0)  # as in the loop: what one run leaves behind must not change the next
        found = calls[2]()
        kinds = [[(str(v.dtype), v.shape) for v in values] for values in (found, wanted)]
        if kinds[0] != kinds[1]:
            raise Failure("wrong_output", "The outputs are {}, expected {}.".format(*kinds))
        for total, got, want in zip(sums, found, wanted):
            x, y = got.reshape(-1).astype("float64"), want.reshape(-1).astype("float64")
            with numpy.errstate(all="ignore"):  # NaNs and infinities must be in the same places
                off = numpy.where((x == y) | (numpy.isnan(x) & numpy.isnan(y)), 0.0, numpy.abs(x - y))
            off[numpy.isnan(off)], y[~numpy.isfinite(y)] = numpy.inf, 0.0
            total[0] += (y * y).sum()  # no BLAS: its threads would go on spinning beside the timed loop
            total[1] += (off * off).sum()
            total[2] = max(total[2], off.max(initial=0.0))
    sqnr_db = min(10 * math.log10(min(max(s / n, 1e-20), 1e20)) if n else 200.0 for s, n, _ in sums)
    worst = float(max(off for _, _, off in sums))
    wire.send("check", sqnr_db=sqnr_db, max_abs=worst if math.isfinite(worst) else None, sets=len(pairs))
    if sqnr_db < min_sqnr_db:
        text = "The outputs differ from the host's: SQNR {:.1f} dB (needed {:.1f}), largest difference {:g}."
        raise Failure("wrong_output", text.format(sqnr_db, min_sqnr_db, worst))


def read(path):
    """A small text file; empty where there is none or it may not be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return ""


def table(path, mark=":"):
    """Lines of ``key: value`` as a dict; the first of equal keys counts."""
    pairs = [line.split(mark, 1) for line in read(path).splitlines() if mark in line]
    return {key.strip(): value.strip(' \t"') for key, value in reversed(pairs)}


def files(pattern):
    """{folder that the star stands for: text} of the files that match."""
    return {p.split("/")[pattern.split("*")[0].count("/")]: read(p) for p in sorted(glob.glob(pattern))}


def send_mark(wire, name):
    """Send a memory mark, then reset the high-water mark if the kernel lets us."""
    status = table("/proc/self/status")
    wire.send("mark", name=name, **{k + "_bytes": int(status[v].split()[0]) * 1024 for k, v in MARK.items()})
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        wire.fact("clear_refs", True)
    except OSError as error:
        wire.fact("clear_refs", None, "{}: peaks count from the start of the process".format(error))


def state():
    """Heat, clocks, load and disturbance now; what is absent is null with a reason beside it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)  # sums all threads; its ru_maxrss is of no use
    found = {"major_faults": usage.ru_majflt, "involuntary_switches": usage.ru_nivcsw}
    found["swap_bytes"] = int(table("/proc/self/status")["VmSwap"].split()[0]) * 1024
    found.update(load_average_1min=os.getloadavg()[0], clock_s=time.monotonic(), cpu_s=time.process_time())
    ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in read("/proc/stat").split("\n")[0].split()[1:9]]
    found["all_cpu_s"] = sum(ticks) - sum(ticks[3:5]) if ticks else None  # 3, 4: idle, waiting
    for name, (pattern, factor) in STATE.items():
        texts = {key: text for key, text in files(pattern).items() if text.lstrip("-").isdigit()}
        found[name] = {key: int(text) * factor for key, text in texts.items()} or None
    absent = {k + "_reason": "no " + STATE.get(k, ["/proc/stat"])[0] for k, v in found.items() if v is None}
    return {**found, **absent}


def main(argv):
    """Every failure becomes an event; its traceback goes to stderr."""
    wire = Wire()
    try:
        args = dict(item.partition("=")[::2] for item in argv)
        mode = args.pop("mode", None)
        if mode in ("latency", "memory") and set(args) == set(ARGUMENTS):
            measure(wire, mode, {name: kind(args[name]) for name, kind in ARGUMENTS.items()})
        else:
            raise ValueError("expected mode=latency or memory with " + ", ".join(ARGUMENTS))
    except Exception as error:
        sys.excepthook(*sys.exc_info())
        status = "out_of_memory" if NO_MEMORY.search(repr(error)) else "agent_failed"
        status, text = error.args if isinstance(error, Failure) else (status, repr(error))
        wire.send("error", stage=wire.stage, status=status, message=" ".join(text.split())[:400])
        return 1
    wire.send("end", status="ok")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
