"""An estimate of a training step from its compiled graphs and a machine description: no kernel is built, nothing runs."""
