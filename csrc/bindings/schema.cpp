#include "bindings/schema.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;

namespace sk {
namespace {

ShapeSpec read_shape(const py::handle& form) {
  ShapeSpec shape;
  const auto [batched, terms] = form.cast<std::pair<bool, py::list>>();
  shape.batched = batched;
  for (const py::handle term : terms) {
    Term tokens;
    for (const auto& [kind, value] : term.cast<std::vector<std::pair<int, int64_t>>>())
      tokens.push_back({static_cast<Token::Kind>(kind), value});
    shape.terms.push_back(tokens);
  }
  return shape;
}

OptionKind kind_of(const std::string& name) {
  if (name == "int") return OptionKind::integer;
  if (name == "float") return OptionKind::real;
  if (name == "bool") return OptionKind::boolean;
  if (name == "enum") return OptionKind::choice;
  if (name == "dtype") return OptionKind::dtype;
  return OptionKind::integers;
}

}  // namespace

// The fields are those of Op.compiled() in sparsekern/schema.py, in its order.
Schema::Schema(PyObject* fields) {
  const auto record = py::reinterpret_borrow<py::tuple>(fields);
  name = record[0].cast<std::string>();
  symbol_names = record[1].cast<std::vector<std::string>>();
  for (const py::handle h : record[2]) {
    const auto a = h.cast<py::tuple>();
    args.push_back({.name = a[0].cast<std::string>(),
                    .optional = a[1].cast<bool>(),
                    .packed = a[3].cast<bool>(),
                    .dense = a[4].cast<bool>(),
                    .index = a[5].cast<bool>(),
                    .written = a[7].cast<bool>(),
                    .dtypes = a[2].cast<uint32_t>(),
                    .forms = {}});
    for (const py::handle form : a[6]) args.back().forms.push_back(read_shape(form));
  }
  for (const py::handle h : record[3]) {
    const auto o = h.cast<py::tuple>();
    OptionSpec spec{.name = o[0].cast<std::string>(),
                    .kind = kind_of(o[1].cast<std::string>()),
                    .nullable = o[2].cast<bool>(),
                    .choices = {},
                    .choice_dtypes = o[4].cast<std::vector<int>>(),
                    .symbols = o[5].cast<std::vector<int>>(),
                    .shown = o[6].cast<bool>()};
    for (const py::handle c : o[3]) {
      PyObject* s = py::cast<py::str>(c).release().ptr();
      PyUnicode_InternInPlace(&s);
      spec.choices.push_back(Object::owned(s));
    }
    options.push_back(std::move(spec));
  }
  for (const py::handle h : record[4]) {
    const auto o = h.cast<py::tuple>();
    outs.push_back({.name = o[0].cast<std::string>(),
                    .dtype = o[1].cast<std::vector<std::pair<int, int>>>(),
                    .when = o[2].cast<int>(),
                    .packed = o[3].cast<bool>(),
                    .shape = read_shape(o[4])});
  }
  result = Object::shared(record[5].cast<py::object>().ptr());
}

}  // namespace sk
