"""The ops, in the order of the documentation. Tests, benchmarks, the tuner and the documentation read this list."""

from __future__ import annotations

from sparsekern import backend, docs, torch_ops
from sparsekern.ops.rms_norm import OP as rms_norm
from sparsekern.schema import Op

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        rms_norm,
    )
}

for _op in OPS.values():
    backend.define(_op)
    torch_ops.register(_op)
    docs.document(_op)
