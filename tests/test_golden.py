"""Cases made by the official references, where a folder of them is at hand.

The folder is `$SPARSEKERN_GOLDEN`, or `shared/golden` beside the checkout. It brings its own `check.py`, whose
`run` says what is wrong with a case.
"""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

import sparsekern
from sparsekern.testing import cpu_isas

FOLDER = Path(os.environ.get("SPARSEKERN_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))


def cases() -> list[Any]:
    if not (FOLDER / "manifest.json").is_file():
        reason = f"no golden cases in {FOLDER}; name a folder in SPARSEKERN_GOLDEN"
        return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]
    every = json.loads((FOLDER / "manifest.json").read_text())
    return [pytest.param(c, id=f"{c['op']}-{c['case']}") for c in every if hasattr(sparsekern, c["op"])]


def checker() -> Any:
    spec = importlib.util.spec_from_file_location("golden_check", FOLDER / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("isa", [cpu_isas()[0], cpu_isas()[-1]])
@pytest.mark.parametrize("case", cases())
def test_golden(case: dict[str, Any], isa: str) -> None:
    with sparsekern.config.using(isa=isa):
        assert checker().run(getattr(sparsekern, case["op"]), case, str(FOLDER), "cpu") == []
