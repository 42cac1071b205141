"""Sizes of a text compressed by gzip and xz, as baselines in bits per byte."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": lambda data: lzma.compress(data, preset=9),
}
MOST_BYTES = 64_000_000  # takes xz about a minute


def compressed_bits_per_byte(text: bytes, training: bytes | None) -> dict[str, float | None]:
    """Return the size of a text under each compressor, in bits per byte.

    Given the training text, the size is C(training + text) - C(training), where C is the compressed size. gzip looks
    back 32 kB only, xz over all of it.

    Args:
        text: The evaluated text, at least one byte.
        training: The training text; None if it is not there.

    Returns:
        "gzip", "xz", "gzip_given_training" and "xz_given_training"; None where there is no training text, and for texts
        of more than 64 MB.
    """
    found: dict[str, float | None] = {}
    for name, compress in COMPRESSORS.items():
        is_small = len(text) <= MOST_BYTES
        found[name] = 8 * len(compress(text)) / len(text) if is_small else None
    for name, compress in COMPRESSORS.items():
        is_small = training is not None and len(training) + len(text) <= MOST_BYTES
        if training is None or not is_small:
            found[f"{name}_given_training"] = None
        else:
            more = len(compress(training + text)) - len(compress(training))
            found[f"{name}_given_training"] = 8 * more / len(text)
    return found
