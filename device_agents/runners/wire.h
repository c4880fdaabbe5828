// What a native agent says to the host: arguments in, JSON lines out (PROTOCOL.md).
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace edgebench {

/// Ends the run with a typed status (a Status of harness/core/types.py).
struct Failure : std::runtime_error {
  Failure(std::string status, const std::string& text) : std::runtime_error(text), status(std::move(status)) {}
  std::string status;
};

/// *text* as a JSON string. Bytes that are not UTF-8 become U+FFFD, line breaks and other controls \u00xx.
inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const size_t length = byte < 0x80 ? 1 : byte >= 0xC2 && byte < 0xE0 ? 2 : byte >= 0xE0 && byte < 0xF0 ? 3
                          : byte >= 0xF0 && byte < 0xF5 ? 4 : 0;
    bool valid = length > 0 && i + length <= text.size();
    for (size_t k = 1; valid && k < length; ++k) valid = (text[i + k] & 0xC0) == 0x80;
    if (valid && length == 3) {  // no overlong forms, no surrogates
      const auto next = static_cast<unsigned char>(text[i + 1]);
      valid = !(byte == 0xE0 && next < 0xA0) && !(byte == 0xED && next >= 0xA0);
    } else if (valid && length == 4) {
      const auto next = static_cast<unsigned char>(text[i + 1]);
      valid = !(byte == 0xF0 && next < 0x90) && !(byte == 0xF4 && next >= 0x90);
    }
    if (!valid) {
      out += "\\ufffd";
    } else if (byte == '"' || byte == '\\') {
      out += {'\\', text[i]};
    } else if (byte < 0x20 || byte == 0x7F) {
      char code[7];
      std::snprintf(code, sizeof code, "\\u%04x", byte);
      out += code;
    } else {
      out += text.substr(i, length);
    }
    i += valid ? length : 1;
  }
  return out + "\"";
}

/// A number as JSON; what JSON cannot say (infinity, NaN) is null.
inline std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

/// Strings as a JSON list.
inline std::string list(const std::vector<std::string>& items) {
  std::string out;
  for (const auto& item : items) out += (out.empty() ? "" : ",") + quoted(item);
  return "[" + out + "]";
}

/// Ready JSON values as a JSON object.
inline std::string object(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string out;
  for (const auto& [key, value] : items) out += (out.empty() ? "" : ",") + quoted(key) + ":" + value;
  return "{" + out + "}";
}

/// Events to the host. What libraries print on stdout goes to stderr, so that no line is foreign.
class Wire {
 public:
  using Fields = std::vector<std::pair<std::string, std::string>>;

  Wire() : out_(fdopen(dup(1), "w")) { dup2(2, 1); }

  void send(const char* event, Fields fields) const {
    fields.insert(fields.begin(), {"event", quoted(event)});
    std::fprintf(out_, "%s\n", object(fields).c_str());
    std::fflush(out_);
  }

  /// *value* is JSON; an absent fact is null with a reason, never 0.
  void fact(const char* name, const std::string& value, const std::string& reason = "this system does not tell") const {
    Fields fields = {{"name", quoted(name)}, {"value", value.empty() ? "null" : value}};
    if (value.empty()) fields.push_back({"reason", quoted(reason)});
    send("fact", fields);
  }

  void values(const char* event, const std::vector<int64_t>& ns) const {
    for (size_t start = 0; start < ns.size(); start += 1000) {
      std::string text;
      for (size_t i = start; i < ns.size() && i < start + 1000; ++i) {
        text += (text.empty() ? "" : ",") + std::to_string(ns[i]);
      }
      send(event, {{"ns", "[" + text + "]"}});
    }
  }

  std::string stage = "arguments";

 private:
  FILE* out_;
};

/// The key=value arguments of a latency or memory block; Failure if one is missing, unknown or not a number.
class Arguments {
 public:
  Arguments(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      const std::string item = argv[i];
      const size_t at = item.find('=');
      values_[item.substr(0, at)] = at == std::string::npos ? "" : item.substr(at + 1);
    }
    const auto mode = values_.find("mode");
    if (mode != values_.end()) this->mode = mode->second;
    const bool measures = this->mode == "latency" || this->mode == "memory";
    std::string wanted;
    bool good = measures || this->mode == "probe";
    for (const char* name : {"format", "backend", "model", "check", "check_sets", "check_min_sqnr_db", "threads",
                             "warmup_iterations", "warmup_time_s", "min_iterations", "min_time_s"}) {
      good = good && (values_.count(name) == 1) == measures;
      wanted += std::string(wanted.empty() ? "" : ", ") + name;
    }
    if (!good || values_.size() != (measures ? 12 : 1)) {
      throw Failure("agent_failed", "expected mode=probe, or mode=latency or memory with " + wanted);
    }
  }

  const std::string& text(const char* name) const { return values_.at(name); }

  double real(const char* name) const {
    char* end = nullptr;
    const double value = std::strtod(text(name).c_str(), &end);
    if (text(name).empty() || *end != '\0') {
      throw Failure("agent_failed", std::string(name) + "=" + text(name) + " is not a number");
    }
    return value;
  }

  size_t count(const char* name) const {
    const double value = real(name);
    if (value < 0 || value != std::floor(value)) {
      throw Failure("agent_failed", std::string(name) + "=" + text(name) + " is not a count");
    }
    return static_cast<size_t>(value);
  }

  std::string mode;

 private:
  std::map<std::string, std::string> values_;
};

}  // namespace edgebench
