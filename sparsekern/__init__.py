"""Kernels for sparse language models: the same ops, bit-reproducible, on any CPU.

Ops are functions of this package, and `sparsekern.ops()` names them. `sparsekern.reference` holds the same
functions in plain PyTorch, `torch.ops.sparsekern` the same ops for tracers and compilers.
"""

from __future__ import annotations

import torch as _torch  # noqa: F401  # first: its OpenMP runtime becomes ours too

from sparsekern import reference as reference
from sparsekern.backend import trace as trace
from sparsekern.config import config as config
from sparsekern.engram import EngramIndex as EngramIndex
from sparsekern.engram import EngramTable as EngramTable
from sparsekern.kv import PagedKVCache as PagedKVCache
from sparsekern.kv import TieredKVCache as TieredKVCache
from sparsekern.ops._kv import KvFormat as KvFormat
from sparsekern.ops._kv import kv_page_bytes as kv_page_bytes
from sparsekern.ops.compress_kv import CompressedKv as CompressedKv
from sparsekern.ops.compress_kv import compress_kv as compress_kv
from sparsekern.ops.dequantize import dequantize as dequantize
from sparsekern.ops.engram_gate import engram_gate as engram_gate
from sparsekern.ops.engram_hash import engram_hash as engram_hash
from sparsekern.ops.engram_lookup import engram_lookup as engram_lookup
from sparsekern.ops.fused_moe import fused_moe as fused_moe
from sparsekern.ops.gemm import gemm as gemm
from sparsekern.ops.grouped_gemm import grouped_gemm as grouped_gemm
from sparsekern.ops.grouped_gemm_masked import grouped_gemm_masked as grouped_gemm_masked
from sparsekern.ops.hadamard import hadamard as hadamard
from sparsekern.ops.indexer_logits import indexer_logits as indexer_logits
from sparsekern.ops.indexer_logits_paged import indexer_logits_paged as indexer_logits_paged
from sparsekern.ops.indexer_topk import indexer_topk as indexer_topk
from sparsekern.ops.indexer_topk_paged import indexer_topk_paged as indexer_topk_paged
from sparsekern.ops.kv_copy_pages import kv_copy_pages as kv_copy_pages
from sparsekern.ops.kv_gather import kv_gather as kv_gather
from sparsekern.ops.kv_read import kv_read as kv_read
from sparsekern.ops.kv_write import kv_write as kv_write
from sparsekern.ops.layer_norm import layer_norm as layer_norm
from sparsekern.ops.merge_attn_states import AttentionState as AttentionState
from sparsekern.ops.merge_attn_states import merge_attn_states as merge_attn_states
from sparsekern.ops.mhc_head import mhc_head as mhc_head
from sparsekern.ops.mhc_post import mhc_post as mhc_post
from sparsekern.ops.mhc_post_pre import MhcPostPre as MhcPostPre
from sparsekern.ops.mhc_post_pre import mhc_post_pre as mhc_post_pre
from sparsekern.ops.mhc_pre import MhcPre as MhcPre
from sparsekern.ops.mhc_pre import mhc_pre as mhc_pre
from sparsekern.ops.mla_decode import DecodedAttention as DecodedAttention
from sparsekern.ops.mla_decode import mla_decode as mla_decode
from sparsekern.ops.moe_combine import moe_combine as moe_combine
from sparsekern.ops.moe_gather import moe_gather as moe_gather
from sparsekern.ops.moe_permutation import Permutation as Permutation
from sparsekern.ops.moe_permutation import moe_permutation as moe_permutation
from sparsekern.ops.norm_rope_kv_write import norm_rope_kv_write as norm_rope_kv_write
from sparsekern.ops.pack_weights import pack_weights as pack_weights
from sparsekern.ops.quantize_fp4 import quantize_fp4 as quantize_fp4
from sparsekern.ops.quantize_fp8 import quantize_fp8 as quantize_fp8
from sparsekern.ops.quantize_fp8_blocks import quantize_fp8_blocks as quantize_fp8_blocks
from sparsekern.ops.rms_norm import rms_norm as rms_norm
from sparsekern.ops.rope import rope as rope
from sparsekern.ops.route_hash import route_hash as route_hash
from sparsekern.ops.route_topk import Routing as Routing
from sparsekern.ops.route_topk import route_topk as route_topk
from sparsekern.ops.router_gather import RoutedTokens as RoutedTokens
from sparsekern.ops.router_gather import router_gather as router_gather
from sparsekern.ops.sinkhorn import sinkhorn as sinkhorn
from sparsekern.ops.sparse_attention import Attention as Attention
from sparsekern.ops.sparse_attention import sparse_attention as sparse_attention
from sparsekern.ops.sparse_mla_decode import sparse_mla_decode as sparse_mla_decode
from sparsekern.ops.sparse_mla_prefill import sparse_mla_prefill as sparse_mla_prefill
from sparsekern.ops.sparsify_2to4 import sparsify_2to4 as sparsify_2to4
from sparsekern.ops.swiglu import swiglu as swiglu
from sparsekern.ops.swiglu_quantize_fp8 import swiglu_quantize_fp8 as swiglu_quantize_fp8
from sparsekern.ops.topk_per_row import topk_per_row as topk_per_row
from sparsekern.plan import Support as Support
from sparsekern.plan import ops as ops
from sparsekern.plan import support as support
from sparsekern.weights import PackedWeights as PackedWeights
from sparsekern.weights import Sparse2to4 as Sparse2to4

__version__ = "0.1.0"
