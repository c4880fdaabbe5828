"""Pack every exported file for download (gaps, codebooks, Huffman codes); the device unpacks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressors import options as shared

if TYPE_CHECKING:
    from compressors.state import Context, State

NEEDS = ()
BREAKS = ()


class Options(shared.PassOptions):
    """Options of huffman: there is nothing to choose, every tensor gets the coding that is shortest."""


def apply(state: State, options: Options, context: Context) -> State:
    """The same model; the note says what its weights come to. Files are packed when they are exported."""
    import dataclasses
    import gzip
    import lzma

    from compressors import container, counting

    weights = container.stored_weights(state)
    content = b"".join(weight.tobytes() for weight in weights)
    packed = len(container.pack(content, weights))
    exact = 4 * counting.parameters(state.module)
    others = f"gzip -9 {len(gzip.compress(content, 9)):,}, xz {len(lzma.compress(content, preset=9)):,}"
    note = f"weights: {packed:,} bytes packed, {exact / packed:.1f}x smaller than as fp32 ({others})"
    return dataclasses.replace(state, note=note)
