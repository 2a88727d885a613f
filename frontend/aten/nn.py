"""torch ops of neural network layers: matrix products, convolutions, norms, embeddings, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ingot.frontend.aten.layout import permuted, reshaped
from ingot.frontend.aten.registry import Graph, aten
from ingot.ir.dims import product
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.conv import AvgPool, Conv, MaxPool
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.ops.norm import BatchNorm, GroupNorm, LayerNorm, RmsNorm
from ingot.ir.ops.pointwise import Add, Cast, Mul, Where
from ingot.ir.ops.reduce import Mean
from ingot.ir.types import bool_, f32
from ingot.ir.value import Value

# --- products -----------------------------------------------------------------------------------------------------


@aten("linear.default")
def linear(g: Graph, x: Value, w: Value, bias: Value | None = None) -> Value:
    return g(Linear(x, w, bias))


@aten("matmul.default", "mm.default", "bmm.default")
def matmul(g: Graph, x: Value, y: Value) -> Value:
    """Vectors take part as matrices with an axis of size one."""
    a = reshaped(g, x, (1, *x.type.dims)) if x.type.rank == 1 else x
    b = reshaped(g, y, (*y.type.dims, 1)) if y.type.rank == 1 else y
    return reshaped(g, g(MatMul(a, b)), g.out.dims)


@aten("mv.default", "dot.default")
def vector_product(g: Graph, x: Value, y: Value) -> Value:
    return matmul(g, x, y)


@aten("addmm.default", "baddbmm.default")
def addmm(g: Graph, bias: Value, x: Value, y: Value, *, beta: float = 1, alpha: float = 1) -> Value:
    product_ = g(MatMul(x, y))
    if alpha != 1:
        product_ = g(Mul(product_, g.scalar(float(alpha), g.out.dtype)))
    if beta == 0:
        return product_
    if beta != 1:
        bias = g(Mul(bias, g.scalar(float(beta), g.out.dtype)))
    return g(Add(product_, bias))


@aten("embedding.default")
def embedding(g: Graph, w: Value, ids: Value, *_: Any) -> Value:
    return g(Embedding(ids, w))


# --- convolution and pooling --------------------------------------------------------------------------------------


def _spread(value: int | Sequence[int], n: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


@aten("conv1d.default", "conv2d.default", "conv3d.default")
def conv(g: Graph, x: Value, w: Value, bias: Value | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
         groups: int = 1) -> Value:
    n = w.type.rank - 2
    batched = x if x.type.rank == n + 2 else reshaped(g, x, (1, *x.type.dims))
    before = _spread(padding, n)
    y = g(Conv(batched, w, bias, stride=_spread(stride, n), padding=before + before, dilation=_spread(dilation, n),
               groups=groups))
    return reshaped(g, y, g.out.dims)


@aten("conv1d.padding", "conv2d.padding", "conv3d.padding")
def conv_padded(g: Graph, x: Value, w: Value, bias: Value | None = None, stride: Any = 1, padding: str = "valid",
                dilation: Any = 1, groups: int = 1) -> Value:
    """`same` puts the odd element of padding behind."""
    n = w.type.rank - 2
    steps = _spread(dilation, n)
    total = [d * (k - 1) for d, k in zip(steps, w.type.shape[2:])] if padding == "same" else [0] * n
    around = tuple(t // 2 for t in total) + tuple(t - t // 2 for t in total)
    return g(Conv(x, w, bias, stride=_spread(stride, n), padding=around, dilation=steps, groups=groups))


@aten("convolution.default")
def convolution(g: Graph, x: Value, w: Value, bias: Value | None, stride: Any, padding: Any, dilation: Any,
                transposed: bool, output_padding: Any, groups: int) -> Value:
    if transposed:
        raise g.unsupported("transposed convolution")
    return conv(g, x, w, bias, stride, padding, dilation, groups)


@aten("max_pool2d.default", "max_pool1d.default", "max_pool2d_with_indices.default")
def max_pool(g: Graph, x: Value, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
             ceil_mode: bool = False) -> Any:
    n = x.type.rank - 2
    size, around = _spread(kernel, n), _spread(padding, n)
    if set(_spread(dilation, n)) != {1}:
        raise g.unsupported("a dilated window")
    y = g(MaxPool(x, size, _spread(stride, n) if stride else size, around + around, ceil_mode))
    return (y, None) if len(g.outs) == 2 else y


@aten("avg_pool2d.default", "avg_pool1d.default")
def avg_pool(g: Graph, x: Value, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
             count_include_pad: bool = True, divisor_override: int | None = None) -> Value:
    n = x.type.rank - 2
    size, around = _spread(kernel, n), _spread(padding, n)
    if divisor_override is not None or (ceil_mode and count_include_pad and any(around)):
        raise g.unsupported("a mean over another number of elements than the window has")
    return g(AvgPool(x, size, _spread(stride, n) if stride else size, around + around, ceil_mode,
                     count_include_pad and not ceil_mode))


@aten("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default", "adaptive_avg_pool1d.default")
def adaptive_avg_pool(g: Graph, x: Value, size: Any) -> Value:
    """Pools of equal size, or the mean over everything."""
    n = x.type.rank - 2
    target, source = g.out.dims[2:], x.type.dims[2:]
    if all(t == 1 for t in target):
        return g(Mean(x, tuple(range(2, 2 + n)), True))
    if not all(isinstance(s, int) and isinstance(t, int) and s % t == 0 for s, t in zip(source, target)):
        raise g.unsupported(f"pooling {list(source)} into {list(target)} places of unequal size")
    kernel = tuple(s // t for s, t in zip(source, target))
    return g(AvgPool(x, kernel, kernel, (0,) * (2 * n)))  # type: ignore[arg-type]


# --- norms --------------------------------------------------------------------------------------------------------


def _over_last(g: Graph, x: Value, shape: Sequence[int]) -> Value:
    """Several normalised axes as one."""
    return x if len(shape) == 1 else reshaped(g, x, (*x.type.dims[:-len(shape)], product(tuple(shape))))


@aten("layer_norm.default", "native_layer_norm.default")
def layer_norm(g: Graph, x: Value, shape: Sequence[int], w: Value | None = None, bias: Value | None = None,
               eps: float = 1e-5, *_: Any) -> Any:
    flat = _over_last(g, x, shape)
    w, bias = (None if v is None else _over_last(g, v, shape) for v in (w, bias))
    y = reshaped(g, g(LayerNorm(flat, w, bias, float(eps))), x.type.dims)
    return (y, None, None) if len(g.outs) == 3 else y


@aten("rms_norm.default")
def rms_norm(g: Graph, x: Value, shape: Sequence[int], w: Value | None = None, eps: float | None = None) -> Value:
    flat, w = _over_last(g, x, shape), None if w is None else _over_last(g, w, shape)
    if eps is None:
        eps = {16: 2.0 ** -10 if x.type.dtype.name == "f16" else 2.0 ** -7, 64: 2.0 ** -52}.get(x.type.dtype.bits, 2.0 ** -23)
    return reshaped(g, g(RmsNorm(flat, w, float(eps))), x.type.dims)


@aten("group_norm.default")
def group_norm(g: Graph, x: Value, groups: int, w: Value | None = None, bias: Value | None = None, eps: float = 1e-5,
               *_: Any) -> Value:
    return g(GroupNorm(x, w, bias, groups=groups, eps=float(eps)))


@aten("_native_batch_norm_legit_no_training.default")
def batch_norm(g: Graph, x: Value, w: Value | None, bias: Value | None, mean: Value, var: Value, momentum: float,
               eps: float) -> tuple[Value | None, ...]:
    return g(BatchNorm(x, mean, var, w, bias, float(eps))), None, None


@aten("batch_norm.default")
def batch_norm_eval(g: Graph, x: Value, w: Value | None, bias: Value | None, mean: Value | None, var: Value | None,
                    training: bool, momentum: float, eps: float, cudnn: bool) -> Value:
    if training or mean is None or var is None:
        raise g.unsupported("batch norm in training mode (call model.eval() first)")
    return g(BatchNorm(x, mean, var, w, bias, float(eps)))


# --- attention ----------------------------------------------------------------------------------------------------


@aten("ingot.attention.default")
def attention(g: Graph, q: Value, k: Value, v: Value, mask: Value | None, bias: Value | None, sinks: Value | None,
              scale: float, causal: bool, window: int | None, softcap: float | None) -> Value:
    if mask is not None and isinstance(mask.op, Cast) and mask.op.dtype == bool_:
        mask = mask.op.x
    return g(Attention(q, k, v, mask=mask, bias=bias, sinks=sinks, scale=scale, causal=causal, window=window, softcap=softcap))


@aten("scaled_dot_product_attention.default")
def sdpa(g: Graph, q: Value, k: Value, v: Value, mask: Value | None = None, dropout: float = 0.0, is_causal: bool = False,
         *, scale: float | None = None, enable_gqa: bool = False) -> Value:
    """torch's attention, [..., s, d]: the axis before the last two is the heads', those before it the batch's."""
    last = q.type.dims[-1]
    if not isinstance(last, int):
        raise g.unsupported("a head size that is not fixed")
    bias = mask
    if mask is not None and mask.type.dtype == bool_:
        bias = g(Where(mask, g.scalar(0.0, f32), g.scalar(float("-inf"), f32)))
    rank = q.type.rank
    if rank < 4:  # one head
        q, k, v = (reshaped(g, x, ((1,) + x.type.dims[:-2])[-1:] + (1,) + x.type.dims[-2:]) for x in (q, k, v))
        if bias is not None and bias.type.rank == 3:
            bias = reshaped(g, bias, (bias.type.dims[0], 1, *bias.type.dims[1:]))
    elif rank > 4:
        if bias is not None:
            raise g.unsupported(f"a mask with {rank} axes")
        q, k, v = (reshaped(g, x, (product(x.type.dims[:rank - 3]), *x.type.dims[rank - 3:])) for x in (q, k, v))
    y = g(Attention(q, k, v, bias=bias, scale=last ** -0.5 if scale is None else float(scale), causal=is_causal))
    return reshaped(g, y, g.out.dims)


@aten("pixel_shuffle.default")
def pixel_shuffle(g: Graph, x: Value, factor: int) -> Value:
    *batch, c, h, w = x.type.dims
    n = len(batch)
    split = reshaped(g, x, (*batch, c // (factor * factor), factor, factor, h, w))
    return reshaped(g, permuted(g, split, [*range(n), n, n + 3, n + 1, n + 4, n + 2]), g.out.dims)
