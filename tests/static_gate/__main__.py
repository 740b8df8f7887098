"""`python -m tests.static_gate`: compare what ptxas makes of the kernels with what is checked in."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from . import gate


def main() -> int:
    """0: nothing is different; 1: something is, or breaks a rule."""
    parser = argparse.ArgumentParser(prog="python -m tests.static_gate", description=__doc__)
    parser.add_argument("--arch", action="append", help="sm_80, sm_90, ... (default: those checked in)")
    parser.add_argument("--only", default="", help="sources whose path has this in it")
    parser.add_argument("--update", action="store_true", help="check in what there is now")
    options = parser.parse_args()
    arches = options.arch or sorted(p.stem for p in gate.BASELINES.glob("*.json")) or ["sm_80"]
    bad = False
    for arch in arches:
        known, now = gate.baseline(arch), {}
        for source in gate.sources():
            if options.only in str(source):
                now |= gate.measure(source, arch)
        rows = [r for name, facts in now.items() for r in gate.differences(name, known.get(name, {}), facts)]
        if not options.only:
            rows += [(name, "", "there", "gone") for name in known if name not in now]
        broken = [line for name, facts in now.items() for line in gate.broken_rules(name, facts)]
        print(f"{arch}: {len(now)} kernels, {len(rows)} differences, {len(broken)} broken rules")
        print("\n".join(broken))
        if rows and not options.update:
            print(gate.table(rows))
        bad = bad or bool(broken) or (bool(rows) and not options.update)
        if options.update:
            gate.BASELINES.mkdir(exist_ok=True)
            merged = {**known, **now} if options.only else now
            (gate.BASELINES / f"{arch}.json").write_text(
                json.dumps(dict(sorted(merged.items())), indent=1) + "\n"
            )
    return int(bad)


if __name__ == "__main__":
    raise SystemExit(main())
