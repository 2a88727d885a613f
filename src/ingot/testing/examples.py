"""One line of text per op and variant: a table for tests that walk all ops (reference, axis maps, every backend).

A line is an id, then an op as it stands in a dump, with the types of its operands written where they are used. The id
is the op's name, with a variant behind a `/`. An indented line goes on from the one before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ingot.ir.module import Module
from ingot.ir.op import OPS, Op
from ingot.ir.text import parse_module
from ingot.ir.types import bool_
from ingot.testing.compare import inputs_for

POINTWISE = """
add              %r = add(%x: f32[B, S, 4], %y: f32[B, S, 4]) : f32[B, S, 4]
add/vector       %r = add(%x: f32[B, S, 4], %y: f32[4]) : f32[B, S, 4]
add/column       %r = add(%x: bf16[B, 1, 4], %y: f32[S, 1]) : f32[B, S, 4]
add/rank0        %r = add(%x: bf16[B, 4], %y: f32[]) : bf16[B, 4]
add/integers     %r = add(%x: i32[B], %y: i64[B]) : i64[B]
sub              %r = sub(%x: f32[B, S], %y: f32[S]) : f32[B, S]
mul              %r = mul(%x: f32[B, S, 4], %y: f32[B, S, 1]) : f32[B, S, 4]
div              %r = div(%x: f32[B, S], %y: f32[B, 1]) : f32[B, S]
floordiv         %r = floordiv(%x: f32[B, S], %y: f32[B, S]) : f32[B, S]
floordiv/integers %r = floordiv(%x: i64[B, S], %y: i64[S]) : i64[B, S]
mod              %r = mod(%x: f32[B, S], %y: f32[B, S]) : f32[B, S]
mod/integers     %r = mod(%x: i64[B, S], %y: i64[S]) : i64[B, S]
pow              %r = pow(%x: f32[B, S], %y: f32[]) : f32[B, S]
maximum          %r = maximum(%x: f32[B, S], %y: f32[B, S]) : f32[B, S]
minimum          %r = minimum(%x: f32[B, S], %y: f32[S]) : f32[B, S]
neg              %r = neg(%x: f32[B, S]) : f32[B, S]
abs              %r = abs(%x: f32[B, S]) : f32[B, S]
sign             %r = sign(%x: f32[B, S]) : f32[B, S]
exp              %r = exp(%x: f32[B, S]) : f32[B, S]
log              %r = log(%x: f32[B, S]) : f32[B, S]
sqrt             %r = sqrt(%x: f32[B, S]) : f32[B, S]
rsqrt            %r = rsqrt(%x: f32[B, S]) : f32[B, S]
reciprocal       %r = reciprocal(%x: f32[B, S]) : f32[B, S]
sin              %r = sin(%x: f32[B, S]) : f32[B, S]
cos              %r = cos(%x: f32[B, S]) : f32[B, S]
erf              %r = erf(%x: f32[B, S]) : f32[B, S]
erf/rank0        %r = erf(%x: f32[]) : f32[]
floor            %r = floor(%x: f32[B, S]) : f32[B, S]
ceil             %r = ceil(%x: f32[B, S]) : f32[B, S]
round            %r = round(%x: f32[B, S]) : f32[B, S]
clamp            %r = clamp(%x: f32[B, S]) {least = -0.5, greatest = 0.75} : f32[B, S]
clamp/least      %r = clamp(%x: f32[B, S]) {least = 0.25} : f32[B, S]
sigmoid          %r = sigmoid(%x: f32[B, S]) : f32[B, S]
tanh             %r = tanh(%x: f32[B, S]) : f32[B, S]
relu             %r = relu(%x: f32[B, S]) : f32[B, S]
leaky_relu       %r = leaky_relu(%x: f32[B, S]) {slope = 0.2} : f32[B, S]
elu              %r = elu(%x: f32[B, S]) {alpha = 0.5} : f32[B, S]
silu             %r = silu(%x: f32[B, S]) : f32[B, S]
gelu             %r = gelu(%x: f32[B, S]) : f32[B, S]
gelu/tanh        %r = gelu(%x: f32[B, S]) {approximate = "tanh"} : f32[B, S]
gelu/sigmoid     %r = gelu(%x: f32[B, S]) {approximate = "sigmoid"} : f32[B, S]
softplus         %r = softplus(%x: f32[B, S]) : f32[B, S]
hardsigmoid      %r = hardsigmoid(%x: f32[B, S]) : f32[B, S]
hardswish        %r = hardswish(%x: f32[B, S]) : f32[B, S]
eq               %r = eq(%x: i64[B, S], %y: i64[S]) : bool[B, S]
ne               %r = ne(%x: i64[B, S], %y: i64[S]) : bool[B, S]
lt               %r = lt(%x: f32[B, S], %y: f32[S]) : bool[B, S]
le               %r = le(%x: i64[B, S], %y: i64[B, 1]) : bool[B, S]
gt               %r = gt(%x: f32[B, S], %y: f32[B, S]) : bool[B, S]
ge               %r = ge(%x: i64[B, S], %y: i64[B, S]) : bool[B, S]
and              %r = and(%x: bool[B, S], %y: bool[S]) : bool[B, S]
or               %r = or(%x: bool[B, S], %y: bool[B, S]) : bool[B, S]
not              %r = not(%x: bool[B, S]) : bool[B, S]
isnan            %r = isnan(%x: f32[B, S]) : bool[B, S]
where            %r = where(%cond: bool[B, S, 1], %x: f32[B, S, 4], %y: f32[]) : f32[B, S, 4]
cast             %r = cast(%x: f32[B, S]) {dtype = f64} : f64[B, S]
cast/integer     %r = cast(%x: f32[B, S]) {dtype = i64} : i64[B, S]
cast/bool        %r = cast(%x: i64[B, S]) {dtype = bool} : bool[B, S]
cast/float       %r = cast(%x: i64[B, S]) {dtype = f32} : f32[B, S]
"""

LAYOUT = """
reshape          %r = reshape(%x: f32[B, S, 8]) {shape = [B, S, 2, 4]} : f32[B, S, 2, 4]
reshape/merge    %r = reshape(%x: f32[B, S, 8]) {shape = [B*S, 8]} : f32[B*S, 8]
reshape/mixed    %r = reshape(%x: f32[B, 4, 6]) {shape = [B, 8, 3]} : f32[B, 8, 3]
reshape/ones     %r = reshape(%x: f32[1, S, 6, 1]) {shape = [S, 1, 2, 3]} : f32[S, 1, 2, 3]
transpose        %r = transpose(%x: f32[B, S, 4]) {perm = [2, 0, 1]} : f32[4, B, S]
expand           %r = expand(%x: f32[B, 1, 4]) {shape = [3, B, S, 4]} : f32[3, B, S, 4]
slice            %r = slice(%x: f32[B, S, 8]) {axis = -1, start = 2, stop = 7} : f32[B, S, 5]
slice/dynamic    %r = slice(%x: f32[B, S]) {axis = 1, start = S - 1, stop = S} : f32[B, 1]
slice/step       %r = slice(%x: f32[B, 8]) {axis = 1, start = 1, stop = 8, step = 3} : f32[B, 3]
concat           %r = concat(%x: f32[B, S, 4], %y: f32[B, S, 2], %z: f32[B, S, 4]) : f32[B, S, 10]
concat/dynamic   %r = concat(%x: f32[B, S], %y: f32[B, T]) {axis = 1} : f32[B, S + T]
split            %a, %b = split(%x: f32[B, S, 5]) {sizes = [2, 3]} : f32[B, S, 2], f32[B, S, 3]
split/three      %a, %b, %c = split(%x: f32[B, 6]) {sizes = [1, 2, 3], axis = 1} : f32[B, 1], f32[B, 2], f32[B, 3]
pad              %r = pad(%x: f32[B, S, 4]) {pads = [0, 0, 1, 2, 0, 3], value = 0.5} : f32[B, S + 3, 7]
pad/reflect      %r = pad(%x: f32[B, 4]) {pads = [0, 0, 2, 1], mode = "reflect"} : f32[B, 7]
pad/replicate    %r = pad(%x: f32[B, 4]) {pads = [0, 0, 2, 1], mode = "replicate"} : f32[B, 7]
pad/circular     %r = pad(%x: f32[B, 4]) {pads = [0, 0, 2, 1], mode = "circular"} : f32[B, 7]
take             %r = take(%x: f32[B, 7, 4], %index: i64[S]) {axis = 1} : f32[B, S, 4]
take/matrix      %r = take(%x: f32[7, 4], %index: i64[B, S]) : f32[B, S, 4]
take/scalar      %r = take(%x: f32[B, 7], %index: i64[]) {axis = -1} : f32[B]
pick             %r = pick(%x: f32[B, 7, 4], %index: i64[B, S]) : f32[B, S, 4]
pick/last        %r = pick(%x: f32[1, 4, 7], %index: i64[B, S]) {axis = 2} : f32[B, 4, S]
take_along       %r = take_along(%x: f32[B, S, 7], %index: i64[B, S, 3]) : f32[B, S, 3]
take_along/short %r = take_along(%x: f32[5, 7], %index: i64[3, 2]) : f32[3, 2]
take_along/first %r = take_along(%x: f32[5, 7], %index: i64[2, 4]) {axis = 0} : f32[2, 4]
flip             %r = flip(%x: f32[B, S, 4]) {axes_ = [1, -1]} : f32[B, S, 4]
triangle         %r = triangle(%x: f32[B, S, 4]) {diagonal = -1} : f32[B, S, 4]
triangle/upper   %r = triangle(%x: f32[B, 4, 4]) {diagonal = 1, upper = true} : f32[B, 4, 4]
"""

REDUCE = """
sum              %r = sum(%x: f32[B, S, 4]) {axis = [-1]} : f32[B, S]
sum/keep         %r = sum(%x: f32[B, S, 4]) {axis = [0, 2], keep = true} : f32[1, S, 1]
sum/integers     %r = sum(%x: i64[B, S]) {axis = [1]} : i64[B]
mean             %r = mean(%x: f32[B, S, 4]) {axis = [1, 2]} : f32[B]
max              %r = max(%x: f32[B, S, 4]) {axis = [1]} : f32[B, 4]
min              %r = min(%x: f32[B, S, 4]) {axis = [0, 1, 2]} : f32[]
prod             %r = prod(%x: f32[B, S]) {axis = [-1], keep = true} : f32[B, 1]
any              %r = any(%x: bool[B, S]) {axis = [1]} : bool[B]
all              %r = all(%x: bool[B, S]) {axis = [0]} : bool[S]
var              %r = var(%x: f32[B, 4]) {axis = [-1]} : f32[B]
var/population   %r = var(%x: f32[B, 4]) {axis = [1], keep = true, correction = 0.0} : f32[B, 1]
argmax           %r = argmax(%x: f32[B, S, 4]) : i64[B, S]
argmax/keep      %r = argmax(%x: f32[B, 4]) {axis = 0, keep = true} : i64[1, 4]
argmin           %r = argmin(%x: f32[B, 4]) {axis = 1} : i64[B]
softmax          %r = softmax(%x: f32[B, S, 4]) : f32[B, S, 4]
softmax/middle   %r = softmax(%x: f32[B, S, 4]) {axis = 1} : f32[B, S, 4]
log_softmax      %r = log_softmax(%x: f32[B, S]) : f32[B, S]
cumsum           %r = cumsum(%x: f32[B, S, 4]) {axis = 1} : f32[B, S, 4]
cumsum/bool      %r = cumsum(%x: bool[B, S]) : i64[B, S]
topk             %v, %i = topk(%x: f32[B, 7]) {k = 3} : f32[B, 3], i64[B, 3]
topk/least       %v, %i = topk(%x: f32[7, B]) {k = 2, axis = 0, largest = false} : f32[2, B], i64[2, B]
"""

COMPUTE = """
linear           %r = linear(%x: f32[B, S, 4], %w: f32[6, 4], bias=%bias: f32[6]) : f32[B, S, 6]
linear/vector    %r = linear(%x: f32[4], %w: f32[6, 4]) : f32[6]
matmul           %r = matmul(%x: f32[B, S, 4], %y: f32[B, 4, T]) : f32[B, S, T]
matmul/broadcast %r = matmul(%x: f32[B, 1, S, 4], %y: f32[3, 4, 2]) : f32[B, 3, S, 2]
embedding        %r = embedding(%ids: i64[B, S], %w: f32[7, 4]) : f32[B, S, 4]
rms_norm         %r = rms_norm(%x: f32[B, S, 4], w=%w: f32[4]) {eps = 0.01} : f32[B, S, 4]
rms_norm/plain   %r = rms_norm(%x: f32[B, 4]) : f32[B, 4]
layer_norm       %r = layer_norm(%x: f32[B, S, 4], w=%w: f32[4], bias=%bias: f32[4]) {eps = 0.01} : f32[B, S, 4]
layer_norm/bias  %r = layer_norm(%x: f32[B, 4], bias=%bias: f32[4]) : f32[B, 4]
skip_rms_norm    %r, %t = skip_rms_norm(%x: f32[B, S, 4], %skip: f32[B, S, 4], w=%w: f32[4]) : f32[B, S, 4], f32[B, S, 4]
skip_layer_norm  %r, %t = skip_layer_norm(%x: f32[B, S, 4], %skip: f32[B, S, 4], w=%w: f32[4], bias=%bias: f32[4]) {eps = 0.01}
    : f32[B, S, 4], f32[B, S, 4]
group_norm       %r = group_norm(%x: f32[B, 6, S], w=%w: f32[6], bias=%bias: f32[6]) {groups = 3} : f32[B, 6, S]
batch_norm       %r = batch_norm(%x: f32[B, 4, S], %mean: f32[4], %var: f32[4], w=%w: f32[4], bias=%bias: f32[4]) : f32[B, 4, S]
batch_norm/plain %r = batch_norm(%x: f32[B, 4], %mean: f32[4], %var: f32[4]) {eps = 0.01} : f32[B, 4]
conv             %r = conv(%x: f32[B, 4, T], %w: f32[6, 4, 3], bias=%bias: f32[6]) {stride = [2], padding = [1, 2],
    dilation = [1]} : f32[B, 6, T // 2 + 1]
conv/grouped     %r = conv(%x: f32[B, 4, 5, 6], %w: f32[4, 2, 3, 2]) {stride = [1, 2], padding = [1, 0, 1, 1], dilation = [1, 2],
    groups = 2} : f32[B, 4, 5, 3]
conv/depthwise   %r = conv(%x: f32[B, 4, 6], %w: f32[4, 1, 3]) {stride = [1], padding = [1, 1], dilation = [1], groups = 4}
    : f32[B, 4, 6]
conv/multiplied  %r = conv(%x: f32[B, 2, 6], %w: f32[4, 1, 3]) {stride = [1], padding = [0, 0], dilation = [1], groups = 2}
    : f32[B, 4, 4]
max_pool         %r = max_pool(%x: f32[B, 3, 7, 6]) {kernel = [3, 2], stride = [2, 2], padding = [1, 0, 1, 0]} : f32[B, 3, 4, 3]
max_pool/ceil    %r = max_pool(%x: f32[B, 3, 6]) {kernel = [3], stride = [2], padding = [0, 0], ceil = true} : f32[B, 3, 3]
avg_pool         %r = avg_pool(%x: f32[B, 3, 7]) {kernel = [3], stride = [2], padding = [1, 1]} : f32[B, 3, 4]
avg_pool/inside  %r = avg_pool(%x: f32[B, 3, 6]) {kernel = [3], stride = [2], padding = [1, 1], ceil = true,
    count_padding = false} : f32[B, 3, 4]
rope             %r = rope(%x: f32[B, 3, S, 8], %pos: i64[B, S], %inv_freq: f32[4]) : f32[B, 3, S, 8]
rope/partial     %r = rope(%x: f32[B, 3, S, 8], %pos: i64[1, S], %inv_freq: f32[2]) {interleaved = true, scale = 1.5}
    : f32[B, 3, S, 8]
attention        %r = attention(%q: f32[B, 4, S, 8], %k: f32[B, 4, S, 8], %v: f32[B, 4, S, 6]) {scale = 0.3} : f32[B, 4, S, 6]
attention/causal %r = attention(%q: f32[B, 4, S, 8], %k: f32[B, 2, S, 8], %v: f32[B, 2, S, 8]) {scale = 0.3, causal = true}
    : f32[B, 4, S, 8]
attention/cached %r = attention(%q: f32[B, 4, S, 8], %k: f32[B, 1, T, 8], %v: f32[B, 1, T, 8], pos=%pos: i64[B, S])
    {scale = 0.3, causal = true, window = 3} : f32[B, 4, S, 8]
attention/window %r = attention(%q: f32[B, 2, S, 8], %k: f32[B, 2, S, 8], %v: f32[B, 2, S, 8], mask=%mask: bool[B, S])
    {scale = 0.3, window = 2} : f32[B, 2, S, 8]
attention/biased %r = attention(%q: f32[B, 2, S, 8], %k: f32[B, 2, T, 8], %v: f32[B, 2, T, 8], bias=%bias: f32[2, 1, T], \
sinks=%sinks: f32[2]) {scale = 0.3, softcap = 2.0} : f32[B, 2, S, 8]
cache.write      %r = cache.write(%cache: f32[B, 2, T, 4], %new: f32[B, 2, S, 4], %pos: i64[B, S]) : f32[B, 2, T, 4]
scalar           %r = scalar() {value = 2.5} : f32[]
scalar/integer   %r = scalar() {value = 3, dtype = i64} : i64[]
full             %r = full() {shape = [B, 3], value = -1.5} : f32[B, 3]
arange           %r = arange() {count = S, start = 2, step = 3} : i64[S]
arange/float     %r = arange() {count = 4, dtype = f32} : f32[4]
size             %r = size() {dim = 2*S + 1} : i64[]
dequantize       %r = dequantize(%packed: u4[6, 8], %scale: f32[6, 2], zero=%zero: u4[6, 2]) {format = "int4", group = 4}
    : f32[6, 8]
dequantize/odd   %r = dequantize(%packed: u3[6, 7], %scale: f16[6, 2]) {format = "int3", group = 4, dtype = f16} : f16[6, 7]
dequantize/one   %r = dequantize(%packed: u8[6, 8], %scale: f32[1, 1]) {format = "int8", group = 8} : f32[6, 8]
dequantize/float %r = dequantize(%packed: f4e2m1[6, 8], %scale: f8e4m3[6, 2], tensor_scale=%tensor_scale: f32[])
    {format = "nvfp4", group = 4} : f32[6, 8]
dequantize/twice %r = dequantize(%packed: u4[40, 28], %scale: u8[40, 7], tensor_scale=%tensor_scale: f32[2],
    offset=%offset: f32[]) {format = "nf4", group = 4} : f32[40, 28]
"""

POSITIVE = {"log.x", "sqrt.x", "rsqrt.x", "pow.x", "batch_norm.var", "reciprocal.x", "div.y"}
"""Operands whose domain is the positive numbers, or that are kept away from zero."""


@dataclass(frozen=True)
class Example:
    """One op with its operands as parameters. `id` is unique; `text` is its module in text form (dims B, S and T)."""

    id: str
    text: str

    def module(self) -> Module:
        """A module of its own with this op alone."""
        return parse_module(self.text, filename=self.id)

    @property
    def cls(self) -> type[Op]:
        return OPS[self.id.partition("/")[0]]

    def inputs(self, rng: np.random.Generator, **sizes: int) -> dict[str, np.ndarray]:
        """Arrays for the parameters, from the op's domain. Integers besides indices may be negative, never zero divisors."""
        module = self.module()
        op = module.main.ops[0]
        arrays = inputs_for(module, rng, sizes)
        for field, array in arrays.items():
            dtype = module.main.param(field).type.dtype
            if f"{op.name}.{field}" in POSITIVE:
                arrays[field] = np.abs(array) + array.dtype.type(0.25)
            elif op.name == "dequantize" and dtype.is_integer:
                arrays[field] = rng.integers(0, 1 << dtype.bits, size=array.shape).astype(array.dtype)
            elif op.name in ("floordiv", "mod") and dtype.is_integer:
                arrays[field] = rng.integers(1, 6, size=array.shape) * rng.choice([-1, 1], size=array.shape)
            elif dtype.kind == "int" and not {"pos", "ids", "index"} & {field}:
                arrays[field] = rng.integers(-3, 4, size=array.shape).astype(array.dtype)
            assert dtype == bool_ or arrays[field].dtype == dtype.numpy
        return arrays


def _example(line: str) -> Example:
    id_, op = line.split(None, 1)
    typed = re.compile(r"(%\w+): (\w+\[[^\]]*\])")
    head, colon, types = op.rpartition(" : ")
    given = typed.findall(head)
    loose = set(re.findall(r"\b[BST]\b", op)) - set(re.findall(r"\b[BST]\b", str(given)))
    if loose:  # a dim is known at run time only from the shape of a parameter
        given.append(("%like", f"f32[{', '.join(sorted(loose))}]"))
    params = ", ".join(f"{name}: {type_}" for name, type_ in given)
    values = op.split(" = ")[0]
    body = typed.sub(r"\1", head) + colon + types
    return Example(id_, f"module @example {{\n  dim B in 1..3\n  dim S in 1..5\n  dim T in 6..8\n"
                        f"  func @forward({params}) -> ({types}) {{\n    {body}\n    return {values}\n  }}\n}}\n")


@lru_cache(maxsize=1)
def examples() -> tuple[Example, ...]:
    """All examples; together they cover every op."""
    lines = re.sub(r"\n\s+", " ", (POINTWISE + LAYOUT + REDUCE + COMPUTE).replace("\n\n", "\n")).splitlines()
    return tuple(_example(line) for line in lines if line)
