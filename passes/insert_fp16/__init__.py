"""insert-fp16: chosen values are stored in 16 bits; what is computed with them is not.

    negatives      logits = gr.sampled_logits(state, table, ids)
                   stored, scale = gr.stored_rows(table.detach(), ids, float16, "per-token")
                   logits = gr.sampled_logits(state, table, ids, stored, scale)       rows are read from the copy

    embeddings,    y = linear(x, w)
    activations    stored, scale = gr.quantize(y.detach(), float16, "per-token")
                   z = gr.dequantize(stored, scale, y)          what reads y reads z; a backward keeps `stored`

    communication  z = all_gather(x)
                   stored, scale = gr.quantize(x, float16, "per-token")
                   z = gr.dequantize(all_gather(stored), all_gather(scale))           half the bytes travel
"""

from gr_compile.passes.insert_fp16.calibrate import calibrate
from gr_compile.passes.insert_fp16.calibration import Calibration, SiteRecord
from gr_compile.passes.insert_fp16.rewrite import InsertFP16

__all__ = ["Calibration", "InsertFP16", "SiteRecord", "calibrate"]
