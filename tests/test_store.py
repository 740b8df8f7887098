"""The block store under fire: dying processes, flipped bits, disks that are full or broken, many threads."""

import contextlib
import ctypes
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_tools import (
    BYTES,
    CORRUPT,
    DISK,
    DROP,
    FULL,
    HOST,
    IO_ERROR,
    MISSING,
    SLOT,
    SPILL,
    TAKE,
    content,
    failed,
    key,
    open_store,
    read,
    write,
)

from sparsekern import _C

ROOT = Path(__file__).parents[1]
MEMORY = Path("/dev/shm")  # files that are deleted by the hundred


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of files in memory, where there are such."""
    where = MEMORY if os.access(MEMORY, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=where) as name:
        yield Path(name)


def store(folder: Path, *, slots: int = DISK) -> _C.BlockStore:
    return open_store(_C, folder, slots=slots)


def child(script: str, *arguments: object) -> list[str]:
    """The command for a process that has the extension as _C and these tools, and nothing else."""
    begin = (
        "import sys; sys.path.insert(0, sys.argv[1]); from store_tools import *; _C = extension(sys.argv[2])"
    )
    return [
        sys.executable,
        "-c",
        f"{begin}\n{script}",
        str(Path(__file__).parent),
        _C.__file__,
        *map(str, arguments),
    ]


def test_checksum() -> None:
    assert _C.crc32c(b"123456789") == 0xE3069283  # RFC 3720
    assert _C.crc32c(b"\0" * 32) == 0x8A9136AA and _C.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert _C.crc32c(b"") == 0


def test_a_block_is_in_one_place(tmp_path: Path) -> None:
    s = store(tmp_path)
    s.wait(s.insert(key(1), content(1)), 10)
    assert s.where(key(1)) == 1 and read(s, 1)
    s.submit([(SPILL, key(1), None, -1)])
    assert s.settle(10) and s.where(key(1)) == 2 and read(s, 1)
    assert s.fetch(key(1), True) == content(1) and s.where(key(1)) == 0
    assert s.fetch(key(1), True) is None and failed(s) == [MISSING]
    assert s.counts()["host_used"] == s.counts()["disk_used"] == 0


def test_a_block_that_is_asked_for_does_not_wait_for_its_turn_on_disk(tmp_path: Path) -> None:
    s = store(tmp_path)
    for i in range(HOST):
        s.insert(key(i), content(i))
    s.submit(
        [(SPILL, key(i), None, -1) for i in range(HOST)] + [(DROP, key(i), None, -1) for i in range(HOST)]
    )
    assert s.settle(10) and failed(s) == []
    assert s.counts()["host_used"] == s.counts()["disk_used"] == 0


def test_what_has_no_room_is_lost_and_said_to_be(tmp_path: Path) -> None:
    s = store(tmp_path, slots=3)
    for i in range(HOST + 2):
        s.insert(key(i), content(i))
    assert s.settle(10) and failed(s) == [FULL, FULL]
    s.submit([(SPILL, key(i), None, -1) for i in range(5)])
    assert s.settle(10) and failed(s) == [FULL, FULL]
    assert [s.where(key(i)) for i in range(HOST + 2)] == [2] * 3 + [0] * 2 + [1] * 3 + [0] * 2


def test_bad_calls(tmp_path: Path) -> None:
    s = store(tmp_path)
    for error, says, call in (
        (ValueError, "a key has 16 bytes, not 3", lambda: s.where(b"abc")),
        (RuntimeError, "a block has 5000 bytes, the memory for it 3", lambda: s.insert(key(1), b"abc")),
        (RuntimeError, "not before it", lambda: s.submit([(DROP, key(1), None, 0)])),
        (
            RuntimeError,
            "a block has 5000 bytes, the memory for it 0",
            lambda: s.submit([(TAKE, key(1), [], -1)]),
        ),
    ):
        with pytest.raises(error, match=says):
            call()
    s.close()
    with pytest.raises(RuntimeError, match="the store is closed"):
        s.counts()
    with pytest.raises(RuntimeError, match="at least 1 byte"):
        _C.BlockStore(0, 1, 1, None, 0, 0, 0)


# --- files that were changed --------------------------------------------------------------------------------


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file())


@pytest.fixture
def written(folder: Path) -> dict[str, bytes]:
    """The files of a store of 30 blocks, by name."""
    s = store(folder)
    write(s, range(30))
    s.close()
    assert len(files_of(folder)) > 2, "the lock and several segments"
    return {path.name: path.read_bytes() for path in files_of(folder)}


def restore(folder: Path, files: dict[str, bytes]) -> None:
    for path in files_of(folder):
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def test_flipped_bits_are_found(written: dict[str, bytes], folder: Path) -> None:
    """In headers, blocks, gaps and the lock: the block is right, or a miss; all others are there."""
    rng = random.Random(0)
    for trial in range(150):
        name = rng.choice(sorted(written))
        data = bytearray(written[name])
        at = rng.randrange(len(data)) if trial % 3 else rng.randrange(0, len(data), SLOT) + rng.randrange(64)
        at = min(at, len(data) - 1)
        data[at] ^= 1 << rng.randrange(8)
        restore(folder, {**written, name: bytes(data)})
        s = store(folder)
        there = sum(read(s, i) for i in range(30))
        in_gap = name != "lock" and at % SLOT >= 64 + BYTES
        assert there == (30 if name == "lock" or in_gap else 29), (name, at)
        assert s.dropped() + failed(s).count(CORRUPT) == 30 - there
        assert all(not read(s, i) or s.where(key(i)) for i in range(30))
        s.close()


def test_a_file_may_end_anywhere(written: dict[str, bytes], folder: Path) -> None:
    rng = random.Random(1)
    for _ in range(120):
        name = rng.choice(sorted(written))
        size = len(written[name])
        end = min(size, rng.choice([rng.randrange(size), size // SLOT * SLOT + rng.randrange(70), 0]))
        restore(folder, {**written, name: written[name][:end]})
        s = store(folder)
        there = [i for i in range(30) if read(s, i)]
        assert name == "lock" or 0 <= 30 - len(there) <= (size - end) // SLOT + 1
        write(s, [i for i in range(30) if i not in there])
        assert all(read(s, i) for i in range(30)) and failed(s).count(CORRUPT) == 0
        s.close()


def test_blocks_that_change_places_are_found(written: dict[str, bytes], folder: Path) -> None:
    """A block under another's key, whole and with a good checksum of its own, is not that other one."""
    name = next(name for name in written if name.startswith("segment"))
    data = bytearray(written[name])
    first, second = slice(64, 64 + BYTES), slice(SLOT + 64, SLOT + 64 + BYTES)
    data[first], data[second] = data[second], data[first]
    restore(folder, {**written, name: bytes(data)})
    s = store(folder)
    assert sum(read(s, i) for i in range(30)) == 28 and failed(s).count(CORRUPT) == 2
    s.close()


def test_garbage_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "segment-000000").write_bytes(random.Random(0).randbytes(100_000))
    (tmp_path / "segment-000099").write_bytes(b"of a larger cache")
    (tmp_path / "lock").write_bytes(b"blocks of nonsense\xff")
    (tmp_path / "notes.txt").write_text("somebody else's")
    s = store(tmp_path)
    assert s.found() == [] and s.dropped() > 0
    write(s, range(10))
    assert all(read(s, i) for i in range(10))
    assert (tmp_path / "notes.txt").read_text() == "somebody else's"
    assert not (tmp_path / "segment-000099").exists()


def test_a_file_that_disappears(tmp_path: Path) -> None:
    s = store(tmp_path)
    write(s, range(20))
    s.close()
    next(p for p in files_of(tmp_path) if p.name.startswith("segment")).unlink()
    s = store(tmp_path)
    assert 0 < sum(read(s, i) for i in range(20)) < 20


def test_one_process_a_folder(folder: Path) -> None:
    script = 's = open_store(_C, sys.argv[3])\nprint("ready", flush=True)\nsys.stdin.read()'
    other = subprocess.Popen(child(script, folder), stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"ready\n"
    says = f"{folder} is in use by process {other.pid}: one cache at a time keeps its blocks in a folder"
    with pytest.raises(RuntimeError, match=says):
        store(folder)
    other.kill()
    other.communicate()
    store(folder).close()


# --- processes that die -------------------------------------------------------------------------------------

WRITER = """
import itertools
s = open_store(_C, sys.argv[3])
rng = random.Random(int(sys.argv[4]))
print("ready", flush=True)
for i in itertools.count():  # blocks come and go, so that slots are used again
    n, gone = rng.randrange(60), rng.randrange(60)
    print("changes", n, gone, flush=True)
    s.submit([(DROP, key(gone), None, -1), (DROP, key(n), None, -1)])
    s.insert(key(n), content(n))
    s.submit([(SPILL, key(n), None, -1)])
    if i % 8 == 0:
        s.settle(10)
        print("written", *(k for k in range(60) if s.where(key(k)) == 2), flush=True)
"""


def left_alone(lines: list[str]) -> set[int]:
    """The blocks that a writer had on disk, and has not begun to change since."""
    there: set[int] = set()
    for line in lines:
        word, *numbers = line.split()
        there = set(map(int, numbers)) if word == "written" else there - set(map(int, numbers))
    return there


def kill_and_reopen(folder: Path, trials: int) -> int:
    """Kill a writer at a random moment, again and again on one folder; how many blocks were found in all."""
    rng, found, kept = random.Random(3), 0, 0
    for trial in range(trials):
        writer = subprocess.Popen(child(WRITER, folder, trial), stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        time.sleep(rng.random() * 0.05)
        writer.send_signal(signal.SIGKILL)
        said = writer.communicate()[0].decode().splitlines()
        s = store(folder)
        names = s.found()
        written = left_alone(said)
        assert written <= {int.from_bytes(name, "little") for name in names}, "what was written is there"
        kept += len(written)
        assert len(set(names)) == len(names) <= DISK
        assert all(read(s, int.from_bytes(name, "little")) for name in names), "what is found is whole"
        assert s.dropped() <= 2, "no more than was being written is lost"
        found += len(names)
        s.close()
    assert kept > trials
    return found


def test_killed_at_any_moment(folder: Path) -> None:
    assert kill_and_reopen(folder, 4) > 0


@pytest.mark.slow
def test_killed_two_hundred_times(folder: Path) -> None:
    assert kill_and_reopen(folder, 200) > 1000


# --- disks that fail ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(exist_ok=True)
    if libc.mount(b"none", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode()) != 0:
        pytest.skip(f"cannot mount a small file system: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        libc.umount2(str(folder).encode(), 2)


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 100_000):
        s = store(tmp_path / "disk")
        write(s, range(30))
        lost = failed(s)
        assert lost and set(lost) == {IO_ERROR}
        there = [i for i in range(30) if read(s, i)]
        assert len(there) == 30 - len(lost) > 10
        s.submit([(DROP, key(i), None, -1) for i in there[:4]])
        write(s, range(100, 104))  # what was freed is used again
        assert [i for i in range(100, 104) if read(s, i)]
        s.close()
        s = store(tmp_path / "disk")
        assert all(read(s, int.from_bytes(name, "little")) for name in s.found()) and s.found()
        s.close()


FAILING = """
s = open_store(_C, sys.argv[3])
write(s, range(40))
there = sum(read(s, i) for i in range(40))
again = sum(read(s, i) for i in range(40))
errors = failed(s)
s.close()
print(there, again, errors.count(IO_ERROR), set(errors) <= {IO_ERROR, MISSING})
"""


def compiler() -> str:
    found = shutil.which("g++") or shutil.which("c++")
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def test_reads_and_writes_that_fail(tmp_path: Path) -> None:
    """EIO now and then, and transfers that stop half-way: misses, counted, and right blocks."""
    library = tmp_path / "failing.so"
    source = ROOT / "tests" / "native" / "failing_io.c"
    build = [compiler(), "-x", "c", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(build, check=True)
    for every in (29, 97):
        folder = tmp_path / f"store{every}"
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "FAILING_UNDER": str(folder),
            "FAILING_EVERY": str(every),
        }
        done = subprocess.run(
            child(FAILING, folder), env=environment, capture_output=True, text=True, check=True
        )
        there, again, errors, expected = done.stdout.split()
        assert 0 < int(again) <= int(there) < 40 and int(errors) > 0 and expected == "True", done.stdout
        s = store(folder)
        assert sum(read(s, i) for i in range(40)) >= int(again) - 2
        s.close()


# --- many threads -------------------------------------------------------------------------------------------


def hammer(folder: Path, seconds: float, *flags: str) -> None:
    program = folder / "hammer"
    sources = [
        *map(str, (ROOT / "csrc" / "kv" / "store").glob("*.cpp")),
        str(ROOT / "tests/native/store_hammer.cpp"),
    ]
    machine = ["-march=x86-64-v2"] if os.uname().machine == "x86_64" else []
    build = [
        compiler(),
        "-std=c++20",
        "-O1",
        "-g",
        *machine,
        *flags,
        f"-I{ROOT / 'csrc'}",
        *sources,
        "-pthread",
    ]
    built = subprocess.run([*build, "-o", str(program)], capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip("the compiler has no such sanitizer")
    assert built.returncode == 0, built.stderr
    command = [str(program), str(folder / "store"), str(seconds), "24"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120, check=False)
    if "unexpected memory mapping" in ran.stderr:
        pytest.skip("the kernel's address space is not one that ThreadSanitizer knows")
    assert ran.returncode == 0 and "WARNING" not in ran.stderr, ran.stderr[-4000:]
    assert "blocks came back" in ran.stdout


def test_many_threads_under_thread_sanitizer(tmp_path: Path) -> None:
    hammer(tmp_path, 2, "-fsanitize=thread")


@pytest.mark.slow
def test_many_threads_for_a_minute_under_thread_sanitizer(tmp_path: Path) -> None:
    hammer(tmp_path, 60, "-fsanitize=thread")


@pytest.mark.slow
def test_many_threads_under_address_sanitizer(tmp_path: Path) -> None:
    hammer(tmp_path, 10, "-fsanitize=address,undefined", "-fno-sanitize-recover")


def test_counting(tmp_path: Path) -> None:
    s = store(tmp_path)
    write(s, range(3))
    assert [s.fetch(key(i), True) for i in range(2)] == [content(0), content(1)]
    counts = s.counts()
    assert counts["spill", "host"][:2] == (3, 3 * BYTES) and counts["take", "disk"][:2] == (2, 2 * BYTES)
    assert counts["disk_used"] == 1 and counts["ok"] == 8
    assert all(seconds > 0 for name, (n, _, seconds) in itertools.islice(counts.items(), 10) if n)
