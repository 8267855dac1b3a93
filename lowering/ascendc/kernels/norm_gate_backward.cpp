template <class Tiling>
__aicore__ inline void Run(GM_ADDR grad, GM_ADDR x, GM_ADDR u, GM_ADDR weight, GM_ADDR bias, GM_ADDR grad_x, GM_ADDR grad_u,
                           GM_ADDR grad_weight, GM_ADDR grad_bias, GM_ADDR workspace, const Tiling& t) {
  TPipe pipe;
  NormBackward<T, true, Tiling> kernel(pipe, grad, x, u, weight, bias, grad_x, grad_u, workspace, t);
  kernel.Process(grad_weight, grad_bias);
}
