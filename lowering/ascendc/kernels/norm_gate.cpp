template <class Tiling>
__aicore__ inline void Run(GM_ADDR x, GM_ADDR u, GM_ADDR weight, GM_ADDR bias, GM_ADDR y, GM_ADDR workspace, const Tiling& t) {
  NormForward<T, true>(x, u, weight, bias, y, t);
}
