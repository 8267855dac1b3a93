"""Room for the lowering to Ascend: AscendC operators printed from score programs. Nothing is lowered there yet."""
