"""A gradient of the shape of a table that does not fit into memory: zeros in a file that has no name.

The disk sets its pages aside before anything is written, so that a full disk is an error here and no signal later. The
file goes when the tensor does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from gr_compile.offload.table_file import TableFileError, make_room, size_of


def rows_in_a_file(folder: Path, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Zeros [rows, width] that the system may keep in a file of `folder` rather than in memory.

    Raises:
        TableFileError: the folder's disk has no room, or nothing can be written there.
    """
    try:
        scratch = tempfile.TemporaryDirectory(prefix="gr_compile-gradient-", dir=folder)
    except OSError as error:
        what = f"no file of a gradient can be made: {error.strerror}"
        raise TableFileError(error.errno, what, str(folder)) from error
    with scratch as work:
        path = Path(work) / "gradient"
        make_room(path, size_of(rows, width, dtype))
        return torch.from_file(str(path), shared=True, size=rows * width, dtype=dtype).view(rows, width)
