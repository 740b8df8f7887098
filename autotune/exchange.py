"""Records of others and for others: a file of JSON lines, or the JSON that vLLM and SGLang keep.

vLLM's files say in their names for what they are (E, N, device, dtype, block) and hold a Triton tile for each
number of tokens. They say neither K nor how, when and with what they were measured, and neither do records
made of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsekern import model, records
from sparsekern.records import Record

# Their names and ours.
TILE = {
    "BLOCK_SIZE_M": "tile_m",
    "BLOCK_SIZE_N": "tile_n",
    "BLOCK_SIZE_K": "tile_k",
    "GROUP_SIZE_M": "group_m",
    "num_warps": "warps",
    "num_stages": "stages",
}
# What their devices are; the first that the name holds.
_DEVICES = {
    **dict.fromkeys(("GB200", "B200"), "sm_100"),
    **dict.fromkeys(("H100", "H200", "H20", "GH200"), "sm_90"),
    **dict.fromkeys(("L40", "RTX_4090"), "sm_89"),
    **dict.fromkeys(("A100",), "sm_80"),
    **dict.fromkeys(("A10", "RTX_3090"), "sm_86"),
    **dict.fromkeys(("RTX_5090", "RTX_PRO_6000"), "sm_120"),
}
_NAME = re.compile(
    r"E=(?P<E>\d+),N=(?P<N>\d+),device_name=(?P<device>[\w.-]+?)"
    r"(?:,dtype=(?P<dtype>\w+))?(?:,block_shape=\[(?P<block>\d+), ?(?P<k>\d+)\])?(?P<rest>,.*)?\.json"
)


def read_any(path: Path) -> tuple[list[Record], list[str]]:
    """The records of a file of either kind, and what could not be taken.

    Raises:
        ValueError: it is a file of neither kind.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        if path.suffix != ".jsonl":
            raise ValueError(
                f"{path} is neither a .jsonl of records nor named as vLLM names its configurations"
            )
        return records.read(path), []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no object of configurations")
    found, odd = [], []
    for tokens, tile in content.items():
        if not tokens.isdigit():  # "triton_version" and the like
            continue
        config = {ours: tile.get(theirs) for theirs, ours in TILE.items()} if isinstance(tile, dict) else {}
        wrong = model.allowed("fused_moe", config)
        if wrong:
            odd.append(f"{path.name}: {tokens} tokens: {wrong}")
        else:
            found.append(_imported(match, int(tokens), config))
    return found, odd


def _imported(match: re.Match[str], tokens: int, config: Mapping[str, Any]) -> Record:
    device = next((sm for name, sm in _DEVICES.items() if name in match["device"]), "cuda")
    key: dict[str, int | str] = {
        "groups": int(match["E"]),
        "inter": int(match["N"]),
        "tokens": tokens,
        "dtype": match["dtype"] or "",
        "device_name": match["device"],
        "rest": match["rest"] or "",
    }
    if match["block"]:
        key |= {"block_n": int(match["block"]), "block_k": int(match["k"])}
    return Record("fused_moe", device, key, dict(config), "imported", model.VERSION, env={"from": "vllm"})


def vllm_files(found: Iterable[Record]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and contents of the files that vLLM would keep: of those records that are about its tiles."""
    files: dict[str, dict[str, Any]] = {}
    for r in found:
        if set(r.config) != set(model.CUDA_KNOBS) or "inter" not in r.key:
            continue
        k = r.key
        name = f"E={k['groups']},N={k['inter']},device_name={k['device_name']}"
        name += f",dtype={k['dtype']}" if k.get("dtype") else ""
        name += f",block_shape=[{k['block_n']},{k['block_k']}]" if "block_n" in k else ""
        tile = {theirs: r.config[ours] for theirs, ours in TILE.items()}
        files.setdefault(f"{name}{k.get('rest', '')}.json", {})[str(k["tokens"])] = tile
    for name, content in files.items():
        yield name, dict(sorted(content.items(), key=lambda item: int(item[0])))
