/* The layers of the GPT for inference on a CPU, in one call. The mathematics is that of modeling_gpt_scratch.py, in the same order.

   Generating a token does two operations per weight, so the minimum time is that of reading the weights from memory. Here every weight is
   read once, in its format (fp32, bf16, int8 or int4). All arithmetic is fp32, except for products of a few rows with int4, which are of
   integers. There are no calls of a library, with its own waiting for all threads, for each of some 20 operations of a layer. The tokens of
   a prompt are computed together, in panels of as many rows as two vectors have lanes.

   decoding_library.py compiles this file, for the processor at hand; streamed_linear.py and decoding.py call it. Read it top to bottom:
   threads, weights, matrix products, activations, norms, attention, all layers. It uses the vector types of gcc and clang, whatever
   instructions the processor has. Results do not depend on the number of threads: no sum is split among them.

   C hidden size, I intermediate size, H query heads, K key/value heads, D head size. A row is the hidden state of a token: rows may belong
   to several sequences, and padding is not among them. C, I and H * D are multiples of GROUP. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifndef ONE_THREAD
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#endif

#ifndef LANES /* floats in a vector */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif
#define GROUP 32           /* columns of an int4 weight that share a scale and a minimum */
#define MAX_TILE_ROWS 4    /* a tile of a product has up to 4 rows and 4 outputs, whose sums stay in registers */
#define MAX_TILE_OUTPUTS 4
#define PREFETCHED_BYTES 1024 /* weights are fetched into the cache so far ahead */
#define ROWS_PER_PASS 128  /* rows of a prompt that go through all layers together: they stay in the cache while the weights are read */

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
#define INLINE static inline __attribute__((always_inline))

INLINE vector load(const float *from) {
    vector v;
    memcpy(&v, from, sizeof v); /* at any address */
    return v;
}

INLINE void store(float *to, vector v) {
    memcpy(to, &v, sizeof v);
}

/* Per lane: condition ? yes : no. A comparison of vectors gives -1 or 0. */
INLINE vector where(ints condition, vector yes, vector no) {
    return (vector)((condition & (ints)yes) | (~condition & (ints)no));
}

INLINE float sum_lanes(vector v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

/* ------------------------------------------------------------------------------------------------------------------------- threads */

#define MAX_THREADS 64

/* A job is a number of independent chunks; `thread`, below MAX_THREADS, tells apart the threads that run chunks of it at the same time. */
typedef void Chunk(const void *job, int64_t chunk, int thread);

#ifdef ONE_THREAD
static void parallel(Chunk *run, const void *job, int64_t chunks, int threads) {
    (void)threads;
    for (int64_t chunk = 0; chunk < chunks; chunk++) run(job, chunk, 0);
}
#else
/* A token is some 150 jobs of 10 to 100 microseconds. A barrier for all threads after each, as OpenMP has, takes milliseconds if another
   process has the core of one of them. Here the caller runs chunks, too, and waits only for those that a worker has begun: a worker that
   does not run, or has not woken up yet, delays nobody. */

#define SPINS 1000 /* 10 to 50 microseconds: longer than between two jobs of a token, and too short to keep a core from other processes */

static struct {
    _Alignas(64) atomic_int_fast64_t left; /* chunks nobody has claimed; below 1, the other fields may be changing */
    _Alignas(64) atomic_int_fast64_t unfinished;
    _Alignas(64) atomic_int used, threads; /* whether a caller has the pool; number of threads of its job, itself included */
    Chunk *run;
    const void *job;
    int64_t chunks;
    int workers; /* threads 1 to `workers` have been started; 0 is the caller */
    pthread_mutex_t mutex;
    pthread_cond_t wake[MAX_THREADS];
    atomic_int asleep[MAX_THREADS];
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Run chunks until all are claimed. The job is read after a claim, so it is the one that the chunk belongs to, even if this thread was
   descheduled before and has missed others; and it cannot end, or change, before the chunk is finished. */
static void run_chunks(int thread) {
    for (int64_t left; (left = atomic_fetch_sub(&pool.left, 1)) > 0;) {
        pool.run(pool.job, pool.chunks - left, thread);
        atomic_fetch_sub(&pool.unfinished, 1);
    }
}

static int has_work(int thread) {
    return atomic_load(&pool.left) > 0 && thread < atomic_load(&pool.threads);
}

static void *worker(void *number) {
    int thread = (int)(intptr_t)number;
    for (;;) {
        for (int spin = 0; spin < SPINS && !has_work(thread); spin++) relax();
        if (!has_work(thread)) {
            pthread_mutex_lock(&pool.mutex);
            atomic_store(&pool.asleep[thread], 1); /* before `left` is read, as the caller reads this after it sets `left` */
            while (!has_work(thread)) pthread_cond_wait(&pool.wake[thread], &pool.mutex);
            atomic_store(&pool.asleep[thread], 0);
            pthread_mutex_unlock(&pool.mutex);
        }
        run_chunks(thread);
    }
    return NULL;
}

/* Start workers until there are `threads` threads, or the system refuses. Signals are for the threads of the program. */
static void start_workers(int threads) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (pthread_t started; pool.workers + 1 < threads; pool.workers++) {
        pthread_cond_init(&pool.wake[pool.workers + 1], NULL);
        if (pthread_create(&started, NULL, worker, (void *)(intptr_t)(pool.workers + 1))) break;
        pthread_detach(started); /* they end with the process */
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Waking is a hint, since the caller can do all the work: if a worker has the mutex, and so perhaps no core, the next job wakes it. */
static void wake_workers(int threads) {
    int sleepers = 0;
    for (int thread = 1; thread < threads; thread++) sleepers += atomic_load(&pool.asleep[thread]);
    if (!sleepers || pthread_mutex_trylock(&pool.mutex)) return;
    for (int thread = 1; thread < threads; thread++)
        if (atomic_load(&pool.asleep[thread])) pthread_cond_signal(&pool.wake[thread]);
    pthread_mutex_unlock(&pool.mutex);
}

/* Run all chunks of a job, on up to `threads` threads. If another thread of the program has the pool, on the calling thread alone. */
static void parallel(Chunk *run, const void *job, int64_t chunks, int threads) {
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads < 2 || chunks < 2 || atomic_exchange(&pool.used, 1)) {
        for (int64_t chunk = 0; chunk < chunks; chunk++) run(job, chunk, 0);
        return;
    }
    if (pool.workers + 1 < threads) start_workers(threads);
    pool.run = run;
    pool.job = job;
    pool.chunks = chunks;
    atomic_store(&pool.threads, threads);
    atomic_store(&pool.unfinished, chunks);
    atomic_store(&pool.left, chunks); /* from here on it can be claimed */
    wake_workers(threads);
    run_chunks(0);
    for (int spin = 0; atomic_load(&pool.unfinished) > 0; spin++) {
        if (spin < SPINS) relax();
        else nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL); /* the worker may need this core */
    }
    atomic_store(&pool.used, 0);
}

/* In a new process there are no workers, and nothing that its parent was doing. */
static void after_fork(void) {
    pthread_mutex_init(&pool.mutex, NULL);
    atomic_store(&pool.left, 0);
    for (int thread = 0; thread < MAX_THREADS; thread++) atomic_store(&pool.asleep[thread], 0);
    pool.workers = 0;
    atomic_store(&pool.used, 0);
}

__attribute__((constructor)) static void when_loaded(void) {
    pthread_atfork(NULL, NULL, after_fork);
}
#endif

/* ------------------------------------------------------------------------------------------------------------------------- weights */

enum { FLOAT32, BFLOAT16, INT8, INT4 };

/* y = x W^T + bias, W (out, in). INT8: a fp32 scale for each output. INT4: for each GROUP of columns a scale and a minimum, in bf16; its 16
   bytes hold columns 0 to 15 in their low halves, and columns 16 to 31 in their high halves. */
typedef struct {
    const void *weight, *scale;
    const float *bias; /* or NULL */
    int64_t in, out, format;
} Linear;

/* LANES integers at p, converted to 32 bits. gcc translates the portable conversions into many instructions, so x86 has its own. */
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if LANES == 16 && defined(__AVX512F__)
#define FROM_INT8(p) (ints) _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(p)))
#define FROM_UINT16(p) (ints) _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(p)))
#elif LANES == 8 && defined(__AVX2__)
#define FROM_INT8(p) (ints) _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(p)))
#define FROM_UINT16(p) (ints) _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(p)))
#else
typedef int8_t int8s __attribute__((vector_size(LANES), aligned(1)));
typedef uint16_t uint16s __attribute__((vector_size(2 * LANES), aligned(1)));
#define FROM_INT8(p) __builtin_convertvector(*(const int8s *)(p), ints)
#define FROM_UINT16(p) __builtin_convertvector(*(const uint16s *)(p), ints)
#endif

INLINE float from_bf16(uint16_t high_bits) {
    uint32_t bits = (uint32_t)high_bits << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* FLOAT32, BFLOAT16 and INT8 (without its scale): LANES weights from number `first` on. */
INLINE vector load_weights(int format, const Linear *w, int64_t first) {
    if (format == FLOAT32) return load((const float *)w->weight + first);
    if (format == BFLOAT16) return (vector)(FROM_UINT16((const uint16_t *)w->weight + first) << 16);
    return __builtin_convertvector(FROM_INT8((const int8_t *)w->weight + first), vector);
}

INLINE int64_t bits_of(int format) {
    return format == FLOAT32 ? 32 : format == BFLOAT16 ? 16 : format == INT8 ? 8 : 4;
}

/* Fetch into the cache a group of weights from number `first` on, and what is `bytes` bytes after it. */
INLINE void prefetch(int format, const Linear *w, int64_t first, int64_t bytes) {
    const char *from = (const char *)w->weight + first * bits_of(format) / 8 + bytes;
    for (int64_t line = 0; line < GROUP * bits_of(format) / 8; line += 64) __builtin_prefetch(from + line);
}

/* ----------------------------------------------------------------------------------------------------------------- matrix products */

/* One row: the outputs one after another, so that the weights are read in the order of memory, which is fastest. */
INLINE void one_row(int format, const Linear *w, int64_t from, int64_t to, const float *x, float *y) {
    for (int64_t output = from; output < to; output++) {
        vector sums[GROUP / LANES], total = {0};
        for (int part = 0; part < GROUP / LANES; part++) sums[part] = (vector){0};
        for (int64_t k = 0; k < w->in; k += GROUP) {
            prefetch(format, w, output * w->in + k, PREFETCHED_BYTES);
            for (int part = 0; part < GROUP / LANES; part++) {
                int64_t column = k + part * LANES;
                sums[part] += load_weights(format, w, output * w->in + column) * load(x + column);
            }
        }
        for (int part = 0; part < GROUP / LANES; part++) total += sums[part];
        float scale = format == INT8 ? ((const float *)w->scale)[output] : 1;
        y[output] = sum_lanes(total) * scale + (w->bias ? w->bias[output] : 0);
    }
}

/* `rows` rows times the weights of `outputs` outputs. The compiler knows both numbers and the format, which are constants in every call. */
INLINE void tile(int format, int rows, int outputs, const Linear *w, int64_t output, const float *x, float *y) {
    vector sums[MAX_TILE_ROWS][MAX_TILE_OUTPUTS];
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < outputs; o++) sums[r][o] = (vector){0};
    for (int64_t k = 0; k < w->in; k += GROUP)
        for (int part = 0; part < GROUP / LANES; part++)
            for (int o = 0; o < outputs; o++) {
                if (part == 0 && output + outputs + o < w->out) prefetch(format, w, (output + outputs + o) * w->in + k, 0);
                vector weights = load_weights(format, w, (output + o) * w->in + k + part * LANES);
                for (int r = 0; r < rows; r++) sums[r][o] += weights * load(x + r * w->in + k + part * LANES);
            }
    for (int o = 0; o < outputs; o++) {
        float scale = format == INT8 ? ((const float *)w->scale)[output + o] : 1;
        float bias = w->bias ? w->bias[output + o] : 0;
        for (int r = 0; r < rows; r++) y[r * w->out + output + o] = sum_lanes(sums[r][o]) * scale + bias;
    }
}

/* The outputs `from` to `to`, `at_once` in a tile, for `rows` rows. */
INLINE void tiles(int format, int rows, int at_once, const Linear *w, int64_t from, int64_t to, const float *x, float *y) {
    for (; from + at_once <= to; from += at_once) tile(format, rows, at_once, w, from, x, y);
    for (; from < to; from++) tile(format, rows, 1, w, from, x, y);
}

/* Prompts: a panel of PANEL_ROWS rows times up to PANEL_OUTPUTS outputs. Each lane is a row, so that no sum of lanes is needed, and the sums,
   two vectors of the panel and a weight fill the registers. x (in, PANEL_ROWS) -> y (outputs, PANEL_ROWS); the weights are fp32, that of
   output o and column k at o * by_output + k * by_column. */
#define PANEL_ROWS (2 * LANES)
#if defined(__AVX512F__)
#define PANEL_OUTPUTS 12
#else
#define PANEL_OUTPUTS 6
#endif

INLINE void panel_tile(int outputs, const float *weights, int64_t by_output, int64_t by_column, int64_t in, const float *x, float *y) {
    vector sums[PANEL_OUTPUTS][2];
    for (int o = 0; o < outputs; o++) sums[o][0] = sums[o][1] = (vector){0};
    for (int64_t k = 0; k < in; k++) {
        vector low = load(x + k * PANEL_ROWS), high = load(x + k * PANEL_ROWS + LANES);
        for (int o = 0; o < outputs; o++) {
            float weight = weights[o * by_output + k * by_column];
            sums[o][0] += weight * low;
            sums[o][1] += weight * high;
        }
    }
    for (int o = 0; o < outputs; o++) {
        store(y + o * PANEL_ROWS, sums[o][0]);
        store(y + o * PANEL_ROWS + LANES, sums[o][1]);
    }
}

/* Any number of outputs. */
INLINE void panel_tiles(int64_t outputs, const float *weights, int64_t by_output, int64_t by_column, int64_t in, const float *x, float *y) {
    int64_t o = 0;
    for (; o + PANEL_OUTPUTS <= outputs; o += PANEL_OUTPUTS)
        panel_tile(PANEL_OUTPUTS, weights + o * by_output, by_output, by_column, in, x, y + o * PANEL_ROWS);
    for (; o < outputs; o++) panel_tile(1, weights + o * by_output, by_output, by_column, in, x, y + o * PANEL_ROWS);
}

/* The weights of `count` outputs from number `output` on in fp32, for INT8 without its scale. */
INLINE void convert(int format, const Linear *w, int64_t output, int64_t count, float *to) {
    int64_t first = output * w->in, end = first + count * w->in;
    if (format != INT4) {
        for (int64_t i = first; i < end; i += LANES) store(to + i - first, load_weights(format, w, i));
        return;
    }
    for (int64_t i = first; i < end; i += GROUP, to += GROUP) {
        const uint8_t *bytes = (const uint8_t *)w->weight + i / 2;
        const uint16_t *of_group = (const uint16_t *)w->scale + i / GROUP * 2;
        float scale = from_bf16(of_group[0]), minimum = from_bf16(of_group[1]);
        for (int j = 0; j < GROUP / 2; j++) {
            to[j] = scale * (float)(bytes[j] & 15) + minimum;
            to[j + GROUP / 2] = scale * (float)(bytes[j] >> 4) + minimum;
        }
    }
}

/* The outputs `from` to `to` for the rows of all panels. `converted` has room for PANEL_OUTPUTS rows of weights in fp32. */
INLINE void panel_outputs(int format, const Linear *w, int64_t from, int64_t to, const float *panels, float *y, int64_t rows,
                          float *converted) {
    float results[PANEL_OUTPUTS * PANEL_ROWS];
    for (int64_t output = from, count; output < to; output += count) {
        count = to - output < PANEL_OUTPUTS ? to - output : PANEL_OUTPUTS;
        const float *weights = (const float *)w->weight + output * w->in;
        if (format != FLOAT32) {
            convert(format, w, output, count, converted);
            weights = converted;
        }
        const float *panel = panels;
        for (int64_t first = 0; first < rows; first += PANEL_ROWS, panel += PANEL_ROWS * w->in) {
            panel_tiles(count, weights, w->in, 1, w->in, panel, results);
            for (int o = 0; o < count; o++) {
                float scale = format == INT8 ? ((const float *)w->scale)[output + o] : 1;
                float bias = w->bias ? w->bias[output + o] : 0;
                for (int64_t r = 0; r < PANEL_ROWS && first + r < rows; r++)
                    y[(first + r) * w->out + output + o] = results[o * PANEL_ROWS + r] * scale + bias;
            }
        }
    }
}

/* The outputs `from` to `to` for all rows: their weights stay in the cache while the rows pass. */
INLINE void some_outputs(int format, const Linear *w, int64_t from, int64_t to, const float *x, float *y, int64_t rows) {
    for (; rows >= 4; rows -= 4, x += 4 * w->in, y += 4 * w->out) tiles(format, 4, 2, w, from, to, x, y);
    if (rows == 3) tiles(format, 3, 2, w, from, to, x, y);
    if (rows == 2) tiles(format, 2, 4, w, from, to, x, y);
    if (rows == 1) one_row(format, w, from, to, x, y);
}

/* INT4, few rows: converting the weights to fp32 takes longer than reading them, so products are of integers. The row is rounded to 8 bits, x = t v,
   with a scale t for each group; of a group with scale s and minimum m, sum (s q + m) x = s t sum q v + m sum x. The last sum is of fp32. */
typedef struct {
    int8_t *values;      /* (rows, in) */
    float *scales, *sums; /* (rows, in / GROUP) */
} Rounded;

static void round_row(const float *x, int8_t *values, float *scales, float *sums, int64_t in) {
    for (int64_t g = 0; g < in / GROUP; g++, x += GROUP, values += GROUP) {
        vector total = {0};
        float highest = 0;
        for (int part = 0; part < GROUP / LANES; part++) total += load(x + part * LANES);
        for (int i = 0; i < GROUP; i++) highest = fabsf(x[i]) > highest ? fabsf(x[i]) : highest;
        float inverse = highest > 0 ? 127 / highest : 0;
        for (int i = 0; i < GROUP; i++) values[i] = (int8_t)(int32_t)(x[i] * inverse + 12582912.0f - 12582912.0f); /* rounds */
        scales[g] = highest / 127;
        sums[g] = sum_lanes(total);
    }
}

/* The 32 values of a group, and their products with those of a row, in any number of lanes. */
#if defined(__AVX2__)
typedef __m256i Int4s;
typedef __m256 Products;

INLINE Int4s unpack(const uint8_t *bytes) {
    __m128i packed = _mm_loadu_si128((const void *)bytes);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed), _mm256_set1_epi8(15));
}

INLINE Products multiply(Int4s q, const int8_t *values) {
    __m256i pairs = _mm256_maddubs_epi16(q, _mm256_loadu_si256((const void *)values)); /* at most 2 * 15 * 127 */
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

INLINE float sum_products(Products products) {
    float sum = 0;
    for (int i = 0; i < 8; i++) sum += products[i];
    return sum;
}
#else
typedef const uint8_t *Int4s;
typedef float Products;

INLINE Int4s unpack(const uint8_t *bytes) {
    return bytes;
}

INLINE Products multiply(Int4s q, const int8_t *values) {
    int32_t sum = 0;
    for (int i = 0; i < GROUP / 2; i++) sum += (q[i] & 15) * values[i] + (q[i] >> 4) * values[i + GROUP / 2];
    return (float)sum;
}

INLINE float sum_products(Products sum) {
    return sum;
}
#endif

/* One output of `rows` rows, from row `r` on. The compiler knows `rows`. */
INLINE void int4_output(int rows, const Linear *w, int64_t output, const Rounded *x, int64_t r, float *y) {
    int64_t groups = w->in / GROUP;
    const uint8_t *bytes = (const uint8_t *)w->weight + output * groups * (GROUP / 2);
    const uint16_t *of_group = (const uint16_t *)w->scale + 2 * output * groups;
    const int8_t *values = x->values + r * w->in;
    const float *scales = x->scales + r * groups, *sums = x->sums + r * groups;
    Products products[MAX_TILE_ROWS];
    float minima[MAX_TILE_ROWS] = {0};
    for (int i = 0; i < rows; i++) products[i] = (Products){0};
    for (int64_t g = 0; g < groups; g++) {
        __builtin_prefetch(bytes + g * (GROUP / 2) + PREFETCHED_BYTES);
        __builtin_prefetch(of_group + 2 * g + PREFETCHED_BYTES / 4);
        Int4s q = unpack(bytes + g * (GROUP / 2));
        float scale = from_bf16(of_group[2 * g]), minimum = from_bf16(of_group[2 * g + 1]);
        for (int i = 0; i < rows; i++) {
            products[i] += multiply(q, values + i * w->in + g * GROUP) * (scale * scales[i * groups + g]);
            minima[i] += minimum * sums[i * groups + g];
        }
    }
    for (int i = 0; i < rows; i++)
        y[(r + i) * w->out + output] = sum_products(products[i]) + minima[i] + (w->bias ? w->bias[output] : 0);
}

/* The outputs `from` to `to` for all rows. */
static void int4_outputs(const Linear *w, int64_t from, int64_t to, const Rounded *x, float *y, int64_t rows) {
    for (int64_t output = from; output < to; output++) {
        int64_t r = 0;
        for (; r + 4 <= rows; r += 4) int4_output(4, w, output, x, r, y);
        for (; r < rows; r++) int4_output(1, w, output, x, r, y);
    }
}

typedef struct {
    const Linear *w;
    const float *x;
    Rounded rounded; /* x, if w is INT4 and there are few rows */
    float *panels, *converted; /* x as panels, if there are many rows; and for each thread PANEL_OUTPUTS rows of weights */
    float *y;
    int64_t rows, block; /* block: outputs of a chunk */
} Product;

/* Panel number `panel` of x; rows that do not exist are 0. */
static void run_packing(const void *job, int64_t panel, int thread) {
    const Product *p = job;
    int64_t in = p->w->in, first = panel * PANEL_ROWS, count = p->rows - first < PANEL_ROWS ? p->rows - first : PANEL_ROWS;
    float *to = p->panels + first * in;
    (void)thread;
    for (int64_t k = 0; k < in; k++, to += PANEL_ROWS)
        for (int64_t r = 0; r < PANEL_ROWS; r++) to[r] = r < count ? p->x[(first + r) * in + k] : 0;
}

static void run_rounding(const void *job, int64_t r, int thread) {
    const Product *p = job;
    int64_t in = p->w->in, groups = in / GROUP;
    (void)thread;
    round_row(p->x + r * in, p->rounded.values + r * in, p->rounded.scales + r * groups, p->rounded.sums + r * groups, in);
}

static void run_product(const void *job, int64_t chunk, int thread) {
    Product p = *(const Product *)job;
    int64_t from = chunk * p.block, to = from + p.block < p.w->out ? from + p.block : p.w->out;
    if (p.panels) {
        float *converted = p.converted + thread * PANEL_OUTPUTS * p.w->in;
        switch (p.w->format) {
        case FLOAT32: panel_outputs(FLOAT32, p.w, from, to, p.panels, p.y, p.rows, converted); break;
        case BFLOAT16: panel_outputs(BFLOAT16, p.w, from, to, p.panels, p.y, p.rows, converted); break;
        case INT8: panel_outputs(INT8, p.w, from, to, p.panels, p.y, p.rows, converted); break;
        case INT4: panel_outputs(INT4, p.w, from, to, p.panels, p.y, p.rows, converted); break;
        }
        return;
    }
    switch (p.w->format) {
    case FLOAT32: some_outputs(FLOAT32, p.w, from, to, p.x, p.y, p.rows); break;
    case BFLOAT16: some_outputs(BFLOAT16, p.w, from, to, p.x, p.y, p.rows); break;
    case INT8: some_outputs(INT8, p.w, from, to, p.x, p.y, p.rows); break;
    case INT4: int4_outputs(p.w, from, to, &p.rounded, p.y, p.rows); break;
    }
}

/* x (rows, in) -> y (rows, out). Returns 1 if there is not enough memory, else 0. */
int gpt_scratch_linear(const Linear *w, const float *x, float *y, int64_t rows, int threads) {
    Product product = {.w = w, .x = x, .y = y, .rows = rows, .block = rows > 1 ? 8 : 32};
    float *memory = NULL;
    if (rows >= PANEL_ROWS) {
        int64_t panels = (rows + PANEL_ROWS - 1) / PANEL_ROWS;
        int64_t workers = threads > 1 ? MAX_THREADS : 1; /* pages that none uses take no memory */
        memory = malloc(sizeof(float) * w->in * (panels * PANEL_ROWS + workers * PANEL_OUTPUTS));
        if (memory == NULL) return 1;
        product.panels = memory;
        product.converted = memory + panels * PANEL_ROWS * w->in;
        product.block = 2 * PANEL_OUTPUTS;
        parallel(run_packing, &product, panels, threads);
    } else if (w->format == INT4) {
        int64_t groups = rows * w->in / GROUP;
        memory = malloc(groups * (2 * sizeof(float) + GROUP));
        if (memory == NULL) return 1;
        product.rounded = (Rounded){.scales = memory, .sums = memory + groups, .values = (int8_t *)(memory + 2 * groups)};
        parallel(run_rounding, &product, rows, threads);
    }
    parallel(run_product, &product, (w->out + product.block - 1) / product.block, threads);
    free(memory);
    return 0;
}

/* --------------------------------------------------------------------------------------------------------------------- activations */

enum { SILU, GELU_TANH, GELU, RELU };

/* e^x with a relative error of 2e-7, for x between -87 and 88: 2^k times a polynomial in the rest, between -ln(2)/2 and ln(2)/2. */
INLINE vector exponential(vector x) {
    x = where(x > 88.0f, (vector){0} + 88.0f, x);
    x = where(x < -87.0f, (vector){0} - 87.0f, x);
    vector k = x * 1.44269504f + 12582912.0f - 12582912.0f; /* rounds: at 1.5 * 2^23, fp32 has no fraction */
    x = x - k * 0.693359375f + k * 2.12194440e-4f;          /* ln(2) in two parts */
    vector y = 1.0f + x * (1.0f + x * (0.5f + x * (1.66666655e-1f + x * (4.16657959e-2f + x * (8.33345205e-3f + x * 1.39819994e-3f)))));
    return y * (vector)((__builtin_convertvector(k, ints) + 127) << 23);
}

INLINE vector activation_of(int64_t activation, vector x) {
    if (activation == SILU) return x / (1.0f + exponential(-x));
    if (activation == RELU) return where(x < 0.0f, (vector){0}, x);
    if (activation == GELU_TANH) /* x (1 + tanh(u)) / 2 = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3) */
        return x / (1.0f + exponential(x * (-1.59576912f - 0.0713548163f * x * x)));
    for (int i = 0; i < LANES; i++) x[i] *= 0.5f * (1.0f + erff(x[i] * 0.70710678f));
    return x;
}

/* Gate and up (I, I) -> act(gate) * up, or without a gate, up (I) -> act(up), in place. */
static void activate(float *row, int64_t I, int64_t gated, int64_t activation) {
    for (int64_t i = 0; i < I; i += LANES) {
        vector y = activation_of(activation, load(row + i));
        store(row + i, gated ? y * load(row + I + i) : y);
    }
}

/* --------------------------------------------------------------------------------------------------- norms and rotary positions */

INLINE float dot(const float *a, const float *b, int64_t n) {
    vector sums = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += load(a + i) * load(b + i);
    float sum = sum_lanes(sums);
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

INLINE float sum(const float *x, int64_t n) {
    vector sums = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += load(x + i);
    float total = sum_lanes(sums);
    for (; i < n; i++) total += x[i];
    return total;
}

/* x (n) -> y (n), which may be x: layer normalization, or RMS normalization, which subtracts no mean. */
static void norm(const float *x, float *y, int64_t n, const float *weight, const float *bias, int64_t rms, float eps) {
    float mean = rms ? 0 : sum(x, n) / (float)n;
    for (int64_t i = 0; i < n; i++) y[i] = x[i] - mean;
    float inverse = 1 / sqrtf(dot(y, y, n) / (float)n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = y[i] * inverse * weight[i] + (bias ? bias[i] : 0);
}

/* Pair (i, i + D/2) of a head rotated by its angle. */
static void rotate(float *head, const float *cosine, const float *sine, int64_t D) {
    for (int64_t i = 0; i < D / 2; i++) {
        float a = head[i], b = head[i + D / 2];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + D / 2] = b * cosine[i + D / 2] + a * sine[i + D / 2];
    }
}

/* ----------------------------------------------------------------------------------------------------------------------- attention */

/* One head of one row: softmax(q K^T * scale) V over the keys `first` to `last`, the token's own. Keys whose `real` is 0 are padding.
   `scores` has room for all of them, rounded up to LANES. */
static void attend(const float *query, const float *keys, const float *values, const uint8_t *real, int64_t first, int64_t last,
                   int64_t D, float scale, float *scores, float *restrict output) {
    int64_t count = last + 1 - first, padded = (count + LANES - 1) / LANES * LANES;
    float highest = -INFINITY, total = 0;
    for (int64_t j = 0; j < count; j++) {
        int seen = real == NULL || real[first + j] || first + j == last;
        scores[j] = seen ? scale * dot(query, keys + (first + j) * D, D) : -INFINITY;
        if (scores[j] > highest) highest = scores[j];
    }
    for (int64_t j = count; j < padded; j++) scores[j] = -INFINITY;
    for (int64_t j = 0; j < padded; j += LANES) {
        vector score = load(scores + j), weight = exponential(score - highest);
        weight = where(score == -INFINITY, (vector){0}, weight);
        store(scores + j, weight);
        total += sum_lanes(weight);
    }
    memset(output, 0, D * sizeof *output);
    for (int64_t j = 0; j < count; j++) {
        if (scores[j] == 0) continue; /* the values of padding were never written */
        float weight = scores[j] / total;
        const float *value = values + (first + j) * D;
        for (int64_t d = 0; d < D; d++) output[d] += weight * value[d];
    }
}

/* The same for one head of up to PANEL_ROWS consecutive tokens of a sequence, `by_row` floats apart, whose lanes are theirs. The first of
   them sees the keys from `first` on, and none sees more than `window` keys, if it is not 0. `scores` has room for (D + keys, PANEL_ROWS). */
static void attend_panel(const float *queries, int64_t by_row, int64_t rows, const float *keys, const float *values, const uint8_t *real,
                         const int64_t *column, int64_t window, int64_t D, float scale, float *scores, float *output, int64_t by_output) {
    int64_t first = window && column[0] >= window ? column[0] - window + 1 : 0, count = column[rows - 1] + 1 - first;
    float *panel = scores;
    scores += D * PANEL_ROWS;
    for (int64_t d = 0; d < D; d++)
        for (int64_t r = 0; r < PANEL_ROWS; r++) panel[d * PANEL_ROWS + r] = r < rows ? scale * queries[r * by_row + d] : 0;
    panel_tiles(count, keys + first * D, D, 1, D, panel, scores);
    vector highest[2] = {(vector){0} - INFINITY, (vector){0} - INFINITY}, total[2] = {{0}, {0}};
    for (int64_t j = 0; j < count; j++) {
        float *of_key = scores + j * PANEL_ROWS;
        int64_t key = first + j;
        if (key > column[0] || (window && key <= column[rows - 1] - window) || (real && !real[key]))
            for (int64_t r = 0; r < rows; r++)
                if (key > column[r] || (window && key <= column[r] - window) || (real && !real[key] && key != column[r])) of_key[r] = -INFINITY;
        for (int half = 0; half < 2; half++) {
            vector score = load(of_key + half * LANES);
            highest[half] = where(score > highest[half], score, highest[half]);
        }
    }
    for (int64_t j = 0; j < count; j++)
        for (int half = 0; half < 2; half++) {
            float *of_key = scores + j * PANEL_ROWS + half * LANES;
            vector score = load(of_key), weight = where(score == -INFINITY, (vector){0}, exponential(score - highest[half]));
            store(of_key, weight);
            total[half] += weight;
        }
    panel_tiles(D, values + first * D, 1, D, count, scores, panel); /* the queries are not needed any more */
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < D; d++) output[r * by_output + d] = panel[d * PANEL_ROWS + r] / total[r / LANES][r % LANES];
}

/* ---------------------------------------------------------------------------------------------------------------------- all layers */

typedef struct {
    const float *norm, *norm_bias, *mlp_norm, *mlp_norm_bias, *query_norm, *key_norm; /* NULL if there is none */
    Linear qkv, o, up, down; /* qkv: the outputs of all query, key and value heads; up: gate, then up */
} Layer;

typedef struct {
    const Layer *layers;
    int64_t count, C, I, H, K, D, gated, activation, rms, window; /* window 0: tokens attend to all previous ones */
    float eps, attention_scale;
} Model;

/* Keys and values of a layer, (B, K, capacity, D) each. */
typedef struct {
    float *keys, *values;
} Cache;

/* Compared by decoding_library.py, which declares the same structures. */
const int64_t gpt_scratch_sizes[4] = {sizeof(Linear), sizeof(Layer), sizeof(Model), sizeof(Cache)};

/* Up to ROWS_PER_PASS rows in one layer; the arguments are those of gpt_scratch_decode. */
typedef struct {
    const Model *m;
    const Layer *layer;
    const Cache *cache;
    int64_t capacity;
    float *x;
    int64_t rows;
    const int64_t *sequence, *column;
    const float *cosine, *sine;
    const uint8_t *real;
    int64_t seen;
    int threads;
    float *normed, *wide, *attended, *scores; /* (rows, C), (rows, the larger of qkv and up), (rows, H * D), (threads, scores_of_thread) */
    int64_t scores_of_thread;
    int panels; /* whether there is room for the scores of a panel */
} Pass;

#define HEADS_PER_CHUNK 4

/* The chunks of a pass are rows, for attention heads of rows. */

static void run_norm(const void *job, int64_t r, int thread) {
    const Pass *p = job;
    int64_t C = p->m->C;
    (void)thread;
    norm(p->x + r * C, p->normed + r * C, C, p->layer->norm, p->layer->norm_bias, p->m->rms, p->m->eps);
}

static void run_mlp_norm(const void *job, int64_t r, int thread) {
    const Pass *p = job;
    int64_t C = p->m->C;
    (void)thread;
    norm(p->x + r * C, p->normed + r * C, C, p->layer->mlp_norm, p->layer->mlp_norm_bias, p->m->rms, p->m->eps);
}

static void run_activation(const void *job, int64_t r, int thread) {
    const Pass *p = job;
    (void)thread;
    activate(p->wide + r * (p->m->gated ? 2 * p->m->I : p->m->I), p->m->I, p->m->gated, p->m->activation);
}

/* Queries and keys of a row are normalized and rotated; keys and values are written to the cache. */
static void write_keys_and_values(const void *job, int64_t r, int thread) {
    const Pass *p = job;
    int64_t H = p->m->H, K = p->m->K, D = p->m->D;
    float *row = p->wide + r * (H + 2 * K) * D;
    (void)thread;
    for (int64_t h = 0; h < H + K; h++) {
        const float *weight = h < H ? p->layer->query_norm : p->layer->key_norm;
        if (weight) norm(row + h * D, row + h * D, D, weight, NULL, 1, p->m->eps);
        if (p->cosine) rotate(row + h * D, p->cosine + r * D, p->sine + r * D, D);
    }
    for (int64_t k = 0; k < K; k++) {
        int64_t to = ((p->sequence[r] * K + k) * p->capacity + p->column[r]) * D;
        memcpy(p->cache->keys + to, row + (H + k) * D, D * sizeof(float));
        memcpy(p->cache->values + to, row + (H + K + k) * D, D * sizeof(float));
    }
}

/* One head of a panel: PANEL_ROWS rows, or less where a sequence ends; their tokens are consecutive but for padding. */
static void run_panel_attention(const void *job, int64_t chunk, int thread) {
    const Pass *p = job;
    int64_t H = p->m->H, K = p->m->K, D = p->m->D, r = chunk / H * PANEL_ROWS, h = chunk % H;
    int64_t end = r + PANEL_ROWS < p->rows ? r + PANEL_ROWS : p->rows;
    for (int64_t next; r < end; r = next) {
        for (next = r + 1; next < end && p->sequence[next] == p->sequence[r];) next++;
        int64_t from = (p->sequence[r] * K + h / (H / K)) * p->capacity * D; /* H / K consecutive query heads share a key/value head */
        attend_panel(p->wide + (r * (H + 2 * K) + h) * D, (H + 2 * K) * D, next - r, p->cache->keys + from, p->cache->values + from,
                     p->real ? p->real + p->sequence[r] * p->seen : NULL, p->column + r, p->m->window, D, p->m->attention_scale,
                     p->scores + thread * p->scores_of_thread, p->attended + (r * H + h) * D, H * D);
    }
}

static void run_attention(const void *job, int64_t chunk, int thread) {
    const Pass *p = job;
    int64_t H = p->m->H, K = p->m->K, D = p->m->D, window = p->m->window, end = (chunk + 1) * HEADS_PER_CHUNK;
    for (int64_t i = chunk * HEADS_PER_CHUNK; i < end && i < p->rows * H; i++) {
        int64_t r = i / H, h = i % H, last = p->column[r], first = window && last >= window ? last - window + 1 : 0;
        int64_t from = (p->sequence[r] * K + h / (H / K)) * p->capacity * D; /* H / K consecutive query heads share a key/value head */
        attend(p->wide + (r * (H + 2 * K) + h) * D, p->cache->keys + from, p->cache->values + from,
               p->real ? p->real + p->sequence[r] * p->seen : NULL, first, last, D, p->m->attention_scale,
               p->scores + thread * p->scores_of_thread, p->attended + i * D);
    }
}

/* One layer, x (rows, C) in place: x + attention(norm(x)), then x + mlp(norm(x)). Returns 1 if there is not enough memory, else 0. */
static int run_layer(const Pass *p) {
    int64_t rows = p->rows, C = p->m->C, I = p->m->I;
    int failed = 0, panels = p->panels && rows > p->sequence[rows - 1] - p->sequence[0] + 1; /* several tokens of a sequence */

    parallel(run_norm, p, rows, p->threads);
    failed |= gpt_scratch_linear(&p->layer->qkv, p->normed, p->wide, rows, p->threads);
    parallel(write_keys_and_values, p, rows, p->threads);
    if (panels) parallel(run_panel_attention, p, (rows + PANEL_ROWS - 1) / PANEL_ROWS * p->m->H, p->threads);
    else parallel(run_attention, p, (rows * p->m->H + HEADS_PER_CHUNK - 1) / HEADS_PER_CHUNK, p->threads);
    failed |= gpt_scratch_linear(&p->layer->o, p->attended, p->normed, rows, p->threads);
    for (int64_t i = 0; i < rows * C; i++) p->x[i] += p->normed[i];

    parallel(run_mlp_norm, p, rows, p->threads);
    failed |= gpt_scratch_linear(&p->layer->up, p->normed, p->wide, rows, p->threads);
    parallel(run_activation, p, rows, p->threads);
    if (p->m->gated) /* the rows become adjacent, (rows, I) */
        for (int64_t r = 1; r < rows; r++) memmove(p->wide + r * I, p->wide + r * 2 * I, I * sizeof(float));
    failed |= gpt_scratch_linear(&p->layer->down, p->wide, p->normed, rows, p->threads);
    for (int64_t i = 0; i < rows * C; i++) p->x[i] += p->normed[i];
    return failed;
}

/* All layers for `rows` tokens, hidden (rows, C) in place. Of each sequence, earlier tokens come first.

   sequence, column: (rows), the sequence of each token in the cache, and its place there. cosine, sine: (rows, D), or NULL if positions are
   learned. real: (B, seen), 0 for padding, or NULL. Returns 1 if there is not enough memory, else 0. */
int gpt_scratch_decode(const Model *m, const Cache *caches, int64_t capacity, float *hidden, int64_t rows, const int64_t *sequence,
                       const int64_t *column, const float *cosine, const float *sine, const uint8_t *real, int64_t seen, int threads) {
    int64_t C = m->C, D = m->D, qkv = (m->H + 2 * m->K) * D, up = m->gated ? 2 * m->I : m->I, wide = qkv > up ? qkv : up;
    int64_t most = rows < ROWS_PER_PASS ? rows : ROWS_PER_PASS;
    int panels = rows >= PANEL_ROWS;
    int64_t scores = panels ? PANEL_ROWS * (capacity + D) : capacity + LANES;
    int64_t workers = threads > 1 ? MAX_THREADS : 1; /* pages that none uses take no memory */
    float *memory = malloc(sizeof(float) * (most * (C + wide + m->H * D) + workers * scores));
    if (memory == NULL) return 1;
    Pass pass = {.m = m, .capacity = capacity, .real = real, .seen = seen, .threads = threads, .normed = memory, .scores_of_thread = scores, .panels = panels};
    pass.wide = pass.normed + most * C;
    pass.attended = pass.wide + most * wide;
    pass.scores = pass.attended + most * m->H * D;
    int failed = 0;
    for (int64_t start = 0; start < rows; start += most) {
        pass.rows = rows - start < most ? rows - start : most;
        pass.x = hidden + start * C;
        pass.sequence = sequence + start;
        pass.column = column + start;
        pass.cosine = cosine ? cosine + start * D : NULL;
        pass.sine = sine ? sine + start * D : NULL;
        for (int64_t l = 0; l < m->count; l++) {
            pass.layer = m->layers + l;
            pass.cache = caches + l;
            failed |= run_layer(&pass);
        }
    }
    free(memory);
    return failed;
}
