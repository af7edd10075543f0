"""Comparing tensors bit for bit: NaN equals the same NaN, 0.0 does not equal -0.0."""

import torch


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of the elements, in order."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain.contiguous().reshape(-1).view(torch.uint8)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have one dtype, one shape and the same bits, wherever they are."""
    if a is b:
        return True
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(raw(a).cpu(), raw(b).cpu())
