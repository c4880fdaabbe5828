// The shortest honest loop over ExecuTorch, without a line of edgebench: prints its median in ns.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace executorch::extension::threadpool {  // the wheel ships no header of it
struct ThreadPool {
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

using executorch::extension::Module;
using executorch::runtime::Error;
using Clock = std::chrono::steady_clock;

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(std::atoi(argv[2]));
  Module module(argv[1], Module::LoadMode::Mmap);
  const auto meta = module.method_meta("forward");
  if (!meta.ok() || module.load_forward() != Error::Ok) return 3;
  const auto sizes = meta->input_tensor_meta(0)->sizes();
  std::vector<float> values(meta->input_tensor_meta(0)->nbytes() / sizeof(float));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 7919 % 2000) / 1000 - 1;
  const auto tensor = executorch::extension::from_blob(values.data(), {sizes.begin(), sizes.end()});
  std::vector<double> times;
  for (int pass = 0; pass < 2; ++pass) {  // warm up, then measure
    times.clear();
    const auto end = Clock::now() + std::chrono::duration<double>(std::atof(argv[3 + pass]));
    while (Clock::now() < end) {
      if (module.set_input(tensor, 0) != Error::Ok) return 4;
      const auto begin = Clock::now();
      const bool ok = module.forward().ok();
      times.push_back(std::chrono::duration<double, std::nano>(Clock::now() - begin).count());
      if (!ok) return 5;
    }
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  std::printf("%.0f\n", times[times.size() / 2]);
}
