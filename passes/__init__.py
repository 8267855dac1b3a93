"""The passes, one file or folder each; found by name through entry points."""
