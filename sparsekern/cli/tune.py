"""`sparsekern tune`: find out what is fastest here, and look after the records of it."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from sparsekern import model, plan, records
from sparsekern.cli import load
from sparsekern.config import ISAS
from sparsekern.cuda_model import GPUS
from sparsekern.device import cpu
from sparsekern.records import Record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")

    _add_run(action("run", "measure, and record what beats the default beyond the noise"))
    for name, summary in (
        ("list", "a line for every record"),
        ("show", "everything about the records of an op"),
    ):
        p = action(name, summary)
        p.add_argument(
            "--op", nargs="+", default=[], choices=model.TUNED, metavar="NAME", help="only these ops"
        )
        p.add_argument("--device", help="of this device; all: of every one (this machine)")
        p.add_argument(
            "--from", dest="folder", type=Path, help="a folder or a file (the user's and the shipped ones)"
        )
        p.add_argument("--json", action="store_true", help="print JSON lines")
    p = action("export", "write records to one file, or as vLLM's JSON files")
    p.add_argument("target", type=Path, help="a .jsonl file; with --vllm a folder")
    p.add_argument("--from", dest="folder", type=Path, help="a folder or a file (the user's)")
    p.add_argument("--vllm", action="store_true", help="the records of tiles that vLLM's kernels have")
    p = action("import", "add records from files: .jsonl, or JSON named as vLLM names it")
    p.add_argument("sources", nargs="+", type=Path, metavar="FILE")
    p.add_argument("--out", type=Path, help="a folder to add them to (the user's)")
    p = action(
        "diff", "do two tunes say the same? of one: what was it worth, and how good is the model alone?"
    )
    p.add_argument("a", type=Path, help="a folder or a file")
    p.add_argument("b", type=Path, nargs="?", help="another; without it a is compared with the model")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p = action("verify", "are the records whole, and do this machine's change no bits?")
    p.add_argument(
        "--from", dest="folder", type=Path, help="a folder or a file (the user's and the shipped ones)"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to tune").add_argument
    what(
        "--op",
        nargs="+",
        default=list(model.TUNED),
        choices=model.TUNED,
        metavar="NAME",
        help=", ".join(model.TUNED),
    )
    what(
        "--model",
        nargs="+",
        default=[],
        metavar="NAME",
        help="sizes of these models (sparsekern bench -h lists them)",
    )
    what(
        "--tokens",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="tokens at once, with --model (1 16 512)",
    )
    what("--shape", nargs="+", default=[], metavar="K=V", help="sizes instead of the first recorded ones")
    what("--weights", nargs="+", default=[], metavar="FORMAT", help="formats of the weights (as recorded)")
    what("--threads", type=int, default=0, metavar="N", help="of torch and of sparsekern")
    what("--isa", default="", choices=["", *ISAS], help="the instruction set, if not the best")
    what(
        "--device",
        default="",
        metavar="NAME",
        help=f"another one than this, {', '.join(GPUS)}: records are modelled, not measured",
    )
    what(
        "--list",
        action="store_true",
        help="only say what would be tuned, what would be tried, and why not more",
    )
    how = parser.add_argument_group("how").add_argument
    how("--budget", type=float, metavar="S", help="seconds for everything")
    how("--resume", action="store_true", help="leave out what the folder has records of; no haste")
    how("--candidates", type=int, default=10, metavar="N", help="to measure beside the default, a size (10)")
    how("--rounds", type=int, default=60, metavar="N", help="at most (60)")
    how("--seconds", type=float, default=0.03, metavar="S", help="of a candidate in a round (0.03)")
    how("--patience", type=float, default=20.0, metavar="S", help="to wait for an idle machine, a size (20)")
    how("--force", action="store_true", help="record on a noisy machine too")
    how("--out", type=Path, metavar="DIR", help="a folder for the records (the user's)")


def run(args: argparse.Namespace) -> int:
    """Run one action; its exit code."""
    action = {
        "run": _run, "list": list_records, "show": show_records, "export": export_records,
        "import": import_records, "diff": diff_records, "verify": verify_records,
    }  # fmt: skip
    try:
        return action[args.action](args)
    except (OSError, ValueError) as error:
        print(f"sparsekern tune {args.action}: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    code: int = load("sparsekern._autotune.command").run(args)
    return code


def _found(args: argparse.Namespace) -> list[tuple[str, Record]]:
    """Records with where they are from: those of the user, then shipped ones."""
    device = getattr(args, "device", None) or cpu().name
    wanted = set(getattr(args, "op", ()) or model.TUNED)
    if args.folder is not None:
        if not args.folder.exists():
            raise ValueError(f"{args.folder} does not exist")
        sources, device = {str(args.folder): args.folder}, getattr(args, "device", None) or "all"
    else:
        sources = {"user": records.user_folder(), "shipped": records.SHIPPED}
    return [
        (label, r)
        for label, folder in sources.items()
        for r in records.read_folder(folder)
        if r.op in wanted and device in ("all", r.device)
    ]


def _size(key: Any) -> str:
    names = [n for n in ("groups", "rows", "n", "k", "inter", "tokens") if n in key]
    kinds = [str(key[n]) for n in ("a", "weights", "dtype") if key.get(n)]
    return " ".join([*(f"{n}={key[n]}" for n in names), *kinds])


def list_records(args: argparse.Namespace) -> int:
    """A line each: where from, for what, what, how it is known."""
    found = _found(args)
    if args.json:
        for _, r in found:
            print(r.line(), end="")
        return 0
    rows = [
        (
            where,
            r.device,
            r.op,
            _size(r.key),
            model.describe(r.config) if set(r.config) == set(model.KNOBS) else _tile(r.config),
            r.source + (" (stale)" if r.version != model.VERSION else ""),
            f"{r.gain:.2f} x" if r.source == "measured" else "",
            r.created[:10],
        )
        for where, r in found
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(8)]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    if not rows:
        print(f"no records for {cpu().name}: the model chooses (sparsekern tune run measures)")
    return 0


def _tile(config: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in config.items())


def show_records(args: argparse.Namespace) -> int:
    """All fields, and every candidate that was measured."""
    for where, r in _found(args):
        if args.json:
            print(r.line(), end="")
            continue
        stale = f", stale: made for version {r.version} of the choices" if r.version != model.VERSION else ""
        print(f"{r.op} {_size(r.key)}: {r.source} ({where}, {r.device}, {r.created}{stale})")
        print(f"    {json.dumps(dict(r.key))}")
        gain = f"{r.gain:.3f} x as fast as the default, noise {100 * r.spread:.1f} %"
        print(f"    chosen: {_tile(r.config)}; {gain}")
        for t in r.tried:
            times = f"{t['median']:.3f} [{t['p10']:.3f} .. {t['p90']:.3f}] x" if "median" in t else ""
            what = f"{t.get('status', ''):<8} {_tile(t.get('config', {}))} {t.get('detail', '')}"
            print(f"    {times:<28} {what}".rstrip())
        print(f"    {json.dumps(dict(r.env))}")
    return 0


def export_records(args: argparse.Namespace) -> int:
    """Write one file, or several of vLLM's."""
    found = records.read_folder(args.folder or records.user_folder())
    if not args.vllm:
        args.target.write_text("".join(r.line() for r in found))
        print(f"{len(found)} records in {args.target}")
        return 0
    args.target.mkdir(parents=True, exist_ok=True)
    files = dict(load("sparsekern._autotune.exchange").vllm_files(found))
    for name, content in files.items():
        (args.target / name).write_text(json.dumps(content, indent=4) + "\n")
    print(f"{len(files)} files in {args.target}")
    return 0


def import_records(args: argparse.Namespace) -> int:
    """Add what is in some files; 1 if part of it could not be taken."""
    exchange, folder, odd = load("sparsekern._autotune.exchange"), args.out or records.user_folder(), 0
    for path in args.sources:
        if not path.is_file():
            raise ValueError(f"{path} is no file")
        found, complaints = exchange.read_any(path)
        records.write(folder, found)
        print(f"{len(found)} records from {path}")
        for complaint in complaints:
            print(f"    left out: {complaint}")
        odd += len(complaints) + (not found)
    plan.reload()
    return int(odd > 0)


def diff_records(args: argparse.Namespace) -> int:
    """Say how two tunes are related, 1 if they differ beyond the noise; or what one was worth."""
    diff, worth = (load(f"sparsekern._autotune.{part}") for part in ("diff", "worth"))
    for path in filter(None, (args.a, args.b)):
        if not path.exists():
            raise ValueError(f"{path} does not exist")
    a = records.read_folder(args.a)
    if args.b is None:
        s = worth.summary(a)
        print(json.dumps(s) if args.json else worth.text(s))
        return int(not s["entries"])
    b = records.read_folder(args.b)
    related = diff.compare(a, b)
    counts = diff.counts(related)
    if args.json:
        print(json.dumps(counts))
    else:
        for relation, r in related:
            if relation != diff.AGREE:
                print(f"{relation:<12}  {r.op} {_size(r.key)}")
        print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))
        for name, gains in (("a", worth.crossed(a, b)), ("b", worth.crossed(b, a))):
            if gains:
                text = f"{worth.mean(gains):.3f} x as fast as the default, slowest {min(gains):.3f} x"
                print(f"choices of {name} by the measurements of the other: {text}")
    return int(counts[diff.DIFFER] > 0)


def verify_records(args: argparse.Namespace) -> int:
    """Read everything, run this machine's records; 1 if one changes bits or a line is odd."""
    trial = load("sparsekern._autotune.verify").trial
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        records.forget()
        args.device = "all"
        found = _found(args)
    for warning in said:
        print(warning.message)
    wrong, ran = 0, 0
    for _, r in found:
        complaint = trial(r)
        ran += complaint is not None
        if complaint:
            wrong += 1
            print(f"{r.op} {_size(r.key)}: {complaint}")
    print(
        f"{len(found)} records, {ran} of them run here: {wrong} wrong, {len(said)} files with lines left out"
    )
    return int(wrong > 0 or bool(said))
