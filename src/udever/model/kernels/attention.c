/* Causal ALiBi attention over packed sequences: a task is one head of one sequence, softmax is in float32.

   Invariant: a sequence is computed from itself only, in one order of operations, so it depends on neither its neighbours
   nor the number of threads. Any number of heads, channels and tokens. Called through ctypes by native.py. */

#include "vectors.h"

/* What is multiplied stands in columns of 32 bits: a float, or two neighbouring bfloat16 where a product of such pairs is
   one instruction. */
#ifdef __AVX512BF16__
enum { HAS_PAIRS = 1 };
INLINE floats sum_of_pairs(floats sum, floats a, floats b) {
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#else
enum { HAS_PAIRS = 0 };
INLINE floats sum_of_pairs(floats sum, floats a, floats b) { return sum + a * b; } /* never called */
#endif

enum { ROWS = 6, VECTORS = 2 }; /* of a product held in registers */

/* c [R, V vectors] = a [R, depth] b [depth, V vectors]; R, V and pairs are constants where it is called. */
INLINE void tile(const int R, const int V, const int pairs, const float *a, size_t a_stride, const float *b,
                 size_t b_stride, size_t depth, float *c, size_t c_stride) {
    floats sums[ROWS][VECTORS];
    for (int r = 0; r < R; r++) for (int v = 0; v < V; v++) sums[r][v] = (floats){0};
    for (size_t k = 0; k < depth; k++) {
        floats right[VECTORS];
        for (int v = 0; v < V; v++) right[v] = *(const floats *)(b + k * b_stride + v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            floats left = all(a[r * a_stride + k]);
            for (int v = 0; v < V; v++) {
                if (pairs) sums[r][v] = sum_of_pairs(sums[r][v], left, right[v]);
                else sums[r][v] += left * right[v];
            }
        }
    }
    for (int r = 0; r < R; r++) for (int v = 0; v < V; v++) *(floats *)(c + r * c_stride + v * LANES) = sums[r][v];
}

INLINE void tiles(const int R, const int pairs, const float *a, size_t a_stride, const float *b, size_t b_stride,
                  size_t depth, float *c, size_t c_stride, size_t columns) {
    size_t j = 0;
    for (; j + VECTORS * LANES <= columns; j += VECTORS * LANES)
        tile(R, VECTORS, pairs, a, a_stride, b + j, b_stride, depth, c + j, c_stride);
    for (; j < columns; j += LANES) tile(R, 1, pairs, a, a_stride, b + j, b_stride, depth, c + j, c_stride);
}

/* c [rows, columns] = a [rows, depth] b [depth, columns]; columns are a multiple of LANES, rows at most ROWS.
   On its own: inlined into what calls it, GCC keeps less of it in registers. */
static __attribute__((noinline)) void product(int rows, int pairs, const float *a, size_t a_stride, const float *b,
                                              size_t b_stride, size_t depth, float *c, size_t c_stride, size_t columns) {
#define CASE(R) case R: tiles(R, 0, a, a_stride, b, b_stride, depth, c, c_stride, columns); break; \
                case R + ROWS: tiles(R, HAS_PAIRS, a, a_stride, b, b_stride, depth, c, c_stride, columns); break;
    switch (pairs ? rows + ROWS : rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
}

/* A query's products with keys [0, end) -> its weights before their division by the sum, which is returned; those of keys
   behind it are 0. */
INLINE float soften(float *scores, size_t query, size_t end, float scale, float slope) {
    floats most = all(-INFINITY);
    for (size_t j = 0; j < end; j += LANES) {
        ints behind = numbered() + ((int32_t)j - (int32_t)query);
        floats s = *(floats *)(scores + j) * scale + slope * __builtin_convertvector(behind, floats);
        s = either(behind > 0, all(-INFINITY), s);
        *(floats *)(scores + j) = s;
        most = larger(most, s);
    }
    floats peak = all(largest(most)), total = {0};
    for (size_t j = 0; j < end; j += LANES) {
        floats e = exponential(*(floats *)(scores + j) - peak);
        *(floats *)(scores + j) = e;
        total += e;
    }
    return sum(total);
}

/* Two rows of bfloat16 as one of pairs; NULL is a row of zeros. */
INLINE void pair(float *to, const uint16_t *first, const uint16_t *second, size_t count) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        words both = __builtin_convertvector(*(const halves *)(first + i), words);
        if (second) both |= __builtin_convertvector(*(const halves *)(second + i), words) << 16;
        *(words *)(to + i) = both;
    }
    for (; i < count; i++) {
        uint32_t both = first[i] | (second ? (uint32_t)second[i] << 16 : 0);
        memcpy(to + i, &both, sizeof both);
    }
}

/* LANES rows of x [.., depth] as columns of to [depth, stride]; rows from `count` on are zero. */
INLINE void transpose(float *to, size_t stride, const void *x, enum kind kind, size_t at, size_t x_stride, size_t count,
                      size_t depth) {
    for (size_t d = 0; d < depth; d += LANES) {
        size_t here = depth - d < LANES ? depth - d : LANES;
        floats m[LANES];
        for (size_t r = 0; r < LANES; r++) {
            m[r] = (floats){0};
            if (r >= count) continue;
            if (here == LANES) m[r] = load(x, kind, at + r * x_stride + d);
            else for (size_t c = 0; c < here; c++) m[r][c] = element(x, kind, at + r * x_stride + d + c);
        }
#pragma GCC unroll 8
        for (int half = LANES / 2; half; half /= 2) { /* swap blocks of half x half across the diagonal */
            ints lane = numbered(), second = (lane & half) != 0;
            ints low = lane + (second & (LANES - half)), high = low + half;
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++) if (!(r & half)) {
                floats a = m[r], b = m[r + half];
                m[r] = __builtin_shuffle(a, b, low);
                m[r + half] = __builtin_shuffle(a, b, high);
            }
        }
        for (size_t c = 0; c < here; c++) *(floats *)(to + (d + c) * stride) = m[c];
    }
}

struct room { float *keys, *values, *queries, *scores, *out; };

struct head { /* of one sequence: where its numbers begin, and how far apart its tokens are */
    const void *q, *k, *v;
    void *out;
    size_t q_stride, kv_stride, out_stride, length, first_query, depth;
    float slope;
};

INLINE void attend(struct head head, enum kind kind, const int pairs, struct room room) {
    const size_t length = head.length, depth = head.depth, held = pairs ? depth / 2 : depth;
    const size_t keys = up(length, LANES), channels = up(depth, LANES), stride = head.kv_stride;
    for (size_t j = 0; j < length; j += LANES)
        transpose(room.keys + j, keys, head.k, pairs ? F32 : kind, (j * stride) / (1 + pairs), stride / (1 + pairs), length - j, held);
    if (pairs) for (size_t j = 0; j < length; j += 2) {
        const uint16_t *first = number(head.v, kind, j * stride), *second = j + 1 < length ? first + stride : NULL;
        pair(room.values + j / 2 * channels, first, second, depth);
    } else for (size_t j = 0; j < length; j++) widen(room.values + j * channels, head.v, kind, j * stride, depth);
    for (size_t i = head.first_query; i < length; i += ROWS) {
        int rows = length - i < ROWS ? length - i : ROWS;
        size_t seen = i + rows, end = up(seen, LANES), at = i - head.first_query;
        for (int r = 0; r < rows; r++) {
            if (pairs) memcpy(room.queries + r * held, number(head.q, kind, (at + r) * head.q_stride), depth * sizeof(uint16_t));
            else widen(room.queries + r * held, head.q, kind, (at + r) * head.q_stride, depth);
        }
        product(rows, pairs, room.queries, held, room.keys, keys, held, room.scores, keys, end);
        float totals[ROWS];
        for (int r = 0; r < rows; r++) {
            totals[r] = soften(room.scores + r * keys, i + r, end, 1.0f / sqrtf(depth), head.slope);
            if (pairs) narrow(room.scores + r * keys, room.scores + r * keys, end);
        }
        product(rows, pairs, room.scores, keys, room.values, channels, pairs ? (seen + 1) / 2 : seen, room.out, channels, channels);
        for (int r = 0; r < rows; r++) {
            void *out = (void *)number(head.out, kind, (at + r) * head.out_stride);
            float *row = room.out + r * channels;
            for (size_t d = 0; d < channels; d += LANES) *(floats *)(row + d) *= 1.0f / totals[r];
            if (kind == BF16) narrow(row, row, channels);
            memcpy(out, row, depth * (kind == F32 ? sizeof(float) : sizeof(uint16_t)));
        }
    }
}

/* q, out [T, heads, depth], or (closing) of each sequence's last token alone [S, heads, depth]; k, v [T, heads, depth]. */
void udever_attention(const void *q, size_t q_stride, const void *k, const void *v, size_t kv_stride, int kind,
                      const int32_t *cu_seqlens, size_t sequences, size_t heads, size_t depth, const float *slopes,
                      int closing, size_t longest, void *out, int threads) {
    const int pairs = HAS_PAIRS && kind == BF16 && depth % 2 == 0 && q_stride % 2 == 0 && kv_stride % 2 == 0;
    PARALLEL {
        size_t keys = up(longest, LANES), channels = up(depth, LANES);
        size_t sizes[] = {depth * keys, keys * channels, ROWS * depth, ROWS * keys, ROWS * channels}, total = 0;
        for (int i = 0; i < 5; i++) total += sizes[i] = up(sizes[i], 16);
        struct room room = {room_for(total), 0, 0, 0, 0};
        room.values = room.keys + sizes[0];
        room.queries = room.values + sizes[1];
        room.scores = room.queries + sizes[2];
        room.out = room.scores + sizes[3];
        memset(room.values, 0, sizes[1] * sizeof(float)); /* channels beyond `depth` stay so */
        _Pragma("omp for schedule(dynamic, 1)") for (size_t task = 0; task < sequences * heads; task++) {
            size_t s = task / heads, n = task % heads, first = cu_seqlens[s], row = closing ? s : first;
            size_t length = cu_seqlens[s + 1] - first, at = n * depth;
            struct head head = {
                number(q, kind, row * q_stride + at), number(k, kind, first * kv_stride + at), number(v, kind, first * kv_stride + at),
                (void *)number(out, kind, row * heads * depth + at), q_stride, kv_stride, heads * depth, length,
                closing ? length - 1 : 0, depth, slopes[n],
            };
            if (kind == F32) attend(head, F32, 0, room);
            else if (pairs) attend(head, BF16, HAS_PAIRS, room);
            else attend(head, BF16, 0, room);
        }
        free(room.keys);
    }
}
