"""One table of element types, so that files can be described and copied without torch.

Every name is the attribute of the ``torch`` module (``getattr(torch, name)``); beside it stand the
code a safetensors header uses and the storage class a ``.pth`` pickle names.
"""

from __future__ import annotations

from typing import NamedTuple


class DType(NamedTuple):
    """An element type: torch name, safetensors code, bytes, legacy storage class ("" if none)."""

    name: str
    code: str
    itemsize: int
    storage: str


DTYPES: tuple[DType, ...] = (
    DType("float64", "F64", 8, "DoubleStorage"),
    DType("float32", "F32", 4, "FloatStorage"),
    DType("float16", "F16", 2, "HalfStorage"),
    DType("bfloat16", "BF16", 2, "BFloat16Storage"),
    DType("int64", "I64", 8, "LongStorage"),
    DType("int32", "I32", 4, "IntStorage"),
    DType("int16", "I16", 2, "ShortStorage"),
    DType("int8", "I8", 1, "CharStorage"),
    DType("uint8", "U8", 1, "ByteStorage"),
    DType("bool", "BOOL", 1, "BoolStorage"),
    DType("complex64", "C64", 8, "ComplexFloatStorage"),
    DType("float8_e4m3fn", "F8_E4M3", 1, ""),
    DType("float8_e5m2", "F8_E5M2", 1, ""),
    DType("uint16", "U16", 2, ""),
    DType("uint32", "U32", 4, ""),
    DType("uint64", "U64", 8, ""),
)
BY_NAME = {d.name: d for d in DTYPES}
BY_CODE = {d.code: d for d in DTYPES}
BY_STORAGE = {d.storage: d for d in DTYPES if d.storage}
