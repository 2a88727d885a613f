"""Any nn.Module: named dims and their ranges, tied parameters, buffers, and what cannot be imported."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ingot.errors import IngotError, UnsupportedOp
from ingot.frontend.modules import import_module
from ingot.ir.interpret import run
from ingot.ir.weights import UnknownWeight


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.register_buffer("shift", torch.arange(4.0))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        y = self.drop(self.b(F.relu(self.a(x))) + self.shift)
        return y if scale is None else y * scale


def test_named_dims_tied_parameters_and_buffers() -> None:
    model = Net().train()
    module = import_module(model, torch.zeros(3, 4), dims={"x": ("N", None)}, ranges={"N": (1, 10)}, outputs=["y"])
    assert model.training
    assert module.dims == {"N": (1, 10)}
    assert set(module.consts) == {"a.weight", "a.bias", "b.bias", "shift"}
    assert [str(v.type) for v in module.main.returns] == ["f32[N, 4]"]
    x = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    with torch.no_grad():
        expected = model.eval()(torch.tensor(x)).numpy()
    np.testing.assert_allclose(run(module, [x], precision="declared")[0], expected, atol=1e-6)


def test_inputs_by_name_or_in_order() -> None:
    x, scale = torch.zeros(3, 4), torch.ones(4)
    for inputs in ((x, scale), {"x": x, "scale": scale}):
        module = import_module(Net(), inputs)
        assert [str(p.type) for p in module.main.params] == ["f32[3, 4]", "f32[4]"]
        assert module.dims == {}
    with pytest.raises(IngotError, match="3 inputs are given"):
        import_module(Net(), (x, x, x))
    with pytest.raises(IngotError, match="dims are given for z"):
        import_module(Net(), x, dims={"z": ("N",)})
    with pytest.raises(IngotError, match="name 1 axes"):
        import_module(Net(), x, dims={"x": ("N",)})


def test_sizes_become_expressions_of_the_dims() -> None:
    class Halves(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            n = x.shape[0]
            return x[: n - 1], torch.cat([x, x]), F.avg_pool1d(x[None, None], 3, 2)[0, 0], torch.arange(n * n)

    module = import_module(Halves(), torch.zeros(8), dims={"x": ("N",)}, ranges={"N": (4, 100)})
    assert [str(v.type) for v in module.main.returns] == ["f32[N - 1]", "f32[2*N]", "f32[(N + 1) // 2 - 1]", "i64[N*N]"]
    x = np.arange(9.0, dtype=np.float32)
    for found, expected in zip(run(module, [x], precision="declared"), Halves()(torch.tensor(x)), strict=True):
        np.testing.assert_allclose(found, expected.numpy())


def test_ends_of_a_range_that_the_model_treats_apart_are_left_out() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(16.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n = x.shape[0]
            return x + (self.table if n == 16 else self.table[:n])

    module = import_module(Table(), torch.zeros(5), dims={"x": ("N",)}, ranges={"N": (1, 16)})
    assert module.dims["N"] == (1, 15)


def test_a_size_the_model_fixes_is_an_error_that_says_so() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 3)

    with pytest.raises(UnsupportedOp, match="cannot trace Fixed"):
        import_module(Fixed(), torch.zeros(6), dims={"x": ("N",)}, ranges={"N": (1, 16)})


def test_a_branch_on_a_value_is_an_error_that_names_the_line() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedOp, match="cannot trace Branch") as caught:
        import_module(Branch(), torch.ones(6))
    assert str(caught.value.where).startswith("test_modules.py:")


def test_state_that_changes_is_refused() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return x * self.count

    with pytest.raises(UnsupportedOp, match="changes count while it runs"):
        import_module(Counter(), torch.ones(6))


def test_numbers_made_in_forward_are_weights() -> None:
    class Made(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.tensor([1.0, 2.0, 3.0])

    np.testing.assert_array_equal(run(import_module(Made(), torch.ones(3)), [np.ones(3)])[0], [1.0, 2.0, 3.0])


def test_half_precision_weights_keep_their_bits() -> None:
    model = nn.Linear(4, 2).to(torch.bfloat16)
    module = import_module(model, torch.zeros(1, 4, dtype=torch.bfloat16))
    weight = module.consts["weight"]
    assert str(weight.type) == "bf16[2, 4]"
    np.testing.assert_array_equal(weight.weight.materialize().astype(np.float32), model.weight.float().detach().numpy())


def test_a_model_without_memory_has_unknown_weights() -> None:
    with torch.device("meta"):
        model = nn.Linear(4, 2)
    module = import_module(model, torch.zeros(1, 4, device="meta"))
    assert all(isinstance(c.weight, UnknownWeight) for c in module.consts.values())
