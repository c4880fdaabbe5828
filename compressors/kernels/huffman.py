"""Canonical Huffman codes of at most 15 bits: lengths, codes, packed bits."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST = 15


def lengths(counts: NDArray[Any]) -> NDArray[Any]:
    """
    Bits of each symbol's code for symbols that occur *counts* times; 0 for those that do not occur.

    A code that would be longer than 15 bits is made shorter by halving the counts until none is.
    """
    counts = numpy.asarray(counts, dtype=numpy.int64)
    found = numpy.zeros(len(counts), dtype=numpy.int64)
    used = numpy.flatnonzero(counts)
    if len(used) < 2:
        found[used] = 1
        return found
    weights = counts[used]
    while True:
        found[used] = _tree(weights.tolist())
        if found.max() <= LONGEST:
            return found
        weights = numpy.maximum(weights >> 1, 1)


def _tree(weights: list[int]) -> list[int]:
    """The depth of every leaf in Huffman's tree; of equal weights the earlier made are joined first."""
    heap = [(weight, i) for i, weight in enumerate(weights)]
    heapq.heapify(heap)
    parents = [0] * (2 * len(weights) - 1)
    for new in range(len(weights), len(parents)):
        (a, one), (b, two) = heapq.heappop(heap), heapq.heappop(heap)
        parents[one] = parents[two] = new
        heapq.heappush(heap, (a + b, new))
    depths = [0] * len(parents)
    for node in range(len(parents) - 2, -1, -1):
        depths[node] = depths[parents[node]] + 1
    return depths[: len(weights)]


def codes(bits: NDArray[Any]) -> NDArray[Any]:
    """The canonical codes for lengths *bits*: short ones first, equal ones in the order of their symbols."""
    found = numpy.zeros(len(bits), dtype=numpy.int64)
    code = 0
    for length in range(1, int(bits.max(initial=0)) + 1):
        code <<= 1
        for symbol in numpy.flatnonzero(bits == length):
            found[symbol] = code
            code += 1
    return found


def pack(symbols: NDArray[Any], bits: NDArray[Any]) -> bytes:
    """The codes of *symbols* one behind the other, high bits first, filled with zeros to whole bytes."""
    table = codes(bits)
    own, words = bits[symbols], table[symbols]
    total = int(own.sum())
    ends = numpy.cumsum(own)
    at = numpy.arange(total) - numpy.repeat(ends - own, own)  # 0 is the highest bit of a code
    planes = numpy.repeat(words, own) >> (numpy.repeat(own, own) - 1 - at) & 1
    return numpy.packbits(planes.astype(numpy.uint8)).tobytes()


def packed_bits(counts: NDArray[Any]) -> int:
    """How many bits symbols that occur *counts* times need, without the table of lengths."""
    return int((counts * lengths(counts)).sum())
