"""The lowering to Ascend. Nothing is lowered yet; functional_model/ runs AscendC kernels on the CPU."""
