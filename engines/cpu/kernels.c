/* What takes ONNX many passes over memory, as operators of ONNX Runtime's CPU provider of one or two: group
   normalisation and the SiLU after it, the gradient of both, that of a ReLU, and the interleaving of four images. And
   convolutions by 3x3 with less than half of their products.

   `good_rt.engines.cpu.fusing` puts them in a graph, and `good_rt.engines.cpu.winograd` the convolutions;
   `good_rt.engines.cpu.library` compiles this file on first use. It is written for GCC and Clang, and must not be
   compiled with -ffinite-math-only: a NaN that goes in comes out. Only ONNX Runtime's C interface is used, whose tables
   only ever grow at their ends. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(GOOD_RT_HEADER)
#include GOOD_RT_HEADER /* for comparison alone, below */
#endif

#if defined(_WIN32)
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* One library for every processor: whatever runs an operator asks the processor which version of its task to take, and
   asks for every instruction set that the version is compiled for. */
typedef void (*Task)(void *, size_t);

#if defined(__x86_64__)
#define WITH_AVX2 __attribute__((target("avx2,fma,bmi,bmi2")))
#define WITH_AVX512 __attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi,bmi2")))
#define VERSIONS(task)                                                                     \
  static void task##_anywhere(void *data, size_t place) { task(data, place); }             \
  WITH_AVX2 static void task##_avx2(void *data, size_t place) { task(data, place); }       \
  WITH_AVX512 static void task##_avx512(void *data, size_t place) { task(data, place); }
#define VERSION_FOR_THIS_PROCESSOR(task) (has_avx512() ? task##_avx512 : has_avx2() ? task##_avx2 : task##_anywhere)

static int has_avx2(void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}

static int has_avx512(void) {
#if defined(GOOD_RT_WITHOUT_AVX512)
  return 0;
#else
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
}
#else
#define VERSIONS(task) static void task##_anywhere(void *data, size_t place) { task(data, place); }
#define VERSION_FOR_THIS_PROCESSOR(task) task##_anywhere
#endif

/* --- what is computed --------------------------------------------------------------------------------------------- */

enum { LANES = 16 };   /* elements computed at once, and the channels of a block of ONNX Runtime's convolutions */
enum { MOST_AXES = 8 };
enum { CHUNK = 4096 }; /* summed in single precision, and the sums of chunks in double: a group may have millions */

typedef struct {
  int64_t samples, groups;       /* groups of a sample */
  int64_t channels, length;      /* channels of a group, elements of a channel */
  const float *x, *gamma, *beta; /* (samples, groups · channels, length); a number a channel */
  const float *cotangent;        /* as x; of the gradient alone */
  float *output;                 /* as x */
  float *mean, *rstd;            /* (samples, groups); the gradient reads them */
  float eps;
  int64_t silu;
} Norm;

/* exp(x), to 2e-7 of it, of x bounded to [-87, 87]: 2^n · e^r with |r| <= ln 2 / 2, e^r by its series (Cephes). */
ALWAYS_INLINE float exponential(float x) {
  x = x < -87.f ? -87.f : x;
  x = x > 87.f ? 87.f : x;
  union { float value; uint32_t bits; } n = {x * 1.44269504f + 12582912.f}, power; /* 1.5 · 2^23: rounds to an integer */
  const float whole = n.value - 12582912.f;
  const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  power.bits = (n.bits + 127) << 23;
  return p * power.value;
}

/* What is done to a channel's elements: a linear map of what they are above their group's mean. */
typedef struct { float mean, factor, shift; } Channel;

/* By γ/√(σ² + ε) and β. */
ALWAYS_INLINE Channel channel_at(const Norm *norm, size_t group, int64_t place) {
  const int64_t channel = (int64_t)group % norm->groups * norm->channels + place;
  return (Channel){norm->mean[group], norm->gamma[channel] * norm->rstd[group], norm->beta[channel]};
}

ALWAYS_INLINE void add_lanes(double *sums, const float *lanes) {
  for (int lane = 0; lane < LANES; lane++) sums[lane] += lanes[lane];
}

ALWAYS_INLINE double sum_of(const double *lanes) {
  double sum = 0;
  for (int lane = 0; lane < LANES; lane++) sum += lanes[lane];
  return sum;
}

ALWAYS_INLINE void add_elements(const float *x, int64_t lanes, float mean, int squared, float *sum) {
#pragma omp simd
  for (int64_t lane = 0; lane < lanes; lane++) {
    const float centred = x[lane] - mean;
    sum[lane] += squared ? centred * centred : centred;
  }
}

/* The mean of x − mean, or of its square. */
ALWAYS_INLINE float mean_of(const float *x, int64_t elements, float mean, int squared) {
  double sums[LANES] = {0};
  for (int64_t start = 0; start < elements; start += CHUNK) {
    const int64_t end = start + CHUNK < elements ? start + CHUNK : elements;
    float sum[LANES] = {0};
    int64_t i = start;
    for (; i + LANES <= end; i += LANES) add_elements(x + i, LANES, mean, squared, sum);
    add_elements(x + i, end - i, mean, squared, sum);
    add_lanes(sums, sum);
  }
  return (float)(sum_of(sums) / elements);
}

ALWAYS_INLINE void normalise_elements(const float *restrict x, int64_t lanes, Channel channel, int silu,
                                      float *restrict output) {
#pragma omp simd
  for (int64_t lane = 0; lane < lanes; lane++) {
    const float y = (x[lane] - channel.mean) * channel.factor + channel.shift;
    output[lane] = silu ? y / (1.f + exponential(-y)) : y;
  }
}

/* y = γ·(x − μ)/√(σ² + ε) + β, or y·sigmoid(y), of a group; its μ and 1/√(σ² + ε) are kept. */
ALWAYS_INLINE void normalise(void *data, size_t group) {
  const Norm *norm = data;
  const int64_t length = norm->length, elements = norm->channels * length, offset = (int64_t)group * elements;
  const float mean = mean_of(norm->x + offset, elements, 0, 0);
  norm->mean[group] = mean;
  norm->rstd[group] = 1.f / sqrtf(mean_of(norm->x + offset, elements, mean, 1) + norm->eps);
  for (int64_t place = 0; place < norm->channels; place++) {
    const Channel channel = channel_at(norm, group, place);
    const float *in = norm->x + offset + place * length;
    float *out = norm->output + offset + place * length;
    int64_t i = 0;
    if (norm->silu) {
      for (; i + LANES <= length; i += LANES) normalise_elements(in + i, LANES, channel, 1, out + i);
      normalise_elements(in + i, length - i, channel, 1, out + i);
    } else {
      for (; i + LANES <= length; i += LANES) normalise_elements(in + i, LANES, channel, 0, out + i);
      normalise_elements(in + i, length - i, channel, 0, out + i);
    }
  }
}
VERSIONS(normalise)

ALWAYS_INLINE void pull_elements_back(const float *restrict x, const float *restrict cotangent, int64_t lanes,
                                      Channel channel, int silu, float *restrict output, float *sum, float *dot) {
#pragma omp simd
  for (int64_t lane = 0; lane < lanes; lane++) {
    const float centred = x[lane] - channel.mean;
    float g = cotangent[lane] * channel.factor;
    if (silu) {
      const float y = centred * channel.factor + channel.shift, s = 1.f / (1.f + exponential(-y));
      g *= s * (1.f + y - y * s);
    }
    output[lane] = g;
    sum[lane] += g;
    dot[lane] += g * centred;
  }
}

/* dx = ĝ − mean ĝ − r²·mean(ĝ·c)·c of a group, with c = x − μ, r = 1/√(σ² + ε) and ĝ = γ·r·g, where g is the cotangent,
   times the SiLU's slope s·(1 + y − y·s), s = sigmoid(y), if there is one. */
ALWAYS_INLINE void pull_back(void *data, size_t group) {
  const Norm *norm = data;
  const int64_t length = norm->length, elements = norm->channels * length, offset = (int64_t)group * elements;
  const float *restrict x = norm->x + offset, *restrict cotangent = norm->cotangent + offset;
  float *restrict dx = norm->output + offset;
  double total[LANES] = {0}, product[LANES] = {0};
  for (int64_t place = 0; place < norm->channels; place++) {
    const Channel channel = channel_at(norm, group, place);
    for (int64_t start = place * length; start < (place + 1) * length; start += CHUNK) {
      const int64_t end = start + CHUNK < (place + 1) * length ? start + CHUNK : (place + 1) * length;
      float sum[LANES] = {0}, dot[LANES] = {0};
      int64_t i = start;
      if (norm->silu) {
        for (; i + LANES <= end; i += LANES) pull_elements_back(x + i, cotangent + i, LANES, channel, 1, dx + i, sum, dot);
        pull_elements_back(x + i, cotangent + i, end - i, channel, 1, dx + i, sum, dot);
      } else {
        for (; i + LANES <= end; i += LANES) pull_elements_back(x + i, cotangent + i, LANES, channel, 0, dx + i, sum, dot);
        pull_elements_back(x + i, cotangent + i, end - i, channel, 0, dx + i, sum, dot);
      }
      add_lanes(total, sum);
      add_lanes(product, dot);
    }
  }
  const float mean = norm->mean[group], rstd = norm->rstd[group], middle = (float)(sum_of(total) / elements);
  const float slope = (float)(sum_of(product) / elements) * rstd * rstd;
  for (int64_t i = 0; i < elements; i++) dx[i] -= (x[i] - mean) * slope + middle;
}
VERSIONS(pull_back)

typedef struct {
  const float *inputs[4];
  float *output;
  int64_t rows, length, tasks; /* rows of the first input, elements of a row */
  int64_t shape[MOST_AXES];    /* the output's */
  size_t axes;
} Rows;

/* A task does the rows from its first one to the next one's. */
ALWAYS_INLINE int64_t first_row(const Rows *work, size_t task) { return work->rows * (int64_t)task / work->tasks; }

/* The cotangent, inputs[0], where the ReLU's input or output, inputs[1], is above 0; a NaN in either is one after. */
ALWAYS_INLINE void mask(void *data, size_t task) {
  const Rows *work = data;
  const float *restrict g = work->inputs[0], *restrict y = work->inputs[1];
  float *restrict out = work->output;
  const int64_t end = first_row(work, task + 1) * work->length;
  for (int64_t i = first_row(work, task) * work->length; i < end; i++)
    out[i] = g[i] * (y[i] > 0 ? 1.f : y[i] != y[i] ? y[i] : 0.f);
}
VERSIONS(mask)

/* Four images to one that is twice as high and wide: each square of 2x2 has a pixel of each, in the order of reading. */
ALWAYS_INLINE void interleave_images(void *data, size_t task) {
  const Rows *work = data;
  const int64_t length = work->length, end = first_row(work, task + 1);
  for (int64_t row = first_row(work, task); row < end; row++) {
    for (int down = 0; down < 2; down++) {
      const float *restrict left = work->inputs[2 * down] + row * length;
      const float *restrict right = work->inputs[2 * down + 1] + row * length;
      float *restrict out = work->output + (2 * row + down) * 2 * length;
      for (int64_t i = 0; i < length; i++) {
        out[2 * i] = left[i];
        out[2 * i + 1] = right[i];
      }
    }
  }
}
VERSIONS(interleave_images)

/* --- a convolution by 3x3 ------------------------------------------------------------------------------------------ */

/* Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308): y = Aᵀ[(G·g·Gᵀ) ⊙ (Bᵀ·d·B)]A gives 2x2 pixels out of a tile
   of 4x4 with 16 products instead of 36. At each of a tile's 16 places that is a product of matrices, (K, C) and
   (C, tiles). A tile's numbers are the same whatever stands beside it, but where a pixel is infinite all of its tile is
   a NaN. Images lie in memory as (C / 16, H, W, 16), in blocks of 16 channels, as ONNX Runtime's convolutions on
   processors with AVX-512 have them. */

/* A task keeps at most ROOM tiles of a block of channels each, and MOST_TILES of two blocks' products: both together
   are to stay in a core's own cache. */
enum { PLACES = 16, MOST_TILES = 64, MOST_BLOCKS = 16, ROOM = 256 };
enum { TILE_ROOM = PLACES * (ROOM + 1) * LANES, PRODUCT_ROOM = PLACES * (2 * MOST_TILES + 1) * LANES };

typedef float Lanes __attribute__((vector_size(sizeof(float) * LANES), aligned(sizeof(float)))); /* a pixel's block */
typedef int32_t Bits __attribute__((vector_size(sizeof(float) * LANES)));

typedef struct {
  const float *x, *weights, *bias, *added; /* added may be NULL */
  float *output;
  int64_t in, out, height, width;          /* in, out: blocks of channels */
  int64_t down, across, tiles;             /* tiles of an image, and of all */
  int64_t chunk, parts;                    /* tiles that a task does, and tasks that share their channels out */
  int64_t relu;
} Convolution;

/* Tiles of one row of one image. */
typedef struct { int64_t sample, row, first, count; } Stretch;

ALWAYS_INLINE Stretch stretch_at(const Convolution *work, int64_t tile, int64_t end) {
  const int64_t row = tile / work->across, first = tile % work->across;
  const int64_t count = end - tile < work->across - first ? end - tile : work->across - first;
  return (Stretch){row / work->down, row % work->down, first, count};
}

/* Bᵀ·d of one of a tile's columns; rows that are NULL, and columns outside, are zeros. */
ALWAYS_INLINE void transform_column(const float *const rows[4], int64_t column, int64_t width, Lanes found[4]) {
  Lanes d[4];
  for (int i = 0; i < 4; i++)
    d[i] = rows[i] != NULL && column >= 0 && column < width ? *(const Lanes *)(rows[i] + column * LANES) : (Lanes){0};
  found[0] = d[0] - d[2];
  found[1] = d[1] + d[2];
  found[2] = d[2] - d[1];
  found[3] = d[1] - d[3];
}

/* Bᵀ·d·B of a stretch of tiles of a block of channels; each place of a tile is ``step`` after the one before. */
ALWAYS_INLINE void transform_tiles(const Convolution *work, Stretch here, int64_t block, int64_t step, float *tiles) {
  const float *image = work->x + (here.sample * work->in + block) * work->height * work->width * LANES, *rows[4];
  for (int i = 0; i < 4; i++) {
    const int64_t row = 2 * here.row - 1 + i;
    rows[i] = row >= 0 && row < work->height ? image + row * work->width * LANES : NULL;
  }
  Lanes d[4][4]; /* by column and row */
  transform_column(rows, 2 * here.first - 1, work->width, d[0]);
  transform_column(rows, 2 * here.first, work->width, d[1]);
  for (int64_t i = 0; i < here.count; i++) {
    transform_column(rows, 2 * (here.first + i) + 1, work->width, d[2]);
    transform_column(rows, 2 * (here.first + i) + 2, work->width, d[3]);
    float *tile = tiles + i * LANES;
    for (int row = 0; row < 4; row++) {
      *(Lanes *)(tile + (4 * row + 0) * step) = d[0][row] - d[2][row];
      *(Lanes *)(tile + (4 * row + 1) * step) = d[1][row] + d[2][row];
      *(Lanes *)(tile + (4 * row + 2) * step) = d[2][row] - d[1][row];
      *(Lanes *)(tile + (4 * row + 3) * step) = d[1][row] - d[3][row];
      d[0][row] = d[2][row];
      d[1][row] = d[3][row];
    }
  }
}

/* Sums over all channels of tiles' numbers at one place with the weights of ``blocks`` blocks of channels. */
ALWAYS_INLINE void multiply(const Convolution *work, const float *tiles, const float *weights, int blocks, int count,
                            float *products) {
  Lanes sums[2][8] = {{{0}}};
  for (int64_t block = 0; block < work->in; block++, tiles += work->chunk * LANES)
    for (int lane = 0; lane < LANES; lane++, weights += blocks * LANES)
      for (int tile = 0; tile < count; tile++)
        for (int i = 0; i < blocks; i++)
          sums[i][tile] += *(const Lanes *)(weights + i * LANES) * tiles[tile * LANES + lane];
  for (int i = 0; i < blocks; i++)
    for (int tile = 0; tile < count; tile++)
      *(Lanes *)(products + (i * work->chunk + tile) * LANES) = sums[i][tile];
}

/* A NaN stays one: its bits are above infinity's, whatever its sign. */
ALWAYS_INLINE Lanes relu(Lanes y) {
  const Bits bits = (Bits)y;
  return (Lanes)(bits & ((bits > 0) | ((bits & INT32_MAX) > 0x7f800000)));
}

/* Aᵀ·m·A of a stretch of tiles of a block of channels, and what is added to it. */
ALWAYS_INLINE void finish(const Convolution *work, Stretch here, int64_t block, int64_t step, const float *products) {
  const Lanes bias = *(const Lanes *)(work->bias + block * LANES);
  const int64_t start = (here.sample * work->out + block) * work->height * work->width;
  for (int64_t i = 0; i < here.count; i++) {
    const float *tile = products + i * LANES;
    Lanes half[2][4], y[2];
    for (int column = 0; column < 4; column++) {
      const Lanes m0 = *(const Lanes *)(tile + column * step), m1 = *(const Lanes *)(tile + (4 + column) * step);
      const Lanes m2 = *(const Lanes *)(tile + (8 + column) * step), m3 = *(const Lanes *)(tile + (12 + column) * step);
      half[0][column] = m0 + m1 + m2;
      half[1][column] = m1 - m2 - m3;
    }
    for (int down = 0; down < 2; down++) {
      const int64_t row = 2 * here.row + down, column = 2 * (here.first + i);
      y[0] = half[down][0] + half[down][1] + half[down][2] + bias;
      y[1] = half[down][1] - half[down][2] - half[down][3] + bias;
      for (int right = 0; right < 2; right++) {
        if (row >= work->height || column + right >= work->width) continue;
        const int64_t pixel = (start + row * work->width + column + right) * LANES;
        if (work->added != NULL) y[right] += *(const Lanes *)(work->added + pixel);
        if (work->relu) y[right] = relu(y[right]);
        *(Lanes *)(work->output + pixel) = y[right];
      }
    }
  }
}

static _Thread_local float tiles[TILE_ROOM] __attribute__((aligned(64)));
static _Thread_local float products[PRODUCT_ROOM] __attribute__((aligned(64)));

/* A chunk of tiles, and of the channels that it gives a part: pairs of blocks, since each number that is read of a tile
   is then multiplied twice. */
ALWAYS_INLINE void convolve(void *data, size_t task) {
  const Convolution *work = data;
  const int64_t first = (int64_t)task / work->parts * work->chunk, part = (int64_t)task % work->parts;
  const int64_t end = first + work->chunk < work->tiles ? first + work->chunk : work->tiles;
  /* one vector more than it takes, so that places do not compete for the same lines of the cache */
  const int64_t tile_step = (work->in * work->chunk + 1) * LANES, product_step = (2 * work->chunk + 1) * LANES;
  const int64_t count = end - first, pairs = (work->out + 1) / 2;
  for (int64_t block = 0; block < work->in; block++)
    for (int64_t tile = first; tile < end;) {
      const Stretch here = stretch_at(work, tile, end);
      transform_tiles(work, here, block, tile_step, tiles + (block * work->chunk + tile - first) * LANES);
      tile += here.count;
    }
  for (int64_t pair = pairs * part / work->parts; pair < pairs * (part + 1) / work->parts; pair++) {
    const int blocks = 2 * pair + 1 < work->out ? 2 : 1;
    const float *weights = work->weights + pair * 2 * PLACES * work->in * LANES * LANES;
    for (int place = 0; place < PLACES; place++, weights += blocks * work->in * LANES * LANES) {
      const float *in = tiles + place * tile_step;
      float *out = products + place * product_step;
      for (int64_t tile = 0; tile < count; tile += 8) {
        if (blocks == 2 && count - tile > 4) multiply(work, in + tile * LANES, weights, 2, 8, out + tile * LANES);
        else if (blocks == 2) multiply(work, in + tile * LANES, weights, 2, 4, out + tile * LANES);
        else multiply(work, in + tile * LANES, weights, 1, 8, out + tile * LANES);
      }
    }
    for (int i = 0; i < blocks; i++)
      for (int64_t tile = first; tile < end;) {
        const Stretch here = stretch_at(work, tile, end);
        finish(work, here, 2 * pair + i, product_step, products + (i * work->chunk + tile - first) * LANES);
        tile += here.count;
      }
  }
}
VERSIONS(convolve)

/* --- ONNX Runtime's C interface: places in its table of functions, and the form of an operator --------------------- */

typedef struct Status Status;   /* NULL: all went well */
typedef struct Context Context; /* of one run of an operator */
typedef struct Value Value;
typedef struct Info Info; /* of a tensor, or of a node */
typedef struct Operator Operator;
typedef void (*Function)(void);
typedef struct { Function at[275]; } Api;
typedef struct { const Api *(*of_version)(uint32_t); } ApiBase;

enum { API_VERSION = 17 }; /* of ONNX Runtime 1.17, the first with `parallel_for` */
enum { FLOAT = 1, INVALID_ARGUMENT = 2, REQUIRED = 0, MOST_TASKS = 16 };

static const Api *api;

#define API(place, result, ...) ((result(*)(__VA_ARGS__))api->at[place])
#define create_status API(0, Status *, int, const char *)
#define create_domain API(26, Status *, const char *, void **)
#define add_to_domain API(27, Status *, void *, const Operator *)
#define add_domain API(28, Status *, void *, void *)
#define tensor_data API(51, Status *, const Value *, void **)
#define axes_count API(61, Status *, const Info *, size_t *)
#define axes_of API(62, Status *, const Info *, int64_t *, size_t)
#define elements_of API(64, Status *, const Info *, size_t *)
#define tensor_info API(65, Status *, const Value *, Info **)
#define float_attribute API(85, Status *, const Info *, const char *, float *)
#define integer_attribute API(86, Status *, const Info *, const char *, int64_t *)
#define input_of API(90, Status *, const Context *, size_t, const Value **)
#define output_of API(91, Status *, Context *, size_t, const int64_t *, size_t, Value **)
#define release_info API(99, void, Info *)
#define parallel_for API(274, Status *, const Context *, Task, size_t, size_t, void *)

struct Operator {
  uint32_t version;
  Function create_1;
  const char *(*name)(const Operator *);
  const char *(*provider)(const Operator *);
  int (*input_type)(const Operator *, size_t);
  size_t (*input_count)(const Operator *);
  int (*output_type)(const Operator *, size_t);
  size_t (*output_count)(const Operator *);
  Function compute_1;
  void (*destroy)(void *);
  int (*input_kind)(const Operator *, size_t);
  int (*output_kind)(const Operator *, size_t);
  int (*input_memory)(const Operator *, size_t);
  int (*variadic[4])(const Operator *);
  Status *(*create)(const Operator *, const Api *, const Info *, void **);
  Status *(*compute)(void *, Context *);
  Function infer_shapes;
  int (*start_version)(const Operator *);
  int (*end_version)(const Operator *);
  Function in_place[4]; /* none; read by later versions alone */
  /* what follows is ours */
  const char *title;
  size_t inputs, outputs;
};

/* With ONNX Runtime's own header at hand (-DGOOD_RT_HEADER='"onnxruntime_c_api.h"'), the compiler compares the places
   and the form with it. */
#if defined(GOOD_RT_HEADER)
#define IS_AT(place, member) \
  _Static_assert(offsetof(OrtApi, member) == (place) * sizeof(Function), "place of " #member " in OrtApi")
IS_AT(0, CreateStatus);
IS_AT(26, CreateCustomOpDomain);
IS_AT(27, CustomOpDomain_Add);
IS_AT(28, AddCustomOpDomain);
IS_AT(51, GetTensorMutableData);
IS_AT(61, GetDimensionsCount);
IS_AT(62, GetDimensions);
IS_AT(64, GetTensorShapeElementCount);
IS_AT(65, GetTensorTypeAndShape);
IS_AT(85, KernelInfoGetAttribute_float);
IS_AT(86, KernelInfoGetAttribute_int64);
IS_AT(90, KernelContext_GetInput);
IS_AT(91, KernelContext_GetOutput);
IS_AT(99, ReleaseTensorTypeAndShapeInfo);
IS_AT(274, KernelContext_ParallelFor);
#define IS_SAME(ours, member) \
  _Static_assert(offsetof(Operator, ours) == offsetof(OrtCustomOp, member), "place of " #member " in OrtCustomOp")
IS_SAME(version, version);
IS_SAME(create_1, CreateKernel);
IS_SAME(name, GetName);
IS_SAME(provider, GetExecutionProviderType);
IS_SAME(input_type, GetInputType);
IS_SAME(input_count, GetInputTypeCount);
IS_SAME(output_type, GetOutputType);
IS_SAME(output_count, GetOutputTypeCount);
IS_SAME(compute_1, KernelCompute);
IS_SAME(destroy, KernelDestroy);
IS_SAME(input_kind, GetInputCharacteristic);
IS_SAME(output_kind, GetOutputCharacteristic);
IS_SAME(input_memory, GetInputMemoryType);
IS_SAME(variadic, GetVariadicInputMinArity);
IS_SAME(create, CreateKernelV2);
IS_SAME(compute, KernelComputeV2);
IS_SAME(infer_shapes, InferOutputShapeFn);
IS_SAME(start_version, GetStartVersion);
IS_SAME(end_version, GetEndVersion);
IS_SAME(in_place, GetMayInplace);
_Static_assert(offsetof(Operator, title) >= sizeof(OrtCustomOp), "size of OrtCustomOp");
_Static_assert(offsetof(OrtApiBase, GetApi) == offsetof(ApiBase, of_version), "place of GetApi");
_Static_assert(FLOAT == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "number of float");
_Static_assert(INVALID_ARGUMENT == ORT_INVALID_ARGUMENT, "number of an error");
_Static_assert(REQUIRED == INPUT_OUTPUT_REQUIRED, "number of required");
#endif

typedef struct { int64_t groups, silu, axes, relu; float eps; } Node; /* axes: of mean and rstd */

#define TRY(call) do { Status *failure = (call); if (failure != NULL) return failure; } while (0)

static Status *keep(Node node, void **made) {
  Node *kept = malloc(sizeof node);
  if (kept == NULL) return create_status(INVALID_ARGUMENT, "no memory is left");
  *kept = node;
  *made = kept;
  return NULL;
}

static Status *read_norm(const Info *info, Node *node) {
  TRY(integer_attribute(info, "groups", &node->groups));
  TRY(integer_attribute(info, "silu", &node->silu));
  return node->groups > 0 ? NULL : create_status(INVALID_ARGUMENT, "groups must be positive");
}

static Status *create_norm(const Operator *operator, const Api *table, const Info *info, void **made) {
  (void)operator, (void)table;
  Node node = {0};
  TRY(read_norm(info, &node));
  TRY(integer_attribute(info, "axes", &node.axes));
  TRY(float_attribute(info, "eps", &node.eps));
  if (node.axes < 2 || node.axes > MOST_AXES) return create_status(INVALID_ARGUMENT, "axes must be 2 to 8");
  return keep(node, made);
}

static Status *create_gradient(const Operator *operator, const Api *table, const Info *info, void **made) {
  (void)operator, (void)table;
  Node node = {0};
  TRY(read_norm(info, &node));
  return keep(node, made);
}

static Status *create_plain(const Operator *operator, const Api *table, const Info *info, void **made) {
  (void)operator, (void)table, (void)info;
  *made = NULL; /* nothing to remember */
  return NULL;
}

/* A tensor's number of elements and, if asked for, its shape. */
static Status *measure(const Value *value, int64_t *elements, int64_t *shape, size_t *axes) {
  Info *info;
  size_t count = 0;
  TRY(tensor_info(value, &info));
  Status *status = elements_of(info, &count);
  *elements = (int64_t)count;
  if (status == NULL && shape != NULL) status = axes_count(info, axes);
  if (status == NULL && shape != NULL && *axes <= MOST_AXES) status = axes_of(info, shape, *axes);
  release_info(info);
  return status;
}

static Status *read_input(const Context *context, size_t place, int64_t elements, float **data) {
  const Value *value;
  int64_t found;
  TRY(input_of(context, place, &value));
  TRY(measure(value, &found, NULL, NULL));
  if (found != elements) return create_status(INVALID_ARGUMENT, "inputs do not fit each other");
  return tensor_data(value, (void **)data);
}

static Status *make_output(Context *context, size_t place, const int64_t *shape, size_t axes, float **data) {
  Value *value;
  TRY(output_of(context, place, shape, axes, &value));
  return tensor_data(value, (void **)data);
}

/* Inputs x (N, C, ...), gamma and beta (C elements each); output 0 as x. Sets all of ``norm`` but mean, rstd and
   cotangent. */
static Status *begin(const Node *node, Context *context, Norm *norm) {
  const Value *x, *gamma;
  int64_t elements, channels, shape[MOST_AXES];
  size_t axes;
  TRY(input_of(context, 0, &x));
  TRY(input_of(context, 1, &gamma));
  TRY(measure(x, &elements, shape, &axes));
  TRY(measure(gamma, &channels, NULL, NULL));
  if (axes < 2 || axes > MOST_AXES) return create_status(INVALID_ARGUMENT, "x must have 2 to 8 axes");
  const int64_t sample = shape[0] > 0 ? elements / shape[0] : 0;
  if (channels < 1 || channels % node->groups != 0 || sample % channels != 0)
    return create_status(INVALID_ARGUMENT, "groups must divide the channels, and these the elements of a sample");
  *norm = (Norm){.samples = shape[0], .groups = node->groups, .channels = channels / node->groups,
                 .length = sample / channels, .eps = node->eps, .silu = node->silu};
  TRY(tensor_data(x, (void **)&norm->x));
  TRY(read_input(context, 1, channels, (float **)&norm->gamma));
  TRY(read_input(context, 2, channels, (float **)&norm->beta));
  return make_output(context, 0, shape, axes, &norm->output);
}

/* (x, gamma, beta) -> (y, mean, rstd); the last two (N, groups, 1, ...). */
static Status *group_norm(void *node, Context *context) {
  Norm norm;
  TRY(begin(node, context, &norm));
  const int64_t shape[MOST_AXES] = {norm.samples, norm.groups, 1, 1, 1, 1, 1, 1};
  TRY(make_output(context, 1, shape, (size_t)((const Node *)node)->axes, &norm.mean));
  TRY(make_output(context, 2, shape, (size_t)((const Node *)node)->axes, &norm.rstd));
  return parallel_for(context, VERSION_FOR_THIS_PROCESSOR(normalise), (size_t)(norm.samples * norm.groups), 0, &norm);
}

/* (x, gamma, beta, mean, rstd, cotangent of y) -> dx. */
static Status *group_norm_gradient(void *node, Context *context) {
  Norm norm;
  TRY(begin(node, context, &norm));
  const int64_t groups = norm.samples * norm.groups;
  TRY(read_input(context, 3, groups, &norm.mean));
  TRY(read_input(context, 4, groups, &norm.rstd));
  TRY(read_input(context, 5, groups * norm.channels * norm.length, (float **)&norm.cotangent));
  return parallel_for(context, VERSION_FOR_THIS_PROCESSOR(pull_back), (size_t)groups, 0, &norm);
}

/* Of input 0: rows of all that is after an axis, or of the last one. */
static Status *begin_rows(Context *context, size_t axis, Rows *work) {
  const Value *x;
  int64_t elements, length = 1;
  *work = (Rows){0};
  TRY(input_of(context, 0, &x));
  TRY(measure(x, &elements, work->shape, &work->axes));
  if (work->axes < 1 || work->axes > MOST_AXES) return create_status(INVALID_ARGUMENT, "x must have 1 to 8 axes");
  for (size_t place = axis < work->axes ? axis : work->axes - 1; place < work->axes; place++)
    length *= work->shape[place];
  work->length = length;
  work->rows = length > 0 ? elements / length : 0;
  work->tasks = work->rows < MOST_TASKS ? work->rows : MOST_TASKS;
  return tensor_data(x, (void **)&work->inputs[0]);
}

/* With as many inputs in all, of one shape. */
static Status *run_rows(Context *context, Rows *work, size_t inputs, Task task) {
  for (size_t place = 1; place < inputs; place++)
    TRY(read_input(context, place, work->rows * work->length, (float **)&work->inputs[place]));
  TRY(make_output(context, 0, work->shape, work->axes, &work->output));
  return parallel_for(context, task, (size_t)work->tasks, 0, work);
}

/* (cotangent, y) -> dx, all of one shape. */
static Status *relu_gradient(void *node, Context *context) {
  (void)node;
  Rows work;
  TRY(begin_rows(context, 2, &work));
  return run_rows(context, &work, 2, VERSION_FOR_THIS_PROCESSOR(mask));
}

/* Four of (N, C, H, W) -> (N, C, 2H, 2W). */
static Status *interleave(void *node, Context *context) {
  (void)node;
  Rows work;
  TRY(begin_rows(context, 3, &work));
  if (work.axes != 4) return create_status(INVALID_ARGUMENT, "what is interleaved must be (N, C, H, W)");
  work.shape[2] *= 2, work.shape[3] *= 2;
  return run_rows(context, &work, 4, VERSION_FOR_THIS_PROCESSOR(interleave_images));
}

static Status *create_convolution(const Operator *operator, const Api *table, const Info *info, void **made) {
  (void)operator, (void)table;
  Node node = {0};
  TRY(integer_attribute(info, "relu", &node.relu));
  return keep(node, made);
}

/* (x, weights, bias) or also what is added: x (N, C, H, W) and the output (N, K, H, W) in blocks of 16. */
static Status *run_convolution(const Node *node, Context *context, size_t inputs) {
  const Value *x, *bias;
  int64_t elements, channels, shape[MOST_AXES];
  size_t axes;
  Convolution work = {.relu = node->relu};
  TRY(input_of(context, 0, &x));
  TRY(input_of(context, 2, &bias));
  TRY(measure(x, &elements, shape, &axes));
  TRY(measure(bias, &channels, NULL, NULL));
  if (axes != 4 || shape[1] < 1 || shape[1] % LANES != 0 || shape[1] > MOST_BLOCKS * LANES)
    return create_status(INVALID_ARGUMENT, "x must be (N, C, H, W), and C a multiple of 16 up to 256");
  if (channels < 1 || channels % LANES != 0)
    return create_status(INVALID_ARGUMENT, "bias must have a number for each channel, of which there are whole blocks");
  work.height = shape[2], work.width = shape[3];
  work.in = shape[1] / LANES, work.out = channels / LANES;
  work.down = (work.height + 1) / 2, work.across = (work.width + 1) / 2;
  work.tiles = shape[0] * work.down * work.across;
  const int64_t most = ROOM / work.in / 16 * 16 < MOST_TILES ? ROOM / work.in / 16 * 16 : MOST_TILES;
  const int64_t quarter = ((work.tiles + 3) / 4 + 15) / 16 * 16; /* of what there is, so that threads share it */
  work.chunk = quarter < most ? quarter : most;
  const int64_t chunks = work.tiles > 0 ? (work.tiles + work.chunk - 1) / work.chunk : 0;
  work.parts = chunks < 4 && work.out >= 4 ? 2 : 1;
  TRY(tensor_data(x, (void **)&work.x));
  TRY(read_input(context, 1, PLACES * shape[1] * channels, (float **)&work.weights));
  TRY(read_input(context, 2, channels, (float **)&work.bias));
  shape[1] = channels;
  if (inputs > 3) TRY(read_input(context, 3, channels * shape[0] * shape[2] * shape[3], (float **)&work.added));
  TRY(make_output(context, 0, shape, axes, &work.output));
  return parallel_for(context, VERSION_FOR_THIS_PROCESSOR(convolve), (size_t)(chunks * work.parts), 0, &work);
}

static Status *convolution(void *node, Context *context) { return run_convolution(node, context, 3); }
static Status *convolution_and_sum(void *node, Context *context) { return run_convolution(node, context, 4); }

static const char *title_of(const Operator *operator) { return operator->title; }
static const char *cpu_provider(const Operator *operator) { return (void)operator, NULL; }
static int always_float(const Operator *operator, size_t place) { return (void)operator, (void)place, FLOAT; }
static int always_required(const Operator *operator, size_t place) { return (void)operator, (void)place, REQUIRED; }
static int zero(const Operator *operator) { return (void)operator, 0; }
static int zero_at(const Operator *operator, size_t place) { return (void)operator, (void)place, 0; }
static int one(const Operator *operator) { return (void)operator, 1; }
static size_t inputs_of(const Operator *operator) { return operator->inputs; }
static size_t outputs_of(const Operator *operator) { return operator->outputs; }

#define OPERATOR(its_create, function, its_title, input_number, output_number)                                   \
  {.version = API_VERSION, .name = title_of, .provider = cpu_provider, .input_type = always_float,                \
   .input_count = inputs_of, .output_type = always_float, .output_count = outputs_of, .destroy = free,            \
   .input_kind = always_required, .output_kind = always_required, .input_memory = zero_at,                        \
   .variadic = {zero, zero, zero, zero}, .create = its_create, .compute = function, .start_version = one,             \
   .end_version = one, .title = its_title, .inputs = input_number, .outputs = output_number}

static const Operator OPERATORS[] = {
    OPERATOR(create_norm, group_norm, "GroupNorm", 3, 3),
    OPERATOR(create_gradient, group_norm_gradient, "GroupNormGradient", 6, 1),
    OPERATOR(create_plain, relu_gradient, "ReluGradient", 2, 1),
    OPERATOR(create_plain, interleave, "Interleave", 4, 1),
    OPERATOR(create_convolution, convolution, "Convolution", 3, 1),
    OPERATOR(create_convolution, convolution_and_sum, "ConvolutionAdd", 4, 1),
};

/* Called by ONNX Runtime for each session that registers the library. */
EXPORTED Status *RegisterCustomOps(void *options, const ApiBase *base) {
  void *domain; /* outlives its sessions, so nothing gives it back */
  api = base->of_version(API_VERSION);
  TRY(create_domain("good_rt", &domain));
  for (size_t place = 0; place < sizeof OPERATORS / sizeof *OPERATORS; place++)
    TRY(add_to_domain(domain, &OPERATORS[place]));
  return add_domain(options, domain);
}
