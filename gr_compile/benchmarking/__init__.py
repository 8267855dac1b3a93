"""Measuring: useful FLOPs and memory, contenders in processes of their own, rows and a picture."""
