// Gradients of q, k, v and leaves: the scores again, then
//     dP = dO V^T    dV = P^T dO    dS = dP * slope (through the softmax)    dQ = dS K    dK = dS^T Q
// Each thread has consecutive rows of about the same cost. A sequence that two threads share is added in their order, so
// that the same threads give the same bits.
#pragma once
#include <new>

struct Partial { i64 b, base, keys; Array<float> k, v; };  // of a sequence that goes on in another thread

struct BackwardScratch {
  Array<float> q, g, kt, vt, k, dq, dk, dv;
  Strip x;
  Grads grads;
  Partial partials[2];  // the thread's first and last sequence
  int parts = 0;
  bool allocate(const Call& call, i64 keys) {
    const Args& a = call.a;
    x.width = call.strip_width(keys);
    i64 rows = call.rows_of_block(keys), area = rows * x.width, qw = round_up(a.qk_width, W), vw = round_up(a.v_width, W);
    i64 columns = round_up(keys, NR) + NR;
    bool ok = x.s.zeros(area) && x.dp.zeros(area) && g.zeros(a.heads * rows * vw) && vt.allocate(a.v_heads * a.v_width * columns);
    ok = ok && dv.allocate(a.v_heads * (keys + 2 * MR) * vw) && grads.allocate(a, keys);
    if (Program::PRODUCT) {
      ok = ok && q.zeros(a.q_heads * rows * qw) && dq.allocate(a.q_heads * rows * qw) && kt.allocate(a.k_heads * a.qk_width * columns);
      ok = ok && dk.allocate(a.k_heads * (keys + 2 * MR) * qw);
      if (!in_place<KT>(a.qk_width, a.k_row)) ok = ok && k.allocate(a.k_heads * keys * qw);
    }
    if (Program::SOFTMAX) ok = ok && x.sm.zeros(area) && x.p.zeros(area);
    for (int e = 0; e < SHARED; e++) ok = ok && x.e[e].zeros(area);
    for (int y = 0; y < SHARED_GRADS; y++) ok = ok && x.g[y].zeros(area);
    return ok;
  }
};

// The transposed product of a strip: C [keys, n] += S^T B, over the rows whose columns are there.
static void transposed(const Groups& groups, i64 m, i64 keys, const float* s, i64 width, const float* b, i64 n, float* c) {
  for (i64 key = 0; key < keys; key += MR) {
    i64 first = 0, last = groups.count;
    auto covers = [&](i64 g) { return groups.c0[g] < key + MR && groups.c1[g] > key && groups.c0[g] < groups.c1[g]; };
    while (first < last && !covers(first)) first++;
    while (last > first && !covers(last - 1)) last--;
    if (first == last) continue;
    i64 r0 = first * MR, r1 = least(m, last * MR);
    rows<true>(n, r1 - r0, s + r0 * width + key, width, b + r0 * n, n, c + key * n, n, true);
  }
}
// Zero what the products of a strip read and no row writes.
static void clear_outside(const Groups& groups, i64 n, float* s, i64 width) {
  for (i64 g = 0; g < groups.count; g++)
    for (i64 r = g * MR; r < (g + 1) * MR; r++) {
      memset((void*)(s + r * width), 0, groups.c0[g] * sizeof(float));
      i64 end = most(round_up(n, MR), groups.c1[g]);
      memset((void*)(s + r * width + groups.c1[g]), 0, (end - groups.c1[g]) * sizeof(float));
    }
}

static void backward_rows(Call& call, i64 b, i64 start, i64 stop, i64 base, i64 keys, BackwardScratch& t) {
  const Args& a = call.a;
  Program& p = call.p;
  Strip& x = t.x;
  i64 kld = round_up(keys, NR), qw = round_up(a.qk_width, W), vw = round_up(a.v_width, W), ka = keys + 2 * MR;
  bool k_direct = in_place<KT>(a.qk_width, a.k_row);
  for (i64 h = 0; h < a.v_heads; h++)
    transpose_rows((const VT*)a.v + base * a.v_row + h * a.v_head, a.v_row, keys, a.v_width, t.vt.data + h * a.v_width * kld);
  memset((void*)t.dv.data, 0, a.v_heads * ka * vw * sizeof(float));
  if (Program::PRODUCT) {
    for (i64 h = 0; h < a.k_heads; h++) {
      const KT* k = (const KT*)a.k + base * a.k_row + h * a.k_head;
      transpose_rows(k, a.k_row, keys, a.qk_width, t.kt.data + h * a.qk_width * kld);
      if (!k_direct) copy_rows(k, a.k_row, keys, a.qk_width, t.k.data + h * keys * qw, qw);
    }
    memset((void*)t.dk.data, 0, a.k_heads * ka * qw * sizeof(float));
  }
  t.grads.begin(keys);
  i64 step = call.rows_of_block(a.key_offsets[b + 1] - a.key_offsets[b]);
  for (i64 r0 = start; r0 < stop; r0 += step) {
    i64 m = least(step, stop - r0), padded = round_up(m, MR);
    Groups groups(call.hulls, r0, r0 + m);
    if (groups.first >= groups.last) continue;
    for (i64 h = 0; h < a.heads; h++)
      copy_rows((const GT*)a.grad_out + r0 * a.grad_row + h * a.grad_head, a.grad_row, m, a.v_width, t.g.data + h * padded * vw, vw);
    if (Program::PRODUCT) {
      for (i64 h = 0; h < a.q_heads; h++) {
        float* q = t.q.data + h * padded * qw;
        copy_rows((const QT*)a.q + r0 * a.q_row + h * a.q_head, a.q_row, m, a.qk_width, q, qw);
        memset((void*)(q + m * qw), 0, (padded - m) * qw * sizeof(float));
      }
      memset((void*)t.dq.data, 0, a.q_heads * padded * qw * sizeof(float));
    }
    i64 wide = Program::SOFTMAX ? x.width : STRIP;
    for (i64 key = base + (groups.first - base) / NR * NR; key < groups.last; key += wide) {
      i64 n = least(wide, groups.last - key);
      groups.strip(key, n);
      float* weights = Program::SOFTMAX ? x.p.data : x.s.data;
      clear_outside(groups, n, weights, x.width);
      clear_outside(groups, n, x.dp.data, x.width);
      auto row_at = [&](i64 r, i64 h) {
        return Row{b, h, r0 + r, key, groups.c0[r / MR], groups.c1[r / MR], n, r * x.width, (bool)call.hulls.contiguous[b]};
      };
      for (int y = 0; y < SHARED_GRADS; y++) memset((void*)x.g[y].data, 0, m * x.width * sizeof(float));
      for (i64 r = 0; r < m && SHARED; r++) p.shared(row_at(r, 0), x);
      for (i64 h = 0; h < a.heads; h++) {
        i64 qh = p.q_head(h), kh = p.k_head(h), vh = p.v_head(h);
        const float* q = t.q.data + qh * padded * qw;
        const float* g = t.g.data + h * padded * vw;
        const float* kt = t.kt.data + (kh * kld + key - base) * a.qk_width;
        const float* vt = t.vt.data + (vh * kld + key - base) * a.v_width;
        i64 k_row = k_direct ? a.k_row : qw;
        const float* k = k_direct ? (const float*)a.k + key * a.k_row + kh * a.k_head : t.k.data + (kh * keys + key - base) * qw;
        for (i64 y = 0; y < groups.count && Program::PRODUCT; y++)
          rows_by_panels(groups.c0[y], groups.c1[y], a.qk_width, q + y * MR * qw, qw, kt, x.s.data + y * MR * x.width, x.width);
        for (i64 y = 0; y < groups.count; y++)
          rows_by_panels(groups.c0[y], groups.c1[y], a.v_width, g + y * MR * vw, vw, vt, x.dp.data + y * MR * x.width, x.width);
        for (i64 r = 0; r < m; r++)
          if (groups.c0[r / MR] < groups.c1[r / MR]) p.backward(row_at(r, h), x, t.grads);
        for (i64 y = 0; y < groups.count && Program::PRODUCT; y++) {
          i64 c0 = groups.c0[y], c1 = groups.c1[y];
          if (c0 < c1)
            rows<false>(qw, least(c1, n) - c0, x.dp.data + y * MR * x.width + c0, x.width, k + c0 * k_row, k_row,
                        t.dq.data + (qh * padded + y * MR) * qw, qw, true);
        }
        transposed(groups, m, n, weights, x.width, g, vw, t.dv.data + (vh * ka + key - base) * vw);
        if (Program::PRODUCT) transposed(groups, m, n, x.dp.data, x.width, q, qw, t.dk.data + (kh * ka + key - base) * qw);
      }
      for (i64 r = 0; r < m && SHARED_GRADS; r++) p.scatter(row_at(r, 0), x, t.grads);
    }
    if (Program::PRODUCT && a.grad_q)
      for (i64 r = 0; r < m; r++)
        for (i64 h = 0; h < a.q_heads; h++) {
          QT* out = (QT*)a.grad_q + ((r0 + r) * a.q_heads + h) * a.qk_width;
          const float* dq = t.dq.data + (h * padded + r) * qw;
          for (i64 c = 0; c < a.qk_width; c++) put(out + c, dq[c]);
        }
  }
  p.flush(b, base, keys, t.grads);
}

template <class T> static void write_rows(void* out, i64 heads, i64 width, i64 base, i64 keys, const float* x) {
  i64 ld = round_up(width, W);
  if (!out) return;
  for (i64 r = 0; r < keys; r++)
    for (i64 h = 0; h < heads; h++)
      for (i64 c = 0; c < width; c++) put((T*)out + ((base + r) * heads + h) * width + c, x[(h * (keys + 2 * MR) + r) * ld + c]);
}

// The rows [start, stop) of sequence b, and what becomes of its keys' gradients.
static bool backward_segment(Call& call, i64 b, i64 start, i64 stop, BackwardScratch& t) {
  const Args& a = call.a;
  i64 base = a.key_offsets[b], keys = a.key_offsets[b + 1] - base;
  if (!keys) return true;
  backward_rows(call, b, start, stop, base, keys, t);
  if (start == a.query_offsets[b] && stop == a.query_offsets[b + 1]) {
    if (Program::PRODUCT) write_rows<KT>(a.grad_k, a.k_heads, a.qk_width, base, keys, t.dk.data);
    write_rows<VT>(a.grad_v, a.v_heads, a.v_width, base, keys, t.dv.data);
    return true;
  }
  Partial& part = t.partials[t.parts++];
  part.b = b, part.base = base, part.keys = keys;
  i64 nk = a.k_heads * (keys + 2 * MR) * round_up(a.qk_width, W), nv = a.v_heads * (keys + 2 * MR) * round_up(a.v_width, W);
  if (!part.v.allocate(nv) || (Program::PRODUCT && !part.k.allocate(nk))) return false;
  memcpy((void*)part.v.data, t.dv.data, nv * sizeof(float));
  if (Program::PRODUCT) memcpy((void*)part.k.data, t.dk.data, nk * sizeof(float));
  return true;
}

static void write_partial(const Args& a, const Partial* part) {
  if (!part) return;
  if (Program::PRODUCT) write_rows<KT>(a.grad_k, a.k_heads, a.qk_width, part->base, part->keys, part->k.data);
  write_rows<VT>(a.grad_v, a.v_heads, a.v_width, part->base, part->keys, part->v.data);
}

static void join_partials(const Args& a, BackwardScratch* scratch, i64 threads) {
  Partial* open = nullptr;
  for (i64 t = 0; t < threads; t++)
    for (int n = 0; n < scratch[t].parts; n++) {
      Partial* part = &scratch[t].partials[n];
      if (!open || open->b != part->b) {
        write_partial(a, open);
        open = part;
        continue;
      }
      i64 nk = a.k_heads * (part->keys + 2 * MR) * round_up(a.qk_width, W);
      i64 nv = a.v_heads * (part->keys + 2 * MR) * round_up(a.v_width, W);
      for (i64 x = 0; x < nv; x++) open->v[x] += part->v[x];
      if (Program::PRODUCT)
        for (i64 x = 0; x < nk; x++) open->k[x] += part->k[x];
    }
  write_partial(a, open);
}

// Where each thread's rows begin: cuts at equal cost, between rows.
static void cuts(const Call& call, i64 threads, Array<i64>& begin) {
  const Args& a = call.a;
  i64 total = a.query_offsets[a.batch], found = 1;
  double all = call.cost(0, 0, total), done = 0;
  begin[0] = 0;
  for (i64 r = 0; r < total && found < threads; r++) {
    if (done >= all * found / threads) begin[found++] = r;
    done += call.cost(0, r, r + 1);
  }
  while (found <= threads) begin[found++] = total;
}

extern "C" i64 gr_attention_backward(const Args* args) {
  const Args& a = *args;
  Call call(a);
  if (Status status = call.prepare()) return status;
  i64 keys = 1, total = a.query_offsets[a.batch], tables = Grads::floats(a);
  for (i64 b = 0; b < a.batch; b++) keys = most(keys, a.key_offsets[b + 1] - a.key_offsets[b]);
  if (a.grad_q) memset(a.grad_q, 0, a.query_rows * a.q_heads * a.qk_width * sizeof(QT));
  if (a.grad_k) memset(a.grad_k, 0, a.key_rows * a.k_heads * a.qk_width * sizeof(KT));
  if (a.grad_v) memset(a.grad_v, 0, a.key_rows * a.v_heads * a.v_width * sizeof(VT));
  i64 limit = most((i64)1, (i64)(1 << 27) / most(tables, (i64)1));  // half a GiB of private tables
  i64 threads = most((i64)1, least(least(a.threads, limit), total / MR));
  Array<i64> begin;
  Array<Grads*> grads;
  if (!begin.allocate(threads + 1) || !grads.allocate(threads)) return NO_MEMORY;
  cuts(call, threads, begin);
  BackwardScratch* scratch = new (std::nothrow) BackwardScratch[threads];
  if (!scratch) return NO_MEMORY;
  int status = DONE;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (i64 n = 0; n < threads; n++) {
    BackwardScratch& t = scratch[n];
    bool ok = t.allocate(call, keys);
    for (i64 b = 0; b < a.batch && ok; b++) {
      i64 start = most(begin[n], a.query_offsets[b]), stop = least(begin[n + 1], a.query_offsets[b + 1]);
      if (start < stop) ok = backward_segment(call, b, start, stop, t);
    }
    grads[n] = &t.grads;
    if (!ok) {
#pragma omp atomic write
      status = NO_MEMORY;
    }
  }
  if (status == DONE) {
    join_partials(a, scratch, threads);
    Grads::reduce(a, grads.data, threads);
  }
  delete[] scratch;
  return status;
}
