/* A register of floats and what can be done with it, in the vector extension of GCC: no intrinsics, but for bfloat16 where
   the CPU has it. Compiled once for each width of registers (`LANES`, by hatch_build.py). */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

enum kind { F32, BF16 }; /* as native.py numbers them */

INLINE floats all(float x) { return x - (floats){0}; } /* a broadcast: GCC knows that x - 0 is x, of whatever bits */
INLINE floats either(ints mask, floats yes, floats no) { return (floats)((mask & (ints)yes) | (~mask & (ints)no)); }
INLINE floats larger(floats a, floats b) { return either(a > b, a, b); }
INLINE ints magnitude(floats x) { return (ints)x & 0x7fffffff; } /* of which a NaN's is the largest */
INLINE ints larger_int(ints a, ints b) { return ((a > b) & a) | (~(a > b) & b); }

static const int32_t NUMBERS[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
INLINE ints numbered(void) { return *(const ints *)NUMBERS; }

/* Each lane from the one `step` away, the nearer half of the register first. */
INLINE floats crossed(floats x, const int step) {
    return __builtin_shuffle(x, numbered() ^ step);
}

INLINE float sum(floats x) {
    if (LANES > 8) x += crossed(x, 8);
    x += crossed(x, 4);
    x += crossed(x, 2);
    return x[0] + x[1];
}

INLINE float largest(floats x) {
    if (LANES > 8) x = larger(x, crossed(x, 8));
    x = larger(x, crossed(x, 4));
    x = larger(x, crossed(x, 2));
    return x[0] > x[1] ? x[0] : x[1];
}

INLINE float widened(uint16_t x) {
    union { uint32_t bits; float number; } u = {(uint32_t)x << 16};
    return u.number;
}

/* To the nearest bfloat16, halves to even; a NaN stays one. */
INLINE halves narrowed(floats x) {
#ifdef __AVX512BF16__
    return (halves)_mm512_cvtneps_pbh((__m512)x);
#else
    words bits = (words)x, rounded = bits + 0x7fff + ((bits >> 16) & 1);
    words nan = (words)(x != x);
    return __builtin_convertvector(((rounded & ~nan) | (nan & 0x7fc00000)) >> 16, halves);
#endif
}

INLINE floats load(const void *x, enum kind kind, size_t i) {
    if (kind == F32) return *(const floats *)((const float *)x + i);
    return (floats)(__builtin_convertvector(*(const halves *)((const uint16_t *)x + i), words) << 16);
}

/* Where number i stands. */
INLINE const void *number(const void *x, enum kind kind, size_t i) {
    return (const char *)x + i * (kind == F32 ? sizeof(float) : sizeof(uint16_t));
}

INLINE float element(const void *x, enum kind kind, size_t i) {
    return kind == F32 ? ((const float *)x)[i] : widened(((const uint16_t *)x)[i]);
}

INLINE void widen(float *to, const void *x, enum kind kind, size_t at, size_t count) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) *(floats *)(to + i) = load(x, kind, at + i);
    for (; i < count; i++) to[i] = element(x, kind, at + i);
}

/* A row of floats to bfloat16; it may go over its own beginning. */
INLINE void narrow(void *to, const float *row, size_t width) {
    for (size_t i = 0; i < width; i += LANES) *(halves *)((uint16_t *)to + i) = narrowed(*(const floats *)(row + i));
}

/* 2^x for |x| <= 126, to two units in the last place (Cephes' polynomial). */
INLINE floats power_of_2(floats x) {
    floats shifted = x + 12582912.0f; /* 1.5 * 2^23: the low bits are x to the nearest whole number */
    floats r = x - (shifted - 12582912.0f);
    floats p = all(1.535336188319500e-4f);
    p = p * r + 1.339887440266574e-3f;
    p = p * r + 9.618437357674640e-3f;
    p = p * r + 5.550332471162809e-2f;
    p = p * r + 2.402264791363012e-1f;
    p = p * r + 6.931472028550421e-1f;
    p = p * r + 1.0f;
    return (floats)((ints)p + ((ints)shifted << 23));
}

/* e^x for x <= 0; 0 for what float32 holds as a denormal at most. The error of x * log2(e) grows with -x, as e^x falls. */
INLINE floats exponential(floats x) {
    floats power = x * 1.44269504088896341f;
    ints holds = power > -126;
    return (floats)(holds & (ints)power_of_2(either(holds, power, all(0))));
}

/* GELU in its tanh form, x / (1 + e^(-2 u)) with u = sqrt(2/pi) (x + 0.044715 x^3). */
INLINE floats gelu(floats x) {
    floats power = x * (-2.302208198f - 0.1029432397f * x * x); /* -2 u log2(e) */
    power = either(power > 126, all(126), either(power < -126, all(-126), power));
    return x / (1.0f + power_of_2(power));
}

#define PARALLEL _Pragma("omp parallel num_threads(threads) if (threads > 1)")

INLINE size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

static float *room_for(size_t numbers) { return aligned_alloc(64, up(numbers * sizeof(float), 64)); }
