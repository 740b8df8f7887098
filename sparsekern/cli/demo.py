"""`sparsekern demo`: a DeepSeek-V4 model reads a text with transformers as it is, then on sparsekern."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

FORMATS = ("fp8", "fp4", "bf16", "none")  # none: as they are
DENSE_CONTEXT = 4096  # the longest that transformers is asked to read
SIZES = {"small": 1024, "tiny": 128}  # width of the hidden states


Row = tuple[str, str, str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the demo."""
    add = parser.add_argument
    add("--text", type=Path, metavar="FILE", help="what to read (a text of the Python installation)")
    add("--tokens", type=int, default=512, metavar="N", help="bytes of it to prefill (512)")
    add("--decode", type=int, default=32, metavar="N", help="bytes to decode after them (32)")
    add("--context", type=int, default=0, metavar="N", help="read N bytes more, once, as one long context")
    add("--weights", choices=FORMATS, default="fp8", help="how to hold the routed experts (fp8)")
    add("--size", choices=list(SIZES), default="small", help="524 million parameters, or 9 (small)")
    add("--json", action="store_true", help="print one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    """Run both sides and the check, each in a process of its own, and print what they found."""
    if importlib.util.find_spec("transformers") is None:
        print("sparsekern demo needs transformers: pip install 'sparsekern[transformers]'", file=sys.stderr)
        return 2
    if args.tokens < 1 or args.decode < 0 or args.context < 0:
        print(
            "sparsekern demo: --tokens must be at least 1, --decode and --context at least 0", file=sys.stderr
        )
        return 2
    path = args.text or default_text()
    try:
        text = path.read_bytes()
    except OSError as error:
        print(f"sparsekern demo: cannot read --text: {error}", file=sys.stderr)
        return 2
    if not text:
        print(f"sparsekern demo: {path} is empty", file=sys.stderr)
        return 2
    result = measure(args, path, text)
    print(json.dumps(result) if args.json else table(result))
    return 0


def default_text() -> Path:
    """Return a text that comes with Python."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    return next(path for path in (stdlib / "LICENSE.txt", stdlib / "argparse.py") if path.exists())


def measure(args: argparse.Namespace, path: Path, text: bytes) -> dict[str, Any]:
    """Return everything the table says, as plain numbers."""
    start = time.perf_counter()
    length = args.tokens + args.decode
    job = {
        "hidden": SIZES[args.size],
        "weights": None if args.weights == "none" else args.weights,
        "ids": list((text * (length // len(text) + 1))[:length]),
        "prefill": args.tokens,
    }
    sides: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for role in ("transformers", "sparsekern", "check"):
            # transformers' attention is quadratic in time and memory.
            most = {"transformers": DENSE_CONTEXT, "check": 0}.get(role, args.context)
            context = list((text * (args.context // len(text) + 1))[: min(args.context, most)])
            sides[role] = _child(
                {**job, "role": role, "context": context, "logits": str(Path(folder) / role)}
            )
        differences = _differences(Path(folder))
    theirs, ours = sides["transformers"], sides["sparsekern"]
    return {
        "text": str(path),
        "prefill_tokens": args.tokens,
        "decode_tokens": args.decode,
        "weights": args.weights,
        "transformers": theirs,
        "sparsekern": ours,
        "speedup": {
            phase: ours[f"{phase}_tokens_per_s"] / theirs[f"{phase}_tokens_per_s"]
            for phase in ("prefill", "decode")
            if theirs[f"{phase}_tokens_per_s"]
        },
        "max_abs_dlogit": differences,
        **sides["check"],
        "seconds": time.perf_counter() - start,
    }


def _child(job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "sparsekern.cli._demo_model", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"sparsekern demo: the {job['role']} process failed ({done.returncode}); see above")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _differences(folder: Path) -> dict[str, float]:
    import torch  # late, so that --help costs nothing

    theirs, ours, fp32 = (torch.load(folder / role) for role in ("transformers", "sparsekern", "check"))
    plain, naive = fp32["unquantised"], fp32["naive"]

    def largest(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).abs().max())

    return {
        "sparsekern_fp32_vs_naive_fp32": largest(fp32["optimised"], naive),
        "sparsekern_bf16_vs_naive_fp32": largest(ours, naive),
        "transformers_bf16_vs_naive_fp32": largest(theirs, plain),
        "sparsekern_bf16_vs_unquantised_fp32": largest(ours, plain),
        "logit_std": float(plain.std()),
    }


def table(result: dict[str, Any]) -> str:
    """Return the figures for people."""
    theirs, ours, off = result["transformers"], result["sparsekern"], result["max_abs_dlogit"]
    rows = [("", "transformers", f"sparsekern {result['weights']}", "")]
    for phase in result["speedup"]:
        a, b = (side[f"{phase}_tokens_per_s"] for side in (theirs, ours))
        rows.append((f"{phase}, tokens/s", f"{a:.1f}", f"{b:.1f}", f"{b / a:.2f} x"))
    for name, key in (("weights", "weight_bytes"), ("peak memory of the process", "peak_rss_bytes")):
        a, b = (side[key] for side in (theirs, ours))
        rows.append((f"{name}, MB", f"{a / 1e6:.0f}", f"{b / 1e6:.0f}", f"{b / a:.2f} x"))
    bf16 = f"{off['transformers_bf16_vs_naive_fp32']:.2f}"
    rows += [
        ("max |dlogit| to the same weights run naively in fp32", "", "", ""),
        ("  computing in fp32", "", f"{off['sparsekern_fp32_vs_naive_fp32']:.1e}", ""),
        ("  computing in bf16, as timed", bf16, f"{off['sparsekern_bf16_vs_naive_fp32']:.2f}", ""),
        ("information: max |dlogit| to the unquantised weights in fp32", "", "", ""),
        ("  computing in bf16, as timed", bf16, f"{off['sparsekern_bf16_vs_unquantised_fp32']:.2f}", ""),
        ("expert load, busiest / mean", _load(theirs["expert_load"]), _load(ours["expert_load"]), ""),
        *_context_rows(theirs["context"], ours["context"]),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{name:<{widths[0]}}  " + "  ".join(f"{x:>{w}}" for x, w in zip(cells, widths[1:], strict=True))
        for name, *cells in rows
    ]
    tokens = result["prefill_tokens"] + result["decode_tokens"]
    return "\n".join(
        [
            f"A DeepSeek-V4 model of {theirs['layer_parameters'] / 1e6:.0f} M seeded parameters reads "
            f"{result['prefill_tokens']} bytes of {Path(result['text']).name}",
            f"and decodes {result['decode_tokens']} more.\n",
            *lines,
            f"\nLogits have a standard deviation of {off['logit_std']:.2f}. Rounding to bf16 decides",
            "near ties between experts, on either side; in fp32, "
            f"{result['tokens_routed_otherwise']} of {tokens} tokens were routed otherwise than naively.",
            f"{result['seconds']:.0f} s in all.",
        ]
    )


def _context_rows(theirs: dict[str, Any] | None, ours: dict[str, Any] | None) -> list[Row]:
    if theirs is None or ours is None:
        return []
    rows: list[Row] = [("one long context, tokens", f"{theirs['tokens']}", f"{ours['tokens']}", "")]
    for phase in ("prefill", "decode"):
        a, b = (side[f"{phase}_tokens_per_s"] for side in (theirs, ours))
        rows.append((f"  {phase}, tokens/s", f"{a:.1f}", f"{b:.1f}", f"{b / a:.2f} x"))
    for name, key in (("cache", "cache_bytes"), ("peak memory of the process", "peak_rss_bytes")):
        rows.append((f"  {name}, MB", f"{theirs[key] / 1e6:.1f}", f"{ours[key] / 1e6:.1f}", ""))
    return rows + [(f"  prefill: {stage}, s", "", f"{s:.2f}", "") for stage, s in ours["seconds"].items()]


def _load(layers: list[float]) -> str:
    return f"{sum(layers) / len(layers):.1f}, worst layer {max(layers):.1f}"
