"""What is generated is fresh, and what is printed runs."""

import inspect
import re
from pathlib import Path

import pytest
import torch

import sparsekern
from sparsekern.catalogue import OPS
from sparsekern.docs import page
from sparsekern.schema import Op

ROOT = Path(__file__).parents[1]
EACH_OP = [pytest.param(op, id=op.name) for op in OPS.values()]


def test_ops_md_is_fresh() -> None:
    assert (ROOT / "docs/ops.md").read_text() == page(OPS.values()), "run: python docs/generate.py"


@pytest.mark.parametrize("op", EACH_OP)
def test_help_shows_shapes_and_dtypes(op: Op) -> None:
    text = inspect.getdoc(op.fn)
    assert text is not None
    for section in ("Args", "Returns", "Raises", "Source"):
        assert text.count(f"\n{section}:\n") == 1
    for name in inspect.signature(op.fn).parameters:
        assert f"\n    {name}: " in text


@pytest.mark.parametrize("op", EACH_OP)
def test_references_take_what_the_op_takes(op: Op) -> None:
    reference = getattr(sparsekern.reference, op.name)
    ours, theirs = (
        [
            (p.name, p.kind, p.default)
            for p in inspect.signature(f).parameters.values()
            if p.name not in ("out", "workspace")
        ]
        for f in (op.fn, reference)
    )
    assert theirs == ours


def test_references_of_unknown_ops() -> None:
    assert dir(sparsekern.reference) == sorted(sparsekern.ops())
    with pytest.raises(AttributeError, match="no op is called 'nothing'"):
        _ = sparsekern.reference.nothing


def test_quick_start_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "path", [p for p in ROOT.glob("**/*.md") if ".venv" not in p.parts], ids=lambda p: p.name
)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target
