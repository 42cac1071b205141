from __future__ import annotations

import numpy as np
import pytest

from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.evaluation.text_evaluation import SPELLED_AT_ONCE, spell


@pytest.mark.parametrize("count", [0, 5, SPELLED_AT_ONCE, 2 * SPELLED_AT_ONCE + 1])
def test_the_bytes_of_a_text_are_those_of_its_tokens(count: int) -> None:
    tokenizer = load_tokenizer("gpt2")
    token_ids = np.random.default_rng(count).integers(0, 50_300, count, dtype=np.uint16)  # some are unknown

    assert spell(token_ids, tokenizer) == b"".join(tokenizer.token_bytes(one) for one in token_ids.tolist())
