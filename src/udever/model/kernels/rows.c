/* What is done to a token by itself, read once and written once: layer norm, what an int8 product lacks, GELU, rounding.

   Invariant: a row is computed from itself only, in one order of operations, so it depends on neither its neighbours nor
   the number of threads. Rows are a multiple of 16 numbers. Called through ctypes by native.py, which checks shapes;
   nothing here does. */

#include "vectors.h"

const char *const udever_source = SOURCE; /* the hash of these files: native.py takes no other */

#define SHARED_ROWS _Pragma("omp for schedule(static)")

/* Where a row goes: each of these that is not NULL gets it. */
struct outputs {
    uint8_t *rounded; /* around 128, and in `scales` what 1 stands for, a bfloat16. Source: int8.py, `quantize_tokens` */
    uint16_t *scales, *half;
    float *wide;
};

/* The largest magnitude of a row; NaN if there is one. */
INLINE float loudest(const float *x, size_t width) {
    ints most[2] = {{0}};
    for (size_t i = 0; i < width; i += LANES)
        most[i / LANES % 2] = larger_int(magnitude(*(const floats *)(x + i)), most[i / LANES % 2]);
    ints all_lanes = larger_int(most[0], most[1]);
    for (int step = LANES / 2; step; step /= 2)
        all_lanes = larger_int(all_lanes, __builtin_shuffle(all_lanes, numbered() ^ step));
    return ((floats)all_lanes)[0];
}

INLINE void put(struct outputs to, size_t row, size_t width, const float *x) {
    size_t at = row * width;
    if (to.wide) memcpy(to.wide + at, x, width * sizeof *x);
    if (to.half) narrow(to.half + at, x, width);
    if (!to.rounded) return;
    float one = loudest(x, width) * (1.0f / 127);
    to.scales[row] = narrowed(all(one < 1.17549435e-38f ? 1.17549435e-38f : one))[0];
    floats inverse = all(1.0f / widened(to.scales[row]));
    for (size_t i = 0; i < width; i += LANES) {
        floats y = *(const floats *)(x + i) * inverse + 128.5f; /* the cast cuts off, so the half makes it round */
        *(bytes *)(to.rounded + at + i) = __builtin_convertvector(__builtin_convertvector(y, ints), bytes);
    }
}

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
            const void *more = added ? number(added, kind, t * width) : NULL;
            if (kind == F32) norm_row(row, more, F32, width, weight, bias, epsilon, normed);
            else norm_row(row, more, BF16, width, weight, bias, epsilon, normed);
            put(to, t, width, normed);
        }
        free(normed);
    }
}

/* What an int8 product lacks: x [T, W] * scale of its token (unless NULL) + bias, the kept columns from a product of their
   own [T, K], GELU if asked for; then to the outputs, one of which may be x. */
void udever_finish(const void *x, int kind, size_t rows, size_t width, const uint16_t *token_scales, const uint16_t *bias,
                   const uint16_t *kept, const int64_t *columns, size_t kept_columns, int activate, struct outputs to, int threads) {
    PARALLEL {
        float *row = room_for(width);
        SHARED_ROWS for (size_t t = 0; t < rows; t++) {
            size_t at = t * width;
            if (token_scales) {
                floats scale = all(widened(token_scales[t]));
                for (size_t i = 0; i < width; i += LANES)
                    *(floats *)(row + i) = load(x, BF16, at + i) * scale + load(bias, BF16, i);
            } else if (kind == F32) widen(row, x, F32, at, width);
            else widen(row, x, BF16, at, width);
            for (size_t k = 0; k < kept_columns; k++) row[columns[k]] = widened(kept[t * kept_columns + k]);
            if (activate) for (size_t i = 0; i < width; i += LANES) *(floats *)(row + i) = gelu(*(floats *)(row + i));
            put(to, t, width, row);
        }
        free(row);
    }
}
