#include "train/model/targets.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>

#include "adapters/pattern.h"
#include "core/error.h"
#include "core/progress.h"

namespace graft::train {
namespace {

using adapters::ModulePattern;

constexpr std::string_view kTargetsKey = "lora_target_modules";
constexpr std::string_view kExcludeKey = "lora_exclude_modules";
constexpr std::string_view kAll = "all-linear";
constexpr std::string_view kPeftDefault = "peft-default";
constexpr std::string_view kLayers = "layers.";

using Matcher = std::function<bool(std::string_view path)>;

// A linear with its layer, and the names that a pattern may mean.
struct Place {
  Linear* linear;
  size_t layer;
  std::string path;
};

std::vector<Place> places_of(Model& model) {
  std::vector<Place> places;
  for (size_t layer = 0; layer < model.layers.size(); ++layer) {
    for (Linear* const linear : model.layers[layer].linears()) {
      places.push_back({linear, layer, peft_path(model, linear->name)});
    }
  }
  return places;
}

bool is_expression(std::string_view pattern) {
  return pattern.find_first_of("()[]{}|*+?^$\\") != std::string_view::npos;
}

Matcher matcher_of(const std::string& pattern, std::string_view key) {
  if (!is_expression(pattern)) {
    return [pattern](std::string_view path) { return adapters::ends_in_parts(path, pattern); };
  }
  const auto expression = std::make_shared<ModulePattern>(pattern, ModulePattern::Form::kWhole,
                                                          ExitCode::kUsage, std::string(key));
  return [expression](std::string_view path) { return expression->matches(path); };
}

Coverage count(const Model& model,
               const std::vector<Place>& places,
               const std::string& pattern,
               const Matcher& matches) {
  Coverage result{pattern, std::vector<int64_t>(model.layers.size(), 0)};
  for (const Place& place : places) result.of_layer[place.layer] += matches(place.path) ? 1 : 0;
  return result;
}

std::vector<std::string> short_names(const std::vector<Place>& places) {
  std::set<std::string> names;
  for (const Place& place : places) names.insert(std::string(last_part(place.linear->name)));
  return {names.begin(), names.end()};
}

// Refuses patterns without a match, and those that match in some of `layers` only.
void check_matches(const std::vector<Coverage>& all,
                   const std::vector<int64_t>& layers,
                   const std::vector<std::string>& known,
                   std::string_view key) {
  for (const Coverage& one : all) {
    const auto matched = [&](int64_t layer) {
      return one.of_layer[static_cast<size_t>(layer)] > 0;
    };
    const auto count = std::count_if(layers.begin(), layers.end(), matched);
    if (count == static_cast<int64_t>(layers.size())) continue;
    const bool chooses = one.pattern.find(kLayers) != std::string::npos ||
                         one.pattern.find("layers\\.") != std::string::npos;
    if (count > 0 && chooses) continue;
    const std::vector<std::string_view> names(known.begin(), known.end());
    const std::string what = count > 0
                                 ? "\"" + one.pattern + "\" matches in " + std::to_string(count) +
                                       " of " + std::to_string(layers.size()) + " layers"
                                 : unknown_name("linear", one.pattern, names);
    fail(ExitCode::kUsage, what + "\n" + coverage_table(all), std::string(key),
         count > 0 ? "name the layers, in lora_layers_to_transform or in the pattern (layers.0.…)"
                   : "name linears of the model");
  }
}

std::vector<std::string> peft_default(const Model& model) {
  std::vector<std::string> names;
  std::string_view rest = model.config.family->peft_targets;
  if (rest.empty()) {
    fail(ExitCode::kUsage,
         "PEFT has no default targets for " + std::string(model.config.family->model_type),
         std::string(kTargetsKey), "name linears of the model, or all-linear");
  }
  while (!rest.empty()) {
    const size_t end = std::min(rest.find(' '), rest.size());
    names.emplace_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return names;
}

std::vector<int64_t> layers_of(const Model& model, const LoraSettings& settings) {
  const auto count = static_cast<int64_t>(model.layers.size());
  std::vector<int64_t> layers = settings.layers;
  if (layers.empty()) {
    layers.resize(model.layers.size());
    std::iota(layers.begin(), layers.end(), 0);
  }
  for (const int64_t layer : layers) {
    if (layer >= 0 && layer < count) continue;
    fail(ExitCode::kUsage,
         "layer " + std::to_string(layer) + " of a model with layers 0.." +
             std::to_string(count - 1),
         "lora_layers_to_transform");
  }
  return layers;
}

}  // namespace

std::string_view last_part(std::string_view name) {
  return name.substr(name.rfind('.') + 1);
}

std::string peft_path(const Model& model, std::string_view name) {
  constexpr std::string_view kModel = "model.";
  const bool moved = model.config.nested && name.substr(0, kModel.size()) == kModel;
  return moved ? "model.language_model." + std::string(name.substr(kModel.size()))
               : std::string(name);
}

std::string coverage_table(const std::vector<Coverage>& all) {
  const size_t layers = all[0].of_layer.size();
  std::vector<std::vector<std::string>> rows = {{"pattern"}};
  for (const Coverage& one : all) rows.push_back({one.pattern});
  for (size_t begin = 0; begin < layers;) {
    const auto alike = [&](size_t layer) {
      return std::all_of(all.begin(), all.end(), [&](const Coverage& one) {
        return one.of_layer[layer] == one.of_layer[begin];
      });
    };
    size_t end = begin + 1;
    while (end < layers && alike(end)) ++end;
    const bool single = end == begin + 1;
    rows[0].push_back(single ? "layer " + std::to_string(begin)
                             : "layers " + std::to_string(begin) + "-" + std::to_string(end - 1));
    for (size_t i = 0; i < all.size(); ++i) {
      rows[i + 1].push_back(std::to_string(all[i].of_layer[begin]));
    }
    begin = end;
  }
  return format_table("<" + std::string(rows[0].size() - 1, '>'), rows);
}

std::vector<Coverage> coverage_of(Model& model, const LoraSettings& settings) {
  const std::vector<Linear*> targets = find_targets(model, settings);
  const std::vector<Place> places = places_of(model);
  std::vector<Coverage> all;
  for (const std::string& pattern : settings.targets) {
    if (pattern == kAll) {
      all.push_back(count(model, places, pattern, [](std::string_view) { return true; }));
      continue;
    }
    for (const std::string& name :
         pattern == kPeftDefault ? peft_default(model) : std::vector<std::string>{pattern}) {
      all.push_back(count(model, places, name, matcher_of(name, kTargetsKey)));
    }
  }
  for (const std::string& pattern : settings.exclude) {
    all.push_back(count(model, places, pattern, matcher_of(pattern, kExcludeKey)));
    all.back().pattern = "not " + pattern;
  }
  Coverage adapted{"adapted", std::vector<int64_t>(model.layers.size(), 0)};
  for (const Place& place : places) {
    const bool is_target = std::find(targets.begin(), targets.end(), place.linear) != targets.end();
    adapted.of_layer[place.layer] += is_target ? 1 : 0;
  }
  all.push_back(std::move(adapted));
  return all;
}

std::vector<Linear*> find_targets(Model& model, const LoraSettings& settings) {
  std::vector<Place> places = places_of(model);
  const std::vector<std::string> known = short_names(places);
  const std::vector<int64_t> layers = layers_of(model, settings);
  const auto outside = [&](const Place& place) {
    return std::find(layers.begin(), layers.end(), static_cast<int64_t>(place.layer)) ==
           layers.end();
  };
  places.erase(std::remove_if(places.begin(), places.end(), outside), places.end());

  std::vector<Matcher> matchers;
  std::vector<Coverage> counted;
  std::vector<std::string> patterns = settings.targets;
  for (size_t i = 0; i < patterns.size(); ++i) {
    if (patterns[i] == kAll) {
      matchers.emplace_back([](std::string_view) { return true; });
    } else if (patterns[i] == kPeftDefault) {
      const std::vector<std::string> names = peft_default(model);
      patterns.insert(patterns.end(), names.begin(), names.end());
    } else {
      matchers.push_back(matcher_of(patterns[i], kTargetsKey));
      counted.push_back(count(model, places, patterns[i], matchers.back()));
    }
  }
  std::vector<std::string> words = {std::string(kAll), std::string(kPeftDefault)};
  words.insert(words.end(), known.begin(), known.end());
  if (!counted.empty()) check_matches(counted, layers, words, kTargetsKey);

  const auto matched = [](const std::vector<Matcher>& any, const Place& place) {
    return std::any_of(any.begin(), any.end(),
                       [&](const Matcher& matches) { return matches(place.path); });
  };
  places.erase(std::remove_if(places.begin(), places.end(),
                              [&](const Place& place) { return !matched(matchers, place); }),
               places.end());

  std::vector<Matcher> excluded;
  std::vector<Coverage> counted_out;
  for (const std::string& pattern : settings.exclude) {
    excluded.push_back(matcher_of(pattern, kExcludeKey));
    counted_out.push_back(count(model, places, pattern, excluded.back()));
  }
  if (!counted_out.empty()) check_matches(counted_out, layers, known, kExcludeKey);

  std::vector<Linear*> targets;
  for (const Place& place : places) {
    if (!matched(excluded, place)) targets.push_back(place.linear);
  }
  if (targets.empty()) {
    fail(ExitCode::kUsage, "no linear is targeted", std::string(kTargetsKey),
         "set it to all-linear or a list of names");
  }
  return targets;
}

void check_keys(Model& model,
                const std::vector<Linear*>& linears,
                const std::vector<std::string>& patterns,
                std::string_view key) {
  const auto is_other = [&](const Place& place) {
    return std::find(linears.begin(), linears.end(), place.linear) == linears.end();
  };
  std::vector<Place> places = places_of(model);
  places.erase(std::remove_if(places.begin(), places.end(), is_other), places.end());
  std::vector<Coverage> all;
  for (const std::string& pattern : patterns) {
    const ModulePattern expression(pattern, ModulePattern::Form::kEnd, ExitCode::kUsage,
                                   std::string(key));
    all.push_back(count(model, places, pattern,
                        [&](std::string_view path) { return expression.matches(path); }));
  }
  for (const Coverage& one : all) {
    if (std::accumulate(one.of_layer.begin(), one.of_layer.end(), int64_t{0}) > 0) continue;
    fail(ExitCode::kUsage,
         "\"" + one.pattern + "\" matches no adapted linear\n" + coverage_table(all),
         std::string(key), "name linears that lora_target_modules has");
  }
}

}  // namespace graft::train
