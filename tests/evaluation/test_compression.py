from __future__ import annotations

import gzip
import lzma

import pytest

from gpt_lightning.evaluation import compression
from gpt_lightning.evaluation.compression import compressed_bits_per_byte

TRAINING = b"The lamp burned low over the water, and nobody came. " * 30
TEXT = b"Nobody came over the water. The lamp burned."


def test_sizes_alone_and_given_the_training_text() -> None:
    found = compressed_bits_per_byte(TEXT, TRAINING)

    for name, compress in (
        ("gzip", lambda data: gzip.compress(data, 9, mtime=0)),
        ("xz", lambda data: lzma.compress(data, preset=9)),
    ):
        alone, more = len(compress(TEXT)), len(compress(TRAINING + TEXT)) - len(compress(TRAINING))
        assert found[name] == pytest.approx(8 * alone / len(TEXT))
        assert found[f"{name}_given_training"] == pytest.approx(8 * more / len(TEXT))
        assert more < alone


def test_without_a_training_text_and_with_texts_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = compressed_bits_per_byte(TEXT, None)
    assert (alone["gzip_given_training"], alone["xz_given_training"]) == (None, None)

    monkeypatch.setattr(compression, "MOST_BYTES", len(TEXT))
    assert compressed_bits_per_byte(TEXT, TRAINING) == alone
    assert set(compressed_bits_per_byte(TEXT + b".", None).values()) == {None}
