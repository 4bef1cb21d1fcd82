// Values of the template engine: Python's, with the origin of every piece of text.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/json.h"
#include "data/text/template.h"

namespace graft::data::jinja {

// Where a piece of text comes from.
struct Tag {
  Origin origin = Origin::kTemplate;
  int32_t message = -1;
  int32_t generation = 0;  // number of the {% generation %} block it was written in, 0 = none
  friend bool operator==(const Tag&, const Tag&) = default;
};

// A string and the tag of each of its bytes.
class Text {
 public:
  Text() = default;
  Text(std::string bytes, Tag tag);
  const std::string& bytes() const { return bytes_; }
  std::string take_bytes() && { return std::move(bytes_); }
  size_t size() const { return bytes_.size(); }
  struct Run {
    size_t end;  // the run covers the bytes from the last run's end to here
    Tag tag;
  };
  std::span<const Run> runs() const {
    return more_.empty() ? std::span(&first_, bytes_.empty() ? 0 : 1) : std::span(more_);
  }
  void append(std::string_view bytes, Tag tag);
  void append(const Text& other) { append(other, 0, other.size()); }
  void append(const Text& other, size_t begin, size_t end);
  Text part(size_t begin, size_t end) const;
  Tag tag_at(size_t at) const;  // of the byte; of the last one behind the end
  // Every run from `begin` on is marked as written in a generation block.
  void mark_generation(size_t begin, int32_t number);

 private:
  size_t run_at(size_t at) const;
  std::string bytes_;
  Run first_{};            // the only run, while more_ is empty
  std::vector<Run> more_;  // all runs, once there are two
};

struct List;
struct Dict;
struct Namespace;
struct Loop;
struct Callable;

struct Undefined {
  std::string name;  // for the message
};
struct None {};

class Value {
 public:
  using Data = std::variant<Undefined,
                            None,
                            bool,
                            int64_t,
                            double,
                            std::shared_ptr<const Text>,
                            std::shared_ptr<const List>,
                            std::shared_ptr<const Dict>,
                            std::shared_ptr<Namespace>,
                            std::shared_ptr<Loop>,
                            std::shared_ptr<const Callable>>;
  Value() = default;  // undefined
  explicit Value(Data data, Tag tag = {}) : data_(std::move(data)), tag_(tag) {}
  static Value undefined(std::string name) { return Value(Undefined{std::move(name)}); }
  static Value none() { return Value(None{}); }
  static Value boolean(bool value) { return Value(Data(value)); }
  static Value integer(int64_t value, Tag tag = {}) { return Value(Data(value), tag); }
  static Value string(Text text) {
    return Value(Data(std::shared_ptr<const Text>(std::make_shared<Text>(std::move(text)))));
  }
  static Value string(std::string text, Tag tag = {}) { return string(Text(std::move(text), tag)); }
  // Errors: kData when nested deeper than kMaxNesting.
  static Value list(std::vector<Value> items, bool is_tuple = false, Tag tag = {});
  static Value dict(std::vector<std::pair<std::shared_ptr<const Text>, Value>> items, Tag tag = {});
  static Value from_json(const Json& json, Tag tag);

  template <class T>
  const T* get() const {
    return std::get_if<T>(&data_);
  }
  bool is_undefined() const { return get<Undefined>() != nullptr; }
  bool is_none() const { return get<None>() != nullptr; }
  const Text* text() const;  // nullptr when this is no string
  const List* list() const;  // list or tuple
  const Dict* dict() const;
  Namespace* name_space() const;
  Loop* loop() const;
  const Callable* callable() const;
  // bool or int as an integer.
  bool is_integer() const { return get<int64_t>() || get<bool>(); }
  bool is_number() const { return is_integer() || get<double>(); }
  int64_t as_integer() const;
  double as_double() const;
  std::shared_ptr<const Text> shared_text() const;

  bool is_true() const;
  std::string_view type_name() const;  // Python's
  Tag tag() const { return tag_; }
  int depth() const;  // nesting of lists and dicts

 private:
  Data data_;
  Tag tag_;
};

constexpr int kMaxNesting = 300;  // deeper than any JSON that core/json.h reads

struct List {
  std::vector<Value> items;
  bool is_tuple = false;
  int depth = 1;
};

struct Dict {
  std::vector<std::pair<std::shared_ptr<const Text>, Value>> items;
  int depth = 1;
  const Value* find(std::string_view key) const;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> items;
  Value* find(std::string_view name);
};

struct Loop {
  const std::vector<Value>* items = nullptr;
  int64_t index0 = 0;
  int64_t depth0 = 0;
  Value last_changed;
  bool has_changed = false;
};

struct Node;
struct Scope;

struct Callable {
  enum class Kind { kMacro, kCaller, kMethod, kGlobal };
  Kind kind = Kind::kGlobal;
  std::string name;
  const Node* node = nullptr;  // kMacro, kCaller
  Scope* scope = nullptr;      // where it was defined
  Value self;                  // kMethod
};

bool equal(const Value& a, const Value& b);
// str() and repr() of Python.
Text to_text(const Value& value);
Text to_repr(const Value& value);
std::string float_text(double value);  // Python's repr of a float

struct JsonFormat {
  int64_t indent = -1;
  bool ascii = false;
  bool sort_keys = false;
  Text item_separator;
  Text key_separator;
};
// json.dumps. Errors: kData for a value that is not JSON.
Text to_json(const Value& value, const JsonFormat& format);

}  // namespace graft::data::jinja
