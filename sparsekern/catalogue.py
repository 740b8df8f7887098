"""The ops, in the order of the documentation. Tests, benchmarks, the tuner and the documentation read this list."""

from __future__ import annotations

from sparsekern import backend, docs, torch_ops
from sparsekern.ops.gemm import OP as gemm
from sparsekern.ops.grouped_gemm import OP as grouped_gemm
from sparsekern.ops.grouped_gemm_masked import OP as grouped_gemm_masked
from sparsekern.ops.pack_weights import OP as pack_weights
from sparsekern.ops.rms_norm import OP as rms_norm
from sparsekern.ops.unpack_weights import OP as unpack_weights
from sparsekern.schema import Op

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        rms_norm,
        pack_weights,
        unpack_weights,
        gemm,
        grouped_gemm,
        grouped_gemm_masked,
    )
}

for _op in OPS.values():
    backend.define(_op)
    torch_ops.register(_op)
    docs.document(_op)
