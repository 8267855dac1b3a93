"""Published generative recommenders, written padded and in plain PyTorch, as their authors would."""

from __future__ import annotations

from gr_compile.model_zoo.fuxi import FuXi, FuXiConfig
from gr_compile.model_zoo.hstu import HSTU, HSTUConfig
from gr_compile.model_zoo.sasrec import SASRec, SASRecConfig
from gr_compile.model_zoo.stu import STU, STUConfig
from gr_compile.model_zoo.turbogr import turbogr_config, turbogr_model

__all__ = [
    "HSTU", "STU", "FuXi", "FuXiConfig", "HSTUConfig", "SASRec", "SASRecConfig", "STUConfig", "turbogr_config",
    "turbogr_model",
]  # fmt: skip
