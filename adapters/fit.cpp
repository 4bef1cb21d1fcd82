#include "adapters/fit.h"

#include <algorithm>
#include <array>
#include <map>
#include <string_view>

#include "adapters/nf4_checkpoint.h"
#include "core/error.h"
#include "core/hash.h"

namespace graft::adapters {
namespace {

// Prefixes of the language model: alone, inside a multimodal model, inside its checkpoint.
constexpr std::string_view kPrefixes[] = {"model.language_model.", "language_model.model.",
                                          "model."};

// Names of an expert's linears: gate, up, down.
struct ExpertNames {
  std::string_view block;
  std::array<std::string_view, 3> linears;
};
constexpr ExpertNames kExperts[] = {{"mlp.", {"gate_proj", "up_proj", "down_proj"}},
                                    {"block_sparse_moe.", {"w1", "w3", "w2"}}};

// A weight that joins others, row under row.
struct Joined {
  std::string_view name;
  std::vector<std::string_view> parts;
};
const Joined kJoined[] = {{"qkv_proj", {"q_proj", "k_proj", "v_proj"}},
                          {"gate_up_proj", {"gate_proj", "up_proj"}}};

std::string_view last_of(std::string_view name) {
  return name.substr(name.rfind('.') + 1);
}

std::string with_last(const std::string& name, std::string_view last) {
  return name.substr(0, name.rfind('.') + 1) + std::string(last);
}

class Fitter {
 public:
  Fitter(Adapter adapter, const FindLinear& find, const std::string& model)
      : adapter_(std::move(adapter)), find_(find), model_(model) {}

  Adapter run() {
    for (AdapterModule& module : adapter_.modules) {
      if (module.all_experts) {
        add_experts(module);
      } else if (const std::string name = known_name(module.name); !name.empty()) {
        module.name = name;
        add(std::move(module));
      } else if (!add_parts(module) && !keep_part(module)) {
        refuse(module);
      }
    }
    for (auto& [name, parts] : waiting_) add_joined(name, parts);
    std::sort(fitted_.begin(), fitted_.end(),
              [](const AdapterModule& a, const AdapterModule& b) { return a.name < b.name; });
    for (size_t i = 1; i < fitted_.size(); ++i) {
      if (fitted_[i].name == fitted_[i - 1].name) {
        fail(ExitCode::kData, "the adapter has two modules for one linear",
             model_ + ": " + fitted_[i].name);
      }
    }
    adapter_.modules = std::move(fitted_);
    return std::move(adapter_);
  }

 private:
  // The first of a linear's names that the model has, or "".
  std::string known_name(const std::string& name) const {
    for (const std::string& one : names_of(name)) {
      if (find_(one)) return one;
    }
    return "";
  }

  [[noreturn]] void refuse(const AdapterModule& module) const {
    fail(ExitCode::kData, "the adapter has a module that the model lacks",
         model_ + ": " + module.name,
         last_of(module.name) == "lm_head"
             ? "the model's head is tied to its embeddings and cannot be adapted"
             : "use the model that the adapter was trained on");
  }

  [[noreturn]] void refuse_shape(const AdapterModule& module, const LinearShape& shape) const {
    fail(ExitCode::kData,
         "the model's weight is " + shape_text(std::vector<int64_t>{shape.out, shape.in}) +
             ", the adapter is for " + shape_text(std::vector<int64_t>{module.out, module.in}),
         model_ + ": " + module.name, "use the model that the adapter was trained on");
  }

  void add(AdapterModule module) {
    const LinearShape shape = *find_(module.name);
    if (shape.out != module.out || shape.in != module.in) refuse_shape(module, shape);
    fitted_.push_back(std::move(module));
  }

  // A pair of a joined weight, for the parts that the model has.
  bool add_parts(const AdapterModule& module) {
    for (const Joined& joined : kJoined) {
      if (last_of(module.name) != joined.name) continue;
      int64_t row = 0;
      for (const std::string_view part : joined.parts) {
        const std::string name = known_name(with_last(module.name, part));
        if (name.empty()) return false;
        AdapterModule one = module;
        one.name = name;
        one.out = find_(name)->out;
        const int64_t end = std::min(row + one.out, module.out) * module.rank;
        one.b.assign(module.b.begin() + row * module.rank, module.b.begin() + end);
        if (!module.magnitude.empty()) {
          one.magnitude.assign(module.magnitude.begin() + row,
                               module.magnitude.begin() + end / module.rank);
        }
        row += one.out;
        if (row > module.out) refuse(module);
        add(std::move(one));
      }
      if (row != module.out) refuse(module);
      return true;
    }
    return false;
  }

  // A pair of a part, for a weight that the model has joined: waits for the others.
  bool keep_part(AdapterModule& module) {
    for (const Joined& joined : kJoined) {
      const auto part = std::find(joined.parts.begin(), joined.parts.end(), last_of(module.name));
      if (part == joined.parts.end()) continue;
      const std::string name = known_name(with_last(module.name, joined.name));
      if (name.empty()) continue;
      auto& parts = waiting_[name];
      parts.resize(joined.parts.size());
      parts[static_cast<size_t>(part - joined.parts.begin())] = std::move(module);
      return true;
    }
    return false;
  }

  // Rows of each part of a joined weight, from those that the adapter has: k and v are as tall as
  // each other, and so are gate and up.
  static std::vector<int64_t> part_rows(const std::vector<AdapterModule>& parts, int64_t out) {
    if (parts.size() == 2) return {out / 2, out / 2};
    const int64_t kv = parts[1].rank > 0   ? parts[1].out
                       : parts[2].rank > 0 ? parts[2].out
                                           : (out - parts[0].out) / 2;
    return {out - 2 * kv, kv, kv};
  }

  void add_joined(const std::string& name, const std::vector<AdapterModule>& parts) {
    const LinearShape shape = *find_(name);
    const std::vector<int64_t> rows = part_rows(parts, shape.out);
    AdapterModule joined;
    joined.name = name;
    joined.in = shape.in;
    joined.out = shape.out;
    for (const AdapterModule& part : parts) {
      if (part.rank == 0) continue;
      if (joined.rank == 0) joined.scale = part.scale;
      joined.rank += part.rank;
      joined.a.insert(joined.a.end(), part.a.begin(), part.a.end());
    }
    joined.b.assign(static_cast<size_t>(joined.out * joined.rank), 0.0f);
    if (adapter_.spec.use_dora) join_magnitudes(parts, joined);
    int64_t row = 0, column = 0;
    for (size_t at = 0; at < parts.size(); ++at) {
      const AdapterModule& part = parts[at];
      if (part.rank > 0) {
        if (part.out != rows[at] || part.in != shape.in || row < 0 || row + part.out > joined.out) {
          refuse_shape(part, shape);
        }
        // The same number wherever the parts have one scale.
        const float factor = static_cast<float>(part.scale / joined.scale);
        for (int64_t i = 0; i < part.out; ++i) {
          for (int64_t r = 0; r < part.rank; ++r) {
            joined.b[static_cast<size_t>((row + i) * joined.rank + column + r)] =
                factor * part.b[static_cast<size_t>(i * part.rank + r)];
          }
        }
      }
      row += rows[at];
      column += part.rank;
    }
    add(std::move(joined));
  }

  // Rows of a part that the adapter lacks would need their own lengths.
  void join_magnitudes(const std::vector<AdapterModule>& parts, AdapterModule& joined) const {
    for (const AdapterModule& part : parts) {
      if (part.rank == 0) {
        fail(ExitCode::kData, "the adapter has DoRA magnitudes for only a part of this weight",
             model_ + ": " + joined.name, "merge the adapter with PEFT");
      }
      joined.magnitude.insert(joined.magnitude.end(), part.magnitude.begin(), part.magnitude.end());
    }
  }

  // "X.experts" or "X.experts.base_layer": which of the experts' two tensors it is, its shape says.
  void add_experts(const AdapterModule& module) {
    const std::string stem = module.name.substr(0, module.name.rfind(".experts") + 8);
    const auto expert_name = [&](int64_t expert, size_t linear) {
      const std::string name = stem + "." + std::to_string(expert) + ".";
      return known_name(name + std::string(kExperts[0].linears[linear]));
    };
    if (!module.magnitude.empty()) refuse(module);
    int64_t experts = 0;
    while (!expert_name(experts, 2).empty()) ++experts;
    if (experts == 0 || module.rank % experts != 0) refuse(module);
    const LinearShape down = *find_(expert_name(0, 2));
    const bool is_down = module.out == down.out && module.in == down.in;
    if (!is_down && (module.out != 2 * down.in || module.in != down.out)) refuse(module);
    const std::string parameter = stem + (is_down ? ".down_proj" : ".gate_up_proj");
    const int64_t rank = module.rank / experts;
    if (rank != adapter_.spec.rank_of(parameter)) {
      fail(ExitCode::kData,
           "lora_A has rank " + std::to_string(rank) + " for each of " + std::to_string(experts) +
               " experts, adapter_config.json gives " +
               std::to_string(adapter_.spec.rank_of(parameter)),
           model_ + ": " + module.name, "the files belong to different adapters");
    }
    for (int64_t expert = 0; expert < experts; ++expert) {
      AdapterModule one;
      one.rank = rank;
      one.in = module.in;
      one.scale = adapter_.spec.scale_of(parameter);
      one.a.assign(module.a.begin() + expert * rank * module.in,
                   module.a.begin() + (expert + 1) * rank * module.in);
      const size_t first = is_down ? 2 : 0, last = is_down ? 2 : 1;
      one.out = module.out / static_cast<int64_t>(last - first + 1);
      int64_t row = 0;
      for (size_t linear = first; linear <= last; ++linear, row += one.out) {
        one.name = expert_name(expert, linear);
        if (one.name.empty()) refuse(module);
        one.b.clear();
        for (int64_t i = row; i < row + one.out; ++i) {
          for (int64_t r = 0; r < rank; ++r) {
            one.b.push_back(module.b[static_cast<size_t>(i * module.rank + r * experts + expert)]);
          }
        }
        add(one);
      }
    }
  }

  Adapter adapter_;
  const FindLinear& find_;
  const std::string& model_;
  std::vector<AdapterModule> fitted_;
  std::map<std::string, std::vector<AdapterModule>> waiting_;  // parts by the joined weight's name
};

}  // namespace

std::vector<std::string> names_of(const std::string& name) {
  std::vector<std::string> names = {name};
  for (const ExpertNames& from : kExperts) {
    const size_t block = name.find("." + std::string(from.block));
    if (block == std::string::npos) continue;
    const auto linear =
        std::find(from.linears.begin(), from.linears.end(), last_of(name)) - from.linears.begin();
    for (const ExpertNames& to : kExperts) {
      std::string other = name;
      other.replace(block + 1, from.block.size(), to.block);
      if (linear < 3) other = with_last(other, to.linears[static_cast<size_t>(linear)]);
      names.push_back(other);
    }
  }
  std::vector<std::string> all;
  for (const std::string& one : names) {
    all.push_back(one);
    for (const std::string_view from : kPrefixes) {
      if (one.rfind(from, 0) != 0) continue;
      for (const std::string_view to : kPrefixes) {
        all.push_back(std::string(to) + one.substr(from.size()));
      }
      break;
    }
  }
  return all;
}

Adapter fit_adapter(Adapter adapter, const FindLinear& find, const std::string& model) {
  return Fitter(std::move(adapter), find, model).run();
}

Adapter fit_adapter(Adapter adapter, const SafetensorsDirectory& model) {
  const FindLinear find = [&](const std::string& name) -> std::optional<LinearShape> {
    const auto entry = model.find(name + ".weight");
    if (!entry) return std::nullopt;
    const auto packed = find_nf4(model, name);
    const std::vector<int64_t>& shape = packed ? packed->shape() : entry->info->shape;
    if (shape.size() != 2) return std::nullopt;
    return LinearShape{shape[0], shape[1]};
  };
  Adapter fitted = fit_adapter(std::move(adapter), find, model.directory());
  check_base(
      fitted,
      [&](const std::string& module) -> std::optional<uint64_t> {
        const auto packed = find_nf4(model, module);
        return packed ? std::optional(nf4_digest(packed->view())) : std::nullopt;
      },
      model.directory());
  return fitted;
}

bool has_own_base(const Adapter& adapter) {
  return adapter.metadata.find(std::string(kBaseDigest)) != adapter.metadata.end();
}

void check_base(const Adapter& adapter, const FindDigest& digest, const std::string& model) {
  if (!has_own_base(adapter)) return;
  uint64_t sum = 0;
  bool packed = true;
  for (const AdapterModule& module : adapter.modules) {
    const std::optional<uint64_t> one = digest(module.name);
    packed = packed && one;
    sum += one.value_or(0);
  }
  const std::string& expected = adapter.metadata.find(std::string(kBaseDigest))->second;
  if (packed && hex64(sum) == expected) return;
  fail(ExitCode::kData,
       "the adapter began by changing its base's 4-bit weights (" + std::string(kBaseDigest) + " " +
           expected + "), and these are " +
           (packed ? "others (" + hex64(sum) + ")" : "not in 4 bits"),
       model, "give the directory `base` that the training run wrote beside the adapter");
}

}  // namespace graft::adapters
