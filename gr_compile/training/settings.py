"""What a training run is, apart from the model and the data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a run.

    batch_size counts sequences in one forward; `accumulate` of them make an optimizer step, each weighted by
    its number of targets, so that the step is that of one large batch. `max_seq_len` is N. `negatives` are the items
    that each target is told apart from in training (0: all). `bf16` runs the
    forward under autocast. `deterministic` makes torch refuse operators without a deterministic form.
    `filter_history` ranks only items that the user has not met, as Meta's evaluation does. `max_steps` stops
    a run early (0: never). `checkpoint_every` counts optimizer steps (0: at the end of each epoch alone).
    """

    epochs: int = 10
    batch_size: int = 32
    max_seq_len: int = 200
    accumulate: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    seed: int = 0
    deterministic: bool = False
    bf16: bool = False
    filter_history: bool = False
    evaluate_every: int = 1
    max_steps: int = 0
    checkpoint_every: int = 0
    top_k: int = 10
    negatives: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        at_least_one = ("epochs", "batch_size", "accumulate", "evaluate_every", "top_k")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_seq_len < 2:
            raise ValueError(f"max_seq_len must be at least 2, not {self.max_seq_len}")
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.clip_norm < 0:
            raise ValueError("learning_rate must be positive, weight_decay and clip_norm not negative")
        if min(self.max_steps, self.checkpoint_every, self.negatives) < 0:
            raise ValueError("max_steps, checkpoint_every and negatives must not be negative")
