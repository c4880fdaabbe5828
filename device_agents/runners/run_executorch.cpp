// Measure one .pte file with ExecuTorch and tell the host in JSON lines (PROTOCOL.md); needs no Python, no torch.
//
// Built by harness/runners.py against the headers and the torch-free libraries of the executorch wheel.
// Linking the libraries of kernels and of XNNPACK is what registers them.

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/platform.h>

#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "measure.h"

// The wheel ships the library of the thread pool, but not its header.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using edgebench::Failure;
using edgebench::Tensor;
using edgebench::Wire;
using executorch::aten::ScalarType;
using executorch::runtime::Error;

/// Error messages of the runtime: only they name a missing operator.
std::vector<std::string> error_log;

void keep_log(et_timestamp_t, et_pal_log_level_t level, const char* file, const char*, size_t line, const char* message,
              size_t length) {
  if (level != kError && level != kFatal) return;
  if (error_log.size() < 64) error_log.emplace_back(message, length);
  std::fprintf(stderr, "%s:%zu: %.*s\n", file, line, static_cast<int>(length), message);
}

const std::map<ScalarType, const char*> dtypes = {
    {ScalarType::Float, "float32"}, {ScalarType::Double, "float64"}, {ScalarType::Half, "float16"},
    {ScalarType::Long, "int64"},    {ScalarType::Int, "int32"},      {ScalarType::Short, "int16"},
    {ScalarType::Char, "int8"},     {ScalarType::Byte, "uint8"},     {ScalarType::Bool, "bool"}};

ScalarType scalar_type(const std::string& dtype) {
  for (const auto& [type, name] : dtypes) {
    if (dtype == name) return type;
  }
  throw Failure("agent_failed", "dtype " + dtype + " is not known");
}

/// Throws the typed failure of a runtime error; nothing if there is none.
void need(Error error) {
  if (error == Error::Ok) return;
  const std::string mark = "Missing operator: ";
  std::string operators, last;
  for (const std::string& text : error_log) {
    const size_t at = text.find(mark);
    last = text;
    if (at == std::string::npos) continue;
    const std::string name = text.substr(std::min(text.find("] ", at), text.size() - 2) + 2);
    if (operators.find(name) == std::string::npos) operators += (operators.empty() ? "" : ", ") + name;
  }
  if (error == Error::OperatorMissing) {
    throw Failure("unsupported_op", "executorch lacks the operator " + operators + ".");
  }
  const bool memory = error == Error::MemoryAllocationFailed || error == Error::DelegateMemoryAllocationFailed;
  throw Failure(memory ? "out_of_memory" : "load_failed",
                std::string(executorch::runtime::to_string(error)) + (last.empty() ? "" : ": " + last));
}

/// A module whose method can be run without the look-ups and copies of Module::execute.
class Program : public executorch::extension::Module {
 public:
  using Module::Module;
  executorch::runtime::Method& loaded(const std::string& name) { return *methods_.at(name).method; }
};

class ExecuTorch {
 public:
  void load(const std::string& path, size_t threads) {
    using namespace executorch::extension;
    auto* pool = threadpool::get_threadpool();
    // Before load: that is when XNNPACK takes the pool.
    if (!pool || !pool->_unsafe_reset_threadpool(static_cast<uint32_t>(threads))) {
      throw Failure("load_failed", "ExecuTorch does not set its thread pool.");
    }
    // Mmap, as on a phone: weights that are never touched cost nothing, those that are touched show up as
    // file-backed memory, and nothing is locked. File would copy everything to the heap before the first use.
    program_ = std::make_unique<Program>(path, Module::LoadMode::Mmap);
    need(program_->load(executorch::runtime::Program::Verification::InternalConsistency));  // damaged files end here
    const auto names = program_->method_names();
    need(names.error());
    name_ = names->count("forward") ? "forward" : *names->begin();
    need(program_->load_method(name_));
    method_ = &program_->loaded(name_);
  }

  void describe(const Wire& wire) const {
    const auto meta = method_->method_meta();
    std::vector<std::string> delegates;
    for (size_t i = 0; i < meta.num_backends(); ++i) delegates.push_back(*meta.get_backend_name(i));
    int64_t planned = 0;
    for (size_t i = 0; i < meta.num_memory_planned_buffers(); ++i) planned += *meta.memory_planned_buffer_size(i);
    wire.fact("delegates", edgebench::list(delegates));
    wire.fact("planned_memory_bytes", std::to_string(planned));
  }

  size_t n_inputs() const { return method_->inputs_size(); }

  void set_inputs(Tensor* tensors) {
    tensors_.clear();
    values_.clear();
    for (size_t i = 0; i < n_inputs(); ++i) {
      const ScalarType type = scalar_type(tensors[i].dtype);
      tensors_.push_back(executorch::extension::from_blob(tensors[i].data.data(), tensors[i].shape, type));
      values_.emplace_back(*tensors_.back());
    }
  }

  /// A planned input may share its memory with later values, so inputs are set before every run. That is not
  /// timed: the other runtimes find their inputs in place too.
  void prepare() {
    for (size_t i = 0; i < values_.size(); ++i) need(method_->set_input(values_[i], i));
  }

  void run() { need(method_->execute()); }

  std::vector<std::string> output_kinds() {
    outputs_.clear();
    std::vector<std::string> kinds;
    for (size_t i = 0; i < method_->outputs_size(); ++i) {
      const auto& value = method_->get_output(i);
      if (!value.isTensor()) continue;
      const auto& tensor = value.toTensor();
      const auto known = dtypes.find(tensor.scalar_type());
      const std::string dtype = known == dtypes.end() ? "an unknown dtype" : known->second;
      kinds.push_back(Tensor{dtype, {tensor.sizes().begin(), tensor.sizes().end()}, {}}.kind());
      outputs_.push_back(static_cast<const char*>(tensor.const_data_ptr()));
    }
    return kinds;
  }

  const char* output_data(size_t index) const { return outputs_[index]; }

 private:
  std::unique_ptr<Program> program_;
  std::string name_;
  executorch::runtime::Method* method_ = nullptr;
  std::vector<executorch::extension::TensorPtr> tensors_;
  std::vector<executorch::runtime::EValue> values_;
  std::vector<const char*> outputs_;
};

void serve(Wire& wire, int argc, char** argv) {
  const edgebench::Arguments args(argc, argv);
  if (args.mode == "probe") {
    edgebench::send_hello(wire, "", "");
    edgebench::send_fingerprint(wire);
    wire.fact("runtimes", edgebench::object({{"executorch", edgebench::quoted(EXECUTORCH_VERSION)}}));
    return;
  }
  edgebench::send_hello(wire, "executorch", EXECUTORCH_VERSION);
  wire.stage = "import";
  if (args.text("format") != "executorch" || args.text("backend") != "xnnpack") {
    throw Failure("load_failed", "This agent runs format=executorch backend=xnnpack only.");
  }
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(keep_log, __FILE__));
  ExecuTorch engine;
  edgebench::measure(wire, args, engine);
}

}  // namespace

int main(int argc, char** argv) {
  Wire wire;
  std::string status = "agent_failed", message;
  try {
    serve(wire, argc, argv);
    wire.send("end", {{"status", edgebench::quoted("ok")}});
    return 0;
  } catch (const Failure& failure) {
    status = failure.status;
    message = failure.what();
  } catch (const std::bad_alloc&) {
    status = "out_of_memory";
    message = "The memory does not suffice.";
  } catch (const std::exception& error) {
    message = error.what();
  }
  wire.send("error", {{"stage", edgebench::quoted(wire.stage)},
                      {"status", edgebench::quoted(status)},
                      {"message", edgebench::quoted(message.substr(0, 400))}});
  return 1;
}
