"""Engines that run on sparsekern; each module needs its engine installed, and none is imported for you."""
