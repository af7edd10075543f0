"""Tensors that are made of others: sparse, quantized, nested, and those with attributes of their own.

In a value each is a dict of its parts, with its form (docs/format.md); in a file it is the call that torch itself
writes. Taken apart without a copy; put together by the few functions named here, whatever a file says.
"""

import torch

from . import places
from .errors import UnsupportedError

# What torch notes on tensors for its compiler, in the program that is running.
_COMPILERS = ("_dynamo_", "_specialize_on", "_has_dynamo_dim_marking")
_SPARSE = {
    torch.sparse_coo: "sparse_coo",
    torch.sparse_csr: "sparse_csr",
    torch.sparse_csc: "sparse_csc",
    torch.sparse_bsr: "sparse_bsr",
    torch.sparse_bsc: "sparse_bsc",
}
_INTEGERS = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}
_QUANTIZED = {integers: quantized for quantized, integers in _INTEGERS.items()}
_BY_ROW = ("crow_indices", "col_indices", "values", "size")
_BY_COLUMN = ("ccol_indices", "row_indices", "values", "size")


def take_apart(tensor, place):
    """The parts of a tensor, with its form, as a dict; None for a plain one. Called by the core's encoder for tensors
    that it cannot read by itself."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return _jagged_parts(tensor) if _is_jagged(tensor) else None
    attributes = {name: x for name, x in vars(tensor).items() if not str(name).startswith(_COMPILERS)}
    if type(tensor) is torch.nn.Parameter:
        if not attributes and _is_plain(tensor):
            return None
        data = tensor.detach()
        return {
            "form": "parameter",
            "data": data.as_subclass(torch.Tensor) if _is_plain(data) else data,
            "requires_grad": tensor.requires_grad,
            "attributes": attributes or None,
        }
    if attributes:
        return {"form": "with_attributes", "tensor": _bare(tensor), "attributes": attributes}
    if tensor.layout in _SPARSE:
        return _sparse_parts(tensor)
    if tensor.is_quantized:
        return _quantized_parts(tensor, place)
    if tensor.is_nested:
        names = ("buffer", "sizes", "strides", "offsets")
        return {"form": "nested", **dict(zip(names, tensor._reduce_ex_internal(2)[1]))}
    return None


def _is_plain(tensor):
    return tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)


def _is_jagged(tensor):
    return type(tensor).__qualname__ == "NestedTensor" and tensor.layout is torch.jagged


def _bare(tensor):
    """The same tensor, without its attributes. One that has none is itself: nested tensors know by the object whether
    their offsets are the same."""
    if type(tensor) is torch.Tensor and not vars(tensor):
        return tensor
    alias = tensor.detach()
    if tensor.requires_grad:
        alias.requires_grad_()
    return alias


def _sparse_parts(tensor):
    form = _SPARSE[tensor.layout]
    if form == "sparse_coo":
        parts = {"indices": tensor._indices(), "values": tensor._values(), "size": tensor.size()}
        return {"form": form, **parts, "is_coalesced": tensor.is_coalesced()}
    names = _BY_COLUMN if form in ("sparse_csc", "sparse_bsc") else _BY_ROW
    return {"form": form, **{name: getattr(tensor, name)() for name in names}}


def _quantized_parts(tensor, place):
    if tensor.dtype not in _INTEGERS:
        message = f"is a quantized tensor of {tensor.dtype}, which perdure cannot hold; write x.dequantize()"
        places.refuse(place, message)
    _, offset, size, stride, scheme, requires_grad, _ = tensor._reduce_ex_internal(2)[1]
    integers = torch.empty(0, dtype=_INTEGERS[tensor.dtype], device=tensor.device)
    integers.set_(tensor.untyped_storage(), offset, size, stride)
    if scheme[0] is torch.per_tensor_affine:
        form, names = "quantized_per_tensor", ("scale", "zero_point")
    else:
        form, names = "quantized_per_channel", ("scales", "zero_points", "axis")
    return {"form": form, "int_repr": integers, **dict(zip(names, scheme[1:])), "requires_grad": requires_grad}


def _jagged_parts(tensor):
    metadata = {name: _bare(x) for name, x in tensor._metadata_cache.items() if x is not None}
    return {
        "form": "jagged",
        "values": _bare(tensor._values),
        "offsets": _bare(tensor._offsets),
        "lengths": None if tensor._lengths is None else _bare(tensor._lengths),
        "ragged_idx": tensor._ragged_idx,
        "metadata": metadata,
        "requires_grad": tensor.requires_grad,
    }


def put_together(parts: dict):
    """The tensor that is made of `parts`. What they say of each other is checked: an index that reaches outside would
    reach into other memory. Raises UnsupportedError."""
    form = parts.pop("form")
    try:
        return _BUILDERS[form](**parts)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UnsupportedError(f"the file has a {form} tensor whose parts do not fit each other: {reason}") from None


def _sparse_coo(indices, values, size, is_coalesced):
    return torch.sparse_coo_tensor(
        indices, values, size, is_coalesced=is_coalesced, check_invariants=not values.is_meta
    )


def _compressed(layout, names):
    def build(values, size, **indices):
        return torch.sparse_compressed_tensor(
            indices[names[0]], indices[names[1]], values, size, layout=layout, check_invariants=not values.is_meta
        )

    return build


def _quantized_per_tensor(int_repr, scale, zero_point, requires_grad):
    dtype = _QUANTIZED[int_repr.dtype]
    empty = torch._empty_affine_quantized([0], scale=scale, zero_point=zero_point, dtype=dtype, device=int_repr.device)
    return _over(int_repr, empty, requires_grad)


def _quantized_per_channel(int_repr, scales, zero_points, axis, requires_grad):
    if not 0 <= axis < int_repr.dim() or {scales.numel(), zero_points.numel()} != {int_repr.shape[axis]}:
        raise ValueError(f"{scales.numel()} scales and {zero_points.numel()} zero points for {tuple(int_repr.shape)}")
    quantizer = {"scales": scales, "zero_points": zero_points, "axis": axis, "dtype": _QUANTIZED[int_repr.dtype]}
    empty = torch._empty_per_channel_affine_quantized(int_repr.shape, **quantizer, device=int_repr.device)
    return _over(int_repr, empty, requires_grad)


def _over(integers, quantized, requires_grad):
    """The quantized tensor over the memory of its integers."""
    quantized.set_(integers.untyped_storage(), integers.storage_offset(), integers.shape, integers.stride())
    return quantized.requires_grad_() if requires_grad else quantized


def _nested(buffer, sizes, strides, offsets):
    if not buffer.is_meta:
        _check_nested(buffer, sizes, strides, offsets)
    return torch._nested_view_from_buffer(buffer, sizes, strides, offsets)


def _check_nested(buffer, sizes, strides, offsets):
    if buffer.dim() != 1 or not buffer.is_contiguous() or sizes.shape != strides.shape:
        raise ValueError("a buffer or sizes of another shape")
    if any(x.dtype is not torch.int64 for x in (sizes, strides, offsets)) or offsets.dim() != 1:
        raise ValueError("sizes, strides or offsets of another dtype or shape")
    if sizes.numel() and (sizes.dim() != 2 or len(sizes) != len(offsets)):
        raise ValueError("another number of sizes than of offsets")
    rows = zip(sizes.tolist(), strides.tolist(), offsets.tolist()) if sizes.numel() else ()
    for size, stride, offset in rows:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if min(*size, *stride, offset) < 0 or (0 not in size and last >= buffer.numel()):
            raise ValueError("a tensor that reaches outside of the buffer")


def _jagged(values, offsets, lengths, ragged_idx, metadata, requires_grad):
    from torch.nested._internal.nested_tensor import NestedTensor

    if not values.is_meta:
        _check_jagged(values, offsets, lengths, ragged_idx)
    known = {name: x for name, x in metadata.items() if name in ("min_seqlen", "max_seqlen")}
    return NestedTensor(
        values=values, offsets=offsets, lengths=lengths, _ragged_idx=ragged_idx, _metadata_cache=known,
        requires_grad=requires_grad,
    )  # fmt: skip


def _check_jagged(values, offsets, lengths, ragged_idx):
    if offsets.dim() != 1 or len(offsets) < 1 or not 1 <= ragged_idx <= values.dim():
        raise ValueError("offsets of another shape")
    if lengths is not None and lengths.shape != offsets[1:].shape:
        raise ValueError("lengths of another shape")
    ends = offsets[1:] if lengths is None else offsets[:-1] + lengths
    if int(offsets.min()) < 0 or bool((ends < offsets[:-1]).any()):
        raise ValueError("offsets that fall")
    if len(ends) and int(ends.max()) > values.shape[ragged_idx - 1]:
        raise ValueError("a tensor that reaches outside of the values")


def _parameter(data, requires_grad, attributes):
    parameter = torch.nn.Parameter(data, requires_grad)
    vars(parameter).update(attributes or {})
    return parameter


def _with_attributes(tensor, attributes):
    vars(tensor).update(attributes)
    return tensor


_BUILDERS = {
    "sparse_coo": _sparse_coo,
    "sparse_csr": _compressed(torch.sparse_csr, _BY_ROW),
    "sparse_csc": _compressed(torch.sparse_csc, _BY_COLUMN),
    "sparse_bsr": _compressed(torch.sparse_bsr, _BY_ROW),
    "sparse_bsc": _compressed(torch.sparse_bsc, _BY_COLUMN),
    "quantized_per_tensor": _quantized_per_tensor,
    "quantized_per_channel": _quantized_per_channel,
    "nested": _nested,
    "jagged": _jagged,
    "parameter": _parameter,
    "with_attributes": _with_attributes,
}
