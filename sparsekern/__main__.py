"""`python -m sparsekern` is the `sparsekern` command."""

import sys

from sparsekern.cli import main

sys.exit(main())
