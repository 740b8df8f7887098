"""How much memory a call takes beside its arguments and its result."""

import os
import subprocess
import sys

MOE = """
import torch, sparsekern
from pathlib import Path
from sparsekern import PackedWeights

def peak():  # not ru_maxrss, which begins with that of the parent
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) << 10

def codes(n, k):  # made in place: nothing else is ever held
    return PackedWeights(torch.full((n * k,), 0x18, dtype=torch.uint8), None, (1, n, k), "e4m3", (1, 1))

torch.set_num_threads(2)
tokens, hidden, inter, top_k = 512, 7168, 2048, 8
x = torch.full((tokens, hidden), 0.5, dtype=torch.bfloat16)
w13, w2 = codes(2 * inter, hidden), codes(hidden, inter)
weights, ids = torch.full((tokens, top_k), 0.125), torch.zeros(tokens, top_k, dtype=torch.int32)
out = torch.zeros_like(x)
sparsekern.fused_moe(x[:1], w13, w2, weights[:1], ids[:1], out=out[:1])
before = peak()
sparsekern.fused_moe(x, w13, w2, weights, ids, out=out)
print(peak() - before)
"""


def test_scratch_of_fused_moe_is_bounded() -> None:
    """512 tokens, hidden 7168, inter 2048, top-8: 4096 routed rows, whose float32 forms would take 150 MB."""
    done = subprocess.run(
        [sys.executable, "-c", MOE],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    extra = int(done.stdout)
    assert 4 << 20 < extra <= 64 << 20, f"{extra / 1e6:.0f} MB"
