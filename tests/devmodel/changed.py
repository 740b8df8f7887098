"""`python -m tests.devmodel.changed [COMMIT]`: what `-k` selects for the kernels that differ from a commit.

One op of each family is always among them; they stand for the others where many have changed. The commit is
the one before this by default.
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from devmodel.build import ROOT
from devmodel.extension import device_sources, included, ops_on_cuda

# The cheapest of each family.
ALWAYS = {
    "dequantize",
    "engram_hash",
    "kv_read",
    "layer_norm",
    "merge_attn_states",
    "mhc_head",
    "moe_permutation",
    "rope",
    "topk_per_row",
}


# Where more have changed, what they share has: the cheap ones above stand for them. `make devmodel` runs all.
MOST = 6


def changed_ops(commit: str) -> set[str]:
    """The ops with a CUDA source, or something that it includes, that is not as it was."""
    git = ["git", "-C", str(ROOT), "diff", "--name-only", commit, "--", "csrc"]
    told = subprocess.run(git, capture_output=True, text=True)
    files = {ROOT / name for name in told.stdout.splitlines()}  # none where there is no such commit
    return {op for op in ops_on_cuda() if any(files & set(included(p)) for p in device_sources([op]))}


if __name__ == "__main__":
    changed = changed_ops(sys.argv[1] if len(sys.argv) > 1 else "HEAD~1")
    wanted = (ALWAYS & set(ops_on_cuda())) | (changed if len(changed) <= MOST else set())
    print(" or ".join(f"[{op}-" for op in sorted(wanted)))
