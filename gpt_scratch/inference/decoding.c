/* The layers of a GPT for inference, as one call: each weight is read once, in the bytes it is kept in, and widened to fp32 in registers.

   Generating one token does two operations with every weight, so its time is the bytes of the weights over the bandwidth of the memory,
   if nothing else costs: no call of a library for each of some 20 operations of a layer, no wait for the slower thread after each.
   The mathematics is that of modeling_gpt_scratch.py, in its order. decoding.py compiles this file and calls it.

   C hidden size, I intermediate size, H query heads, K key/value heads, D head size. A row is a token: rows may belong to several
   sequences, and padding is not among them. Sizes of a product's input are multiples of GROUP. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define GROUP 32       /* columns that share a scale and a minimum in four bits */
#define MOST_ROWS 4    /* that one pass over a weight in registers serves */
#define BLOCK 8        /* outputs that a thread takes at a time: their weights stay in its cache while all rows pass */
#define ROWS_A_PASS 128 /* rows that stay in the cache while all weights pass */

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
#define INLINE static inline __attribute__((always_inline))

/* LANES integers from memory, widened to 32 bits; nibbles: the low or the high halves of LANES bytes. On x86 by name: gcc 12 makes 30
   instructions of the conversion that it calls portable. */
#if LANES == 16
#include <immintrin.h>
#define FROM_BYTES(p) (ints) _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(p)))
#define FROM_NIBBLES(p, shift) (ints) _mm512_cvtepu8_epi32(_mm_and_si128(_mm_srli_epi16(_mm_loadu_si128((const void *)(p)), shift), _mm_set1_epi8(15)))
#define FROM_HALVES(p) (ints) _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(p)))
#elif defined(__AVX2__)
#include <immintrin.h>
#define FROM_BYTES(p) (ints) _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(p)))
#define FROM_NIBBLES(p, shift) (ints) _mm256_cvtepu8_epi32(_mm_and_si128(_mm_srli_epi16(_mm_loadl_epi64((const void *)(p)), shift), _mm_set1_epi8(15)))
#define FROM_HALVES(p) (ints) _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(p)))
#else
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1)));
typedef uint8_t pairs __attribute__((vector_size(LANES), aligned(1)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(1)));
#define FROM_BYTES(p) __builtin_convertvector(*(const bytes *)(p), ints)
#define FROM_NIBBLES(p, shift) __builtin_convertvector((*(const pairs *)(p) >> shift) & 15, ints)
#define FROM_HALVES(p) __builtin_convertvector(*(const halves *)(p), ints)
#endif

#define INLINE static inline __attribute__((always_inline))

enum { FLOAT32, BFLOAT16, INT8, INT4 };
enum { SILU, GELU_TANH, GELU, RELU };

/* y = x W^T + bias, W (out, in). INT8: a fp32 scale for each output. INT4: for each GROUP of columns its scale and its minimum, in bf16,
   and 16 bytes: the low halves are columns 0 to 15, the high halves 16 to 31. */
typedef struct {
    const void *weight, *scale;
    const float *bias; /* or NULL */
    int64_t in, out, format;
} Linear;

typedef struct {
    const float *norm, *norm_bias, *mlp_norm, *mlp_norm_bias, *query_norm, *key_norm; /* NULL where there is none */
    Linear qkv, o, up, down;                                                          /* qkv: H + K + K heads; up: gate, then up */
} Layer;

typedef struct {
    const Layer *layers;
    int64_t count, C, I, H, K, D, gated, activation, rms, window; /* window 0: every token sees all before it */
    float eps, attention_scale;
} Model;

/* Keys and values of a layer, (B, K, capacity, D) each. */
typedef struct {
    float *keys, *values;
} Cache;

INLINE vector load(const float *from) {
    vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE vector choose(ints where, vector yes, vector no) {
    return (vector)((where & (ints)yes) | (~where & (ints)no));
}

INLINE float sum_of(vector v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

INLINE float from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* LANES weights of an output, from column k + part * LANES on; k is a multiple of GROUP. */
INLINE vector widen(int format, const Linear *w, int64_t output, int64_t k, int part) {
    int64_t first = output * w->in + k + part * LANES;
    if (format == FLOAT32) return load((const float *)w->weight + first);
    if (format == BFLOAT16) return (vector)(FROM_HALVES((const uint16_t *)w->weight + first) << 16);
    if (format == INT8) return __builtin_convertvector(FROM_BYTES((const int8_t *)w->weight + first), vector);
    int64_t group = (output * w->in + k) / GROUP;
    const uint8_t *pairs = (const uint8_t *)w->weight + group * (GROUP / 2) + part * LANES % (GROUP / 2);
    ints q = part * LANES < GROUP / 2 ? FROM_NIBBLES(pairs, 0) : FROM_NIBBLES(pairs, 4);
    const uint16_t *of_group = (const uint16_t *)w->scale + 2 * group;
    return __builtin_convertvector(q, vector) * from_bf16(of_group[0]) + from_bf16(of_group[1]);
}

/* A hint to fetch the weights of an output: each is a short run of memory, over before the processor foresees the next. */
INLINE void prefetch(int format, const Linear *w, int64_t output, int64_t k) {
    const int64_t bits = format == FLOAT32 ? 32 : format == BFLOAT16 ? 16 : format == INT8 ? 8 : 4;
    const char *from = (const char *)w->weight + (output * w->in + k) * bits / 8;
    for (int64_t line = 0; line < GROUP * bits / 8; line += 64) __builtin_prefetch(from + line);
}

/* The products of `rows` rows with `outputs` outputs, both known to the compiler: the sums stay in registers. */
INLINE void tile(int format, int rows, int outputs, const Linear *w, int64_t output, const float *x, float *y) {
    vector sums[MOST_ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < outputs; o++) sums[r][o] = (vector){0};
    for (int64_t k = 0; k < w->in; k += GROUP)
        for (int part = 0; part < GROUP / LANES; part++)
            for (int o = 0; o < outputs; o++) {
                if (part == 0) prefetch(format, w, output + outputs + o, k);
                vector wide = widen(format, w, output + o, k, part);
                for (int r = 0; r < rows; r++) sums[r][o] += wide * load(x + r * w->in + k + part * LANES);
            }
    for (int o = 0; o < outputs; o++) {
        float scale = format == INT8 ? ((const float *)w->scale)[output + o] : 1;
        float bias = w->bias ? w->bias[output + o] : 0;
        for (int r = 0; r < rows; r++) y[r * w->out + output + o] = sum_of(sums[r][o]) * scale + bias;
    }
}

INLINE void outputs_of_rows(int format, int rows, int at_once, const Linear *w, int64_t from, int64_t to, const float *x, float *y) {
    for (; from + at_once <= to; from += at_once) tile(format, rows, at_once, w, from, x, y);
    for (; from < to; from++) tile(format, rows, 1, w, from, x, y);
}

INLINE void outputs_of(int format, const Linear *w, int64_t from, int64_t to, int64_t rows, const float *x, float *y) {
    for (; rows >= 4; rows -= 4, x += 4 * w->in, y += 4 * w->out) outputs_of_rows(format, 4, 2, w, from, to, x, y);
    if (rows == 3) outputs_of_rows(format, 3, 2, w, from, to, x, y);
    if (rows == 2) outputs_of_rows(format, 2, 4, w, from, to, x, y);
    if (rows == 1) outputs_of_rows(format, 1, 4, w, from, to, x, y);
}

/* x (rows, in) -> y (rows, out) */
void linear(const Linear *w, const float *x, float *y, int64_t rows, int threads) {
    int64_t block = rows > 1 ? BLOCK : 4 * BLOCK;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t from = 0; from < w->out; from += block) {
        int64_t to = from + block < w->out ? from + block : w->out;
        switch (w->format) {
        case FLOAT32: outputs_of(FLOAT32, w, from, to, rows, x, y); break;
        case BFLOAT16: outputs_of(BFLOAT16, w, from, to, rows, x, y); break;
        case INT8: outputs_of(INT8, w, from, to, rows, x, y); break;
        default: outputs_of(INT4, w, from, to, rows, x, y);
        }
    }
}

/* e^x to 2e-7: 2^k times a polynomial of what is left between -ln(2)/2 and ln(2)/2. */
INLINE vector exponential(vector x) {
    x = choose(x > 88.0f, (vector){0} + 88.0f, x);
    x = choose(x < -87.0f, (vector){0} - 87.0f, x);
    vector k = x * 1.44269504f + 12582912.0f - 12582912.0f; /* rounded: fp32 has no digits after the point there */
    x = x - k * 0.693359375f + k * 2.12194440e-4f;
    vector y = 1.0f + x * (1.0f + x * (0.5f + x * (1.66666655e-1f + x * (4.16657959e-2f + x * (8.33345205e-3f + x * 1.39819994e-3f)))));
    return y * (vector)((__builtin_convertvector(k, ints) + 127) << 23);
}

INLINE vector activated(int64_t activation, vector x) {
    if (activation == SILU) return x / (1.0f + exponential(-x));
    if (activation == RELU) return choose(x > 0.0f, x, (vector){0});
    if (activation == GELU_TANH) /* tanh(u) = 1 - 2 / (e^2u + 1) */
        return x - x / (1.0f + exponential(x * (1.59576912f + 0.0713548162f * x * x)));
    for (int i = 0; i < LANES; i++) x[i] *= 0.5f * (1.0f + erff(x[i] * 0.70710678f));
    return x;
}

/* (gate, up) -> act(gate) * up, or act(up), in the first I places of the row. */
static void activate(const Model *m, float *wide) {
    for (int64_t i = 0; i < m->I; i += LANES) {
        vector y = activated(m->activation, load(wide + i));
        if (m->gated) y *= load(wide + m->I + i);
        memcpy(wide + i, &y, sizeof y);
    }
}

INLINE float dot(const float *a, const float *b, int64_t n) {
    vector sums = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += load(a + i) * load(b + i);
    float sum = sum_of(sums);
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* x -> y, which may be the same; without `bias` and with `rms` there is no mean to take off. */
static void norm(const float *x, float *y, int64_t n, const float *weight, const float *bias, int64_t rms, float eps) {
    double sum = 0, squares = 0;
    float mean = 0;
    if (!rms) {
        for (int64_t i = 0; i < n; i++) sum += x[i];
        mean = (float)(sum / n);
    }
    for (int64_t i = 0; i < n; i++) squares += (double)(x[i] - mean) * (x[i] - mean);
    float inverse = 1 / sqrtf((float)(squares / n) + eps);
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * inverse * weight[i] + (bias ? bias[i] : 0);
}

/* Pair (i, i + D/2) of a head turned by its angle. */
static void rotate(float *head, const float *cosine, const float *sine, int64_t D) {
    for (int64_t i = 0; i < D / 2; i++) {
        float a = head[i], b = head[i + D / 2];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + D / 2] = b * cosine[i + D / 2] + a * sine[i + D / 2];
    }
}

/* One head of one row: softmax(q K^T * scale) V over the keys `first` to `last`, without those whose `real` is 0; the token itself counts. */
static void attend(const float *query, const float *keys, const float *values, const uint8_t *real, int64_t first, int64_t last,
                   int64_t D, float scale, float *scores, float *output) {
    float highest = -INFINITY, total = 0;
    int64_t count = last + 1 - first, padded = (count + LANES - 1) / LANES * LANES;
    for (int64_t j = 0; j < count; j++) {
        int seen = real == NULL || real[first + j] || first + j == last;
        scores[j] = seen ? scale * dot(query, keys + (first + j) * D, D) : -INFINITY;
        if (scores[j] > highest) highest = scores[j];
    }
    for (int64_t j = count; j < padded; j++) scores[j] = -INFINITY;
    for (int64_t j = 0; j < padded; j += LANES) {
        vector score = load(scores + j), weight = exponential(score - highest);
        weight = choose(score == -INFINITY, (vector){0}, weight);
        memcpy(scores + j, &weight, sizeof weight);
        total += sum_of(weight);
    }
    memset(output, 0, D * sizeof *output);
    for (int64_t j = 0; j < count; j++) {
        if (scores[j] == 0) continue; /* what was never written may be NaN */
        float weight = scores[j] / total;
        const float *value = values + (first + j) * D;
        for (int64_t d = 0; d < D; d++) output[d] += weight * value[d];
    }
}

/* All layers, in place, for `rows` tokens of `hidden` (rows, C), in an order where each follows those it sees.

   sequence, column: (rows,) which sequence of the cache each token belongs to, and its place there. cosine, sine: (rows, D), or NULL
   where positions are learned. real: (B, seen), 0 for padding, or NULL. Returns 1 where there is no memory, else 0. */
int decode(const Model *m, const Cache *caches, int64_t capacity, float *hidden, int64_t rows, const int64_t *sequence,
           const int64_t *column, const float *cosine, const float *sine, const uint8_t *real, int64_t seen, int threads) {
    int64_t C = m->C, D = m->D, H = m->H, K = m->K, heads = H + 2 * K, wide_size = m->gated ? 2 * m->I : m->I;
    int64_t at_once = rows < ROWS_A_PASS ? rows : ROWS_A_PASS, room = (capacity + LANES) * threads;
    int64_t largest = heads * D > wide_size ? heads * D : wide_size;
    float *memory = malloc(sizeof(float) * (at_once * (C + largest + H * D) + room + LANES));
    if (memory == NULL) return 1;
    float *normed = memory, *wide = normed + at_once * C, *attended = wide + at_once * largest, *scores = attended + at_once * H * D;
    for (int64_t start = 0; start < rows; start += at_once) {
        int64_t count = rows - start < at_once ? rows - start : at_once;
        float *x = hidden + start * C;
        for (int64_t l = 0; l < m->count; l++) {
            const Layer *layer = m->layers + l;
            Linear down = layer->down;
            for (int64_t r = 0; r < count; r++)
                norm(x + r * C, normed + r * C, C, layer->norm, layer->norm_bias, m->rms, m->eps);
            linear(&layer->qkv, normed, wide, count, threads);
            for (int64_t r = 0; r < count; r++) {
                int64_t b = sequence[start + r], place = column[start + r];
                float *head = wide + r * heads * D;
                for (int64_t h = 0; h < H + K; h++, head += D) {
                    const float *weight = h < H ? layer->query_norm : layer->key_norm;
                    if (weight) norm(head, head, D, weight, NULL, 1, m->eps);
                    if (cosine) rotate(head, cosine + (start + r) * D, sine + (start + r) * D, D);
                }
                for (int64_t k = 0; k < K; k++) {
                    int64_t to = ((b * K + k) * capacity + place) * D;
                    memcpy(caches[l].keys + to, wide + (r * heads + H + k) * D, D * sizeof(float));
                    memcpy(caches[l].values + to, wide + (r * heads + H + K + k) * D, D * sizeof(float));
                }
            }
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
            for (int64_t i = 0; i < count * H; i++) {
                int64_t r = i / H, h = i % H, b = sequence[start + r], last = column[start + r];
                int64_t first = m->window && last >= m->window ? last - m->window + 1 : 0;
                int64_t from = (b * K + h / (H / K)) * capacity * D;
                int thread = 0;
#ifdef _OPENMP
                extern int omp_get_thread_num(void);
                thread = omp_get_thread_num();
#endif
                attend(wide + (r * heads + h) * D, caches[l].keys + from, caches[l].values + from, real ? real + b * seen : NULL, first,
                       last, D, m->attention_scale, scores + thread * (capacity + LANES), attended + (r * H + h) * D);
            }
            linear(&layer->o, attended, normed, count, threads);
            for (int64_t i = 0; i < count * C; i++) x[i] += normed[i];
            for (int64_t r = 0; r < count; r++)
                norm(x + r * C, normed + r * C, C, layer->mlp_norm, layer->mlp_norm_bias, m->rms, m->eps);
            linear(&layer->up, normed, wide, count, threads);
#pragma omp parallel for num_threads(threads) if (count > 1)
            for (int64_t r = 0; r < count; r++) {
                activate(m, wide + r * wide_size);
            }
            if (m->gated) /* close the gaps that the second half has left */
                for (int64_t r = 1; r < count; r++) memmove(wide + r * m->I, wide + r * wide_size, m->I * sizeof(float));
            linear(&down, wide, normed, count, threads);
            for (int64_t i = 0; i < count * C; i++) x[i] += normed[i];
        }
    }
    free(memory);
    return 0;
}
