"""Engram: memory that a model looks up by hashes of the last few tokens.

`EngramIndex` knows which rows of a table a token takes, `EngramTable` holds the rows: in memory, on huge
pages where the system allows them, or mapped from a file. Both are made the same way everywhere, from the
numbers of a model alone.

```python
token_map = compress_tokenizer(tokenizer)
index = EngramIndex.build(token_map, layers=(1, 14), sizes=(16_000_000,) * 3, heads=8, pad=pad_id, seed=0)
rows = index.rows(token_ids)                    # [layers, tokens, 3 * 8]
memory = EngramTable.load("layer1.engram").lookup(rows[0])
```
"""

from __future__ import annotations

from sparsekern.engram.index import EngramIndex as EngramIndex
from sparsekern.engram.table import EngramTable as EngramTable
from sparsekern.engram.tokens import compress_tokenizer as compress_tokenizer
from sparsekern.engram.tokens import compress_tokens as compress_tokens
