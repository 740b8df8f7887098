"""Every test leaves torch's and sparsekern's settings as it found them."""

from collections.abc import Iterator

import pytest
import torch

import sparsekern


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    threads, isa = torch.get_num_threads(), sparsekern.config.isa
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
    sparsekern.config.threads = 0
    sparsekern.config.isa = isa
