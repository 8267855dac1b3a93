"""The lowering to Ascend: operators, their kernels and tilings, the operator project, a model of AscendC on the CPU."""
