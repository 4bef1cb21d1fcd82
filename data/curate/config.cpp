// The config of `graft data clean`.
#include <string>

#include "core/yaml.h"
#include "data/curate/clean.h"

namespace graft::data {
namespace {

void apply_action(std::string_view action_text,
                  const Rule& rule,
                  const ConfigReader& reader,
                  std::string_view key,
                  RuleSetting& setting) {
  const Action action = parse_action(action_text, reader.where(key));
  if (action == Action::kEdit && rule.action != Action::kEdit) {
    reader.fail_at(key, "rule \"" + std::string(rule.name) + "\" has no edit",
                   "use off, report or quarantine");
  }
  if (action == Action::kOff && (rule.name == "malformed" || rule.name == "schema")) {
    reader.fail_at(key, "what is no record cannot be kept", "remove the line");
  }
  setting.action = action;
}

}  // namespace

void apply_config(const Json& tree, const std::string& file, CleanOptions& options) {
  ConfigReader root(tree, file, "");
  options.number_guard = root.get_bool("number_guard", options.number_guard);
  ConfigReader guards = root.section("guards");
  options.guards.max_removed_percent =
      guards.get_float("max_removed_percent", options.guards.max_removed_percent, {0, 100});
  options.guards.max_cluster_percent =
      guards.get_float("max_cluster_percent", options.guards.max_cluster_percent, {0, 100});
  options.guards.small_cluster =
      guards.get_int("small_cluster", options.guards.small_cluster, {0, int64_t{1} << 40});
  guards.finish();
  ConfigReader table = root.section("rules");
  for (size_t r = 0; r < rules().size(); ++r) {
    const Rule& rule = rules()[r];
    RuleSetting& setting = options.settings[r];
    const Json* value = table.get(rule.name);
    if (value == nullptr) {
      continue;
    }
    if (value->is_bool()) {  // YAML writes `off` as a word that some readers take for false
      setting.action = value->as_bool() ? rule.action : Action::kOff;
    } else if (value->is_string()) {
      apply_action(value->as_string(), rule, table, rule.name, setting);
    } else if (value->is_number()) {
      setting.threshold = value->as_double();
    } else {
      ConfigReader row = table.section(rule.name);
      const std::string action = row.get_string("action", std::string(action_name(setting.action)));
      apply_action(action, rule, row, "action", setting);
      setting.threshold = row.get_float("threshold", setting.threshold, {0, 1e15});
      row.finish();
    }
    if (rule.name == "near_duplicate" && (setting.threshold <= 0 || setting.threshold > 1)) {
      table.fail_at(rule.name, "the threshold is a Jaccard similarity in (0, 1]", "use 0.8");
    }
  }
  table.finish();
  root.finish();
}

}  // namespace graft::data
