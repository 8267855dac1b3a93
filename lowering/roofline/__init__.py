"""An estimate of a training step from its compiled graphs and a machine description: nothing is built, nothing runs."""
