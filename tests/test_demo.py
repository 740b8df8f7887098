"""The demo, end to end, on a model of a few million parameters."""

import argparse
import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from sparsekern.cli import demo


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(words)


def test_json_has_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run(arguments("--size", "tiny", "--tokens", "40", "--decode", "3", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    for side in ("transformers", "sparsekern"):
        assert result[side]["prefill_tokens_per_s"] > 0
        assert result[side]["decode_tokens_per_s"] > 0
        assert result[side]["peak_rss_bytes"] > result[side]["weight_bytes"] > 0
        assert len(result[side]["expert_load"]) == 5
        assert all(1 <= load <= 64 for load in result[side]["expert_load"])
    assert result["speedup"].keys() == {"prefill", "decode"}
    assert result["sparsekern"]["weight_bytes"] < 0.7 * result["transformers"]["weight_bytes"]
    assert result["tokens_routed_otherwise"] == 0
    assert result["max_abs_dlogit"]["sparsekern_fp32_vs_naive_fp32"] <= 2e-5
    assert "prefill, tokens/s" in demo.table(result)


def test_the_default_text_is_text() -> None:
    assert b"Python" in demo.default_text().read_bytes()


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for words, message in [
        (["--text", str(tmp_path / "none")], "cannot read --text"),
        (["--text", str(empty)], "is empty"),
        (["--tokens", "0"], "--tokens must be at least 1"),
    ]:
        assert demo.run(arguments(*words)) == 2
        assert message in capsys.readouterr().err
