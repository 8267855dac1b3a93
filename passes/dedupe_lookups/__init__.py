"""dedupe-lookups: what is computed of an item alone is computed once for each item of the batch.

    before   h = mlp(embedding(items, ids))           ids [B, N, R]: as many rows go through the mlp
    after    occurs   = gr.occurring(ids, V)                   bool [V]
             distinct = gr.true_places(occurs, gr.count_true(occurs))       [U], ascending
             rows     = mlp(embedding(items, distinct))        [U, D]
             h        = embedding(rows, gr.numbered(ids, distinct, V))      [B, N, R, D]

The program of a row (`mlp`) is all that depends on the id and on nothing else of its place: looked-up rows and columns
of several tables by the same ids, norms, products with weights, concatenations; dropout, positions and whatever meets a
token end it. Ids of several tensors (inputs, targets, negatives) whose rows go through the same program are
taken together. The backward sums gradients by row once, where rows are spread, before they go through the program.

It pays where rows are computed with: rows that are used as they are looked up are left alone. `profit.py` decides.
"""

from gr_compile.passes.dedupe_lookups.rewrite import DedupeLookups

__all__ = ["DedupeLookups"]
