template <class Tiling>
__aicore__ inline void Run(GM_ADDR grad, GM_ADDR x, GM_ADDR weight, GM_ADDR grad_x, GM_ADDR grad_weight, GM_ADDR workspace, const Tiling& t) {
  TPipe pipe;
  NormBackward<T, false, Tiling> kernel(pipe, grad, x, nullptr, weight, nullptr, grad_x, nullptr, workspace, t);
  kernel.Process(grad_weight, nullptr);
}
