"""Lowerings: from the rewritten graph to code that runs. Targets are found by name through entry points."""
