"""Every family of import rules against torch itself, at sizes other than the traced ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ingot.errors import UnsupportedOp
from ingot.frontend.modules import import_module
from ingot.ir.interpret import run
from ingot.ir.text import parse_module, print_module

X, IDS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 3, 1, 2, 4], [5, 1, 0, 2, 3]])


class Wrapped(torch.nn.Module):
    """A function of x f32[B, S, 6] and i i64[B, S] (values 0 to 5) as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> Any:
        return self.function(x, i)


def check(function: Callable[..., Any], *, atol: float = 1e-6) -> None:
    model = Wrapped(function)
    module = import_module(model, {"x": X, "i": IDS}, dims={"x": ("B", "S", None), "i": ("B", "S")}, ranges={"S": (2, 64)})
    text = print_module(module)
    assert print_module(parse_module(text)) == text
    random = np.random.default_rng(1)
    x = random.standard_normal((3, 8, 6)).astype(np.float32)
    i = random.integers(0, 6, (3, 8))
    found = run(module, {"x": x, "i": i}, precision="declared")
    expected = model(torch.tensor(x), torch.tensor(i))
    expected = expected if isinstance(expected, tuple | list) else [expected]
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.dtype == b.numpy().dtype
        np.testing.assert_allclose(a, b.numpy(), atol=atol, rtol=1e-5)


ARITHMETIC = {
    "scalars": lambda x, i: 2 - x * 3 + 1.5 / (x * x + 1),
    "alpha": lambda x, i: torch.add(x, x * 2, alpha=3) - torch.sub(x, 2, alpha=2),
    "integers to floats": lambda x, i: i / 2 + x[..., 0] * i,
    "floor and remainder": lambda x, i: (i // 2, i % 4, torch.div(x, 0.3, rounding_mode="floor"), torch.remainder(x, 0.7)),
    "rounding towards zero": lambda x, i: (torch.div(x, 0.3, rounding_mode="trunc"), torch.trunc(x * 3), torch.fmod(x, 0.7),
                                         torch.div(i - 3, 2, rounding_mode="trunc"), torch.fmod(i - 3, 4)),
    "powers": lambda x, i: (x ** 2, x.abs() ** 0.5, 2.0 ** x, x.square(), torch.pow(x.abs() + 1, x)),
    "clamps": lambda x, i: (x.clamp(-0.5, 0.5), x.clamp(min=0.1), x.clamp(max=0.1), F.hardtanh(x), F.relu6(x * 9),
                            i.clamp(1, 3)),
    "min max": lambda x, i: (torch.maximum(x, -x), torch.minimum(x, x * 2), torch.clamp(x, min=x * 0.5)),
    "fused": lambda x, i: (torch.addcmul(x, x, x, value=0.5), torch.lerp(x, x * 2, 0.25), torch.addcdiv(x, x, x * x + 1)),
    "functions": lambda x, i: (x.exp(), (x.abs() + 1).log(), x.sin(), x.cos(), x.tanh(), x.sigmoid(), x.erf(),
                               x.sign(), x.floor(), x.ceil(), x.round(), (x.abs() + 0.1).rsqrt(), x.abs().log1p(), x.expm1(),
                               x.exp2(), (x.abs() + 0.1).log2(), (x.abs() + 0.1).reciprocal(), x.abs().sqrt(), torch.isnan(x / 0),
                               torch.isinf(x / 0)),
    "activations": lambda x, i: (F.silu(x), F.gelu(x), F.gelu(x, approximate="tanh"), F.leaky_relu(x, 0.2), F.elu(x),
                                 F.mish(x), F.softplus(x), F.softplus(x, beta=2.0), F.hardswish(x), F.hardsigmoid(x),
                                 F.logsigmoid(x), F.relu(x)),
    "compare": lambda x, i: (x > 0, x <= x * 2, i == 3, i != 2, x >= 0.5, (x > 0) & (x < 1), (x > 0) | (x < -1), ~(x > 0),
                             (x > 0) ^ (x < 1), torch.logical_not(i)),
    "choice": lambda x, i: (torch.where(x > 0, x, -1.0), x.masked_fill(x > 0, -9.0), torch.where(i > 2, i, 0)),
    "casts": lambda x, i: (x.to(torch.int32), i.float(), (x > 0).float(), x.double(), i.to(torch.bool), x.half().float()),
    "sizes": lambda x, i: x * x.shape[1] + torch.arange(x.shape[1])[:, None] / (x.shape[0] + 1),
}

LAYOUT = {
    "views": lambda x, i: (x.view(x.shape[0], -1), x.reshape(-1, 2, 3), x.flatten(1), x.unflatten(-1, (2, 3)),
                           x[None].squeeze(0)),
    "axes": lambda x, i: (x.transpose(1, 2), x.permute(2, 0, 1), x.mT, i.t(), x.swapaxes(0, -1)),
    "slices": lambda x, i: (x[:, 1:], x[:, :-1], x[..., ::2], x[:, -2:], x[:, 1:-1, 1:5:3], x[:, 0], x[:, -1], x[..., 2]),
    "expand": lambda x, i: (x[:, :, None].expand(-1, -1, 3, -1), x[:1].expand_as(x), torch.broadcast_to(x[..., :1], x.shape)),
    "repeat": lambda x, i: (x.repeat(1, 2, 1), x.repeat(2, 1, 1, 3), x.repeat_interleave(2, dim=1), x.tile(1, 2)),
    "split": lambda x, i: (*x.split(2, -1), *x.split([1, 5], -1), *x.chunk(3, -1), *x.unbind(-1)[:2]),
    "join": lambda x, i: (torch.cat([x, x * 2], 1), torch.stack([x, -x], -2), torch.cat([i, i.float()], 0), torch.cat([x])),
    "pad": lambda x, i: (F.pad(x, (1, 2)), F.pad(x, (0, 0, 1, -1), value=3.0), F.pad(x, (1, 1), mode="replicate"),
                         F.pad(x, (2, 1), mode="reflect")),
    "roll": lambda x, i: (x.roll(2, -1), x.roll((1, -1), (1, 2)), x.flip(1)),
    "triangles": lambda x, i: (x.tril(), x.triu(1), x.tril(-1)),
    "index": lambda x, i: (x[:, torch.tensor([1, 0])], x[..., i[0] % 6], x[torch.tensor([[0], [-1]]), torch.tensor([[1, 0, -2]])],
                           x[torch.tensor([0, -1]), :, torch.tensor([1, 2])]),
    "gather": lambda x, i: (x.gather(-1, i[..., None].expand(-1, -1, 2)), x.index_select(-1, torch.tensor([4, 0])),
                            x.scatter(-1, i[..., None].expand(-1, -1, 2), 7.0)),
    "embedding": lambda x, i: F.embedding(i, torch.arange(12.0).view(6, 2)),
    "make": lambda x, i: (torch.zeros_like(x), torch.ones(3, x.shape[1]), torch.full((2, 2), 7), x.new_full((x.shape[1],), 2.5),
                          torch.arange(1, 2 * x.shape[1], 2), torch.arange(0.0, 1.0, 0.25), torch.linspace(0, 1, 5)),
}

REDUCE = {
    "sums": lambda x, i: (x.sum(), x.sum(-1), x.mean((0, 2)), x.mean(-1, keepdim=True), i.sum(1), (x > 0).sum(-1)),
    "extremes": lambda x, i: (x.amax(-1), x.amin(1, keepdim=True), x.max(), *x.max(-1), *x.min(1, keepdim=True)),
    "positions": lambda x, i: (x.argmax(-1), x.argmin(1, keepdim=True), x.argmax()),
    "truth": lambda x, i: ((x > 0).any(), (x > 0).all(-1), (x > 0).any(1, keepdim=True)),
    "spread": lambda x, i: (x.var(-1), x.var(-1, correction=0, keepdim=True), x.std(1), x.norm(dim=-1), x.prod(-1)),
    "softmax": lambda x, i: (x.softmax(-1), x.log_softmax(1), i.float().softmax(0)),
    "scans": lambda x, i: (x.cumsum(1), i.cumsum(-1), (x > 0).cumsum(-1)),
    "order": lambda x, i: (*x.topk(2, -1), *x.sort(1), *x.sort(-1, descending=True), x.argsort(-1)),
}


def written(x: torch.Tensor) -> torch.Tensor:
    x[:, 1:] = x[:, :-1] * 2
    x[..., 2] = 0.0
    x[:, :, -2:] += 1.0
    return x


W = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
K = torch.randn(8, 3, 3, generator=torch.Generator().manual_seed(3))
NN = {
    "linear": lambda x, i: (F.linear(x, W), F.linear(x, W, W[:, 0]), F.linear(x, W[:1])),
    "matmul": lambda x, i: (x @ x.mT, x @ W.T, W @ x[0, 0], torch.einsum("bsd,od->bos", x, W), torch.bmm(x, x.mT)),
    "addmm": lambda x, i: (torch.addmm(W[:, 0], x[0], W.T, beta=0.5, alpha=2.0), torch.baddbmm(x[:, :, :1], x, x.mT)),
    "conv": lambda x, i: (F.conv1d(x.mT, W[:, :, None]), F.conv1d(x.mT, K.reshape(12, 2, 3), padding=1, stride=2, groups=3),
                          F.conv1d(x.mT, W[:, :, None].expand(-1, -1, 3), padding="same")),
    "pool": lambda x, i: (F.max_pool2d(x.reshape(-1, 1, 2, 3), 2, 1), F.avg_pool2d(x.reshape(-1, 1, 2, 3), 2, 1),
                          F.avg_pool2d(x.reshape(-1, 1, 2, 3), 2, 1, padding=1, count_include_pad=False),
                          F.adaptive_avg_pool2d(x.reshape(-1, 1, 2, 3), 1), F.adaptive_avg_pool2d(x.view(-1, 1, 6, 1), (3, 1)),
                          F.max_pool1d(x, 3, stride=1, padding=1)),
    "norms": lambda x, i: (F.layer_norm(x, (6,)), F.layer_norm(x, (6,), W[0], W[1]), F.rms_norm(x, (6,), W[0], 1e-3),
                           F.rms_norm(x, (6,)), F.group_norm(x.mT, 2, W[0], W[1])),
    "batch norm": lambda x, i: F.batch_norm(x.mT, W[0], W[1].abs() + 1, W[2], W[3], training=False),
    "attention": lambda x, i: (F.scaled_dot_product_attention(x, x, x), F.scaled_dot_product_attention(x, x, x, is_causal=True),
                               F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], scale=0.3),
                               F.scaled_dot_product_attention(x, x, x, attn_mask=(x @ x.mT) > -9)),
    "written into": lambda x, i: written(x.clone()),
    "in place": lambda x, i: (x + 1).add_(2).relu_().mul_(x),
    "dropout": lambda x, i: F.dropout(x, 0.5, training=False),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic(name: str) -> None:
    check(ARITHMETIC[name])


@pytest.mark.parametrize("name", LAYOUT)
def test_layout(name: str) -> None:
    check(LAYOUT[name])


@pytest.mark.parametrize("name", REDUCE)
def test_reductions(name: str) -> None:
    check(REDUCE[name])


@pytest.mark.parametrize("name", NN)
def test_layers(name: str) -> None:
    check(NN[name], atol=2e-6)


def test_an_op_without_a_rule_names_itself_its_line_and_where_to_add_one() -> None:
    with pytest.raises(UnsupportedOp) as caught:
        check(lambda x, i: torch.linalg.qr(x)[0])
    assert "aten.linalg_qr.default" in caught.value.message
    assert caught.value.where is not None
    assert caught.value.where.startswith("test_aten.py:")
    assert "frontend/aten" in (caught.value.hint or "")


def test_a_known_op_in_an_unknown_form_says_which_form() -> None:
    with pytest.raises(UnsupportedOp, match="bit operations on integers"):
        check(lambda x, i: i & 1)
