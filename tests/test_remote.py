"""The tier on a server: whatever the server does, a miss at worst."""

import contextlib
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsekern.kv import PoolSpec, RemoteTier, TieredKVCache
from sparsekern.kv.remote import connect

KEYS = [i.to_bytes(16, "little") for i in range(10)]
BLOCK = b"0123456789abcdef"


class Client:
    """What a tier needs of a client, in memory; `trouble` is called before everything."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.calls = 0
        self.trouble: Any = lambda: None

    def get(self, name: bytes) -> bytes | None:
        self.calls += 1
        self.trouble()
        return self.values.get(name)

    def set(self, name: bytes, value: bytes, ex: int | None = None) -> bool:
        self.calls += 1
        self.trouble()
        self.values[name] = value
        return True

    def pipeline(self, transaction: bool) -> "Client":
        assert not transaction
        self.asked: list[bytes] = []
        return self

    def exists(self, name: bytes) -> None:
        self.asked.append(name)

    def execute(self) -> list[int]:
        self.calls += 1
        self.trouble()
        return [name in self.values for name in self.asked]


def tier(client: Any, **options: Any) -> RemoteTier:
    made = RemoteTier(client, **{"timeout": 0.5, **options})
    made.seals(7, len(BLOCK))
    return made


def until(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether that holds within some time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_blocks_come_back() -> None:
    remote = tier(Client(), prefix="p:")
    assert remote.put(KEYS[0], BLOCK) and remote.put(KEYS[1], BLOCK[::-1])
    assert remote.get(KEYS[0]) == BLOCK and remote.get(KEYS[1]) == BLOCK[::-1]
    assert remote.get(KEYS[2]) is None
    assert remote.present(KEYS) == 2 and remote.present(KEYS[2:]) == 0
    counts = remote.stats()
    assert (counts["hits"], counts["misses"], counts["stored"], counts["failures"]) == (2, 1, 2, 0)


def test_a_value_that_changed_is_a_miss() -> None:
    client = Client()
    remote = tier(client)
    remote.put(KEYS[0], BLOCK)
    ((name, good),) = client.values.items()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        client.values[name] = bytes(bad)
        assert remote.get(KEYS[0]) is None, bit
    for end in range(len(good)):
        client.values[name] = good[:end]
        assert remote.get(KEYS[0]) is None
    assert remote.stats()["corrupt"] == 9 * len(good)
    client.values[name] = good
    other = tier(client)
    other.seals(8, len(BLOCK))
    assert remote.get(KEYS[0]) == BLOCK and other.get(KEYS[0]) is None, "of another kind of cache"


def test_another_ones_block_is_a_miss() -> None:
    client = Client()
    remote = tier(client)
    remote.put(KEYS[0], BLOCK)
    remote.put(KEYS[1], BLOCK[::-1])
    first, second = client.values
    client.values[first], client.values[second] = client.values[second], client.values[first]
    assert remote.get(KEYS[0]) is None and remote.get(KEYS[1]) is None


def dead() -> None:
    raise ConnectionError("no server")


def test_a_dead_server_is_left_alone_and_asked_again() -> None:
    client = Client()
    remote = tier(client, failures=3, pause=0.1)
    remote.put(KEYS[0], BLOCK)
    client.trouble, client.calls = dead, 0
    assert [remote.get(KEYS[0]) for _ in range(10)] == [None] * 10
    assert client.calls == 3 and not remote.usable()
    assert remote.stats()["failures"] == 3 and remote.stats()["skipped"] == 7
    time.sleep(0.12)
    assert remote.get(KEYS[0]) is None and client.calls == 4 and not remote.usable()
    time.sleep(0.12)
    assert not remote.usable(), "twice as long"
    client.trouble = lambda: None
    time.sleep(0.12)
    assert remote.get(KEYS[0]) == BLOCK and remote.usable()


def test_a_slow_server_is_not_waited_for() -> None:
    client = Client()
    remote = tier(client, timeout=0.05, pause=60.0)
    remote.put(KEYS[0], BLOCK)
    client.trouble = lambda: time.sleep(0.4)
    start = time.monotonic()
    for _ in range(20):
        assert remote.get(KEYS[0]) is None and remote.present(KEYS) == 0 and not remote.put(KEYS[1], BLOCK)
    assert time.monotonic() - start < 1.0
    assert remote.stats()["failures"] == 3
    remote.close()


# --- a cache above it ---------------------------------------------------------------------------------------


def cache_of(remote: RemoteTier) -> TieredKVCache:
    pool = {"kv": PoolSpec("bf16", pages=2, page_size=1, head_dim=8)}
    return TieredKVCache(pool, block_tokens=1, host_blocks=1, remote=remote)


def serve(cache: TieredKVCache, key: bytes) -> int:
    sequence, known = cache.begin(cache.acquire([key]))
    if not known:
        cache.paged.extend([sequence], {"kv": [1]})
    page = cache.paged.pages("kv", sequence)[0]
    data = cache.paged.pools["kv"].data[0, page]
    assert not known or bool((data == key[0]).all()), "a wrong block came back"
    data.fill_(key[0])
    cache.commit(sequence, [key])
    cache.paged.free(sequence)
    return known


def arrive(cache: TieredKVCache, client: Any, count: int) -> None:
    for _ in range(500):
        if len(client.values) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"{cache.stats()}")


def test_what_has_no_room_goes_to_the_server_and_comes_back() -> None:
    client = Client()
    with cache_of(RemoteTier(client)) as cache:
        for i, key in enumerate(KEYS):
            serve(cache, key)
            arrive(cache, client, i - 2)
        assert [serve(cache, key) for key in KEYS[:5]] == [1] * 5
        assert cache.stats()["hits"]["remote"] == 5 and cache.stats()["remote"]["hits"] == 5
    with cache_of(RemoteTier(client)) as other:
        assert serve(other, KEYS[0]) == 1, "another process has them, too"


def test_the_cache_goes_on_when_the_server_dies() -> None:
    client = Client()
    with cache_of(RemoteTier(client, failures=2, pause=0.05, timeout=0.5)) as cache:
        for i, key in enumerate(KEYS):
            serve(cache, key)
            arrive(cache, client, i - 2)
        client.trouble = dead
        assert sum(serve(cache, key) for key in KEYS * 2) == 0
        assert [serve(cache, key) for key in KEYS[-2:]] == [1, 1], "the device still has its own"
        client.trouble = lambda: None
        time.sleep(0.5)
        for _ in range(50):
            if serve(cache, KEYS[0]):
                break
            time.sleep(0.1)
        assert sum(cache.stats()["hits"].values()) > 2


# --- sockets: the redis client, and a server of the protocol ----------------------------------------------


class Handler(socketserver.StreamRequestHandler):
    """The few commands that the tier uses; what is wrong with the server is in `server.trouble`."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(size + 2)[:-2])
            server: Any = self.server
            if server.trouble == "closes":
                return
            if server.trouble == "trickles":
                for _ in range(20):
                    self.wfile.write(b"$")
                    time.sleep(0.05)
                return
            values = server.values
            match words[0].upper():
                case b"GET":
                    value = values.get(words[1])
                    answer = b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)
                case b"SET":
                    values[words[1]] = words[2]
                    answer = b"+OK\r\n"
                case b"EXISTS":
                    answer = b":%d\r\n" % (words[1] in values)
                case b"HELLO":
                    answer = b"-ERR unknown command\r\n"
                case _:
                    answer = b"+OK\r\n"
            self.wfile.write(answer)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.values: dict[bytes, bytes] = {}
        self.trouble = ""
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.server_address[1]}?protocol=2"


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("redis", reason="the redis package is not installed")
    with Server() as made:
        yield made
        made.shutdown()


def test_the_redis_client(server: Server) -> None:
    remote = tier(server.url)
    assert remote.put(KEYS[0], BLOCK) and remote.get(KEYS[0]) == BLOCK
    assert remote.present(KEYS) == 1 and remote.stats()["failures"] == 0


@pytest.mark.parametrize("trouble", ["closes", "trickles"])
def test_servers_that_misbehave(server: Server, trouble: str) -> None:
    remote = tier(server.url, timeout=0.2, failures=2, pause=0.1)
    assert remote.put(KEYS[0], BLOCK)
    server.trouble = trouble
    start = time.monotonic()
    assert [remote.get(KEYS[0]) for _ in range(10)] == [None] * 10
    assert time.monotonic() - start < 2 and remote.stats()["failures"] >= 2
    server.trouble = ""
    time.sleep(1.2)
    assert remote.get(KEYS[0]) == BLOCK, "connected anew"


def test_nobody_listens() -> None:
    pytest.importorskip("redis", reason="the redis package is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with cache_of(RemoteTier(f"redis://127.0.0.1:{port}", timeout=0.2)) as cache:
        assert [serve(cache, key) for key in KEYS] == [0] * 10
        assert cache.stats()["remote"]["failures"] >= 3


# --- a Redis or Valkey server, if one is installed ----------------------------------------------------------


class RealServer:
    """A server of our own on the loopback, with all that it stores in memory."""

    def __init__(self, program: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command = [program, *where, "--save", "", "--appendonly", "no"]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self.process.poll() is None, "the server has ended"
            time.sleep(0.05)
        self.kill()
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def client(self) -> Any:
        return connect(self.url, 5.0)


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealServer]:
    pytest.importorskip("redis", reason="the redis package is not installed")
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        pytest.skip("neither valkey-server nor redis-server is installed")
    made = RealServer(program, tmp_path)
    yield made
    made.kill()


def test_a_real_server_dies_and_returns(real: RealServer) -> None:
    remote = tier(real.url, failures=2, pause=0.1)
    assert remote.put(KEYS[0], BLOCK) and remote.get(KEYS[0]) == BLOCK and remote.present(KEYS) == 1
    real.kill()
    assert [remote.get(KEYS[0]) for _ in range(5)] == [None] * 5
    real.start()
    assert until(lambda: remote.put(KEYS[0], BLOCK)) and remote.get(KEYS[0]) == BLOCK


def test_a_real_server_that_is_full_or_changed(real: RealServer) -> None:
    remote, client = tier(real.url, failures=100, prefix="p:"), real.client()
    assert remote.put(KEYS[0], BLOCK) and remote.put(KEYS[1], BLOCK)
    (name,) = client.keys(f"p:{KEYS[0].hex()}*")
    client.setrange(name, client.strlen(name) - 3, b"!")
    assert remote.get(KEYS[0]) is None and remote.stats()["corrupt"] == 1
    client.config_set("maxmemory", 1)
    assert not remote.put(KEYS[2], BLOCK) and remote.stats()["failures"] == 1
    assert remote.get(KEYS[1]) == BLOCK, "what it has can be read"
    client.config_set("maxmemory", 0)
    assert remote.put(KEYS[2], BLOCK) and remote.get(KEYS[2]) == BLOCK


def test_a_cache_above_a_real_server(real: RealServer) -> None:
    """It takes what has no room, and gives it back, to others too; while it hangs or is dead: misses."""

    def remote() -> RemoteTier:
        return RemoteTier(real.url, timeout=1.0, failures=2, pause=0.05)

    def fill(cache: TieredKVCache) -> None:
        for i, key in enumerate(KEYS):
            serve(cache, key)
            assert until(lambda i=i: real.client().dbsize() >= i - 2), f"{cache.stats()}"

    with cache_of(remote()) as cache:
        fill(cache)
        assert [serve(cache, key) for key in KEYS[:5]] == [1] * 5 and cache.stats()["hits"]["remote"] == 5
        with cache_of(remote()) as other:
            assert serve(other, KEYS[7]) == 1
        real.process.send_signal(signal.SIGSTOP)
        assert sum(serve(cache, key) for key in KEYS * 2) == 0
        assert [serve(cache, key) for key in KEYS[-2:]] == [1, 1], "the device still has its own"
        counts = cache.stats()["remote"]
        assert 2 <= counts["failures"] < counts["skipped"], "it is left alone"
        real.process.send_signal(signal.SIGCONT)
        assert until(lambda: any(serve(cache, key) for key in KEYS[:5])), "it is asked again"
        real.kill()
        before = cache.stats()["hits"]["remote"]
        for key in KEYS * 2:
            serve(cache, key)
        assert cache.stats()["hits"]["remote"] == before
        real.start()  # it has forgotten everything
        assert until(lambda: any(serve(cache, key) and key in KEYS[:5] for key in KEYS)), "it is used again"
        assert cache.stats()["hits"]["remote"] > before
