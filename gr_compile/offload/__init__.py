"""Tables of embeddings that live in files: for tables larger than memory, with the pass `offload-negatives`.

    table = offload.move(model.items, "items.table")              # the weight is the mapping of a file now
    fast = gr_compile.optimize(model, passes="default,offload-negatives{segments=8}")
    update = offload.RowwiseAdagrad(table, lr=0.05)               # updates the rows that were looked up
"""

from gr_compile.offload.optimizers import SGD, RowwiseAdagrad
from gr_compile.offload.table_file import TableFileError
from gr_compile.offload.tables import attach, create, dense_state, flush, load, move, save

__all__ = [
    "SGD", "RowwiseAdagrad", "TableFileError", "attach", "create", "dense_state", "flush", "load", "move", "save",
]  # fmt: skip
