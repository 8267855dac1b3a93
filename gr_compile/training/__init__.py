"""The training loop that `gr-compile train` and `gr-compile demo` share, its metrics and its data."""
