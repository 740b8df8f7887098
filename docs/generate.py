"""Writes what is generated: docs/ops.md from the catalogue, the README's table from bench/results.

Run it from anywhere, after a change of an op's record or a recorded run: `python docs/generate.py`.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from bench.report import fill  # noqa: E402
from sparsekern.catalogue import OPS  # noqa: E402
from sparsekern.docs import page  # noqa: E402

(ROOT / "docs/ops.md").write_text(page(OPS.values()))
readme = ROOT / "README.md"
readme.write_text(fill(readme.read_text(), ROOT / "bench/results"))
