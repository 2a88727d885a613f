"""Every op's reference equals what torch computes in float64, at several sizes of the dynamic dims."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ingot.ir.formats.grid import NORMAL_FLOAT
from ingot.ir.formats.scaling import dynamic_map
from ingot.ir.interpret import run
from ingot.ir.op import OPS, Op
from ingot.testing import Example, difference, examples, sizes_for

Oracle = Callable[..., Any]


def _unary(fn: Callable[[torch.Tensor], torch.Tensor]) -> Oracle:
    return lambda o, *xs: fn(*xs)


def _reduce(fn: Callable[..., Any]) -> Oracle:
    """Torch reduces one axis at a time in some functions; so does this."""
    def oracle(o: Any, x: torch.Tensor) -> torch.Tensor:
        for axis in sorted((a % x.ndim for a in o.axis), reverse=True):
            x = fn(x, dim=axis, keepdim=o.keep)
        return x
    return oracle


def _pair(padding: tuple[int, ...]) -> list[int]:
    """Padding (before..., after...) as torch.nn.functional.pad takes it: last axis first."""
    n = len(padding) // 2
    return [p for i in reversed(range(n)) for p in (padding[i], padding[n + i])]


def _conv(o: Any, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    fn = [F.conv1d, F.conv2d, F.conv3d][w.ndim - 3]
    return fn(F.pad(x, _pair(o.padding)), w, bias, o.stride, 0, o.dilation, o.groups)


def _max_pool(o: Any, x: torch.Tensor) -> torch.Tensor:
    fn = [F.max_pool1d, F.max_pool2d][len(o.kernel) - 1]
    return fn(F.pad(x, _pair(o.padding), value=-torch.inf), o.kernel, o.stride, 0, ceil_mode=o.ceil)


def _avg_pool(o: Any, x: torch.Tensor) -> torch.Tensor:
    n = len(o.kernel)
    assert o.padding[:n] == o.padding[n:], "torch pads both sides alike"
    fn: Any = [F.avg_pool1d, F.avg_pool2d][n - 1]
    return fn(x, o.kernel, o.stride, o.padding[:n], ceil_mode=o.ceil, count_include_pad=o.count_padding)


def _pad(o: Any, x: torch.Tensor) -> torch.Tensor:
    pads = [p for i in reversed(range(x.ndim)) for p in o.pads[2 * i:2 * i + 2]]
    if o.mode == "constant":
        return F.pad(x, pads, value=o.value)
    return F.pad(x, pads[:2], mode=o.mode)  # the examples pad the last axis alone, as torch does in these modes


def _pick(o: Any, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    x = x.expand(index.shape[0], *x.shape[1:])
    return torch.stack([row.index_select(o.axis - 1, i) for row, i in zip(x, index)])


def _take(o: Any, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    axis = o.axis % x.ndim
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1:])


def _dequantize(o: Any, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None,
                tensor_scale: torch.Tensor | None, offset: torch.Tensor | None) -> torch.Tensor:
    middle = {"int8": 128, "int4": 8, "int3": 4, "nvfp4": 0, "nf4": None}[o.format]
    rows, size = packed.shape
    out = torch.empty(rows, size, dtype=torch.float64)
    for r in range(rows):
        for i in range(size):
            g, row = i // o.group, r if len(scale) > 1 else 0
            step = float(scale[row, g]) if offset is None else float(dynamic_map()[int(scale[row, g])])
            if tensor_scale is not None:
                step = step * (tensor_scale[(row * scale.shape[1] + g) // 256] if tensor_scale.ndim else tensor_scale)
            step = step if offset is None else step + offset
            value = NORMAL_FLOAT[int(packed[r, i])] if middle is None else packed[r, i] - (
                middle if zero is None else zero[row, g])
            out[r, i] = float(value) * float(step)
    return out


def _cache_write(o: Any, cache: torch.Tensor, new: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
    out = cache.clone()
    for b in range(new.shape[0]):
        for s in range(new.shape[2]):
            out[b, :, pos[b, s]] = new[b, :, s]
    return out


def _rope(o: Any, x: torch.Tensor, pos: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """Each pair of features is a complex number, turned by its angle."""
    half, out = len(inv_freq), x.clone()
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if o.interleaved else (i, i + half)
        angle = pos[:, None, :] * inv_freq[i]
        turn = o.scale * torch.complex(angle.cos(), angle.sin())
        turned = torch.complex(x[..., a], x[..., b]) * turn
        out[..., a], out[..., b] = turned.real, turned.imag
    return out


def _attention(o: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pos: Any, mask: Any, bias: Any,
               sinks: Any) -> torch.Tensor:
    """One query and one key at a time, as the class describes it."""
    (B, H, S, _), (_, G, T, E) = q.shape, v.shape
    bias = torch.zeros(B, H, S, T, dtype=torch.float64) if bias is None else bias.expand(B, H, S, T)
    out = torch.zeros(B, H, S, E, dtype=torch.float64)
    for b, h, i in np.ndindex(B, H, S):
        at = i if pos is None else int(pos[b if len(pos) > 1 else 0, i])
        top, total = torch.zeros(E, dtype=torch.float64), 0.0 if sinks is None else float(sinks[h].exp())
        for j in range(T):
            hidden = ((o.causal and j > at) or (o.window is not None and abs(at - j) >= o.window)
                      or (mask is not None and not mask[b if len(mask) > 1 else 0, j]))
            if hidden:
                continue
            score = o.scale * float(q[b, h, i] @ k[b, h // (H // G), j])
            if o.softcap is not None:
                score = o.softcap * float(np.tanh(score / o.softcap))
            weight = float(np.exp(score + float(bias[b, h, i, j])))
            total, top = total + weight, top + weight * v[b, h // (H // G), j]
        out[b, h, i] = top / total if total else top
    return out


ORACLES: dict[str, Oracle] = {
    "add": lambda o, x, y: x + y, "sub": lambda o, x, y: x - y, "mul": lambda o, x, y: x * y, "div": lambda o, x, y: x / y,
    "floordiv": lambda o, x, y: torch.floor_divide(x, y), "mod": lambda o, x, y: torch.remainder(x, y),
    "pow": _unary(torch.pow), "maximum": _unary(torch.maximum), "minimum": _unary(torch.minimum), "neg": _unary(torch.neg),
    "abs": _unary(torch.abs), "sign": _unary(torch.sign), "exp": _unary(torch.exp), "log": _unary(torch.log),
    "sqrt": _unary(torch.sqrt), "rsqrt": _unary(torch.rsqrt), "reciprocal": _unary(torch.reciprocal), "sin": _unary(torch.sin),
    "cos": _unary(torch.cos), "erf": _unary(torch.erf), "floor": _unary(torch.floor), "ceil": _unary(torch.ceil),
    "round": _unary(torch.round), "clamp": lambda o, x: torch.clamp(x, o.least, o.greatest),
    "sigmoid": _unary(torch.sigmoid), "tanh": _unary(torch.tanh), "relu": _unary(F.relu),
    "leaky_relu": lambda o, x: F.leaky_relu(x, o.slope), "elu": lambda o, x: F.elu(x, o.alpha), "silu": _unary(F.silu),
    "gelu": lambda o, x: x * torch.sigmoid(1.702 * x) if o.approximate == "sigmoid" else F.gelu(x, approximate=o.approximate),
    "softplus": _unary(F.softplus), "hardsigmoid": _unary(F.hardsigmoid), "hardswish": _unary(F.hardswish),
    "eq": _unary(torch.eq), "ne": _unary(torch.ne), "lt": _unary(torch.lt), "le": _unary(torch.le), "gt": _unary(torch.gt),
    "ge": _unary(torch.ge), "and": _unary(torch.logical_and), "or": _unary(torch.logical_or), "not": _unary(torch.logical_not),
    "isnan": _unary(torch.isnan), "where": _unary(torch.where),
    "cast": lambda o, x: x.to({"f64": torch.float64, "f32": torch.float64, "i64": torch.int64, "bool": torch.bool}[o.dtype.name]),
    "reshape": lambda o, x: x.reshape(o.shape), "transpose": lambda o, x: x.permute(o.perm),
    "expand": lambda o, x: x.expand(o.shape),
    "slice": lambda o, x: x.index_select(o.axis, torch.arange(o.start, o.stop, o.step)),
    "concat": lambda o, xs: torch.cat(xs, o.axis), "split": lambda o, x: x.split(o.sizes, o.axis), "pad": _pad,
    "take": _take, "pick": _pick, "take_along": lambda o, x, index: torch.gather(x, o.axis, index),
    "flip": lambda o, x: x.flip(o.axes_), "triangle": lambda o, x: (torch.triu if o.upper else torch.tril)(x, o.diagonal),
    "sum": lambda o, x: x.sum(o.axis, o.keep), "mean": lambda o, x: x.mean(o.axis, o.keep),
    "max": lambda o, x: x.amax(o.axis, o.keep), "min": lambda o, x: x.amin(o.axis, o.keep), "prod": _reduce(torch.prod),
    "any": _reduce(torch.any), "all": _reduce(torch.all),
    "var": lambda o, x: x.var(o.axis, correction=o.correction, keepdim=o.keep),
    "argmax": lambda o, x: x.argmax(o.axis, o.keep), "argmin": lambda o, x: x.argmin(o.axis, o.keep),
    "softmax": lambda o, x: x.softmax(o.axis), "log_softmax": lambda o, x: x.log_softmax(o.axis),
    "cumsum": lambda o, x: x.cumsum(o.axis), "topk": lambda o, x: x.topk(o.k, o.axis, o.largest),
    "linear": lambda o, x, w, b: F.linear(x, w, b), "matmul": _unary(torch.matmul),
    "embedding": lambda o, ids, w: F.embedding(ids, w),
    "rms_norm": lambda o, x, w: F.rms_norm(x, x.shape[-1:], w, o.eps),
    "layer_norm": lambda o, x, w, b: F.layer_norm(x, x.shape[-1:], w, b, o.eps),
    "skip_rms_norm": lambda o, x, y, w: (F.rms_norm(x + y, x.shape[-1:], w, o.eps), x + y),
    "skip_layer_norm": lambda o, x, y, w, b: (F.layer_norm(x + y, x.shape[-1:], w, b, o.eps), x + y),
    "group_norm": lambda o, x, w, b: F.group_norm(x, o.groups, w, b, o.eps),
    "batch_norm": lambda o, x, mean, var, w, b: F.batch_norm(x, mean, var, w, b, eps=o.eps),
    "conv": _conv, "max_pool": _max_pool, "avg_pool": _avg_pool, "dequantize": _dequantize,
    "rope": _rope, "attention": _attention, "cache.write": _cache_write,
    "scalar": lambda o: torch.tensor(o.value), "size": lambda o: torch.tensor(o.dim),
    "full": lambda o: torch.full(o.shape, o.value, dtype=torch.float64),
    "arange": lambda o: torch.arange(o.start, o.start + o.count * o.step, o.step),
}


def _tensor(array: Any) -> Any:
    if array is None or isinstance(array, tuple):
        return array if array is None else tuple(map(_tensor, array))
    wide = {"f": np.float64, "V": np.float64, "i": np.int64, "u": np.int64, "b": np.bool_}[array.dtype.kind]
    return torch.from_numpy(np.array(array, dtype=np.int64 if "int" in array.dtype.name else wide))


def test_every_op_is_compared() -> None:
    assert {e.cls.name for e in examples()} == set(OPS) == set(ORACLES)


@pytest.mark.parametrize("example", examples(), ids=lambda e: e.id)
@pytest.mark.parametrize("seed", range(3))
def test_reference_equals_torch(example: Example, seed: int) -> None:
    module = example.module()
    rng = np.random.default_rng(seed)
    sizes = sizes_for(module, rng)
    inputs = example.inputs(rng, **sizes)
    op: Op = module.main.ops[0]
    given = op.map_operands(lambda v: _tensor(inputs[v.hint or ""]))
    wanted = ORACLES[op.name](op.bind(sizes), *given)
    got = run(module, inputs)
    for array, tensor in zip(got, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        expected = tensor.numpy().astype(array.dtype) if tensor.dtype != torch.bool else tensor.numpy()
        assert difference(expected, array, rtol=1e-12) == ""


@pytest.mark.parametrize("example", [e for e in examples() if e.cls.decompose is not Op.decompose], ids=lambda e: e.id)
@pytest.mark.parametrize("seed", range(3))
def test_decomposition_equals_reference(example: Example, seed: int) -> None:
    from ingot.ir.module import Builder
    from ingot.ir.verify import verify

    module = example.module()
    inputs = example.inputs(np.random.default_rng(seed))
    before = run(module, inputs)
    func, op = module.main, module.main.ops[0]
    new = op.decompose(Builder(func, before=op))
    assert new is not None
    for old, value in zip(op.results, new if isinstance(new, tuple) else (new,), strict=True):
        func.replace(old, value)
    func.drop_dead()
    verify(module)
    assert op.name not in {o.name for o in func.ops}
    for a, b in zip(before, run(module, inputs), strict=True):
        assert difference(a, b, rtol=1e-9) == ""


def test_topk_of_unsigned_and_equal_numbers() -> None:
    from ingot.ir.ops.reduce import TopK
    from ingot.ir.types import TensorType, u8
    from ingot.ir.value import Value

    op = TopK(Value(TensorType(u8, (5,))), 3)
    values, index = op.reference(np.array([0, 7, 255, 7, 1], np.uint8))
    assert values.tolist() == [255, 7, 7]
    assert index.tolist() == [2, 1, 3]
