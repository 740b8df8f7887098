"""What a choice would cost: an analytic model of the GEMM core in bytes, operations, caches and waves.

It chooses where there is no record, it tells the tuner what is worth trying, and it is checked against what
the tuner measures. Times are those of an idle machine with weights in memory; only their order matters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sparsekern.device import cpu

# --- what can be chosen -------------------------------------------------------------------------------------

# Of the blocking (csrc/gemm/blocking.h), in its order; the first value of each is what the kernels do
# unasked.
KNOBS: dict[str, tuple[int, ...]] = {
    "item_rows": (256, 32, 64, 128, 512),  # rows that one thread takes at a time
    "decode_rows": (0, 8, 16, 32, 64, 128, 1024),  # more rows share one decoded copy of the weights
    "prefetch": (2048, 0, 1024, 4096, 8192),  # bytes that weights are asked for ahead, rounded up to pieces
    "threads": (0, 1),  # 0: all
}
# Of a CUDA tile. No kernel reads it yet: records of other projects keep it (`sparsekern tune import`).
CUDA_KNOBS: dict[str, tuple[int, ...]] = {
    "tile_m": (16, 32, 64, 128, 256),
    "tile_n": (16, 32, 64, 128, 256),
    "tile_k": (16, 32, 64, 128, 256),
    "group_m": (1, 2, 4, 8, 16, 32, 64),
    "warps": (1, 2, 4, 8, 16),
    "stages": (1, 2, 3, 4, 5, 6, 7, 8),
}
TUNED = ("gemm", "grouped_gemm", "grouped_gemm_masked", "fused_moe")
VERSION = 1  # of the knobs' meaning: records of another one are stale


@dataclass(frozen=True)
class Choice:
    """Values of the knobs, and where they come from: measured, modelled, default or imported."""

    config: Mapping[str, int]
    source: str

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """As `_C` takes them."""
        c = self.config
        return c["item_rows"], c["decode_rows"], c["prefetch"], c["threads"]


DEFAULT = Choice({name: values[0] for name, values in KNOBS.items()}, "default")


def allowed(op: str, config: Mapping[str, object]) -> str:
    """What is wrong with a configuration; empty if nothing is."""
    if op not in TUNED:
        return f"{op!r} has nothing to choose"
    knobs = next((k for k in (KNOBS, CUDA_KNOBS) if set(config) == set(k)), None)
    if knobs is None:
        return f"config has {sorted(map(str, config))!r:.80}, expected {', '.join(KNOBS)}"
    for name, values in knobs.items():
        value = config[name]
        if isinstance(value, bool) or value not in values:
            return f"{name} is {value!r:.40}, expected one of {values}"
    return ""


# --- what it is chosen for ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A call as its speed sees it; `sparsekern._C` puts calls of the same kind together."""

    op: str
    a: str  # dtypes of the rows and of the weights
    weights: str
    packed: bool
    block: int  # columns that share a scale; 0: no scales
    n: int
    k: int
    groups: int  # weights
    rows: int  # that meet them, all groups together: exact up to 8, then a power of two
    threads: int
    isa: str

    @property
    def key(self) -> dict[str, int | str]:
        """As records name it."""
        return {**vars(self), "packed": int(self.packed)}

    @property
    def touched(self) -> float:
        """Groups that have rows, if those are spread at random."""
        if self.groups <= 1:
            return float(min(self.groups, self.rows))
        return self.groups * (1 - (1 - 1 / self.groups) ** self.rows)

    def products(self) -> Iterator[tuple[int, int, bool]]:
        """The GEMMs that it consists of: n, k, and whether rows are cut into items."""
        yield self.n, self.k, True
        if self.op == "fused_moe":
            yield self.k, self.n // 2, False


BYTES = {"f32": 4.0, "bf16": 2.0, "e4m3": 1.0, "fp4": 0.5, "bf16_2to4": 1.125, "e4m3_2to4": 0.625}
PANEL, PIECE = 64, 128  # columns and k of one stream of weights between two folds (csrc/gemm/gemm.h)


@dataclass(frozen=True)
class Core:
    """One core on one instruction set, in cycles and bytes a cycle.

    avx2 is fitted to Zen 3 (docs/measured.md), the others follow from the widths of their instructions.
    """

    flops: float  # a cycle
    decode: float  # cycles a weight, where it is not stored as it is multiplied
    keep: float  # cycles a weight, to store it decoded and to load it again
    tile_rows: int
    load: float  # bytes a cycle from the second-level cache

    def decode_above(self, chosen: int, pairs: bool) -> int:
        """Rows above which weights are decoded once, as csrc/gemm/cpu.cpp has it."""
        return chosen or (96 if pairs else 4)


CORES = {
    "scalar": Core(2.0, 2.0, 0.5, 4, 8.0),
    "avx2": Core(28.0, 0.11, 0.035, 6, 32.0),
    "avx512": Core(60.0, 0.06, 0.03, 4, 48.0),
    "avx512bf16": Core(120.0, 0.026, 0.05, 6, 48.0),
}


@dataclass(frozen=True)
class Machine:
    """What a prediction depends on beside the problem."""

    l1: int = 32 << 10
    l2: int = 512 << 10
    l3: int = 32 << 20
    clock: float = 3e9
    stream: float = 9e9  # bytes a second that one thread can draw from memory
    memory: float = 20e9  # ... all together
    latency: float = 450e-9  # of memory that is busy
    wake: float = 5e-6  # of the other threads

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        c = cpu()
        return cls(c.l1, c.l2, c.l3)


# --- what it costs ------------------------------------------------------------------------------------------


def predict(p: Problem, config: Mapping[str, int], m: Machine) -> float:
    """Seconds; hardly any for a call that has nothing to multiply."""
    threads = 1 if config["threads"] == 1 or p.rows * p.n * p.k < 1 << 20 else p.threads
    total = m.wake if threads > 1 else 0.0
    for n, k, cut in p.products():
        if min(n, k, p.rows, p.groups) > 0:
            total += _gemm(p, n, k, cut, config, threads, m)
    return total


def _gemm(
    p: Problem, n: int, k: int, cut: bool, config: Mapping[str, int], threads: int, m: Machine
) -> float:
    rows = p.rows / max(p.touched, 1)  # of a group
    parts = math.ceil(rows / config["item_rows"]) if cut else 1
    part = rows / parts
    panels = math.ceil(n / PANEL)
    size = PANEL * k * BYTES.get(p.weights, 1.0)  # of a panel
    compute = _item(p, k, part, config["decode_rows"], m)

    drawn = min(m.stream, m.memory / threads)  # bytes a second, of one thread
    first = max(compute, size / drawn)  # the part that brings the panel from memory
    waited = m.latency * size / first  # bytes that pass while memory answers
    late = max(0.0, 1 - config["prefetch"] / waited) if waited else 0.0
    first += 0.3 * late * size / drawn
    if config["prefetch"] > m.l1 / 6:  # it begins to push out what is in use
        first *= 1.02
    again = (
        compute if size < m.l2 / 2 else max(compute, 0.25 * size / drawn)
    )  # the other parts find it nearer

    # Items go to threads one by one: the last wave may leave some without.
    items = p.touched * (panels * parts if cut else panels)
    waves = math.ceil(items / threads) / (items / threads)
    return p.touched * panels * (first + (parts - 1) * again) / threads * waves


def _item(p: Problem, k: int, rows: float, decode_rows: int, m: Machine) -> float:
    """Seconds of some rows with one panel whose weights are at hand."""
    core = CORES.get(p.isa, CORES["scalar"])
    pairs = p.isa == "avx512bf16" and p.a != "f32"
    weights = float(PANEL * k)
    tiles = math.ceil(rows / core.tile_rows)
    cycles = 2 * weights * max(rows, 1) / (core.flops if pairs or p.isa != "avx512bf16" else core.flops / 2)
    cycles += 0.15 * 2 * weights * (tiles * core.tile_rows - rows) / core.flops  # a tile that is not full
    if p.weights not in ("f32", "bf16"):
        once = rows > core.decode_above(decode_rows, pairs)
        cycles += weights * (core.decode + core.keep if once else core.decode * tiles)
    if not p.packed:
        cycles += weights * 0.25  # rows are made into panels, every time
    # Sums are loaded and stored once a piece, rows are read once a panel; small ones stay in the first cache.
    sums, piece = rows * PANEL * 4.0, rows * min(PIECE, k) * 4.0
    if sums > m.l1:
        cycles += math.ceil(k / PIECE) * 2 * sums / core.load
    if rows * k * 4 > m.l2 / 2:
        cycles += math.ceil(k / PIECE) * piece / (core.load / 2)
    return cycles / m.clock


# --- choosing -----------------------------------------------------------------------------------------------


def candidates(p: Problem) -> tuple[list[dict[str, int]], dict[str, str]]:
    """Configurations that can differ in speed for a problem, and why values of knobs are left out."""
    kept, dropped = {name: list(values) for name, values in KNOBS.items()}, {}
    rows = math.ceil(p.rows / max(p.touched, 1))
    core = CORES.get(p.isa, CORES["scalar"])

    def only(name: str, values: list[int], why: str) -> None:
        gone = [v for v in kept[name] if v not in values]
        if gone:
            kept[name], dropped[f"{name} {', '.join(map(str, gone))}"] = values, why

    enough = [v for v in KNOBS["item_rows"] if v >= rows]  # they are all the same: the default, if it is one
    only("item_rows", enough[:1] + [v for v in KNOBS["item_rows"] if v < rows], f"a group has {rows} rows")
    if p.weights in ("f32", "bf16"):
        only("decode_rows", [0], f"{p.weights} is not decoded")
    elif rows <= core.tile_rows:
        only("decode_rows", [0], "one tile: weights are decoded once anyway")
    else:
        below = [v for v in sorted(KNOBS["decode_rows"])[1:] if v < rows]
        only("decode_rows", [0, *below, 1024], f"above {rows} rows all are the same")
    if not p.packed:
        only("prefetch", [KNOBS["prefetch"][0]], "weights that are not packed are not prefetched")
    if p.threads <= 1:
        only("threads", [0], "there is one thread")
    elif p.rows * p.n * p.k < 1 << 20:
        only("threads", [0], "too little to do for a second thread")
    elif p.rows * p.n * p.k > 1 << 26:
        only("threads", [0], "too much to do for one thread")
    combinations = itertools.product(*kept.values())
    return [dict(zip(kept, values, strict=True)) for values in combinations], dropped


def choose(p: Problem, m: Machine | None = None) -> Choice:
    """The configuration that should be fastest; of those within 1 % the one nearest to the default."""
    machine = m or Machine.here()
    costs = [(predict(p, config, machine), config) for config in candidates(p)[0]]
    least = min(cost for cost, _ in costs)
    good = [(changes(config), cost, i) for i, (cost, config) in enumerate(costs) if cost <= 1.01 * least]
    return Choice(costs[min(good)[2]][1], "modelled")


def changes(config: Mapping[str, int]) -> int:
    """Knobs that are not at their default."""
    return sum(config[name] != value for name, value in DEFAULT.config.items())


def describe(config: Mapping[str, int]) -> str:
    """A configuration by what is not as in the kernels."""
    words = [f"{name} {value}" for name, value in config.items() if DEFAULT.config.get(name) != value]
    return ", ".join(words) or "as the kernels do unasked"
