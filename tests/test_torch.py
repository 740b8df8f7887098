"""The ops as torch sees them: registered, traced, compiled, exported, faked, differentiated."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, EACH_OP, Args, buffers, filled, inputs, takes_out, tensors, values
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import sparsekern
from sparsekern.schema import Dims, Op, ShapeError, as_tuple
from sparsekern.testing import assert_same_bits, outcome

STATIC = [p for p in EACH_OP if not p.values[0].dynamic]
WITH_OUT = [p for p in EACH_OP if p.values[0].outs]
IN_PLACE = [p for p in EACH_OP if not p.values[0].outs]


def utilities(arguments: list[Any]) -> tuple[str, ...]:
    """What opcheck can do: its test of the schema multiplies tensors, which FP8 ones cannot be."""
    quantised = any(
        isinstance(v, Tensor) and v.dtype.itemsize == 1 and v.is_floating_point() for v in arguments
    )
    return ("test_autograd_registration", "test_faketensor", *([] if quantised else ["test_schema"]))


def overloads(op: Op) -> Any:
    return getattr(torch.ops.sparsekern, op.name)


def out_arguments(op: Op, result: Any) -> dict[str, Tensor]:
    """Memory for the results under the names that the out variant gives them."""
    given = filled(buffers(result), 0)
    pairs = zip(op.outs, given, strict=True)
    return {f"out_{o.name}": torch.empty(0) if t is None else t for o, t in pairs}


def called(op: Op, x: Args) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """The call as a function of its tensors, for tracers, and the tensors."""
    names = [name for name, v in x.items() if isinstance(v, Tensor)]
    rest = {name: v for name, v in x.items() if name not in names}
    written = [a.name for a in op.args if a.written]

    def call(*given: Tensor) -> Any:
        arguments = dict(zip(names, given, strict=True))
        copies = {name: arguments[name].clone() for name in written}
        result = op.fn(**{**arguments, **copies}, **rest)
        return tuple(copies.values()) if written else result

    return call, tuple(x[name] for name in names)


@pytest.mark.parametrize("op", EACH_OP)
def test_opcheck(op: Op) -> None:
    arguments = values(op, inputs(op, op.test_dims[0]))
    torch.library.opcheck(overloads(op).default, tuple(arguments), test_utils=utilities(arguments))


@pytest.mark.parametrize("op", WITH_OUT)
def test_opcheck_of_out(op: Op) -> None:
    arguments = values(op, inputs(op, op.test_dims[0]))
    out = out_arguments(op, as_tuple(overloads(op).default(*arguments)))
    tests = utilities([*arguments, *out.values()])
    torch.library.opcheck(overloads(op).out, tuple(arguments), out, test_utils=tests)


@pytest.mark.parametrize(("op", "dims"), [p for p in CASES if p.values[0].outs])
def test_registered_op_is_the_op(op: Op, dims: Dims) -> None:
    arguments = values(op, inputs(op, dims))
    want = as_tuple(overloads(op).default(*arguments))
    given = out_arguments(op, want)
    assert overloads(op).out(*arguments, **given) is None
    assert_same_bits(tuple(given.values()), want)


@pytest.mark.parametrize("op", IN_PLACE)
def test_registered_op_writes_in_place(op: Op) -> None:
    x = inputs(op, op.test_dims[0])
    want = outcome(op, x)
    assert overloads(op).default(*values(op, x)) is None
    assert_same_bits(tuple(x[a.name] for a in op.args if a.written), want)


@pytest.mark.parametrize(("op", "dims"), [p for p in CASES if p.values[0].outs])
def test_fake_results_are_like_the_real_ones(op: Op, dims: Dims) -> None:
    arguments = values(op, inputs(op, dims))
    want = as_tuple(overloads(op).default(*arguments))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(v) if isinstance(v, Tensor) else v for v in arguments]
        if op.dynamic:
            pytest.skip("its sizes are known from values")
        got = as_tuple(overloads(op).default(*fakes))
    for fake, real in zip(got, want, strict=True):
        assert isinstance(fake, FakeTensor)
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("op", STATIC)
def test_meta_tensors(op: Op) -> None:
    x = inputs(op, op.test_dims[0])
    call, given = called(op, x)
    for got, want in zip(as_tuple(call(*(t.to("meta") for t in given))), as_tuple(call(*given)), strict=True):
        assert want is None or (got.device.type, got.shape, got.dtype) == ("meta", want.shape, want.dtype)


@pytest.mark.parametrize("op", EACH_OP)
def test_compiles_to_one_graph(op: Op) -> None:
    call, given = called(op, inputs(op, op.test_dims[0]))
    torch._dynamo.reset()
    with sparsekern.trace() as calls:
        got = torch.compile(call, fullgraph=True, backend="aot_eager")(*given)
    assert calls[op.name] == 1
    assert_same_bits(got, call(*given))


@pytest.mark.parametrize("op", [p for p in EACH_OP if takes_out(p.values[0])])
def test_compiles_with_out(op: Op) -> None:
    x = inputs(op, op.test_dims[0])
    want = op.fn(**x)
    out = filled(buffers(want), 0)
    torch._dynamo.reset()

    def call(given: Args, into: Any) -> Any:
        return op.fn(**given, out=into)

    torch.compile(call, fullgraph=True, backend="aot_eager")(x, out[0] if len(out) == 1 else out)
    assert_same_bits(out, as_tuple(want))


def test_compiles_with_inductor() -> None:
    x = torch.randn(4, 64)

    def norm_of_twice(x: Tensor) -> Tensor:
        return sparsekern.rms_norm(x * 2, eps=1e-6) + 1

    got = torch.compile(norm_of_twice, fullgraph=True)(x)
    torch.testing.assert_close(got, norm_of_twice(x))


@pytest.mark.parametrize("op", EACH_OP)
def test_exports(op: Op) -> None:
    call, given = called(op, inputs(op, op.test_dims[0]))

    class Module(torch.nn.Module):
        def forward(self, *given: Tensor) -> Any:
            return call(*given)

    program = torch.export.export(Module(), given)
    assert any(n.target is overloads(op).default for n in program.graph.nodes)
    assert_same_bits(tuple(as_tuple(program.module()(*given))), tuple(as_tuple(call(*given))))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("op", EACH_OP)
def test_make_fx_sees_the_call(op: Op, mode: str) -> None:
    call, given = called(op, inputs(op, op.test_dims[0]))
    if op.dynamic and mode != "real":
        pytest.skip("its sizes are known from values")
    graph = make_fx(call, tracing_mode=mode)(*given)
    assert any(n.target is overloads(op).default for n in graph.graph.nodes)
    assert_same_bits(tuple(as_tuple(graph(*given))), tuple(as_tuple(call(*given))))


def test_other_kinds_of_tensors() -> None:
    x = torch.randn(4, 8)
    want = sparsekern.rms_norm(x, eps=1e-6)

    class Mine(torch.Tensor):
        pass

    def norm(x: Tensor) -> Tensor:
        return sparsekern.rms_norm(x, eps=1e-6)

    assert_same_bits(norm(x.as_subclass(Mine)).as_subclass(Tensor), want)
    assert_same_bits(norm(torch.nn.Parameter(x, requires_grad=False)), want)
    assert_same_bits(norm(x.numpy()), want)
    assert_same_bits(torch.func.functionalize(norm)(x), want)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same_bits(torch.vmap(norm)(x.view(2, 2, 8)), want.view(2, 2, 8))
    with torch.inference_mode():
        assert_same_bits(norm(x * 1), want)
    with FlopCounterMode(display=False):
        assert_same_bits(norm(x), want)


def test_tensors_without_memory() -> None:
    x = torch.randn(4, 8)
    freed = x.clone()
    freed.untyped_storage().resize_(0)
    for bad in (freed, torch._efficientzerotensor((4, 8)), x.to_sparse()):
        with pytest.raises(ShapeError, match="rms_norm: x "):
            sparsekern.rms_norm(bad, eps=1e-6)


def test_never_a_silently_detached_result() -> None:
    x = torch.randn(4, 8)
    wants = x.clone().requires_grad_()

    def norm(x: Tensor) -> Tensor:
        return sparsekern.rms_norm(x, eps=1e-6)

    with pytest.raises(RuntimeError, match="requires grad"):
        norm(wants)
    with pytest.raises(RuntimeError, match="requires grad"):
        torch.ops.sparsekern.rms_norm(wants, None, None, 1e-6)
    with pytest.raises(RuntimeError, match="requires grad"):
        torch.func.grad(lambda x: norm(x).sum())(x)
    with pytest.raises(RuntimeError, match="requires grad"):
        torch.func.jvp(norm, (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="requires grad"):
        norm(forward_ad.make_dual(x, x))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="requires grad"):
        torch.compile(norm, fullgraph=True, backend="aot_eager")(wants)
    with torch.no_grad():
        assert not norm(wants).requires_grad


def test_errors_inside_compiled_functions_say_what_is_wrong() -> None:
    torch._dynamo.reset()
    with pytest.raises(Exception, match="rms_norm: weight has shape"):
        torch.compile(lambda x, w: sparsekern.rms_norm(x, w, eps=1e-6), backend="aot_eager")(
            torch.ones(2, 8), torch.ones(4)
        )


def test_nothing_is_left_in_the_arguments() -> None:
    """A traced call must not keep tensors alive or alias them."""
    for param in EACH_OP:
        op = param.values[0]
        x = inputs(op, op.test_dims[0])
        result = as_tuple(overloads(op).default(*values(op, x)))
        memory = {t.untyped_storage().data_ptr() for t in tensors(x)}
        assert not any(t.numel() and t.untyped_storage().data_ptr() in memory for t in result)
