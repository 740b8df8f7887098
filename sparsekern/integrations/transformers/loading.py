"""Loading FP8 checkpoints without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer


@contextmanager
def keep_fp8() -> Iterator[None]:
    """Have `from_pretrained` keep the weights of an FP8 or FP4 checkpoint as they are, for `optimize`.

    Without a GPU, transformers expands such a checkpoint to bf16 while loading, because it cannot run it; so
    will a model loaded here fail to run until it is optimised. Holds for every load in this process while
    the block lasts::

        with keep_fp8():
            model = AutoModelForCausalLM.from_pretrained(path)
        optimize(model)
    """
    quantizer: Any = FineGrainedFP8HfQuantizer
    check = quantizer.validate_environment
    quantizer.validate_environment = lambda self, *args, **kwargs: None
    try:
        yield
    finally:
        quantizer.validate_environment = check
