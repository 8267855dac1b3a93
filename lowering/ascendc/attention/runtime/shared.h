// Of Program: values that all heads share, a tile in the workspace.
int64_t shared_at = 0, shared_step = 0;
__aicore__ inline void keep(int k, const LocalTensor<float>& x) {
  order<HardEvent::V_MTE3>();
  order<HardEvent::S_MTE3>();
  DataCopy(o.shared[shared_at + k * shared_step], x, n);
  order<HardEvent::MTE3_V>();
  order<HardEvent::MTE3_MTE2>();
}
