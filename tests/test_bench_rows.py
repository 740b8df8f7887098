"""What benchmarks make of recorded rows: the README's table, pages, pictures, regressions."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sparsekern.catalogue import OPS
from sparsekern.cli import load, main

compare, figures, page, report, svg, text = (
    load(f"sparsekern._bench.{part}") for part in ("compare", "figures", "page", "report", "svg", "text")
)
BEGIN, END = report.BEGIN, report.END


def row(contender: str, us: float, ratio: float = 1.0, **more: object) -> dict[str, object]:
    spread = {"median": ratio, "p10": 0.97 * ratio, "p90": 1.03 * ratio}
    about = {"device": "a machine", "threads": 2, "isa": "avx2", "versions": {"torch": "2"}, "commit": "abc"}
    limits = {"read_gb_per_s": 20.0, "products_gflop_per_s": 100.0, "f32_products_gflop_per_s": 90.0}
    return {
        "suite": "ops", "case": "gemm M=1", "op": "gemm", "contender": contender, "remark": "",
        "verdict": "right",
        "median_us": us, "p10_us": 0.98 * us, "p90_us": 1.02 * us, "ratio": spread, "error": 0.0,
        "of_read": 0.5, "of_products": 0.1, "flops": 1e9, "bytes": 1e8, "date": "2026-01-01",
        "command": "bench", "busy": 0.0, **about, **limits, **more,
    }  # fmt: skip


def run_of(ours: float, theirs: float, **more: object) -> list[dict[str, object]]:
    return [row("sparsekern", ours, **more), row("torch", theirs, theirs / ours)]


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (run_of(100, 200), ""),
        (run_of(102, 200, of_read=0.49), ""),
        (run_of(150, 200, of_read=0.33), "slower"),
        (run_of(130, 200, of_read=0.385), "slower"),
        (run_of(104, 200, of_read=0.48), ""),
        (run_of(60, 200, of_read=0.83), "faster"),
        (run_of(150, 300), ""),  # the whole machine is slower
        (run_of(150, 200), ""),  # so is its memory: as near to the probes as before
        (run_of(150, 200, of_read=0.33, p90_us=300.0), ""),  # within its own noise
    ],
)
def test_regressions_are_told_from_weather(after: list[dict[str, object]], verdict: str) -> None:
    (change,) = compare.changes(run_of(100, 200), after)
    assert change.verdict == verdict


def test_regressions_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in ("before", "slower", "wrong", "other")]
    runs = [
        run_of(100, 200), run_of(150, 200, of_read=0.33), run_of(100, 200, verdict="wrong", remark="nan"),
        [row("sparsekern", 1.0, case="another")],
    ]  # fmt: skip
    for file, rows in zip(files, runs, strict=True):
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    before = str(files[0])
    assert main(["bench", "--compare", before, before]) == 0
    assert capsys.readouterr().out.endswith("0 slower, 0 faster, 1 within the noise\n")
    assert compare.main([before, str(files[1])]) == 1
    assert capsys.readouterr().out.startswith("!  1.50 x")
    assert compare.main([before, str(files[2])]) == 1
    assert compare.main([before, str(files[3])]) == 2


class Tags(HTMLParser):
    """Counts tags, and sees that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone() -> None:
    runs = [
        run_of(120, 200, date="2025-12-01", commit="old"),
        [*run_of(100, 200), row("numpy <b>", 50, 0.5, verdict="wrong", remark="off & <out>")],
    ]
    text = page.page(runs[-1], runs)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.seen.count("svg") == 3  # roofline, ratios, history
    assert tags.seen.count("circle") == 3 + 2
    assert "script" not in tags.seen
    assert not re.search(r"(src|href)=|https?://|url\(", text)
    assert "<b>wrong" not in text.replace('<b class="bad">wrong', "")
    assert "off &amp; &lt;out&gt;" in text


def test_the_page_of_recorded_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in run_of(100, 200)))
    target = tmp_path / "pages" / "it.html"
    assert main(["bench", "--from", str(file), "--html", str(target), "--history", str(tmp_path)]) == 0
    assert "2.00 x" in target.read_text()


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    png = load("sparsekern._bench.png")
    rows = run_of(100, 200)
    written = list(png.write(rows, [run_of(120, 200, date="2025-12-01"), rows], tmp_path))
    assert [p.name for p in written] == ["roofline.png", "ratios-gemm.png", "history-gemm.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in written)


def test_axes() -> None:
    assert svg.ticks(0.5, 4.1) == [0.5, 1, 2, 4]
    assert svg.ticks(1e-3, 1e9) == [1e-3, 1e-1, 1e1, 1e3, 1e5, 1e7, 1e9] or len(svg.ticks(1e-3, 1e9)) <= 9
    x = svg.log_scale(0.5, 8, 100, 500)
    assert [x(0.5), x(8), x(100)] == pytest.approx([100, 500, 500])
    assert x(2) == pytest.approx(300)


def test_the_table_of_the_readme(tmp_path: Path) -> None:
    """Of the latest suite of record: an op's first and last case, and peers that are right."""
    text = f"a\n{BEGIN}old\n{END}b\n"
    assert report.fill(text, tmp_path) == f"a\n{BEGIN}{report.NOTHING}{END}b\n"
    about = {"suite": "record", "op": "fused_moe", "time": "2026-02-01"}
    peers = [
        row("torch", 900, 3.0, **about), row("torch loop", 400, 1.3333, **about),
        row("fast", 50, 0.5, verdict="wrong", **about), row("half", 50, 0.5, verdict="unlike", **about),
    ]  # fmt: skip
    first = [row("sparsekern", 300, **about), *peers]
    last = [{**r, "case": "gemm M=16"} for r in first[:2]]
    like = dict(about, op="topk_per_row", case="topk")
    selection = [row("sparsekern", 300, **like), row("torch f32", 600, 2.0, verdict="unlike", **like)]
    older = [row("sparsekern", 1, **{**about, "time": "2026-01-01"})]
    for name, rows in (
        ("a", [*first, *last, *selection]),
        ("b", older),
        ("c", run_of(1, 2, time="2027-01-01")),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    demo = {"speedup": {"decode": 1.5}, "sparsekern": {"decode_tokens_per_s": 41.2}}
    (tmp_path / "a.demo.json").write_text(json.dumps(demo))
    filled = report.fill(text, tmp_path)
    ours, torch = "300 [294 .. 306] us, 50 % of a read", "torch 3.00 [2.91 .. 3.09] x"
    assert filled.startswith(f"a\n{BEGIN}a machine, 2 threads, avx2; torch 2; commit abc")
    assert [line for line in filled.splitlines() if line.startswith("| ")][1:] == [
        f"| an expert layer: `gemm M=1` | {ours} | {torch}; torch loop 1.33 [1.29 .. 1.37] x |",
        f"| the same, more tokens: `gemm M=16` | {ours} | {torch} |",
        f"| top-k of long rows: `topk` | {ours} | torch f32 2.00 [1.94 .. 2.06] x * |",
        "| a small DeepSeek-V4: `sparsekern demo` | 41 tokens/s | transformers: decode 1.50 x |",
    ]
    assert report.fill(filled, tmp_path) == filled


def test_the_readme_has_what_was_measured() -> None:
    root = Path(__file__).parents[1]
    text = (root / "README.md").read_text()
    assert report.fill(text, root / "bench" / "results") == text
    assert {op for _, op, _ in report.HEADLINES} <= set(OPS)
    assert len(report.HEADLINES) + 1 <= 12


def test_the_last_words_are_the_answer() -> None:
    lot = [
        *run_of(100, 200),
        *(dict(r, case="b") for r in run_of(100, 50)),
        row("bad", 1, 0.01, verdict="wrong"),
    ]
    assert text.summary(figures.summary(lot)).splitlines()[1:] == [
        "  torch  takes 1.00 x as long (geometric mean); sparsekern is faster in 1 of 2 cases"
    ]
    assert text.summary([]) == ""
