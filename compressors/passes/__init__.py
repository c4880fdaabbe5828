"""Compression passes, one file each: ``Options`` and ``apply(state, options, context) -> state``."""
