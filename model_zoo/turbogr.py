"""The four models of TurboGR (arXiv 2605.13433) by name, and what was published of them.

Published: the names; N, 2048 and 4096; 83.97 and 201.55 million parameters; samples a second, MFU and linearity on
Ascend 910B1 (`PUBLISHED`); 128 negatives a target.

Inferred: D = 1024, 16 layers, H dqk = H dv = 1024, a feed-forward as wide as the states. With the research HSTU's bias
tables and no item table that is 83.97 M parameters at N = 2048. FuXi-α as its authors wrote it comes to 201.41 M; the
0.14 M (0.07 %) that are missing are no multiple of D a layer, and nothing published says what they are. At N = 4096 the
bias tables are larger (HSTU 84.04 M, FuXi-α 201.48 M), though the same counts were published for both N.

A second sign is the MFU. With these widths, `DEVICES` devices of `PEAK_FLOPS` each (25 cube cores at 1850 MHz) and, a
sample, 6 FLOPs for each of N tokens and each weight of a product, and 6 for each of N x N pairs and each number of q, k
and v that it meets (no causal half, no padding), the published samples a second give the four published MFUs as 24.75,
34.09, 39.31 and 54.66 %: to 0.05 of a percent, near the rounding of the samples a second.

Assumed, and without effect on these counts: 8 heads of 128; whether position embeddings are learned; the item table,
which no count includes. `dropout` is 0, so that a step is work alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from gr_compile.model_zoo.fuxi import FuXi, FuXiConfig
from gr_compile.model_zoo.hstu import HSTU, HSTUConfig
from gr_compile.model_zoo.timed import TimedRecommender

NEGATIVES = 128
DEVICES = 32
PEAK_FLOPS = 378.88e12


@dataclass(frozen=True)
class Published:
    """A row of TurboGR's table: millions of parameters, N, samples a second of all devices, MFU in percent."""

    parameters: float
    max_seq_len: int
    samples_per_second: float
    mfu: float
    linearity: float


PUBLISHED = {
    "hstu-large": Published(83.97, 2048, 1617, 24.74, 0.93),
    "hstu-long": Published(83.97, 4096, 771, 34.08, 0.97),
    "fuxi-large": Published(201.55, 2048, 1156, 39.34, 0.94),
    "fuxi-long": Published(201.55, 4096, 574, 54.71, 0.97),
}


def turbogr_config(name: str, num_items: int) -> HSTUConfig | FuXiConfig:
    """The configuration of a name for a catalogue.

    Raises:
        ValueError: there is no such name; it lists those there are.
    """
    if name not in PUBLISHED:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(PUBLISHED)}")
    config = FuXiConfig if name.startswith("fuxi") else HSTUConfig
    return config(
        num_items, PUBLISHED[name].max_seq_len, embedding_dim=1024, num_layers=16, num_heads=8, attention_dim=128,
        linear_dim=128, dropout=0.0,
    )  # fmt: skip


def turbogr_model(name: str, num_items: int) -> TimedRecommender:
    """The model of a name; ValueError as `turbogr_config`."""
    return model_of(turbogr_config(name, num_items))


def model_of(config: HSTUConfig | FuXiConfig) -> TimedRecommender:
    """The model of a configuration."""
    return FuXi(config) if isinstance(config, FuXiConfig) else HSTU(config)
