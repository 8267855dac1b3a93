"""Random small padded models, as source text, compared with eager execution."""
