// What a native agent tells of its process and its device; the same facts as agent.py.
#pragma once

#include <dirent.h>
#include <gnu/libc-version.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "wire.h"

namespace edgebench {

/// A small text file, empty where there is none or it may not be read; trailing NULs and line ends are cut.
inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  while (!text.empty() && (text.back() == '\0' || text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text;
}

/// The values of every line "key<mark>value" of *text* whose key is *key*, in order.
inline std::vector<std::string> values_of(const std::string& text, const std::string& key, char mark = ':') {
  std::vector<std::string> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t at = line.find(mark);
    if (at == std::string::npos) continue;
    if (line.substr(0, line.find_last_not_of(" \t", at ? at - 1 : 0) + 1) != key) continue;
    const size_t begin = line.find_first_not_of(" \t\"", at + 1);
    found.push_back(begin == std::string::npos ? "" : line.substr(begin, line.find_last_not_of(" \t\"") - begin + 1));
  }
  return found;
}

inline std::string value_of(const std::string& text, const std::string& key, char mark = ':') {
  const auto found = values_of(text, key, mark);
  return found.empty() ? "" : found[0];
}

/// A line "key: 123 kB" of *text* as bytes.
inline std::string bytes_of(const std::string& text, const char* key) {
  return std::to_string(std::atoll(value_of(text, key).c_str()) * 1024);
}

/// Names in a folder that begin with *prefix*, sorted.
inline std::vector<std::string> names_in(const std::string& folder, const std::string& prefix = "") {
  std::vector<std::string> names;
  if (DIR* dir = opendir(folder.c_str())) {
    while (const dirent* entry = readdir(dir)) {
      const std::string name = entry->d_name;
      if (name[0] != '.' && name.compare(0, prefix.size(), prefix) == 0) names.push_back(name);
    }
    closedir(dir);
  }
  std::sort(names.begin(), names.end());
  return names;
}

inline size_t thread_count() { return names_in("/proc/self/task").size(); }

inline int64_t monotonic_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/// CPU time of all threads of this process.
inline int64_t cpu_ns() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

inline void send_oom_kills(const Wire& wire) {
  std::istringstream lines(read_file("/proc/vmstat"));
  std::string key, value, kills;
  while (lines >> key >> value) {
    if (key == "oom_kill") kills = value;
  }
  wire.fact("oom_kills", kills, "/proc/vmstat does not count them");
}

/// Send a memory mark, then reset the high-water mark if the kernel lets us.
inline void send_mark(const Wire& wire, const char* name) {
  const std::string status = read_file("/proc/self/status");  // once: the values belong together
  wire.send("mark", {{"name", quoted(name)},
                     {"peak_rss_bytes", bytes_of(status, "VmHWM")},
                     {"rss_bytes", bytes_of(status, "VmRSS")},
                     {"anon_bytes", bytes_of(status, "RssAnon")},
                     {"file_bytes", bytes_of(status, "RssFile")},
                     {"swap_bytes", bytes_of(status, "VmSwap")}});
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;
  wire.fact("clear_refs", file ? "true" : "", "not permitted: peaks count from the start of the process");
}

/// Seconds that all CPUs together were busy since boot: JSON, or null where /proc/stat cannot be read.
inline std::string all_cpu_s() {
  std::istringstream words(read_file("/proc/stat"));
  std::string name;
  double ticks = 0, sum = 0;
  words >> name;
  for (int i = 0; i < 8 && words >> ticks; ++i) sum += i == 3 || i == 4 ? 0 : ticks;  // idle, waiting
  return name == "cpu" ? number(sum / sysconf(_SC_CLK_TCK)) : "null";
}

inline double seconds_of(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return now.tv_sec + now.tv_nsec * 1e-9;
}

/// Heat, clocks, load and disturbance now; what is absent is null with a reason beside it.
inline std::string state() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);  // sums all threads; its ru_maxrss is of no use
  double load = 0;
  getloadavg(&load, 1);
  Wire::Fields found = {{"major_faults", std::to_string(usage.ru_majflt)},
                        {"involuntary_switches", std::to_string(usage.ru_nivcsw)},
                        {"swap_bytes", bytes_of(read_file("/proc/self/status"), "VmSwap")},
                        {"load_average_1min", number(load)},
                        {"clock_s", number(seconds_of(CLOCK_MONOTONIC))},
                        {"cpu_s", number(seconds_of(CLOCK_PROCESS_CPUTIME_ID))},
                        {"all_cpu_s", all_cpu_s()}};
  if (found.back().second == "null") found.push_back({"all_cpu_s_reason", quoted("no /proc/stat")});
  const struct { const char *name, *folder, *prefix, *file; double factor; } sources[] = {
      {"temperatures_c", "/sys/class/thermal/", "thermal_zone", "/temp", 1e-3},
      {"cooling_states", "/sys/class/thermal/", "cooling_device", "/cur_state", 1},
      {"frequencies_hz", "/sys/devices/system/cpu/cpufreq/", "policy", "/scaling_cur_freq", 1000},
      {"throttle_counts", "/sys/devices/system/cpu/", "cpu", "/thermal_throttle/core_throttle_count", 1}};
  for (const auto& source : sources) {
    Wire::Fields values;
    for (const auto& name : names_in(source.folder, source.prefix)) {
      const std::string text = read_file(source.folder + name + source.file);
      char* end = nullptr;
      const double value = std::strtod(text.c_str(), &end);
      if (!text.empty() && *end == '\0') values.push_back({name, number(value * source.factor)});
    }
    found.push_back({source.name, values.empty() ? "null" : object(values)});
    if (values.empty()) {
      const std::string where = std::string(source.folder) + source.prefix + "*" + source.file;
      found.push_back({std::string(source.name) + "_reason", quoted("no " + where)});
    }
  }
  return object(found);
}

/// One text as a fact's value: JSON, or empty where there is none.
inline std::string text_or_absent(const std::string& text) { return text.empty() ? "" : quoted(text); }

/// The fingerprint of this device.
inline void send_fingerprint(const Wire& wire) {
  const std::string cpuinfo = read_file("/proc/cpuinfo"), cpu = "/sys/devices/system/cpu/";
  std::string model = read_file("/sys/firmware/devicetree/base/model");
  const std::string vendor = read_file("/sys/class/dmi/id/sys_vendor"), product = read_file("/sys/class/dmi/id/product_name");
  if (model.empty()) model = vendor + (vendor.empty() || product.empty() ? "" : " ") + product;
  const bool arm = !values_of(cpuinfo, "CPU part").empty();
  std::set<std::string> ids;
  std::vector<std::vector<std::string>> columns;
  for (const char* key : arm ? std::vector<const char*>{"CPU implementer", "CPU part"}
                             : std::vector<const char*>{"vendor_id", "cpu family", "model"}) {
    columns.push_back(values_of(cpuinfo, key));
  }
  for (size_t row = 0; row < columns[0].size(); ++row) {
    std::string id = columns[0][row];
    for (size_t c = 1; c < columns.size(); ++c) id += "/" + (row < columns[c].size() ? columns[c][row] : "");
    ids.insert(id);
  }
  std::set<std::string> isa;
  bool hypervisor = false;
  std::istringstream flags(value_of(cpuinfo, arm ? "Features" : "flags"));
  for (std::string flag; flags >> flag;) {
    hypervisor = hypervisor || flag == "hypervisor";
    for (const char* start : {"sse4_2", "avx", "amx", "fma", "f16c", "neon", "asimd", "fphp", "i8mm", "bf16", "sve"}) {
      if (flag.rfind(start, 0) == 0) isa.insert(flag);
    }
    if (flag == "sme" || flag == "sme2") isa.insert(flag);
  }
  utsname system{};
  uname(&system);
  cpu_set_t allowed;
  sched_getaffinity(0, sizeof allowed, &allowed);
  Wire::Fields governors;
  for (const auto& policy : names_in(cpu + "cpufreq/", "policy")) {
    governors.push_back({policy, quoted(read_file(cpu + "cpufreq/" + policy + "/scaling_governor"))});
  }
  wire.fact("model", text_or_absent(model), "no device tree and no DMI");
  wire.fact("cpu_model", text_or_absent(value_of(cpuinfo, "model name")), "/proc/cpuinfo gives no model name");
  wire.fact("cpu_ids", ids.empty() ? "" : list({ids.begin(), ids.end()}), "/proc/cpuinfo gives no ids");
  wire.fact("isa", list({isa.begin(), isa.end()}));
  wire.fact("arch", quoted(system.machine));
  wire.fact("cores", std::to_string(sysconf(_SC_NPROCESSORS_ONLN)));
  wire.fact("cpus_allowed", std::to_string(CPU_COUNT(&allowed)));
  wire.fact("memory_total_bytes", bytes_of(read_file("/proc/meminfo"), "MemTotal"));
  wire.fact("page_bytes", std::to_string(sysconf(_SC_PAGESIZE)));
  wire.fact("kernel", quoted(system.release));
  wire.fact("os", text_or_absent(value_of(read_file("/etc/os-release"), "PRETTY_NAME", '=')), "no /etc/os-release");
  wire.fact("libc", quoted(std::string("glibc ") + gnu_get_libc_version()));
  wire.fact("python", "", "this agent is native");
  wire.fact("governors", governors.empty() ? "" : object(governors), "no cpufreq");
  wire.fact("virtualization", hypervisor ? quoted(vendor.empty() ? "a hypervisor" : vendor) : "", "none visible");
}

}  // namespace edgebench
