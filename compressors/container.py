"""
Pack a model file so that it is small to download: a container (.ebz) as in Deep Compression.

Tensors that are sparse or have few values become gaps and numbers of a codebook, both in Huffman codes;
the rest of the file goes through the best of zlib, LZMA and Huffman. Lossless: the decoder on the device
(device_agents/container.py, CONTAINER.md) gives back the same bytes and checks their sha256. What a tensor
is in the file is found by content, so it works for every format; without tensors, parts that look like
weights are found in the file itself.
"""

from __future__ import annotations

import hashlib
import itertools
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy

from compressors import counting
from compressors.kernels import huffman
from device_agents import container as decoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compressors.state import State

    Array = NDArray[Any]

SUFFIX = ".ebz"
#: The step of a recipe that asks for a container of every exported file.
STEP = "huffman"
#: Bytes that a tensor is recognised by; a smaller one is left to the general coder. Also the words that are
#: looked at together when weights are searched without knowing any.
LOOK = 256
MOST_VALUES = 4096
INDEX_BITS = range(2, 11)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of a file that is coded as words: of *width* bytes, from *begin* to *end*."""

    begin: int
    end: int
    width: int


def pack(file: bytes, tensors: Sequence[Array] = ()) -> bytes:
    """
    The container of *file*; *tensors* are weights that may be in it, in any order of their dimensions.

    It may be bigger than *file*, if that holds nothing to gain: the caller decides what to do then.
    """
    coded: list[tuple[Span, bytes]] = []
    for span in _spans(file, tensors):
        content = file[span.begin : span.end]
        words = encode_words(numpy.frombuffer(content, dtype=f"<u{span.width}"), span.width)
        if _pays(words, content):
            coded.append((span, words))
    gaps = zip([0, *(s.end for s, _ in coded)], [*(s.begin for s, _ in coded), len(file)], strict=True)
    between = [file[begin:end] for begin, end in gaps]
    parts = [decoder.MAGIC, _number(len(file)), hashlib.sha256(file).digest(), _best(b"".join(between))]
    parts.append(_number(len(coded)))
    for before, (_, words) in zip(between, coded, strict=False):
        parts += [_number(len(before)), words]
    packed = b"".join(parts)
    if decoder.decode(packed) != file:
        raise AssertionError("the container does not give back its file")
    return packed


def tensors(state: State) -> list[Array]:
    """The weights of *state* as files may hold them."""
    found = [t.detach().numpy() for t in state.module.state_dict().values() if t.element_size() in (1, 2, 4)]
    if state.quantised is not None:
        for weight in counting.quantised_weights(state):
            if weight.codes is None or weight.bits > 8:
                continue
            codes = weight.codes.numpy()
            lows = (0, -(1 << weight.bits - 1), 1 - (1 << weight.bits - 1))
            found += [(codes + low).astype(numpy.uint8 if low == 0 else numpy.int8) for low in lows]
    return found


def stored_weights(state: State) -> list[Array]:
    """The weights of *state* once each, whole numbers where it is quantised."""
    if state.quantised is None:
        return [p.detach().numpy() for p in state.module.parameters()]
    return [
        w.exact.numpy()
        if w.codes is None
        else w.codes.numpy().astype(numpy.uint8 if w.bits <= 8 else numpy.uint16)
        for w in counting.quantised_weights(state)
    ]


def unpack(packed: bytes) -> bytes:
    """The file in a container, as the device decodes it."""
    found: bytes = decoder.decode(packed)
    return found


def _pays(words: bytes, content: bytes) -> bool:
    """Whether *words* are shorter than what the general coder makes of *content*; that one is slow."""
    quick = len(lzma.compress(content, preset=0))
    if len(words) < 0.7 * quick or len(words) > 1.2 * quick:
        return len(words) < quick
    return len(words) < len(_best(content))


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _best(content: bytes) -> bytes:
    """*content* in the shortest of the four codings, with its head."""
    size = _number(len(content))
    found = [bytes([decoder.RAW]) + size + content]
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    packed = deflate.compress(content) + deflate.flush()
    found.append(bytes([decoder.ZLIB]) + size + _number(len(packed)) + packed)
    if content:
        packed = _lzma(content)
        found.append(bytes([decoder.LZMA]) + size + _number(len(packed)) + packed)
        coded = encode_symbols(numpy.frombuffer(content, dtype=numpy.uint8), 256)
        found.append(bytes([decoder.HUFFMAN]) + size + coded)
    return min(found, key=len)


def _lzma(content: bytes) -> bytes:
    """LZMA2 without a header, with the settings that suit text or words of 4 bytes, whichever is shorter."""
    logarithm = min(max(12, (len(content) - 1).bit_length()), 26)
    found = []
    for lc, lp in ((3, 0), (0, 2)):
        options = {"lc": lc, "lp": lp, "dict_size": 1 << logarithm, "preset": 9 | lzma.PRESET_EXTREME}
        filters = [{"id": lzma.FILTER_LZMA2, **options}]
        found.append(lzma.compress(content, lzma.FORMAT_RAW, filters=filters))
    return bytes([logarithm]) + min(found, key=len)


def encode_symbols(symbols: Array, alphabet: int) -> bytes:
    """*symbols* below *alphabet* in a Huffman code of their own, with its table."""
    bits = huffman.lengths(numpy.bincount(symbols, minlength=alphabet))
    used = numpy.flatnonzero(bits)
    bits = bits[: int(used[-1]) + 1] if len(used) else bits[:0]
    halves = numpy.append(bits, 0)[: len(bits) + len(bits) % 2].reshape(-1, 2)
    table: bytes = (halves[:, 0] << 4 | halves[:, 1]).astype(numpy.uint8).tobytes()
    packed = huffman.pack(symbols, bits) if len(used) > 1 else b""
    return b"".join([_number(len(bits)), table, _number(len(packed)), packed])


def encode_words(words: Array, width: int) -> bytes:
    """One tensor: as gaps between what is not its most frequent word, or word by word; the shorter one."""
    values, counts = numpy.unique(words, return_counts=True)
    fill = values[counts.argmax()]
    head = _number(len(words)) + int(fill).to_bytes(width, "little")
    places = numpy.flatnonzero(words != fill)
    bits = _index_bits(places)
    symbols = gaps(places, bits)
    sparse = bytes([width, bits]) + head + _number(len(symbols)) + encode_symbols(symbols, 1 << bits)
    found = [sparse + _number(len(places)) + _values(words[places], width)]
    if len(values) <= MOST_VALUES:
        found.append(bytes([width, 0]) + head + _values(words, width))
    return min(found, key=len)


def gaps(places: Array, bits: int) -> Array:
    """
    Ascending *places* as symbols of *bits* bits: s below 2^bits - 1 skips s places and then takes one.

    The largest symbol skips as many places as it says and takes none (Han 2016 puts a zero there instead).
    """
    most = (1 << bits) - 1
    steps = numpy.diff(places, prepend=-1) - 1
    extra = steps // most
    found = numpy.full(len(places) + int(extra.sum()), most, dtype=numpy.int64)
    found[numpy.cumsum(extra + 1) - 1] = steps % most
    return found


def _index_bits(places: Array) -> int:
    """The number of index bits that makes the gaps shortest, tables included."""

    def cost(bits: int) -> int:
        counts = numpy.bincount(gaps(places, bits), minlength=1 << bits)
        return huffman.packed_bits(counts) + 4 * (int(counts.nonzero()[0].max(initial=-1)) + 1)

    return min(INDEX_BITS, key=cost)


def _values(words: Array, width: int) -> bytes:
    """Words as numbers of a codebook where there are few different ones, else byte by byte."""
    values, numbers = numpy.unique(words, return_inverse=True)
    found = []
    if 0 < len(values) <= MOST_VALUES:
        book = values.astype(f"<u{width}").tobytes()
        found.append(_number(len(values)) + book + encode_symbols(numbers, len(values)))
    if not found or len(found[0]) > len(words) * width // 4:
        planes = words.astype(f"<u{width}").view(numpy.uint8).reshape(-1, width)
        found.append(_number(0) + b"".join(_best(planes[:, i].tobytes()) for i in range(width)))
    return min(found, key=len)


def _spans(file: bytes, tensors: Iterable[Array]) -> list[Span]:
    """Parts that are words, in order: where *tensors* are, and what looks like weights between those."""
    found: list[Span] = []
    for tensor in sorted(tensors, key=lambda t: -t.nbytes):
        for content in _layouts(tensor):
            for begin in _places(file, content):
                span = Span(begin=begin, end=begin + len(content), width=tensor.itemsize)
                if all(span.end <= other.begin or other.end <= span.begin for other in found):
                    found.append(span)
    found.sort(key=lambda span: span.begin)
    begins, ends = [0, *(s.end for s in found)], [*(s.begin for s in found), len(file)]
    between = [s for b, e in zip(begins, ends, strict=True) for s in _weights_in(file, b, e)]
    return sorted([*found, *between], key=lambda span: span.begin)


def _places(file: bytes, content: bytes) -> Iterator[int]:
    """
    Where *content* is in *file*.

    Looked for by its part with the fewest zeros: searching for a long run of zeros takes minutes.
    """
    filled = numpy.concatenate([[0], numpy.cumsum(numpy.frombuffer(content, dtype=numpy.uint8) != 0)])
    anchor = int((filled[LOOK:] - filled[:-LOOK]).argmax())
    part = content[anchor : anchor + LOOK]
    at = file.find(part, anchor)
    while at >= 0:
        if file.startswith(content, at - anchor):
            yield at - anchor
        at = file.find(part, at + 1)


def _layouts(tensor: Array) -> Iterator[bytes]:
    """The bytes of *tensor* with its dimensions in every order that makes a difference."""
    if tensor.nbytes < LOOK or tensor.itemsize not in (1, 2, 4):
        return
    seen: set[bytes] = set()
    orders = itertools.permutations(range(tensor.ndim)) if tensor.ndim <= 4 else [tuple(range(tensor.ndim))]
    for order in orders:
        content = numpy.ascontiguousarray(tensor.transpose(order)).tobytes()
        if content not in seen:
            seen.add(content)
            yield content


def _weights_in(file: bytes, begin: int, end: int) -> Iterator[Span]:
    """Runs of 4-byte words between *begin* and *end* with many zeros or few values, whatever they are."""
    best: list[Span] = []
    for shift in range(4):
        first = begin + shift
        blocks = (end - first) // (4 * LOOK)
        if blocks < 1:
            continue
        words = numpy.frombuffer(file, dtype="<u4", count=blocks * LOOK, offset=first).reshape(blocks, LOOK)
        different = (numpy.diff(numpy.sort(words, axis=1), axis=1) != 0).sum(1) + 1
        zeros = (words == 0).mean(1)
        edges = numpy.flatnonzero(numpy.diff(numpy.r_[0, (different <= LOOK // 4) | (zeros >= 0.4), 0]))
        spans = [
            Span(begin=first + 4 * LOOK * int(a), end=first + 4 * LOOK * int(b), width=4)
            for a, b in edges.reshape(-1, 2)
        ]
        best = max(best, spans, key=lambda found: sum(s.end - s.begin for s in found))
    yield from best
