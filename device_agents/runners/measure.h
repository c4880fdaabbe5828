// The course of a latency or memory block, the same for every native runtime (PROTOCOL.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "device.h"
#include "tensor_file.h"
#include "wire.h"

namespace edgebench {

struct Timed {
  std::vector<int64_t> ns;  // of every run
  int64_t wall_ns = 0, cpu_ns = 0;
};

/// Run at least that often and that long. Only Engine::run is timed; values go where nothing is timed.
template <class Engine>
Timed repeat(Engine& engine, size_t min_iterations, double min_time_s) {
  Timed timed;
  timed.ns.reserve(min_iterations);
  const auto min_ns = static_cast<int64_t>(min_time_s * 1e9);
  const int64_t cpu = cpu_ns(), begin = monotonic_ns();
  int64_t now = begin;
  while (timed.ns.size() < min_iterations || now - begin < min_ns) {
    engine.prepare();
    const int64_t before = monotonic_ns();
    engine.run();
    now = monotonic_ns();
    timed.ns.push_back(now - before);
  }
  timed.wall_ns = now - begin;
  timed.cpu_ns = cpu_ns() - cpu;
  return timed;
}

/// A check file: *sets* input sets, then as many sets of expected outputs.
struct CheckFile {
  std::vector<Tensor> tensors;
  size_t sets = 0, n_in = 0, n_out = 0;

  void split(size_t inputs) {
    n_in = inputs;
    n_out = sets && tensors.size() / sets > n_in ? tensors.size() / sets - n_in : 0;
    if (!n_out || tensors.size() % sets) {
      throw Failure("agent_failed",
                    std::to_string(tensors.size()) + " tensors do not make " + std::to_string(sets) + " check sets.");
    }
  }
  Tensor* inputs(size_t set) { return &tensors[set * n_in]; }
  Tensor* wanted(size_t set) { return &tensors[sets * n_in + set * n_out]; }
};

/// Compare every output with the host's, over all sets; the worst output decides.
template <class Engine>
void check(Wire& wire, Engine& engine, CheckFile& file, double min_sqnr_db) {
  wire.stage = "check";
  std::vector<Difference> sums(file.n_out);
  for (size_t set = 0; set < file.sets; ++set) {
    engine.set_inputs(file.inputs(set));
    repeat(engine, 2, 0);  // as in the loop: what one run leaves behind must not change the next
    const std::vector<std::string> found = engine.output_kinds();
    std::vector<std::string> wanted;
    for (size_t i = 0; i < file.n_out; ++i) wanted.push_back(file.wanted(set)[i].kind());
    if (found != wanted) {
      throw Failure("wrong_output", "The outputs are " + list(found) + ", expected " + list(wanted) + ".");
    }
    for (size_t i = 0; i < file.n_out; ++i) sums[i].add(file.wanted(set)[i], engine.output_data(i));
  }
  double sqnr_db = 200, worst = 0;
  for (const Difference& sum : sums) {
    sqnr_db = std::min(sqnr_db, sum.sqnr_db());
    worst = std::max(worst, sum.worst);
  }
  wire.send("check", {{"sqnr_db", number(sqnr_db)}, {"max_abs", number(worst)}, {"sets", std::to_string(file.sets)}});
  if (!(sqnr_db >= min_sqnr_db)) {
    char text[160];
    std::snprintf(text, sizeof text,
                  "The outputs differ from the host's: SQNR %.1f dB (needed %.1f), largest difference %g.", sqnr_db,
                  min_sqnr_db, worst);
    throw Failure("wrong_output", text);
  }
}

/// The whole of a latency or a memory block.
template <class Engine>
void measure(Wire& wire, const Arguments& args, Engine& engine) {
  const bool memory = args.mode == "memory";
  const auto mark = [&](const char* name) {
    if (memory) send_mark(wire, name);
  };
  wire.stage = "check_file";
  CheckFile file;
  file.tensors = read_tensors(args.text("check"));
  file.sets = args.count("check_sets");
  const size_t threads = args.count("threads"), tasks = thread_count();
  const double min_sqnr_db = args.real("check_min_sqnr_db");
  mark("baseline");
  wire.stage = "load";
  const int64_t begin = monotonic_ns();
  engine.load(args.text("model"), threads);
  wire.send("span", {{"name", quoted("load")}, {"ns", std::to_string(monotonic_ns() - begin)}});
  mark("loaded");
  engine.describe(wire);
  file.split(engine.n_inputs());
  wire.stage = "first_inference";
  engine.set_inputs(file.inputs(0));
  const int64_t first_ns = repeat(engine, 1, 0).ns[0];
  wire.send("span", {{"name", quoted("first_inference")}, {"ns", std::to_string(first_ns)}});
  mark("first_inference");
  // The pool counts the calling thread, so its size is one more than the threads it made.
  const std::string observed = std::to_string(1 + thread_count() - tasks);
  wire.send("setting",
            {{"name", quoted("threads")}, {"requested", std::to_string(threads)}, {"observed", observed}});
  if (!memory) check(wire, engine, file, min_sqnr_db);
  wire.stage = "steady";
  wire.fact("state_before", state());
  engine.set_inputs(file.inputs(0));
  const Timed warmup = repeat(engine, args.count("warmup_iterations"), args.real("warmup_time_s"));
  const Timed steady = repeat(engine, args.count("min_iterations"), args.real("min_time_s"));
  mark("steady");
  wire.fact("state_after", state());
  if (memory) {  // the check comes last, as it takes memory of its own
    check(wire, engine, file, min_sqnr_db);
    return;
  }
  wire.values("warmup", warmup.ns);
  wire.values("value", steady.ns);
  wire.send("span", {{"name", quoted("steady")},
                     {"ns", std::to_string(steady.wall_ns)},
                     {"cpu_ns", std::to_string(steady.cpu_ns)},
                     {"iterations", std::to_string(steady.ns.size())}});
}

inline void send_hello(const Wire& wire, const std::string& runtime, const std::string& version) {
  wire.send("hello", {{"protocol", "1"},
                      {"agent", quoted("native")},
                      {"pid", std::to_string(getpid())},
                      {"runtime", runtime.empty() ? "null" : quoted(runtime)},
                      {"version", version.empty() ? "null" : quoted(version)}});
  send_oom_kills(wire);
}

}  // namespace edgebench
