// The catalogue's records as C++ reads them: handed over by sparsekern/schema.py, once per op, at import.
#pragma once
#include <string>
#include <vector>

#include "bindings/object.h"
#include "core/tensor_view.h"

namespace sk {

struct Token {
  enum Kind : int { kConst, kSymbol, kAdd, kSub, kMul, kCeilDiv } kind;
  int64_t value;
};
using Term = std::vector<Token>;  // reverse polish

struct ShapeSpec {
  bool batched = false;  // any leading dimensions
  std::vector<Term> terms;
};

struct ArgSpec {
  std::string name;
  bool optional, packed, dense, index;  // packed: a byte holds two; index: int32, int64 taken
  bool written;                         // in place: shares no memory with other arguments, but may be one of them
  uint32_t dtypes;                      // bit per Dtype
  std::vector<ShapeSpec> forms;         // told apart by rank
};

enum class OptionKind { integer, real, boolean, choice, dtype, integers };

struct OptionSpec {
  std::string name;
  OptionKind kind;
  bool nullable;
  std::vector<Object> choices;     // interned strings
  std::vector<int> choice_dtypes;  // the dtype a choice names, or -1
  std::vector<int> symbols;        // of the sizes it sets
  bool shown;                      // an argument of the public function; its sizes are at least 1
};

struct OutSpec {
  enum Source : int { kFixed, kArg, kOption };
  std::string name;
  std::vector<std::pair<int, int>> dtype;  // (source, which): the first that is set counts
  int when;                                // the option that must be set, or -1
  bool packed;
  ShapeSpec shape;
};

struct Schema {
  std::string name;
  std::vector<std::string> symbol_names;
  std::vector<ArgSpec> args;
  std::vector<OptionSpec> options;
  std::vector<OutSpec> outs;
  Object result;  // a NamedTuple class, or None

  explicit Schema(PyObject* fields);  // a tuple
  int symbols() const { return static_cast<int>(symbol_names.size()); }
};

}  // namespace sk
