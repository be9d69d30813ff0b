"""Arrow columns made straight from memory.

Not by `pyarrow.array`: its first call imports pandas, to see whether it was given a Series, and pandas stays:
45 MB. `pyarrow.scalar`, and `to_numpy` of a column with nulls, do the same.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Days = npt.NDArray[np.datetime64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def strings(values: Sequence[str]) -> pa.Array:  # pyright: ignore[reportUnknownParameterType]
    """Return a string column without nulls."""
    encoded = [value.encode("utf-8", "replace") for value in values]
    ends = np.cumsum([0, *(len(value) for value in encoded)], dtype=np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)


def numbers(values: Floats) -> pa.Array:  # pyright: ignore[reportUnknownParameterType]
    """Return a float column with null for whatever is not a finite number."""
    valid = np.packbits(np.isfinite(values), bitorder="little")
    buffers = [pa.py_buffer(valid), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(pa.float64(), len(values), buffers)


def dates(values: Days) -> pa.Array:  # pyright: ignore[reportUnknownParameterType]
    """Return a date column without nulls."""
    days = values.astype("datetime64[D]").astype(np.int64).astype(np.int32)
    return pa.Array.from_buffers(pa.date32(), len(days), [None, pa.py_buffer(days)])
