"""AscendC kernels of jagged attention, printed from score programs."""
