from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_lightning.errors import InputError
from gpt_lightning.inference.kv_cache import KVCache
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.models.layers import QUERIES, ColumnMajorLinear, Dropout, causal_attention


def tiny(**settings: Any) -> GPT:
    torch.manual_seed(1)
    return GPT(
        GPTConfig(**{"vocab_size": 11, "context_length": 8, "emb_dim": 12, "n_heads": 3, "n_layers": 2, **settings})
    )


def plain_forward(model: GPT, token_ids: Tensor) -> Tensor:
    """An independent implementation of the network, with matrix products and masks only."""
    w = model.state_dict()
    T = token_ids.shape[1]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    x = w["tok_emb.weight"][token_ids] + w["pos_emb.weight"][torch.arange(T)]
    for i, block in enumerate(model.trf_blocks):
        p = f"trf_blocks.{i}"
        q, k, v = (norm(x, f"{p}.norm1") @ w[f"{p}.att.qkv.weight"].T).split(x.shape[-1], dim=-1)
        heads = []
        size = x.shape[-1] // block.att.n_heads
        for h in range(block.att.n_heads):
            part = slice(h * size, (h + 1) * size)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
            heads.append(torch.softmax(scores, -1) @ v[..., part])
        x = x + torch.cat(heads, -1) @ w[f"{p}.att.out_proj.weight"].T + w[f"{p}.att.out_proj.bias"]
        hidden = gelu(norm(x, f"{p}.norm2") @ w[f"{p}.ff.0.weight"].T + w[f"{p}.ff.0.bias"])
        x = x + hidden @ w[f"{p}.ff.2.weight"].T + w[f"{p}.ff.2.bias"]
    return norm(x, "final_norm") @ w["out_head.weight"].T


@pytest.mark.parametrize("tie_weights", [False, True])
def test_logits_equal_an_independent_formula(tie_weights: bool) -> None:
    model = tiny(tie_weights=tie_weights).eval()
    assert (model.out_head.weight is model.tok_emb.weight) == tie_weights
    token_ids = torch.randint(11, (2, 7))

    torch.testing.assert_close(model(token_ids), plain_forward(model, token_ids), rtol=1e-5, atol=1e-6)


def test_fused_projection_has_the_initial_weights_of_three_projections() -> None:
    torch.manual_seed(5)
    fused = nn.Linear(6, 18, bias=False)
    torch.manual_seed(5)
    three = [nn.Linear(6, 6, bias=False) for _ in range(3)]

    assert torch.equal(fused.weight, torch.cat([one.weight for one in three]))


def test_initial_weights_are_drawn_in_the_books_order() -> None:
    model = tiny()
    torch.manual_seed(1)
    book = [nn.Embedding(11, 12), nn.Embedding(8, 12)]
    for _ in range(2):
        book += [nn.Linear(12, 12, bias=False) for _ in range(3)] + [nn.Linear(12, 12)]
        book += [nn.Linear(12, 48), nn.Linear(48, 12)]
    book.append(nn.Linear(12, 11, bias=False))

    own = [model.tok_emb, model.pos_emb]
    for block in model.trf_blocks:
        own += [block.att.qkv, block.att.out_proj, block.ff[0], block.ff[2]]
    own.append(model.out_head)
    assert torch.equal(
        torch.cat([module.weight.flatten() for module in own]), torch.cat([module.weight.flatten() for module in book])
    )


def test_a_token_does_not_attend_to_later_tokens() -> None:
    model = tiny().eval()
    token_ids = torch.randint(11, (1, 8))
    changed = token_ids.clone()
    changed[0, 5:] = (changed[0, 5:] + 1) % 11

    assert torch.equal(model(token_ids)[:, :5], model(changed)[:, :5])
    assert not torch.equal(model(token_ids)[:, 5:], model(changed)[:, 5:])


def test_dropout_is_active_in_training_only() -> None:
    model = tiny(drop_rate=0.5)
    token_ids = torch.randint(11, (1, 8))

    assert not torch.equal(model.train()(token_ids), model(token_ids))
    assert torch.equal(model.eval()(token_ids), model(token_ids))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 1e-9, 1 - 1e-9])
def test_dropout_zeroes_a_share_and_scales_the_rest(rate: float) -> None:
    x = torch.full((300, 1001), 2.0, requires_grad=True)

    y = Dropout(rate)(x)
    y.sum().backward()

    kept = y != 0
    share = min(max(rate, 0.0), 65535 / 65536)
    assert kept.float().mean().item() == pytest.approx(
        1 - share, abs=4 * (share * (1 - share) / x.numel()) ** 0.5 + 2e-5
    )
    assert y[kept].unique().tolist() == pytest.approx([2 / (1 - share)] if kept.any() else [], rel=1e-4)
    assert torch.equal(x.grad * 2, y)  # the backward pass uses the same mask and scale
    assert torch.equal(Dropout(rate).eval()(x), x)


def test_activation_checkpointing_keeps_the_gradients() -> None:
    token_ids = torch.randint(11, (2, 8))
    gradients = []
    for recompute in (False, True):
        model = tiny(drop_rate=0.3)
        model.activation_checkpointing = recompute
        torch.manual_seed(2)
        model(token_ids).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])

    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.slow
def test_the_network_compiles_in_one_graph() -> None:
    """fullgraph=True: no part of the network falls back to Python."""
    model = tiny(drop_rate=0.3)
    token_ids = torch.randint(11, (2, 8))

    torch.compile(model, backend="aot_eager", fullgraph=True)(token_ids).mean().backward()
    torch.compiler.reset()

    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_network_runs_on_the_meta_device() -> None:
    model = tiny(drop_rate=0.3).to("meta")
    with torch.autocast("cuda", torch.bfloat16, enabled=False):
        logits = model(torch.zeros(2, 8, dtype=torch.long, device="meta"))
    logits.mean().backward()

    assert logits.shape == (2, 8, 11)


def test_dropout_masks_differ_between_calls_and_repeat_with_the_seed() -> None:
    x = torch.ones(999)
    torch.manual_seed(1)
    one, other = Dropout(0.5)(x), Dropout(0.5)(x)
    torch.manual_seed(1)

    assert torch.equal(Dropout(0.5)(x), one)
    assert 0.4 < (one == other).float().mean() < 0.6
    neighbours = torch.corrcoef(torch.stack([one[:-1], one[1:]]))  # their bits come from the same random word
    assert neighbours[0, 1].abs() < 4 / 999**0.5


@pytest.mark.parametrize("tokens", [1, 7, 2 * QUERIES, 2 * QUERIES + 1])
def test_causal_attention_equals_pytorchs_fused_attention(tokens: int) -> None:
    shape = (2, 3, tokens, 4)
    one = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    other = [x.detach().clone().requires_grad_() for x in one]
    upstream = torch.randn(shape)

    ours = causal_attention(*one, drop_rate=0.0)
    theirs = F.scaled_dot_product_attention(*other, is_causal=True)
    ours.backward(upstream)
    theirs.backward(upstream)

    torch.testing.assert_close(ours, theirs)
    for x, y in zip(one, other, strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)


def test_dropout_of_attention_weights_keeps_the_mean() -> None:
    queries, keys, values = torch.randn(3, 1, 2, 5, 8)
    values += 3
    mean = causal_attention(*(x.repeat(20_000, 1, 1, 1) for x in (queries, keys, values)), drop_rate=0.5).mean(0)

    torch.testing.assert_close(mean, causal_attention(queries, keys, values, 0.0)[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6)])
def test_column_major_linear_equals_pytorchs_linear(shape: tuple[int, ...], bias: bool) -> None:
    wide, plain = ColumnMajorLinear(6, 11, bias=bias), nn.Linear(6, 11, bias=bias)
    plain.load_state_dict(wide.state_dict())
    one = torch.randn(shape, requires_grad=True)
    other = one.detach().clone().requires_grad_()
    upstream = torch.randn(*shape[:-1], 11)

    ours, theirs = wide(one), plain(other)
    ours.backward(upstream)
    theirs.backward(upstream)

    assert ours.unflatten(0, (1, -1)).flatten(0, -2).T.is_contiguous()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(one.grad, other.grad)
    for x, y in zip(wide.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(x.grad, y.grad)


def test_logits_and_hidden_features_of_the_feed_forward_network_are_column_major() -> None:
    model = tiny()
    outputs: list[Tensor] = []
    model.trf_blocks[0].ff[0].register_forward_hook(lambda *given: outputs.append(given[-1]))
    outputs.append(model(torch.randint(11, (2, 5))))

    assert [one.shape for one in outputs] == [(2, 5, 48), (2, 5, 11)]
    assert all(one.flatten(0, 1).T.is_contiguous() for one in outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_dtype_and_masks_the_gradient_equally(dtype: torch.dtype) -> None:
    x = torch.ones(1000, dtype=dtype, requires_grad=True)

    dropped = Dropout(0.25)(x)
    dropped.sum().backward()

    assert dropped.dtype == dtype
    assert torch.equal(x.grad, dropped)
    assert torch.equal(dropped.unique(), torch.tensor([0, 4 / 3], dtype=dtype))


def test_logits_with_a_cache_equal_those_without() -> None:
    model = tiny().eval()
    token_ids = torch.randint(11, (3, 8))
    cache = KVCache(8)

    pieces = [model(token_ids[:, :4], cache)]
    pieces += [model(token_ids[:, i : i + 1], cache) for i in range(4, 8)]

    torch.testing.assert_close(torch.cat(pieces, 1), model(token_ids), rtol=1e-5, atol=1e-6)
    assert cache.lengths == [8, 8, 8]


def test_more_tokens_than_the_context_are_refused() -> None:
    model = tiny()
    cache = KVCache(9)
    model(torch.zeros(1, 8, dtype=torch.int64), cache)

    with pytest.raises(InputError, match=r"9 tokens do not fit into model.context_length \(8\)"):
        model(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(InputError, match=r"9 tokens do not fit into model.context_length \(8\)"):
        model(torch.zeros(1, 1, dtype=torch.int64), cache)


def test_gpt2_initialisation_has_its_standard_deviations() -> None:
    model = tiny(vocab_size=2000, emb_dim=96, n_layers=2, init="gpt2", qkv_bias=True)

    shortcut = 0.02 / math.sqrt(4)
    for block in model.trf_blocks:
        assert block.att.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.att.out_proj.weight.std().item() == pytest.approx(shortcut, rel=0.05)
        assert block.ff[2].weight.std().item() == pytest.approx(shortcut, rel=0.05)
        assert not block.att.qkv.bias.any()
        assert (block.norm1.weight == 1).all()
    assert model.tok_emb.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("vocab_size", 0, "model.vocab_size must be an int of at least 1, got 0"),
        ("context_length", -3, "model.context_length must be an int of at least 1, got -3"),
        ("n_layers", 0, "model.n_layers must be an int of at least 1, got 0"),
        ("n_heads", True, "model.n_heads must be an int of at least 1, got True"),
        ("emb_dim", 13, r"model.emb_dim \(13\) must be divisible by model.n_heads \(3\)"),
        ("drop_rate", 1.0, "model.drop_rate must be at least 0 and below 1, got 1.0"),
        ("drop_rate", math.nan, "model.drop_rate must be at least 0 and below 1, got nan"),
        ("init", "he", "model.init must be one of book, gpt2, got 'he'"),
    ],
)
def test_impossible_architectures_are_refused(setting: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(**{setting: value})
