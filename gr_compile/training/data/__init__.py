"""Interaction data: one reader a file, one common form (`InteractionData`), one way to make batches."""
