"""What an op is. Data only: nothing here runs a kernel.

An op file hands `Op` its public function, its tensor arguments and its results; names, options and defaults
are read from the function's signature. `_C` gets the same record once, at import, and checks every call
against it; `Op.bind` repeats the check in Python when a call was refused, to say what is wrong.
"""

from __future__ import annotations

import inspect
import itertools
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from sparsekern.shapes import Rpn, Shape, block_size, evaluate, is_rows

Dims = Mapping[str, int]

# Names of dtypes in schemas. A dtype's code is its position; `csrc/core/types.h` has the same order.
DTYPES: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
    "e8m0": torch.float8_e8m0fnu,
    "u8": torch.uint8,
    "i32": torch.int32,
    "i64": torch.int64,
    "f16": torch.float16,
    "f64": torch.float64,
    "i8": torch.int8,
    "bool": torch.bool,
}
CODES = {name: code for code, name in enumerate(DTYPES)}
NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
# Stored as bytes: FP4 holds two values a byte, so its last dimension counts double.
STORED_AS = {"fp4": "u8"}
# How options spell dtypes.
SPELLED = {"fp32": "f32", "ue8m0": "e8m0", "fp8": "e4m3"}

# Wider or older spellings that an argument of this dtype takes too.
ALSO_TAKES = {"e8m0": ("u8",), "i32": ("i64",)}

# Dimensions of a tensor: TensorView::kMaxRank.
MAX_RANK = 8


class ShapeError(ValueError):
    """A tensor's shape, strides, device or contents, or an option's value, does not fit the op."""


class DtypeError(TypeError):
    """A tensor's dtype, or the type of an argument, does not fit the op."""


class UnsupportedError(RuntimeError):
    """No implementation of the op can run here."""


def dtype_named(choice: str | None) -> str:
    """The dtype that an option's value names, "" for none."""
    word = SPELLED.get(choice or "", choice or "")
    return word if word in CODES else ""


# --- the record --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arg:
    """A tensor argument.

    `shape` may offer a second form of another rank: "E N K | bytes". `dtypes` names what is taken ("f32
    bf16"). `layout` is "rows" (unit stride in the last dimension, one stride for all rows) or "dense"
    (contiguous). `written` marks one that the op changes in place: it shares no memory with another argument,
    or is the very same tensor.
    """

    name: str
    shape: str
    dtypes: str
    doc: str
    layout: Literal["rows", "dense"] = "rows"
    written: bool = False

    @property
    def packed(self) -> bool:
        """Whether it may be FP4, two values a byte."""
        return "fp4" in self.dtypes.split()

    @property
    def forms(self) -> tuple[Shape, ...]:
        """The shapes it may have, told apart by rank."""
        return tuple(map(Shape, self.shape.split("|")))

    def accepts(self) -> list[str]:
        """The dtypes it is taken in, by name."""
        stored = [STORED_AS.get(d, d) for d in self.dtypes.split()]
        return list(dict.fromkeys(stored + [also for d in stored for also in ALSO_TAKES.get(d, ())]))


@dataclass(frozen=True, slots=True)
class Out:
    """A result. `dtype` names a dtype, an argument or an option; of several, the first that is set.

    An option is set where its value names a dtype. A call has no such result where nothing is set, nor where
    the option `when` is not.
    """

    name: str
    shape: str
    dtype: str
    doc: str
    when: str = ""


@dataclass(frozen=True, slots=True)
class Option:
    """A keyword option, read from the signature."""

    name: str
    kind: Literal["int", "float", "bool", "enum", "dtype", "ints"]
    default: Any
    nullable: bool
    choices: tuple[str, ...] = ()
    length: int = 1  # of a tuple of ints
    sizes: tuple[str, ...] = ()  # that a tuple sets, where not name_0, name_1, ...

    @property
    def symbols(self) -> tuple[str, ...]:
        """The sizes it sets: an int its own name, a tuple name_0, name_1, ..."""
        if self.kind == "int" or self.sizes:
            return self.sizes or (self.name,)
        return tuple(f"{self.name}_{i}" for i in range(self.length)) if self.kind == "ints" else ()


@dataclass(frozen=True, eq=False)
class Op:
    """Everything sparsekern knows about an op except how to run it fast."""

    fn: Callable[..., Any]
    family: str
    args: tuple[Arg, ...]
    outs: tuple[Out, ...]  # none: the op writes to an argument, and returns None
    reference: Callable[..., Any]
    inputs: Callable[[Dims, torch.Generator], dict[str, Any]]  # keyword arguments of `fn`
    test_dims: tuple[Dims, ...]
    bench_dims: tuple[Dims, ...]
    spoil: Callable[[dict[str, Any]], dict[str, Any]]  # a small change that a test must notice
    source: str
    max_err: float = 0.0  # of a row's largest value; 0: the reference's very bits
    rows: tuple[str, ...] = ()  # arguments whose first dimension counts the independent rows
    result: type | None = None  # the NamedTuple of several results
    flops: Callable[[Dims], float] = lambda d: 0.0
    bytes: Callable[[Dims], float] = lambda d: 0.0
    dynamic: Mapping[str, str] = field(
        default_factory=dict
    )  # size known only from values -> option that fixes it, or ""
    hidden: tuple[Option, ...] = ()  # options that `fn` finds out by itself
    apart: tuple[str, ...] = ()  # parameters that `fn` takes apart: into hidden options, or into arguments

    name: str = field(init=False)
    options: tuple[Option, ...] = field(init=False)
    optional: frozenset[str] = field(init=False)
    forms: Mapping[str, tuple[Shape, ...]] = field(init=False)  # of arguments
    shapes: Mapping[str, Shape] = field(init=False)  # of results

    def __post_init__(self) -> None:
        def set_(name: str, value: object) -> None:  # the way to fill in a frozen record
            object.__setattr__(self, name, value)

        parameters = inspect.signature(self.fn).parameters
        hints = typing.get_type_hints(self.fn)
        names = [a.name for a in self.args]
        set_("name", self.fn.__name__)
        set_(
            "optional",
            frozenset(
                n
                for n in names
                if n not in parameters
                or parameters[n].default is None
                or types.NoneType in typing.get_args(hints[n])
            ),
        )
        shown = [p for p in parameters.values() if p.name not in (*names, *self.apart, "out", "workspace")]
        set_("options", (*(_option(p, hints[p.name]) for p in shown), *self.hidden))
        set_("forms", {a.name: a.forms for a in self.args})
        set_("shapes", {o.name: Shape(o.shape) for o in self.outs})

    def _all_shapes(self) -> Iterator[Shape]:
        return itertools.chain(*self.forms.values(), self.shapes.values())

    # -- checking in Python: the readable twin of `csrc/bindings/call.cpp` --

    def bind(self, tensors: Mapping[str, Tensor | None], options: Mapping[str, Any]) -> dict[str, Any]:
        """Check a call; return the size of every dimension, and the leading dimensions as "...".

        Raises:
            DtypeError: naming the argument and what it takes.
            ShapeError: naming the argument, its shape, the expected one, and where each size came from.
        """
        dims: dict[str, Any] = {}
        for o in self.options:
            if options[o.name] is not None and o.symbols:
                value = options[o.name]
                dims.update(zip(o.symbols, (value,) if o.kind == "int" else value, strict=True))
        for term in (t for shape in self._all_shapes() for t in shape.terms):
            for symbol, operator in itertools.pairwise(term):
                if operator == "/" and isinstance(symbol, str) and dims.get(symbol, 1) < 1:
                    raise ShapeError(f"{self.name}: {symbol} is {dims[symbol]}, expected at least 1")
        for symbol, option in self.dynamic.items():
            if options.get(option) is not None:
                dims[symbol] = options[option]
        origin: dict[str, str] = {}
        present = [(a, t) for a in self.args if (t := tensors[a.name]) is not None]
        device = present[0][1].device
        for a, t in present:
            self._check_dtype(a, t)
            if t.device != device:
                raise ShapeError(
                    f"{self.name}: {a.name} is on {t.device}, expected {device} like {present[0][0].name}"
                )
        for a, t in present:
            self._first_sizes(a, t, dims, origin)
        for a, t in present:
            self._check_sizes(a, t, dims, origin)
        for a, t in present:
            self._check_layout(a, t)
        for (a, t), (b, u) in itertools.permutations(present, 2):
            if a.written and overlap(t, u) and not same_memory(t, u):
                raise ShapeError(f"{self.name}: {a.name} is written to and overlaps {b.name}")
        return dims

    def _check_dtype(self, a: Arg, t: Tensor) -> None:
        if NAME_OF.get(t.dtype) in a.accepts():
            return
        hint = "; convert it to bfloat16 or float32" if t.dtype is torch.float16 else ""
        takes = " or ".join(a.dtypes.split())
        raise DtypeError(
            f"{self.name}: {a.name} is {str(t.dtype).removeprefix('torch.')}, expected {takes}{hint}"
        )

    def _form(self, a: Arg, t: Tensor) -> tuple[Shape, tuple[Any, ...], int]:
        """Find the form that fits the rank; the sizes in elements, and how many dimensions lead."""
        sizes = tuple(t.shape)
        if len(sizes) > MAX_RANK:
            raise ShapeError(
                f"{self.name}: {a.name} has {len(sizes)} dimensions, expected at most {MAX_RANK}"
            )
        for shape in self.forms[a.name]:
            lead = len(sizes) - len(shape.terms)
            if lead == 0 or (lead > 0 and shape.batched):
                doubled = a.packed and t.dtype == torch.uint8 and len(shape.terms) > 1
                return shape, (*sizes[:-1], 2 * sizes[-1]) if doubled else sizes, lead
        expected = " or ".join(map(str, self.forms[a.name]))
        raise ShapeError(f"{self.name}: {a.name} has shape {sizes}, expected {expected}")

    def _first_sizes(self, a: Arg, t: Tensor, dims: dict[str, Any], origin: dict[str, str]) -> None:
        shape, sizes, lead = self._form(a, t)
        if shape.batched and "..." not in dims:
            dims["..."], origin["..."] = sizes[:lead], a.name
        for axis, (term, size) in enumerate(zip(shape.terms, sizes[lead:], strict=True), start=lead):
            if len(term) == 1 and isinstance(term[0], str) and term[0] not in dims:
                dims[term[0]], origin[term[0]] = size, f"{a.name}.shape[{axis}]"

    def _check_sizes(self, a: Arg, t: Tensor, dims: dict[str, Any], origin: dict[str, str]) -> None:
        shape, sizes, lead = self._form(a, t)
        for term, size in zip(shape.terms, sizes[lead:], strict=True):
            unknown = term[-2] if len(term) > 2 and term[-1] == "/" and isinstance(term[-2], str) else None
            if unknown is not None and unknown not in dims and isinstance(size, int):
                g = block_size(evaluate(term[:-2], dims), size)
                if g is not None:
                    dims[unknown], origin[unknown] = g, f"{a.name}'s blocks"
        want = (
            *(dims["..."] if shape.batched else ()),
            *(evaluate(term, _Known(dims)) for term in shape.terms),
        )
        if sizes != want:
            used = [
                s for s in origin if any(s in term for term in shape.terms) or (s == "..." and shape.batched)
            ]
            why = ", ".join(f"{s}={dims[s]} from {origin[s]}" for s in used)
            raise ShapeError(
                f"{self.name}: {a.name} has shape {tuple(t.shape)}, expected {shape} = {want}"
                + f"  [{why}]" * bool(why)
            )

    def _check_layout(self, a: Arg, t: Tensor) -> None:
        if a.layout == "dense" or t.dim() == 0 or t.numel() == 0:
            good, what = t.is_contiguous() or t.numel() == 0, "contiguous"
        else:
            good, what = (
                is_rows(t.shape, t.stride()),
                "unit stride in the last dimension and evenly spaced rows",
            )
        if not good:
            raise ShapeError(
                f"{self.name}: {a.name} has strides {tuple(t.stride())}, expected {what}; "
                f"call {a.name}.contiguous()"
            )

    def result_specs(
        self, tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], dims: Mapping[str, Any]
    ) -> list[tuple[tuple[Any, ...], torch.dtype] | None]:
        """Shape and dtype of every result; None for one that this call does not have."""
        specs: list[tuple[tuple[Any, ...], torch.dtype] | None] = []
        for out in self.outs:
            shape, dtype = self.shapes[out.name], self._out_dtype(out, tensors, options)
            if dtype == "none":
                specs.append(None)
                continue
            lead = tuple(dims["..."]) if shape.batched else ()
            sizes = [*lead, *(evaluate(term, dims) for term in shape.terms)]
            if dtype == "fp4":
                sizes[-1] = sizes[-1] // 2
            specs.append((tuple(sizes), DTYPES[STORED_AS.get(dtype, dtype)]))
        return specs

    def _out_dtype(self, out: Out, tensors: Mapping[str, Tensor | None], options: Mapping[str, Any]) -> str:
        for word in out.dtype.split() if not out.when or dtype_named(options[out.when]) else ():
            if word in CODES or word in STORED_AS:
                return word
            value = options[word] if word in options else tensors[word]
            if isinstance(value, Tensor):
                return NAME_OF[value.dtype]
            if isinstance(value, torch.dtype):
                if value not in NAME_OF:
                    raise DtypeError(f"{self.name}: {word} is {value}, which is not a result dtype")
                return NAME_OF[value]
            if isinstance(value, str) and (named := dtype_named(value)):
                return named
        return "none"  # made from an argument that is not there

    # -- what `_C` is told, once --

    def compiled(self) -> tuple[Any, ...]:
        """The record as plain tuples; `csrc/bindings/schema.cpp` reads it."""
        words = {
            s for shape in self._all_shapes() for term in shape.terms for s in term if isinstance(s, str)
        }
        set_by_options = [s for o in self.options for s in o.symbols]
        symbols = list(dict.fromkeys([*set_by_options, *sorted(words - {*"+-*/"})]))
        codes = {"+": 2, "-": 3, "*": 4, "/": 5}

        def term(rpn: Rpn) -> list[tuple[int, int]]:
            return [
                (0, x) if isinstance(x, int) else (codes[x], 0) if x in codes else (1, symbols.index(x))
                for x in rpn
            ]

        def shape(form: Shape) -> tuple[bool, list[list[tuple[int, int]]]]:
            return form.batched, [term(t) for t in form.terms]

        names, options = [a.name for a in self.args], [o.name for o in self.options]

        def dtype_rule(out: Out) -> list[tuple[int, int]]:  # (0 fixed, 1 argument, 2 option), which
            return [
                (0, CODES[STORED_AS.get(w, w)]) if w in CODES or w in STORED_AS
                else (2, options.index(w)) if w in options
                else (1, names.index(w))
                for w in out.dtype.split()
            ]  # fmt: skip

        def choice_codes(o: Option) -> list[int]:  # what dtype a choice names, -1 for none
            return [CODES.get(dtype_named(c), -1) for c in o.choices]

        return (
            self.name,
            symbols,
            [
                (a.name, a.name in self.optional, sum(1 << CODES[d] for d in a.accepts()), a.packed,
                 a.layout == "dense", "i32" in a.dtypes.split(), [shape(form) for form in a.forms], a.written)
                for a in self.args
            ],
            [
                (o.name, o.kind, o.nullable, list(o.choices), choice_codes(o),
                [symbols.index(s) for s in o.symbols],
                 o not in self.hidden)
                for o in self.options
            ],
            [
                (o.name, dtype_rule(o), options.index(o.when) if o.when else -1, "fp4" in o.dtype.split(),
                 shape(self.shapes[o.name]))
                for o in self.outs
            ],
            self.result,
        )  # fmt: skip


class _Known(dict[str, Any]):
    """Sizes; what is not known reads as -1, so that a comparison fails and the message can say so."""

    def __missing__(self, key: str) -> int:
        return -1


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the memory from the first element of one to its last touches that of the other."""

    def span(t: Tensor) -> tuple[int, int]:
        reach = [(n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)]
        low, high = sum(r for r in reach if r < 0), sum(r for r in reach if r > 0) + 1
        return t.data_ptr() + low * t.element_size(), t.data_ptr() + high * t.element_size()

    if any(t.numel() == 0 or not t.is_cpu or type(t) is not Tensor for t in (a, b)):
        return False  # nothing there, or no memory that could be compared
    (start, end), (first, last) = span(a), span(b)
    return start < last and first < end


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one."""
    return (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)


def _option(p: inspect.Parameter, hint: Any) -> Option:
    """Read one keyword option from its annotation.

    Raises:
        TypeError: an annotation that options cannot have.
    """
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    members = [m for m in typing.get_args(hint) if m is not type(None)] if union else [hint]
    nullable = union and len(members) < len(typing.get_args(hint))
    kind = members[0]
    if typing.get_origin(kind) is Literal:
        return Option(p.name, "enum", p.default, nullable, typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return Option(p.name, "ints", p.default, nullable, length=len(typing.get_args(kind)))
    if kind is torch.dtype:
        return Option(p.name, "dtype", p.default, nullable)
    if kind not in (int, float, bool):
        raise TypeError(f"option {p.name} has annotation {hint}")
    return Option(p.name, kind.__name__, p.default, nullable)


def as_tuple(result: Any) -> tuple[Any, ...]:
    """Results as a tuple, also a single one, or none at all."""
    return tuple(result) if isinstance(result, tuple) else () if result is None else (result,)


def names(items: Iterable[Any]) -> list[str]:
    """The names of args, outs or options."""
    return [item.name for item in items]
