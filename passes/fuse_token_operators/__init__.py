"""fuse-token-operators: what stands around attention, token by token, becomes one operator where it was several.

    before   u, v, q, k = split(silu(x W), [...]);  y = u * layer_norm(a);  z = r * rsqrt(mean(r²) + eps) * w
    after    u, v, q, k = gr.silu_split(x W, ...);  y = gr.norm_gate(a, u, ...);  z = gr.rms_norm(r, w, eps)

Each reads and writes its tokens once. The matrix product stays the device's own, and so does a dropout behind the gate.
Presets take the pass for target "ascend"; on the CPU, Inductor fuses the same operators by itself.
"""

from __future__ import annotations

from gr_compile.passes.fuse_token_operators.rewrite import FuseTokenOperators

__all__ = ["FuseTokenOperators"]
