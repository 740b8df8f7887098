"""Records of tuning: what was found to be fast for a kind of call on a kind of machine.

    <cache folder>/tune/v1/<device>/<op>.jsonl      the user's, written by `sparsekern tune`
    sparsekern/tuning/<device>/<op>.jsonl           shipped

A file holds one JSON object a line, the latest of a key counts. Whatever is in a file, reading it raises
nothing: what is not a record of ours (broken, truncated, of a later version, or made to do harm) is left
out, with one warning a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsekern.config import config
from sparsekern.model import CUDA_KNOBS, KNOBS, VERSION, allowed

SCHEMA = 1
SOURCES = ("measured", "modelled", "default", "imported")  # default: measured, and nothing beat it
SHIPPED = Path(__file__).parent / "tuning"
LARGEST_FILE, LONGEST_LINE, DEEPEST = 16 << 20, 64 << 10, 6
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")

Key = tuple[tuple[str, int | str], ...]  # sorted pairs: what of a call its speed depends on


class RecordWarning(UserWarning):
    """A file of records was left out, or part of it."""


@dataclass(frozen=True)
class Record:
    """One finding."""

    op: str
    device: str
    key: Mapping[str, int | str]
    config: Mapping[str, int]
    source: str
    version: int  # of the knobs' meaning when it was made: records of another one are not used
    gain: float = 1.0  # times as fast as the default
    spread: float = 0.0  # of the measurements, as a part of them
    tried: tuple[Mapping[str, Any], ...] = ()  # every candidate: config, status, ratio to the choice
    env: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""

    @property
    def at(self) -> Key:
        """The key, to look it up."""
        return as_key(self.key)

    def line(self) -> str:
        """The record as a line of a file."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True) + "\n"


def as_key(pairs: Mapping[str, int | str]) -> Key:
    """Pairs in an order of their own."""
    return tuple(sorted(pairs.items()))


# --- reading ------------------------------------------------------------------------------------------------


class _Odd(ValueError):
    """Not a record."""


def parse(line: str) -> Record:
    """Read one line.

    Raises:
        ValueError: it is not a record that this version understands.
    """
    if len(line) > LONGEST_LINE:
        raise _Odd("a line is too long")
    try:
        raw = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _Odd(f"not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise _Odd("not an object")
    schema = raw.pop("schema", None)
    if schema != SCHEMA or isinstance(schema, bool):
        raise _Odd(f"schema {schema!r}, expected {SCHEMA}")
    _check_depth(raw)
    known = {f for f in Record.__dataclass_fields__}
    if set(raw) - known or not {"op", "device", "key", "config", "source", "version"} <= set(raw):
        raise _Odd("unexpected or missing fields")
    _check(raw)
    knobs = next(k for k in (KNOBS, CUDA_KNOBS) if set(k) == set(raw["config"]))
    raw["config"] = {name: raw["config"][name] for name in knobs}  # in the order of the knobs
    raw["tried"] = tuple(raw.get("tried", ()))
    return Record(**raw)


def _no_constant(text: str) -> float:
    raise _Odd(f"{text} is no number")


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise _Odd("nested too deeply")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(item, depth + 1)


def _check(raw: Mapping[str, Any]) -> None:
    for name in ("op", "device"):
        if not isinstance(raw[name], str) or not _NAME.fullmatch(raw[name]):
            raise _Odd(f"{name} is {raw[name]!r:.80}")
    if raw["source"] not in SOURCES:
        raise _Odd(f"source is {raw['source']!r:.80}")
    if not _is_int(raw["version"]):
        raise _Odd("version is no integer")
    key = raw["key"]
    if not isinstance(key, dict) or not all(_is_int(v) or _is_name(v) for v in key.values()):
        raise _Odd("key is not made of sizes and names")
    wrong = allowed(raw["op"], raw["config"]) if isinstance(raw["config"], dict) else "config is no object"
    if wrong:
        raise _Odd(wrong)
    for name in ("gain", "spread"):
        value = raw.get(name, 1.0)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1e6:
            raise _Odd(f"{name} is {value!r:.80}")
    tried = raw.get("tried", [])
    if not isinstance(tried, list) or not all(isinstance(t, dict) for t in tried):
        raise _Odd("tried is no list of objects")
    if not isinstance(raw.get("env", {}), dict) or not isinstance(raw.get("created", ""), str):
        raise _Odd("env or created is of another type")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 80


def read(path: Path) -> list[Record]:
    """The records of a file, the latest of each key; nothing, with a warning, of what is none."""
    try:
        if not path.is_file():
            return []
        if path.stat().st_size > LARGEST_FILE:
            raise _Odd(f"larger than {LARGEST_FILE >> 20} MB")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        _warn(path, str(error))
        return []
    found: dict[Key, Record] = {}
    odd: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        record = _tried_parse(line)
        if isinstance(record, str):
            odd.append(f"line {number}: {record}")
        else:
            found[record.at] = record
    if odd:
        more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
        _warn(path, f"{odd[0]}{more}")
    return list(found.values())


def _tried_parse(line: str) -> Record | str:
    try:
        return parse(line)
    except ValueError as error:
        return str(error)


_warned: set[Path] = set()


def _warn(path: Path, reason: str) -> None:
    if path not in _warned:
        _warned.add(path)
        warnings.warn(f"tuning records left out: {path}: {reason:.200}", RecordWarning, stacklevel=2)


def user_folder() -> Path:
    """Where the user's records are."""
    return config.cache_dir / "tune" / "v1"


def files(folder: Path, device: str | None = None) -> Iterator[Path]:
    """The files of a folder of records, of one device or of all."""
    with contextlib.suppress(OSError):
        yield from sorted(folder.glob(f"{device or '*'}/*.jsonl"))


def read_folder(folder: Path, device: str | None = None) -> list[Record]:
    """All records of a folder, or of a single file."""
    if folder.is_file():
        return read(folder)
    return [record for path in files(folder, device) for record in read(path)]


# --- looking up ---------------------------------------------------------------------------------------------


def find(op: str, device: str, key: Mapping[str, int | str]) -> Record | None:
    """The record for a call: the user's or a shipped one, of the same key or the nearest number of rows."""
    for folder in (user_folder(), SHIPPED):
        found = read_cached(folder / device / f"{op}.jsonl")
        usable = (r for r in found if r.version == VERSION and set(r.config) == set(KNOBS))
        record = nearest(usable, key)
        if record is not None:
            return record
    return None


def nearest(records: Iterable[Record], key: Mapping[str, int | str]) -> Record | None:
    """The record that differs in `rows` alone, and there by the least factor: four at most."""
    others = {name: value for name, value in key.items() if name != "rows"}
    rows, best, distance = int(key["rows"]), None, math.log(4) + 1e-9
    for record in records:
        there = dict(record.key)
        has = there.pop("rows", None)
        if there != others or not isinstance(has, int):
            continue
        apart = abs(math.log(max(has, 1) / max(rows, 1)))
        if apart <= distance:
            best, distance = record, apart - 1e-12
    return best


_cache: dict[Path, list[Record]] = {}


def read_cached(path: Path) -> list[Record]:
    """`read`, once a process: `forget` makes it look again."""
    if path not in _cache:
        _cache[path] = read(path)
    return _cache[path]


def forget() -> None:
    """Read files again when they are asked for."""
    _cache.clear()


# --- writing ------------------------------------------------------------------------------------------------


def write(folder: Path, records: Iterable[Record]) -> list[Path]:
    """Add records to a folder's files, replacing those of the same key; other processes may do so too.

    A reader sees a file as it was or as it will be, never in between: it is replaced in one step. Writers
    wait for each other, on a lock beside the file.

    Raises:
        OSError: the folder cannot be written to.
    """
    by_file: dict[Path, list[Record]] = {}
    for record in records:
        by_file.setdefault(folder / record.device / f"{record.op}.jsonl", []).append(record)
    for path, new in by_file.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            merged = {record.at: record for record in (*read(path), *new)}
            _replace(path, "".join(record.line() for record in merged.values()))
    forget()
    return list(by_file)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
