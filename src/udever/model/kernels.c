/* What lies between BLOOM's matrix products on a CPU: layer norm, int8 rounding, causal ALiBi attention.

   Each kernel reads its input once and writes what the next product wants; PyTorch takes three to ten passes for the
   same. Plain C with the vector extension of GCC and Clang, compiled once for each width of vectors (`LANES`, by
   hatch_build.py).
   Invariant: a row (of attention: a sequence) is computed from itself only, in one order of operations, so it never
   depends on its neighbours or on the number of threads. Rows are a multiple of 16 numbers (attention: any).
   Called through ctypes by native.py, which checks shapes; nothing here does. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

const char *const udever_source = SOURCE; /* the hash of this file: native.py takes no other */

#define INLINE static inline __attribute__((always_inline))
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

enum kind { F32, BF16 }; /* as native.py numbers them */

INLINE floats all(float x) { return x - (floats){0}; }
INLINE floats either(ints mask, floats yes, floats no) { return (floats)((mask & (ints)yes) | (~mask & (ints)no)); }
INLINE floats larger(floats a, floats b) { return either(a > b, a, b); }
INLINE floats magnitude(floats x) { return (floats)((ints)x & 0x7fffffff); }

INLINE float sum(floats x) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += x[i];
    return s;
}

INLINE float largest(floats x) {
    float s = x[0];
    for (int i = 1; i < LANES; i++) s = x[i] > s ? x[i] : s;
    return s;
}

INLINE float widened(uint16_t x) {
    union { uint32_t bits; float number; } u = {(uint32_t)x << 16};
    return u.number;
}

/* To the nearest bfloat16, halves to even; a NaN stays one. */
INLINE halves narrowed(floats x) {
    words bits = (words)x, rounded = bits + 0x7fff + ((bits >> 16) & 1);
    words nan = (words)(x != x);
    return __builtin_convertvector(((rounded & ~nan) | (nan & 0x7fc00000)) >> 16, halves);
}

INLINE floats load(const void *x, enum kind kind, size_t i) {
    if (kind == F32) return *(const floats *)((const float *)x + i);
    return (floats)(__builtin_convertvector(*(const halves *)((const uint16_t *)x + i), words) << 16);
}

INLINE void store(void *x, enum kind kind, size_t i, floats value) {
    if (kind == F32) *(floats *)((float *)x + i) = value;
    else *(halves *)((uint16_t *)x + i) = narrowed(value);
}

/* e^x for x <= 0 to one unit in the last place or two (Cephes' polynomial); 0 below float32's normal numbers. */
INLINE floats exponential(floats x) {
    const floats low = all(-87.3f);
    ints under = x < low;
    floats clipped = larger(x, low);
    floats shifted = clipped * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: the low bits are the rounded product */
    floats n = shifted - 12582912.0f;
    floats r = clipped - n * 0.693359375f + n * 2.12194440e-4f;
    floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    ints power = ((ints)shifted - 0x4b400000 + 127) << 23;
    return (floats)(~under & (ints)(p * (floats)power));
}

/* GELU in its tanh form: x / (1 + e^(-2 u)), u = sqrt(2/pi) (x + 0.044715 x^3). */
INLINE floats gelu(floats x) {
    floats u = 1.5957691216057308f * x * (1.0f + 0.044715f * x * x);
    floats e = exponential(-magnitude(u));
    ints negative = u < all(0);
    return x * either(negative, e, all(1)) / (1.0f + e);
}

/* Where a row goes: each of these that is not NULL gets it. */
struct outputs {
    uint8_t *rounded; /* around 128, and in `scales` what 1 stands for, a bfloat16. Source: int8.py, `quantize_tokens` */
    uint16_t *scales, *half;
    float *wide;
};

INLINE void put(struct outputs to, size_t row, size_t width, const float *x) {
    size_t at = row * width;
    if (to.wide) memcpy(to.wide + at, x, width * sizeof *x);
    if (to.half) for (size_t i = 0; i < width; i += LANES) store(to.half, BF16, at + i, *(const floats *)(x + i));
    if (!to.rounded) return;
    floats loudest[2] = {{0}};
    for (size_t i = 0; i < width; i += LANES) loudest[i / LANES % 2] = larger(magnitude(*(const floats *)(x + i)), loudest[i / LANES % 2]);
    float one = largest(larger(loudest[0], loudest[1])) * (1.0f / 127);
    to.scales[row] = narrowed(all(one < 1.17549435e-38f ? 1.17549435e-38f : one))[0];
    floats inverse = all(1.0f / widened(to.scales[row]));
    for (size_t i = 0; i < width; i += LANES) {
        floats y = *(const floats *)(x + i) * inverse + 128.5f; /* the cast cuts off, so the half makes it round */
        *(bytes *)(to.rounded + at + i) = __builtin_convertvector(__builtin_convertvector(y, ints), bytes);
    }
}

/* ---- rows: what is read once and written once ------------------------------------------------------------------- */

#define PARALLEL _Pragma("omp parallel num_threads(threads) if (threads > 1)")
#define SHARED_ROWS _Pragma("omp for schedule(static)")

INLINE size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

static float *room_for(size_t numbers) { return aligned_alloc(64, up(numbers * sizeof(float), 64)); }

INLINE float joined(const floats parts[4]) { return sum((parts[0] + parts[1]) + (parts[2] + parts[3])); }

/* row += added (unless NULL); normed = its layer norm. */
INLINE void norm_row(float *row, const void *added, enum kind kind, size_t width, const float *weight, const float *bias,
                     float epsilon, float *normed) {
    floats total[4] = {{0}}, squares[4] = {{0}};
    for (size_t i = 0; i < width; i += LANES) {
        floats x = *(floats *)(row + i);
        if (added) *(floats *)(row + i) = x = x + load(added, kind, i);
        total[i / LANES % 4] += x;
    }
    floats mean = all(joined(total) / width);
    for (size_t i = 0; i < width; i += LANES) {
        floats x = *(floats *)(row + i) - mean;
        squares[i / LANES % 4] += x * x;
    }
    floats inverse = all(1.0f / sqrtf(joined(squares) / width + epsilon));
    for (size_t i = 0; i < width; i += LANES) {
        floats y = (*(floats *)(row + i) - mean) * inverse;
        *(floats *)(normed + i) = y * *(const floats *)(weight + i) + *(const floats *)(bias + i);
    }
}

/* hidden [T, W] += added [T, W] (unless NULL), in place; the layer norm of it goes to the outputs. */
void udever_norm(float *hidden, const void *added, int kind, size_t rows, size_t width, const float *weight,
                 const float *bias, float epsilon, struct outputs to, int threads) {
    PARALLEL {
        float *normed = room_for(width);
        SHARED_ROWS for (size_t t = 0; t < rows; t++) {
            float *row = hidden + t * width;
            if (kind == F32) norm_row(row, added ? (const float *)added + t * width : NULL, F32, width, weight, bias, epsilon, normed);
            else norm_row(row, added ? (const uint16_t *)added + t * width : NULL, BF16, width, weight, bias, epsilon, normed);
            put(to, t, width, normed);
        }
        free(normed);
    }
}

/* What an int8 product lacks: x [T, W] * scale of its token (unless NULL) + bias, the kept columns from a product of their
   own [T, K], GELU if asked for; then to the outputs, one of which may be x. */
void udever_finish(const uint16_t *x, size_t rows, size_t width, const uint16_t *token_scales, const uint16_t *bias,
                   const uint16_t *kept, const int64_t *columns, size_t kept_columns, int activate, struct outputs to, int threads) {
    PARALLEL {
        float *row = room_for(width);
        SHARED_ROWS for (size_t t = 0; t < rows; t++) {
            if (token_scales) {
                floats scale = all(widened(token_scales[t]));
                for (size_t i = 0; i < width; i += LANES) *(floats *)(row + i) = load(x, BF16, t * width + i) * scale + load(bias, BF16, i);
            } else for (size_t i = 0; i < width; i += LANES) *(floats *)(row + i) = load(x, BF16, t * width + i);
            for (size_t k = 0; k < kept_columns; k++) row[columns[k]] = widened(kept[t * kept_columns + k]);
            if (activate) for (size_t i = 0; i < width; i += LANES) *(floats *)(row + i) = gelu(*(floats *)(row + i));
            put(to, t, width, row);
        }
        free(row);
    }
}

/* ---- attention: a task is one head of one sequence -------------------------------------------------------------- */

enum { ROWS = 6, COLUMNS = 2 * LANES };

/* c [R, COLUMNS] = a [R, depth] b [depth, COLUMNS] */
INLINE void tile(const int R, const float *a, size_t a_stride, const float *b, size_t b_stride, size_t depth, float *c, size_t c_stride) {
    floats sums[ROWS][2];
    for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = (floats){0};
    for (size_t k = 0; k < depth; k++) {
        floats left = *(const floats *)(b + k * b_stride), right = *(const floats *)(b + k * b_stride + LANES);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            floats x = all(a[r * a_stride + k]);
            sums[r][0] += x * left;
            sums[r][1] += x * right;
        }
    }
    for (int r = 0; r < R; r++) {
        *(floats *)(c + r * c_stride) = sums[r][0];
        *(floats *)(c + r * c_stride + LANES) = sums[r][1];
    }
}

static void product(int rows, const float *a, size_t a_stride, const float *b, size_t b_stride, size_t depth, float *c, size_t c_stride, size_t columns) {
    for (size_t j = 0; j < columns; j += COLUMNS) switch (rows) {
        case 1: tile(1, a, a_stride, b + j, b_stride, depth, c + j, c_stride); break;
        case 2: tile(2, a, a_stride, b + j, b_stride, depth, c + j, c_stride); break;
        case 3: tile(3, a, a_stride, b + j, b_stride, depth, c + j, c_stride); break;
        case 4: tile(4, a, a_stride, b + j, b_stride, depth, c + j, c_stride); break;
        case 5: tile(5, a, a_stride, b + j, b_stride, depth, c + j, c_stride); break;
        default: tile(6, a, a_stride, b + j, b_stride, depth, c + j, c_stride);
    }
}

/* Scores of one query on keys [0, last]: weights before their division by the sum, which is returned. */
INLINE float soften(float *scores, size_t last, size_t end, float slope) {
    ints lanes;
    for (int i = 0; i < LANES; i++) lanes[i] = i;
    floats most = all(-INFINITY);
    for (size_t j = 0; j < end; j += LANES) {
        ints behind = lanes + ((int32_t)j - (int32_t)last);
        floats s = *(floats *)(scores + j) + slope * __builtin_convertvector(behind, floats);
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

INLINE float element(const void *x, enum kind kind, size_t i) {
    return kind == F32 ? ((const float *)x)[i] : widened(((const uint16_t *)x)[i]);
}

struct room { float *keys, *values, *queries, *scores, *out; };

INLINE void wide_row(float *to, const void *from, enum kind kind, size_t i, size_t count) {
    size_t d = 0;
    for (; d + LANES <= count; d += LANES) *(floats *)(to + d) = load(from, kind, i + d);
    for (; d < count; d++) to[d] = element(from, kind, i + d);
}

/* LANES rows of x [.., depth] as columns of to [depth, stride]; rows beyond `count` are zero. */
INLINE void transposed(float *to, size_t stride, const void *x, enum kind kind, size_t at, size_t row_stride, size_t count, size_t depth) {
    for (size_t d = 0; d < depth; d += LANES) {
        floats m[LANES];
        size_t here = depth - d < LANES ? depth - d : LANES;
        for (size_t r = 0; r < LANES; r++) {
            m[r] = (floats){0};
            if (r >= count) continue;
            if (here == LANES) m[r] = load(x, kind, at + r * row_stride + d);
            else for (size_t c = 0; c < here; c++) m[r][c] = element(x, kind, at + r * row_stride + d + c);
        }
#pragma GCC unroll 8
        for (int half = LANES / 2; half; half /= 2) {   /* swap blocks of half x half across the diagonal */
            ints low, high;
            for (int i = 0; i < LANES; i++) {
                low[i] = i & half ? LANES + (i ^ half) : i;
                high[i] = i & half ? LANES + i : i ^ half;
            }
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

INLINE void attend(const void *q, size_t q_at, size_t q_stride, const void *k, size_t k_at, const void *v, size_t v_at,
                   size_t kv_stride, enum kind kind, size_t length, size_t first_query, size_t depth, float slope,
                   void *out, size_t out_at, size_t out_stride, struct room room) {
    const float scale = 1.0f / sqrtf(depth);
    size_t keys = up(length, COLUMNS), channels = up(depth, COLUMNS);
    for (size_t j = 0; j < keys; j += LANES) {
        size_t count = j < length ? (length - j < LANES ? length - j : LANES) : 0;
        transposed(room.keys + j, keys, k, kind, k_at + j * kv_stride, kv_stride, count, depth);
    }
    for (size_t j = 0; j < length; j++) wide_row(room.values + j * channels, v, kind, v_at + j * kv_stride, depth);
    for (size_t i = first_query; i < length; i += ROWS) {
        int rows = length - i < ROWS ? length - i : ROWS;
        size_t seen = i + rows, end = up(seen, COLUMNS);
        for (int r = 0; r < rows; r++) {
            float *query = room.queries + r * depth;
            wide_row(query, q, kind, q_at + (i - first_query + r) * q_stride, depth);
            for (size_t d = 0; d < depth; d++) query[d] *= scale;
        }
        product(rows, room.queries, depth, room.keys, keys, depth, room.scores, keys, end);
        float totals[ROWS];
        for (int r = 0; r < rows; r++) totals[r] = soften(room.scores + r * keys, i + r, end, slope);
        product(rows, room.scores, keys, room.values, channels, seen, room.out, channels, channels);
        for (int r = 0; r < rows; r++) {
            size_t at = out_at + (i - first_query + r) * out_stride, d = 0;
            const float *row = room.out + r * channels;
            float inverse = 1.0f / totals[r];
            for (; d + LANES <= depth; d += LANES) store(out, kind, at + d, *(const floats *)(row + d) * inverse);
            for (; d < depth; d++) {
                if (kind == F32) ((float *)out)[at + d] = row[d] * inverse;
                else ((uint16_t *)out)[at + d] = narrowed(all(row[d] * inverse))[0];
            }
        }
    }
}

void udever_attention(const void *q, size_t q_stride, const void *k, const void *v, size_t kv_stride, int kind,
                      const int32_t *cu_seqlens, size_t sequences, size_t heads, size_t depth, const float *slopes,
                      int closing, size_t longest, void *out, int threads) {
    PARALLEL {
        size_t keys = up(longest, COLUMNS), channels = up(depth, COLUMNS);
        size_t sizes[] = {up(depth, 16) * keys, keys * channels, ROWS * depth, ROWS * keys, ROWS * channels}, all_sizes = 0;
        for (int i = 0; i < 5; i++) all_sizes += sizes[i] = up(sizes[i], 16);
        float *memory = room_for(all_sizes);
        struct room room = {memory, memory + sizes[0], memory + sizes[0] + sizes[1], 0, 0};
        room.scores = room.queries + sizes[2];
        room.out = room.scores + sizes[3];
        memset(room.values, 0, sizes[1] * 4);
        _Pragma("omp for schedule(dynamic, 1)") for (size_t task = 0; task < sequences * heads; task++) {
            size_t s = task / heads, n = task % heads, first = cu_seqlens[s], length = cu_seqlens[s + 1] - first;
            size_t row = closing ? s : first, head = n * depth;
#define ATTEND(of) attend(q, row * q_stride + head, q_stride, k, first * kv_stride + head, v, first * kv_stride + head, kv_stride, \
                   of, length, closing ? length - 1 : 0, depth, slopes[n], out, row * heads * depth + head, heads * depth, room)
            if (kind == F32) ATTEND(F32);
            else ATTEND(BF16);
#undef ATTEND
        }
        free(memory);
    }
}
