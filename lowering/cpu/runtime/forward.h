// O = P V, block by block of rows: products of six rows, the score program between them.
#pragma once

struct ForwardScratch {
  Array<float> q, kt, v, o;
  Strip x;
  bool allocate(const Call& call, i64 keys) {
    const Args& a = call.a;
    x.width = call.strip_width(keys);
    i64 rows = call.rows_of_block(keys), area = rows * x.width;
    i64 columns = round_up(keys, NR) + NR;
    bool ok = x.s.zeros(area) && o.allocate(a.heads * rows * round_up(a.v_width, W));
    if (Program::PRODUCT) ok = ok && q.allocate(a.q_heads * rows * a.qk_width) && kt.allocate(a.k_heads * a.qk_width * columns);
    if (Program::SOFTMAX && Program::POST_READS_PRODUCT) ok = ok && x.sm.zeros(area);
    if (!in_place<VT>(a.v_width, a.v_row)) ok = ok && v.allocate(a.v_heads * keys * round_up(a.v_width, W));
    for (int e = 0; e < SHARED; e++) ok = ok && x.e[e].zeros(area);
    return ok;
  }
};

static void forward_rows(Call& call, const Rows& work, ForwardScratch& t) {
  const Args& a = call.a;
  Program& p = call.p;
  Strip& x = t.x;
  i64 base = INT64_MAX, end = 0;
  for (i64 r = work.r0; r < work.r1; r++)
    if (call.hulls.low[r] < call.hulls.high[r])
      base = least(base, call.hulls.low[r]), end = most(end, call.hulls.high[r]);
  if (base > end) base = end = 0;
  i64 keys = end - base, kld = round_up(keys, NR), vw = round_up(a.v_width, W);
  bool v_direct = in_place<VT>(a.v_width, a.v_row);
  if (Program::PRODUCT)
    for (i64 h = 0; h < a.k_heads; h++)
      transpose_rows((const KT*)a.k + base * a.k_row + h * a.k_head, a.k_row, keys, a.qk_width, t.kt.data + h * a.qk_width * kld);
  if (!v_direct)
    for (i64 h = 0; h < a.v_heads; h++)
      copy_rows((const VT*)a.v + base * a.v_row + h * a.v_head, a.v_row, keys, a.v_width, t.v.data + h * keys * vw, vw);
  i64 step = call.rows_of_block(a.key_offsets[work.b + 1] - a.key_offsets[work.b]);
  for (i64 r0 = work.r0; r0 < work.r1; r0 += step) {
    i64 m = least(step, work.r1 - r0), padded = round_up(m, MR);
    Groups groups(call.hulls, r0, r0 + m);
    if (Program::PRODUCT)
      for (i64 h = 0; h < a.q_heads; h++) {
        float* q = t.q.data + h * padded * a.qk_width;
        copy_rows((const QT*)a.q + r0 * a.q_row + h * a.q_head, a.q_row, m, a.qk_width, q, a.qk_width);
        memset((void*)(q + m * a.qk_width), 0, (padded - m) * a.qk_width * sizeof(float));
      }
    memset((void*)t.o.data, 0, a.heads * padded * vw * sizeof(float));
    i64 wide = Program::SOFTMAX ? x.width : STRIP;
    i64 origin = groups.first >= groups.last ? base : base + (groups.first - base) / NR * NR;
    for (i64 key = origin; key < groups.last; key += wide) {
      i64 n = least(wide, groups.last - key);
      groups.strip(key, n);
      for (i64 r = 0; r < m && SHARED; r++) {
        i64 g = r / MR;
        p.shared(Row{work.b, 0, r0 + r, key, groups.c0[g], groups.c1[g], n, r * x.width, (bool)call.hulls.contiguous[work.b]}, x);
      }
      for (i64 h = 0; h < a.heads; h++) {
        const float* kt = Program::PRODUCT ? t.kt.data + (p.k_head(h) * kld + key - base) * a.qk_width : nullptr;
        i64 vh = p.v_head(h);
        const float* v = v_direct ? (const float*)a.v + key * a.v_row + vh * a.v_head : t.v.data + (vh * keys + key - base) * vw;
        i64 vld = v_direct ? a.v_row : vw;
        if (Program::PRODUCT)
          for (i64 g = 0; g < groups.count; g++) {
            i64 c0 = groups.c0[g], c1 = groups.c1[g];
            const float* q = t.q.data + (p.q_head(h) * padded + g * MR) * a.qk_width;
            if (c0 < c1) rows_by_panels(c0, c1, a.qk_width, q, a.qk_width, kt, x.s.data + g * MR * x.width, x.width);
          }
        const float* weights = x.s.data;
        for (i64 r = 0; r < m; r++) {
          i64 c0 = groups.c0[r / MR], c1 = groups.c1[r / MR];
          Row w{work.b, h, r0 + r, key, c0, c1, n, r * x.width, (bool)call.hulls.contiguous[work.b]};
          if (c0 < c1) weights = p.forward(w, x);
        }
        for (i64 g = 0; g < groups.count; g++) {
          i64 c0 = groups.c0[g], c1 = groups.c1[g];
          if (c0 < c1)
            rows<false>(vw, least(c1, n) - c0, weights + g * MR * x.width + c0, x.width, v + c0 * vld, vld,
                        t.o.data + (h * padded + g * MR) * vw, vw, true);
        }
      }
    }
    for (i64 r = 0; r < m; r++) {
      bool nan = Program::NATURAL && call.hulls.low[r0 + r] >= call.hulls.high[r0 + r];
      for (i64 h = 0; h < a.heads; h++) {
        const float* o = t.o.data + (h * padded + r) * vw;
        OT* out = (OT*)a.out + ((r0 + r) * a.heads + h) * a.v_width;
        if constexpr (std::is_same_v<OT, float>) {
          memcpy((void*)out, o, a.v_width * sizeof(float));
          for (i64 c = 0; nan && c < a.v_width; c++) put(out + c, NAN);
        } else {
          for (i64 c = 0; c < a.v_width; c++) put(out + c, nan ? NAN : o[c]);
        }
      }
    }
  }
}

extern "C" i64 gr_attention_forward(const Args* args) {
  const Args& a = *args;
  Call call(a);
  if (Status status = call.prepare()) return status;
  i64 total = a.query_offsets[a.batch], keys = 1;
  i64 size = round_up(least(most(total / (a.threads * 6), (i64)1), 8 * BLOCK), BLOCK);
  i64 count = 0;
  for (i64 b = 0; b < a.batch; b++) count += (a.query_offsets[b + 1] - a.query_offsets[b] + size - 1) / size;
  Array<Rows> work;
  if (!work.allocate(count)) return NO_MEMORY;
  count = 0;
  for (i64 b = 0; b < a.batch; b++) {
    keys = most(keys, a.key_offsets[b + 1] - a.key_offsets[b]);
    for (i64 r = a.query_offsets[b]; r < a.query_offsets[b + 1]; r += size) {
      i64 r1 = least(r + size, a.query_offsets[b + 1]);
      work[count++] = {b, r, r1, call.cost(b, r, r1)};
    }
  }
  qsort(work.data, count, sizeof(Rows), [](const void* x, const void* y) {
    double left = ((const Rows*)x)->cost, right = ((const Rows*)y)->cost;
    return left < right ? 1 : left > right ? -1 : 0;
  });
  memset((void*)((OT*)a.out + total * a.heads * a.v_width), 0, (a.query_rows - total) * a.heads * a.v_width * sizeof(OT));
  int status = DONE;
#pragma omp parallel num_threads(most((i64)1, least(a.threads, count)))
  {
    ForwardScratch scratch;
    bool ok = scratch.allocate(call, keys);
    if (!ok) {
#pragma omp atomic write
      status = NO_MEMORY;
    }
#pragma omp for schedule(dynamic, 1)
    for (i64 n = 0; n < count; n++)
      if (ok) forward_rows(call, work[n], scratch);
  }
  return status;
}
