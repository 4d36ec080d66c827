/* What takes ONNX many passes over memory, as operators of ONNX Runtime's CPU provider of one or two: group
   normalisation and the SiLU after it, the gradient of both, that of a ReLU, and the interleaving of four images.

   `good_rt.engines.fusing` puts them in a graph, `good_rt.engines.kernels` finds this file's library. Only ONNX Runtime's
   C interface is used, whose tables only ever grow at their ends. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(_WIN32)
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

/* One library for every processor: the loader takes the version for the one that it finds. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__GLIBC__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE static inline
#endif

/* --- what is computed --------------------------------------------------------------------------------------------- */

typedef struct {
  int64_t samples, groups, channels, pixels; /* channels of a group, pixels of a channel */
  const float *x, *gamma, *beta;             /* (samples, groups, channels, pixels); (groups, channels) */
  const float *cotangent;                    /* as x; of the gradient alone */
  float *output;                             /* as x */
  float *mean, *rstd;                        /* (samples, groups); the gradient reads them */
  float eps;
  int64_t silu, tasks;
} Work;

enum { CHUNK = 4096 }; /* summed in single precision, and the sums of chunks in double: a group may have millions */

/* exp(x), to 2e-7 of it, of x bounded to [-87, 87]: 2^n · e^r with |r| <= ln 2 / 2, e^r by its series (Cephes). A NaN
   may become a number here, and callers multiply by x, which brings it back. */
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

/* y = γ·(x − μ)/√(σ² + ε) + β, or y·sigmoid(y), of one group of one sample; its μ and 1/√(σ² + ε) are kept. */
FOR_EVERY_PROCESSOR static void normalise(const Work *work, int64_t place) {
  const int64_t size = work->channels * work->pixels, group = place % work->groups;
  const float *x = work->x + place * size;
  double total = 0;
  for (int64_t start = 0; start < size; start += CHUNK) {
    const int64_t end = start + CHUNK < size ? start + CHUNK : size;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = start; i < end; i++) sum += x[i];
    total += sum;
  }
  const float mean = (float)(total / size);
  total = 0;
  for (int64_t start = 0; start < size; start += CHUNK) {
    const int64_t end = start + CHUNK < size ? start + CHUNK : size;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = start; i < end; i++) sum += (x[i] - mean) * (x[i] - mean);
    total += sum;
  }
  const float rstd = 1.f / sqrtf((float)(total / size) + work->eps);
  work->mean[place] = mean;
  work->rstd[place] = rstd;
  for (int64_t channel = 0; channel < work->channels; channel++) {
    const float factor = rstd * work->gamma[group * work->channels + channel];
    const float shift = work->beta[group * work->channels + channel];
    const float *in = x + channel * work->pixels;
    float *out = work->output + place * size + channel * work->pixels;
    if (work->silu) {
      for (int64_t i = 0; i < work->pixels; i++) {
        const float y = (in[i] - mean) * factor + shift;
        out[i] = y / (1.f + exponential(-y));
      }
    } else {
      for (int64_t i = 0; i < work->pixels; i++) out[i] = (in[i] - mean) * factor + shift;
    }
  }
}

/* dx = ĝ − mean ĝ − r²·mean(ĝ·c)·c of one group, with c = x − μ, r = 1/√(σ² + ε) and ĝ = γ·r·g, where g is the
   cotangent, times the SiLU's slope s·(1 + y − y·s), s = sigmoid(y), if there is one. */
FOR_EVERY_PROCESSOR static void pull_back(const Work *work, int64_t place) {
  const int64_t size = work->channels * work->pixels, group = place % work->groups;
  const float mean = work->mean[place], rstd = work->rstd[place];
  const float *x = work->x + place * size;
  float *dx = work->output + place * size;
  double total = 0, product = 0;
  for (int64_t channel = 0; channel < work->channels; channel++) {
    const float factor = rstd * work->gamma[group * work->channels + channel];
    const float shift = work->beta[group * work->channels + channel];
    const int64_t offset = channel * work->pixels;
    const float *in = x + offset, *g = work->cotangent + place * size + offset;
    float *out = dx + offset;
    for (int64_t start = 0; start < work->pixels; start += CHUNK) {
      const int64_t end = start + CHUNK < work->pixels ? start + CHUNK : work->pixels;
      if (work->silu) {
        for (int64_t i = start; i < end; i++) {
          const float y = (in[i] - mean) * factor + shift, s = 1.f / (1.f + exponential(-y));
          out[i] = g[i] * factor * (s * (1.f + y - y * s));
        }
      } else {
        for (int64_t i = start; i < end; i++) out[i] = g[i] * factor;
      }
      float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
      for (int64_t i = start; i < end; i++) {
        sum += out[i];
        dot += out[i] * (in[i] - mean);
      }
      total += sum;
      product += dot;
    }
  }
  const float middle = (float)(total / size), slope = (float)(product / size) * rstd * rstd;
  for (int64_t i = 0; i < size; i++) dx[i] -= (x[i] - mean) * slope + middle;
}

/* A task's share of the groups: each is computed alone, so that neither batch nor threads change what comes out. */
static void share(const Work *work, size_t task, void (*one)(const Work *, int64_t)) {
  const int64_t places = work->samples * work->groups;
  const int64_t end = places * ((int64_t)task + 1) / work->tasks;
  for (int64_t place = places * (int64_t)task / work->tasks; place < end; place++) one(work, place);
}
static void normalise_share(void *work, size_t task) { share(work, task, normalise); }
static void pull_back_share(void *work, size_t task) { share(work, task, pull_back); }

typedef struct {
  const float *inputs[4];
  float *output;
  int64_t rows, length, tasks; /* rows of an input, and elements of a row */
} Rows;

/* The cotangent, inputs[0], where the ReLU's output, inputs[1], is not 0. */
FOR_EVERY_PROCESSOR static void mask_share(void *data, size_t task) {
  const Rows *work = data;
  const float *restrict g = work->inputs[0], *restrict y = work->inputs[1];
  float *restrict out = work->output;
  const int64_t end = work->rows * ((int64_t)task + 1) / work->tasks * work->length;
  for (int64_t i = work->rows * (int64_t)task / work->tasks * work->length; i < end; i++) out[i] = y[i] > 0 ? g[i] : 0.f;
}

/* Four images to one that is twice as high and wide: each block of 2x2 has a pixel of each, in the order of reading. */
FOR_EVERY_PROCESSOR static void interleave_share(void *data, size_t task) {
  const Rows *work = data;
  const int64_t length = work->length, end = work->rows * ((int64_t)task + 1) / work->tasks;
  for (int64_t row = work->rows * (int64_t)task / work->tasks; row < end; row++) {
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
enum { FLOAT = 1, INVALID_ARGUMENT = 2, REQUIRED = 0, MOST_AXES = 8, MOST_TASKS = 16 };

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
#define parallel_for API(274, Status *, const Context *, void (*)(void *, size_t), size_t, size_t, void *)

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

typedef struct { int64_t groups, silu, axes; float eps; } Node; /* axes: of mean and rstd */

#define TRY(call) do { Status *failure = (call); if (failure != NULL) return failure; } while (0)

static Status *create(const Operator *operator, const Api *table, const Info *info, void **made) {
  (void)operator, (void)table;
  Node node;
  TRY(integer_attribute(info, "groups", &node.groups));
  TRY(integer_attribute(info, "silu", &node.silu));
  TRY(integer_attribute(info, "axes", &node.axes));
  TRY(float_attribute(info, "eps", &node.eps));
  if (node.groups < 1 || node.axes < 2 || node.axes > MOST_AXES)
    return create_status(INVALID_ARGUMENT, "groups must be positive, and axes 2 to 8");
  Node *kept = malloc(sizeof node);
  if (kept == NULL) return create_status(INVALID_ARGUMENT, "no memory is left");
  *kept = node;
  *made = kept;
  return NULL;
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

/* Inputs x (N, ...), in memory (N, C, pixels), gamma and beta (C elements each); output 0 as x. Sets all of ``work``
   but mean, rstd and cotangent. */
static Status *begin(const Node *node, Context *context, Work *work) {
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
  const int64_t places = shape[0] * node->groups;
  *work = (Work){.samples = shape[0], .groups = node->groups, .channels = channels / node->groups,
                 .pixels = sample / channels, .eps = node->eps, .silu = node->silu,
                 .tasks = places < MOST_TASKS ? places : MOST_TASKS};
  TRY(tensor_data(x, (void **)&work->x));
  TRY(read_input(context, 1, channels, (float **)&work->gamma));
  TRY(read_input(context, 2, channels, (float **)&work->beta));
  return make_output(context, 0, shape, axes, &work->output);
}

/* (x, gamma, beta) -> (y, mean, rstd); the last two (N, groups, 1, ...). */
static Status *group_norm(void *node, Context *context) {
  const size_t axes = (size_t)((const Node *)node)->axes;
  Work work;
  TRY(begin(node, context, &work));
  const int64_t shape[MOST_AXES] = {work.samples, work.groups, 1, 1, 1, 1, 1, 1};
  TRY(make_output(context, 1, shape, axes, &work.mean));
  TRY(make_output(context, 2, shape, axes, &work.rstd));
  return parallel_for(context, normalise_share, (size_t)work.tasks, 0, &work);
}

/* (x, gamma, beta, mean, rstd, cotangent of y) -> dx. */
static Status *group_norm_gradient(void *node, Context *context) {
  Work work;
  TRY(begin(node, context, &work));
  const int64_t places = work.samples * work.groups;
  TRY(read_input(context, 3, places, &work.mean));
  TRY(read_input(context, 4, places, &work.rstd));
  TRY(read_input(context, 5, places * work.channels * work.pixels, (float **)&work.cotangent));
  return parallel_for(context, pull_back_share, (size_t)work.tasks, 0, &work);
}

/* As many inputs of one shape, whose last axis is the length of a row; the output is so many times as high and wide. */
static Status *run_rows(Context *context, size_t inputs, int64_t times, void (*task)(void *, size_t)) {
  const Value *first;
  int64_t elements, shape[MOST_AXES];
  size_t axes;
  TRY(input_of(context, 0, &first));
  TRY(measure(first, &elements, shape, &axes));
  if (axes < 1 || axes > MOST_AXES) return create_status(INVALID_ARGUMENT, "inputs must have 1 to 8 axes");
  if (times > 1 && axes != 4) return create_status(INVALID_ARGUMENT, "what is interleaved must be (N, C, H, W)");
  const int64_t length = shape[axes - 1], rows = length > 0 ? elements / length : 0;
  Rows work = {.rows = rows, .length = length, .tasks = rows < MOST_TASKS ? rows : MOST_TASKS};
  for (size_t place = 0; place < inputs; place++)
    TRY(read_input(context, place, elements, (float **)&work.inputs[place]));
  for (size_t axis = 2; times > 1 && axis < axes; axis++) shape[axis] *= times;
  TRY(make_output(context, 0, shape, axes, &work.output));
  return parallel_for(context, task, (size_t)work.tasks, 0, &work);
}

/* (cotangent, y) -> dx, all of one shape. */
static Status *relu_gradient(void *node, Context *context) {
  (void)node;
  return run_rows(context, 2, 1, mask_share);
}

/* Four of (N, C, H, W) -> (N, C, 2H, 2W). */
static Status *interleave(void *node, Context *context) {
  (void)node;
  return run_rows(context, 4, 2, interleave_share);
}

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
    OPERATOR(create, group_norm, "GroupNorm", 3, 3),
    OPERATOR(create, group_norm_gradient, "GroupNormGradient", 6, 1),
    OPERATOR(create_plain, relu_gradient, "ReluGradient", 2, 1),
    OPERATOR(create_plain, interleave, "Interleave", 4, 1),
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
