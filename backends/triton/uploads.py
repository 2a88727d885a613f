"""The tensors of weights on the device, made when a kernel first reads them and kept."""

from __future__ import annotations

import torch

from ingot.backends.torch.tensors import to_tensor, torch_dtype
from ingot.backends.triton.packing import Form
from ingot.ir.value import Const


class Uploads:
    """Reads a module's weights; one tensor per weight, or per form a kernel wants of a weight in codes."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._held: dict[tuple[object, ...], torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Size of all tensors made so far (bytes)."""
        return sum(t.nbytes for t in self._held.values())

    def weight(self, const: Const) -> torch.Tensor:
        """A weight as it is, in `torch_dtype` of its element type."""
        key = (const,)
        if key not in self._held:
            self._held[key] = self.made(const).to(self.device, torch_dtype(const.type.dtype)).contiguous()
        return self._held[key]

    def formed(self, form: Form, parts: tuple[Const | None, ...]) -> torch.Tensor:
        """What a kernel wants of a weight in codes, given the operands of its `dequantize`."""
        key = (form.part, form.format, form.group, *parts)
        if key not in self._held:
            self._held[key] = self.made_of(form, parts).to(self.device)
        return self._held[key]

    def made(self, const: Const) -> torch.Tensor:
        """The tensor of a weight, anywhere."""
        return to_tensor(const.weight.materialize(), const.type.dtype)

    def made_of(self, form: Form, parts: tuple[Const | None, ...]) -> torch.Tensor:
        """The tensor of a form, anywhere."""
        arrays = [None if c is None else c.weight.materialize() for c in parts]
        return torch.from_numpy(form.make(*arrays).copy())  # type: ignore[arg-type]
