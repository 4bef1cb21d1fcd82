#include <string>

#include <catch2/catch.hpp>

#include "core/error.h"
#include "core/yaml.h"

using graft::ConfigReader;
using graft::dump_json;
using graft::Json;
using graft::parse_yaml;

namespace {

constexpr const char* kConfig =
    "model:\n"
    "  path: base\n"
    "lora:\n"
    "  r: 8\n"
    "  targets: [q_proj, v_proj]\n"
    "lr: 1e-4\n";

std::string error_of(const std::string& text) {
  try {
    parse_yaml(text, "run.yaml");
  } catch (const graft::Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("yaml: scalars follow the core schema", "[core][yaml]") {
  CHECK(dump_json(parse_yaml(
            "[1, -2, 1.5, 1e-4, true, false, null, ~, yes, '1', \"a\", 1.2.3, 0x10]", "t")) ==
        R"([1,-2,1.5,0.0001,true,false,null,null,"yes","1","a","1.2.3","0x10"])");
}

TEST_CASE("yaml: blocks nest and every value knows its place", "[core][yaml]") {
  const Json tree = parse_yaml(kConfig, "t");
  CHECK(dump_json(tree) ==
        R"({"model":{"path":"base"},"lora":{"r":8,"targets":["q_proj","v_proj"]},"lr":0.0001})");
  CHECK(tree.at("lora").at("r").mark().line == 4);
  CHECK(tree.at("lora").at("r").mark().column == 6);
}

TEST_CASE("yaml: a duplicate key is refused where it stands", "[core][yaml]") {
  const std::string error = error_of("a: 1\nb: 2\na: 3\n");
  CHECK(error.find("duplicate key \"a\"") != std::string::npos);
  CHECK(error.find("run.yaml:3:1") != std::string::npos);
}

TEST_CASE("yaml: aliases, tags, several documents and damage are refused", "[core][yaml]") {
  const std::string text =
      GENERATE(as<std::string>{}, "a: &x 1\nb: *x\n", "a: !!int '3'\n", "a: 1\n---\nb: 2\n",
               "a: [1, 2\n", "a: 'x\n", "? [a]\n: 1\n", "a: b: c\n", "{a: 1, a: 2}\n");
  CAPTURE(text);
  CHECK_THROWS_AS(parse_yaml(text, "t"), graft::Error);
}

TEST_CASE("yaml: deep nesting is an error, not a crash", "[core][yaml]") {
  CHECK_THROWS_AS(parse_yaml(std::string(100000, '['), "t"), graft::Error);
}

TEST_CASE("config: a misspelt key is refused with place and nearest name", "[core][yaml]") {
  const Json tree = parse_yaml("lora:\n  rnak: 8\n", "t");
  ConfigReader root(tree, "run.yaml", "");
  ConfigReader lora = root.section("lora");
  lora.get_int("rank", 4, {1, 512});
  lora.get_int("alpha", 4, {1, 512});
  CHECK_THROWS_WITH(lora.finish(), Catch::Contains("unknown key \"rnak\"") &&
                                       Catch::Contains("did you mean \"rank\"?") &&
                                       Catch::Contains("run.yaml:2:9: lora.rnak"));
  CHECK_NOTHROW(root.finish());
}

TEST_CASE("config: values outside their range or type are refused", "[core][yaml]") {
  const Json tree = parse_yaml("r: 0\nlr: fast\nflag: 1\nname: 3\nlist: [1]\n", "t");
  ConfigReader root(tree, "run.yaml", "");
  CHECK_THROWS_WITH(root.get_int("r", 8, {1, 512}), Catch::Contains("r must be in 1..512, got 0"));
  CHECK_THROWS_AS(root.get_float("lr", 1, {0, 1}), graft::Error);
  CHECK_THROWS_AS(root.get_bool("flag", false), graft::Error);
  CHECK_THROWS_AS(root.get_string("name", ""), graft::Error);
  CHECK_THROWS_AS(root.get_strings("list", {}), graft::Error);
  CHECK(root.get_int("absent", 7, {1, 9}) == 7);
}

TEST_CASE("config: key.path=value sets a nested value", "[core][yaml]") {
  Json tree = parse_yaml(kConfig, "t");
  graft::set_path(tree, "lora.r", graft::parse_yaml_value("16", "t"));
  graft::set_path(tree, "train.epochs", graft::parse_yaml_value("2.5", "t"));
  CHECK(tree.at("lora").at("r").as_int() == 16);
  CHECK(tree.at("train").at("epochs").as_double() == 2.5);
  CHECK_THROWS_AS(graft::set_path(tree, "lr.x", Json(1)), graft::Error);
  CHECK_THROWS_AS(graft::set_path(tree, "a..b", Json(1)), graft::Error);
}
