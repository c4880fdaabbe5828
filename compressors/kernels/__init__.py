"""Arithmetic that several passes share: tensors in, tensors out, no state and no progress."""
