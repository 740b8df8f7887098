"""The style sheet of the page, light and dark."""

from __future__ import annotations

SERIES = ("#0b6bcb", "#d1495b", "#2a9d6f", "#b07aa1", "#e08e2b", "#4aa3a2", "#8a6d3b", "#7b8494")

STYLE = """\
:root { --ink: #1c2230; --soft: #667085; --line: #e3e6ec; --back: #fff; --card: #f7f8fa; --ours: #0b6bcb;
  --good: #2a9d6f; --bad: #d1495b; --odd: #b9a44c; --peer: #9aa3b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #313846; --back:
  #14181f; --card: #1c222c; --ours: #5aa9ff; --good: #4cc38a; --bad: #ff7a85; --odd: #d9c667; --peer:
  #7b8494; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem
  auto; max-width: 960px; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; }
h2 { margin: 2.4rem 0 .4rem; font-size: 1.2rem; }
h3 { margin: 1.6rem 0 .2rem; font-size: 1rem; }
p { margin: .4rem 0; }
.soft { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align:
  top; }
th { color: var(--soft); font-weight: 500; }
td:first-child, th:first-child, td.text, th.text { text-align: left; }
tr.case td { border-bottom: 0; padding-top: .9rem; font-weight: 600; }
tr.ours td:first-child { color: var(--ours); }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.card { background: var(--card); border-radius: 8px; padding: .7rem 1rem; min-width: 150px; }
.card b { display: block; font-size: 1.35rem; }
.card span { color: var(--soft); font-size: 13px; }
.bad { color: var(--bad); }
code { background: var(--card); padding: .1rem .3rem; border-radius: 4px; }
svg { max-width: 100%; height: auto; display: block; margin: .6rem 0; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .tick, svg .value { fill: var(--soft); font-size: 11px; }
svg .axis { fill: var(--soft); }
svg .case { font-weight: 600; }
svg .label { fill: var(--soft); }
svg .grid { stroke: var(--line); }
svg .one { stroke: var(--soft); }
svg .roof { stroke: var(--soft); stroke-width: 1.5; }
svg .faster { fill: var(--good); }
svg .slower { fill: var(--bad); }
svg .unlike { fill: var(--odd); }
svg rect.wrong { fill: none; stroke: var(--bad); stroke-dasharray: 3 2; }
svg .whisker { stroke: var(--ink); opacity: .55; }
svg .ours { fill: var(--ours); }
svg .peer { fill: var(--peer); }
svg circle.wrong { fill: none; stroke: var(--bad); }
svg polyline { fill: none; stroke-width: 1.8; }
""" + "\n".join(f"svg .s{i} {{ stroke: {c}; fill: {c}; }}" for i, c in enumerate(SERIES))
