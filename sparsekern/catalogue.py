"""The ops, in the order of the documentation. Tests, benchmarks and the documentation read this list."""

from __future__ import annotations

from sparsekern import backend, docs, torch_ops
from sparsekern.ops.compress_kv import OP as compress_kv
from sparsekern.ops.dequantize import OP as dequantize
from sparsekern.ops.engram_gate import OP as engram_gate
from sparsekern.ops.engram_hash import OP as engram_hash
from sparsekern.ops.engram_lookup import OP as engram_lookup
from sparsekern.ops.fused_moe import OP as fused_moe
from sparsekern.ops.gemm import OP as gemm
from sparsekern.ops.grouped_gemm import OP as grouped_gemm
from sparsekern.ops.grouped_gemm_masked import OP as grouped_gemm_masked
from sparsekern.ops.hadamard import OP as hadamard
from sparsekern.ops.indexer_logits import OP as indexer_logits
from sparsekern.ops.indexer_logits_paged import OP as indexer_logits_paged
from sparsekern.ops.indexer_topk import OP as indexer_topk
from sparsekern.ops.indexer_topk_paged import OP as indexer_topk_paged
from sparsekern.ops.kv_copy_pages import OP as kv_copy_pages
from sparsekern.ops.kv_gather import OP as kv_gather
from sparsekern.ops.kv_read import OP as kv_read
from sparsekern.ops.kv_write import OP as kv_write
from sparsekern.ops.layer_norm import OP as layer_norm
from sparsekern.ops.merge_attn_states import OP as merge_attn_states
from sparsekern.ops.mhc_head import OP as mhc_head
from sparsekern.ops.mhc_post import OP as mhc_post
from sparsekern.ops.mhc_post_pre import OP as mhc_post_pre
from sparsekern.ops.mhc_pre import OP as mhc_pre
from sparsekern.ops.mla_decode import OP as mla_decode
from sparsekern.ops.moe_combine import OP as moe_combine
from sparsekern.ops.moe_gather import OP as moe_gather
from sparsekern.ops.moe_permutation import OP as moe_permutation
from sparsekern.ops.norm_rope_kv_write import OP as norm_rope_kv_write
from sparsekern.ops.pack_weights import OP as pack_weights
from sparsekern.ops.quantize_fp4 import OP as quantize_fp4
from sparsekern.ops.quantize_fp8 import OP as quantize_fp8
from sparsekern.ops.quantize_fp8_blocks import OP as quantize_fp8_blocks
from sparsekern.ops.rms_norm import OP as rms_norm
from sparsekern.ops.rope import OP as rope
from sparsekern.ops.route_hash import OP as route_hash
from sparsekern.ops.route_topk import OP as route_topk
from sparsekern.ops.router_gather import OP as router_gather
from sparsekern.ops.sinkhorn import OP as sinkhorn
from sparsekern.ops.sparse_attention import OP as sparse_attention
from sparsekern.ops.sparse_mla_decode import OP as sparse_mla_decode
from sparsekern.ops.sparse_mla_prefill import OP as sparse_mla_prefill
from sparsekern.ops.sparsify_2to4 import OP as sparsify_2to4
from sparsekern.ops.swiglu import OP as swiglu
from sparsekern.ops.swiglu_quantize_fp8 import OP as swiglu_quantize_fp8
from sparsekern.ops.topk_per_row import OP as topk_per_row
from sparsekern.ops.unpack_weights import OP as unpack_weights
from sparsekern.schema import Op

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        quantize_fp8,
        quantize_fp8_blocks,
        quantize_fp4,
        dequantize,
        sparsify_2to4,
        swiglu,
        swiglu_quantize_fp8,
        hadamard,
        rms_norm,
        layer_norm,
        route_topk,
        route_hash,
        moe_permutation,
        moe_gather,
        moe_combine,
        router_gather,
        pack_weights,
        unpack_weights,
        gemm,
        grouped_gemm,
        grouped_gemm_masked,
        fused_moe,
        sparse_mla_prefill,
        sparse_mla_decode,
        mla_decode,
        sparse_attention,
        indexer_logits,
        indexer_logits_paged,
        topk_per_row,
        indexer_topk,
        indexer_topk_paged,
        merge_attn_states,
        rope,
        compress_kv,
        kv_write,
        norm_rope_kv_write,
        kv_read,
        kv_gather,
        kv_copy_pages,
        sinkhorn,
        mhc_pre,
        mhc_post,
        mhc_post_pre,
        mhc_head,
        engram_hash,
        engram_lookup,
        engram_gate,
    )
}

for _op in OPS.values():
    backend.define(_op)
    torch_ops.register(_op)
    docs.document(_op)
