#!/usr/bin/env python3
"""Unpack a model file from its container (.ebz, CONTAINER.md) on this device and tell how long it took."""

import hashlib
import json
import os
import sys
import time
import zlib
from array import array

try:
    import numpy
except ImportError:  # many times slower, but a device without numpy can still unpack
    numpy = None

MAGIC = b"EBZ1"
RAW, ZLIB, LZMA, HUFFMAN = range(4)
LONGEST = 15  # bits of a code
BLOCK = 1 << 15  # bytes that are decoded at once: what numpy needs for it fits into caches


class Damaged(Exception):
    """What is wrong with a container, as a sentence."""


class Reader:
    """The bytes of a container, read from the front."""

    def __init__(self, data):
        self.data, self.at = memoryview(data), 0

    def take(self, count):
        """The next *count* bytes."""
        if count > len(self.data) - self.at:
            raise Damaged("The container ends too early.")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, most=1 << 40):
        """A whole number up to *most* in 7-bit groups, the lowest first."""
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            shift += 7
            if value > most or shift > 63:
                raise Damaged("The container holds a number that is too large.")
            if byte < 128:
                return value


def decode(data):
    """The file in the container *data*, verified by its sha256; Damaged if it cannot be had."""
    reader = Reader(data)
    if bytes(reader.take(4)) != MAGIC:
        raise Damaged("The file is no container: it does not begin with EBZ1.")
    size, digest = reader.number(), bytes(reader.take(32))
    rest = Reader(stored(reader, size))
    parts, left = [], size
    for _ in range(reader.number()):
        parts.append(rest.take(reader.number()))
        parts.append(words(reader, left))
        left = size - sum(map(len, parts))
    parts.append(rest.take(len(rest.data) - rest.at))
    if reader.at != len(reader.data):
        raise Damaged("The container goes on after its end.")
    file = b"".join(parts)
    if len(file) != size or hashlib.sha256(file).digest() != digest:
        raise Damaged("The decoded file is not the one that was packed: its sha256 differs.")
    return file


def stored(reader, most):
    """A run of bytes in one of four codings, at most *most* long."""
    (kind,), size = reader.take(1), reader.number()
    if size > most:
        raise Damaged("The container holds more than its file.")
    if kind == RAW:
        return reader.take(size)
    if kind == HUFFMAN:
        return as_bytes(symbols(reader, size))
    packed = bytes(reader.take(reader.number()))
    if kind == ZLIB:
        found = unzlib(packed, size)
    elif kind == LZMA:
        found = unlzma(packed, size)
    else:
        raise Damaged(f"The container has a coding {kind} that this decoder does not know.")
    if len(found) != size:
        raise Damaged("A part of the container does not have its length.")
    return found


def as_bytes(numbers):
    """Symbols as bytes."""
    try:
        return bytes(numbers.tolist())
    except ValueError:
        raise Damaged("The container holds a symbol that is no byte.")


def unlzma(packed, size):
    """LZMA2 without a header; the first byte is the logarithm of the dictionary's size."""
    try:
        import lzma
    except ImportError:
        raise Damaged("This Python has no lzma module, which the container needs.")
    if not packed or not 12 <= packed[0] <= 30:
        raise Damaged("The container asks for a dictionary of an impossible size.")
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << packed[0]}]
    try:
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters).decompress(packed[1:], size + 1)
    except lzma.LZMAError as error:
        raise Damaged(f"A part of the container is damaged: {error}.")


def unzlib(packed, size):
    """Deflate without a header."""
    try:
        return zlib.decompressobj(-15).decompress(packed, size + 1)
    except zlib.error as error:
        raise Damaged(f"A part of the container is damaged: {error}.")


def words(reader, most):
    """
    One tensor: words of 1, 2 or 4 bytes, most of them equal (sparse), or few different ones, or both.

    With index bits b the other words are told by gaps: a symbol s below 2^b - 1 is s fill words and then one
    of the others, 2^b - 1 is that many fill words alone. Without index bits every word is told.
    """
    width, bits = reader.take(2)
    count = reader.number()
    if width not in (1, 2, 4) or count * width > most or bits > LONGEST:
        raise Damaged("A tensor of the container does not fit into its file.")
    fill = bytes(reader.take(width))
    gaps = symbols(reader, reader.number(2 * count + 1)) if bits else None
    told = reader.number(count) if bits else count
    entries = reader.number(1 << LONGEST)
    if entries:
        values = looked_up(bytes(reader.take(entries * width)), symbols(reader, told), width)
    else:
        values = interleaved([stored(reader, told) for _ in range(width)], told)
    return scattered(gaps, (1 << bits) - 1, values, fill, count) if bits else values


def symbols(reader, count):
    """*count* symbols of a canonical Huffman code: a length of 4 bits per symbol, then the codes."""
    size = reader.number(1 << LONGEST)
    lengths = [half for byte in reader.take((size + 1) // 2) for half in (byte >> 4, byte & 15)][:size]
    data = reader.take(reader.number())
    longest = max(lengths, default=0)
    if sum(1 << longest >> length for length in lengths if length) != 1 << longest:
        if sum(map(bool, lengths)) == 1:
            return repeated(lengths.index(longest), count)
        if count:
            raise Damaged("A code of the container is not complete.")
    if not count:
        return array("H")
    table = []  # what the next bits mean: symbol * 16 + length
    for length in range(1, longest + 1):
        for symbol, own in enumerate(lengths):
            if own == length:
                table += [symbol << 4 | length] * (1 << longest >> length)
    if count > len(data) * 8:
        raise Damaged("The container ends too early.")
    return (with_numpy if numpy else alone)(table, longest, data, count)


def alone(table, longest, data, count):
    """The symbols, decoded one after the other."""
    found, kept, bits, at, mask = array("H"), 0, 0, 0, (1 << longest) - 1
    data = bytes(data) + bytes(3)
    try:
        for _ in range(count):
            while bits < longest:
                kept, bits, at = kept << 8 | data[at], bits + 8, at + 1
            entry = table[kept >> bits - longest & mask]
            found.append(entry >> 4)
            bits -= entry & 15
            kept &= (1 << bits) - 1
    except IndexError:
        raise Damaged("The container ends too early.")
    return found


def with_numpy(table, longest, data, count):
    """
    The symbols: what a code that begins at any bit would mean is looked up for all bits at once.

    Only the walk from each code to the next is Python, one addition per symbol.
    """
    meaning = numpy.array(table, dtype=numpy.uint32)
    bytes_ = numpy.frombuffer(bytes(data) + bytes(3), dtype=numpy.uint8).astype(numpy.uint32)
    shifts = numpy.arange(24 - longest, 16 - longest, -1, dtype=numpy.uint32)
    found, at, left = [], 0, count
    for begin in range(0, len(data), BLOCK):
        part = bytes_[begin : min(begin + BLOCK, len(data)) + 2]
        three = part[:-2] << 16 | part[1:-1] << 8 | part[2:]
        entries = meaning[three[:, None] >> shifts & (1 << longest) - 1].ravel()
        steps, end, places = (entries & 15).tolist(), len(entries), []
        add = places.append
        while at < end:
            add(at)
            at += steps[at]
        at -= end
        found.append((entries[places[:left]] >> 4).astype(numpy.uint16))
        left -= len(found[-1])
        if not left:
            return numpy.concatenate(found)
    raise Damaged("The container ends too early.")


def repeated(symbol, count):
    """*count* times the only symbol of a code."""
    return numpy.full(count, symbol, dtype=numpy.uint16) if numpy else array("H", [symbol]) * count


def looked_up(book, numbers, width):
    """The words of *book* that *numbers* say, as bytes."""
    if len(numbers) and int(numpy.max(numbers) if numpy else max(numbers)) * width >= len(book):
        raise Damaged("A tensor of the container has a number without a value.")
    if numpy:
        return numpy.frombuffer(book, dtype=f"V{width}")[numbers].tobytes()
    entries = [book[i : i + width] for i in range(0, len(book), width)]
    return b"".join([entries[number] for number in numbers])


def interleaved(planes, count):
    """Words from their first bytes, their second bytes and so on."""
    found = bytearray(count * len(planes))
    for i, plane in enumerate(planes):
        if len(plane) != count:
            raise Damaged("A tensor of the container does not have its size.")
        found[i :: len(planes)] = plane
    return bytes(found)


def scattered(gaps, most, values, fill, count):
    """*count* words: *values* at the places that *gaps* tell, *fill* everywhere else."""
    width = len(fill)
    if numpy:
        gaps = numpy.asarray(gaps, dtype=numpy.int64)
        places = (numpy.cumsum(gaps + (gaps < most)) - 1)[gaps < most]
    else:
        at, places = -1, []
        for gap in gaps:
            at += gap + (gap < most)
            if gap < most:
                places.append(at)
    if len(places) * width != len(values) or (len(places) > 0 and places[-1] >= count):
        raise Damaged("A tensor of the container has more values than places.")
    found = bytearray(fill * count)
    if numpy:
        kind = f"V{width}"
        numpy.frombuffer(found, dtype=kind)[places] = numpy.frombuffer(values, dtype=kind)
        return found
    for i, place in enumerate(places):
        found[place * width : (place + 1) * width] = values[i * width : (i + 1) * width]
    return found


def unpack(source, target):
    """Decode the container *source* into the file *target*, whole or not at all; (its bytes, the file's)."""
    with open(source, "rb") as file:
        data = file.read()
    found = decode(data)
    fresh = f"{target}.{os.getpid()}.part"
    try:
        with open(fresh, "wb") as file:
            file.write(found)
        os.replace(fresh, target)
    finally:
        if os.path.exists(fresh):
            os.unlink(fresh)
    return len(data), len(found)


def send(event, **fields):
    """One event of PROTOCOL.md."""
    print(json.dumps({"event": event, **fields}, separators=(",", ":")), flush=True)


def main(argv):
    """``container=PATH model=PATH``: unpack the one into the other."""
    send("hello", protocol=1, agent="container", pid=os.getpid(), runtime=None, version=None)
    try:
        args = dict(item.partition("=")[::2] for item in argv)
        if set(args) != {"container", "model"}:
            raise ValueError("expected container=PATH and model=PATH")
        begin = time.perf_counter_ns()
        packed, size = unpack(args["container"], args["model"])
        send("span", name="decode", ns=time.perf_counter_ns() - begin)
        send("fact", name="container_bytes", value=packed)
        send("fact", name="model_bytes", value=size)
        send("fact", name="decoder", value="numpy" if numpy else "python")
    except Exception as error:
        sys.excepthook(*sys.exc_info())
        status = "load_failed" if isinstance(error, Damaged) else "agent_failed"
        send("error", stage="decode", status=status, message=" ".join(str(error).split())[:400])
        return 1
    send("end", status="ok")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
