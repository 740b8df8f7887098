"""Writes docs/ops.md from the catalogue. Run it after a change of an op's record."""

from pathlib import Path

from sparsekern.catalogue import OPS
from sparsekern.docs import page

Path(__file__).with_name("ops.md").write_text(page(OPS.values()))
