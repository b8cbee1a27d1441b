// Included once per instruction set, after the macros below are defined:
//   WIDTH, VEC, LOAD(p), LOAD_HALF(p), STORE(p, v), FMA(a, b, c), SPLAT(f), ZERO(), SUM(v), HALF(u16)
// See lora_kernels.hpp for the rules this file must obey.

namespace compllm {
namespace {

// t[token][r] = dot(A[r], x[token]) for NT tokens and NR ranks at once: enough independent chains to hide
// the latency of the multiply-add, each chain in the same order for any NT and NR.
template <int NT, int NR>
inline void project(const std::uint16_t* a, int in, const float* x, long x_stride, float* t,
                    int t_stride) {
  VEC acc[NT][NR];
  for (int k = 0; k < NT; ++k)
    for (int r = 0; r < NR; ++r) acc[k][r] = ZERO();
  int i = 0;
  for (; i + WIDTH <= in; i += WIDTH) {
    VEC xs[NT];
    for (int k = 0; k < NT; ++k) xs[k] = LOAD(x + k * x_stride + i);
    for (int r = 0; r < NR; ++r) {
      const VEC row = LOAD_HALF(a + static_cast<long>(r) * in + i);
      for (int k = 0; k < NT; ++k) acc[k][r] = FMA(row, xs[k], acc[k][r]);
    }
  }
  for (int k = 0; k < NT; ++k)
    for (int r = 0; r < NR; ++r) {
      float sum = SUM(acc[k][r]);
      for (int j = i; j < in; ++j) sum += HALF(a[static_cast<long>(r) * in + j]) * x[k * x_stride + j];
      t[k * t_stride + r] = sum;
    }
}

template <int NT>
inline void expand(const LoraModule& m, const float* t, int t_stride, float* y, long y_stride) {
  int o = 0;
  for (; o + 2 * WIDTH <= m.out; o += 2 * WIDTH) {
    VEC low[NT], high[NT];
    for (int k = 0; k < NT; ++k) {
      low[k] = LOAD(y + k * y_stride + o);
      high[k] = LOAD(y + k * y_stride + o + WIDTH);
    }
    for (int r = 0; r < m.rank; ++r) {
      const VEC b0 = LOAD_HALF(m.b + static_cast<long>(r) * m.out + o);
      const VEC b1 = LOAD_HALF(m.b + static_cast<long>(r) * m.out + o + WIDTH);
      for (int k = 0; k < NT; ++k) {
        const VEC s = SPLAT(t[k * t_stride + r]);
        low[k] = FMA(b0, s, low[k]);
        high[k] = FMA(b1, s, high[k]);
      }
    }
    for (int k = 0; k < NT; ++k) {
      STORE(y + k * y_stride + o, low[k]);
      STORE(y + k * y_stride + o + WIDTH, high[k]);
    }
  }
  for (; o < m.out; ++o)
    for (int k = 0; k < NT; ++k) {
      float sum = y[k * y_stride + o];
      for (int r = 0; r < m.rank; ++r)
        sum += HALF(m.b[static_cast<long>(r) * m.out + o]) * t[k * t_stride + r];
      y[k * y_stride + o] = sum;
    }
}

template <int NT>
inline void lora_block(const LoraGroup& g, const float* x, long x_stride, float* y, long y_stride,
                       float* t) {
  int r = 0;
  for (; r + 4 <= g.rank; r += 4)
    project<NT, 4>(g.a + static_cast<long>(r) * g.in, g.in, x, x_stride, t + r, g.rank);
  for (; r < g.rank; ++r)
    project<NT, 1>(g.a + static_cast<long>(r) * g.in, g.in, x, x_stride, t + r, g.rank);
  for (int m = 0; m < g.num_modules; ++m)
    expand<NT>(g.modules[m], t + g.modules[m].t_offset, g.rank, y + g.modules[m].y_offset, y_stride);
}

void lora(const LoraGroup& g, const float* x, long x_stride, float* y, long y_stride, int num_tokens,
          float* scratch) {
  int k = 0;
  for (; k + 2 <= num_tokens; k += 2)
    lora_block<2>(g, x + k * x_stride, x_stride, y + k * y_stride, y_stride, scratch);
  if (k < num_tokens)
    lora_block<1>(g, x + k * x_stride, x_stride, y + k * y_stride, y_stride, scratch);
}

void rope(float* heads, int num_heads, int head_dim, const float* cos, const float* sin) {
  const int half = head_dim / 2;
  for (int h = 0; h < num_heads; ++h) {
    float* first = heads + static_cast<long>(h) * head_dim;
    float* second = first + half;
#pragma omp simd
    for (int i = 0; i < half; ++i) {
      const float a = first[i];
      const float b = second[i];
      first[i] = a * cos[i] - b * sin[i];
      second[i] = b * cos[i] + a * sin[i];
    }
  }
}

// exp without branches, so that the loop around it becomes vector code. Relative error below 3e-7 on the
// clamped range (degree-6 polynomial on [-ln2/2, ln2/2] after range reduction; Cephes' coefficients).
inline float exp_approx(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float k = __builtin_rintf(x * 1.44269504088896341f);
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  union {
    std::int32_t i;
    float f;
  } scale;
  scale.i = (static_cast<std::int32_t>(k) + 127) << 23;
  return p * scale.f;
}

void swiglu(const float* gate, const float* up, float* out, int n) {
#pragma omp simd
  for (int i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + exp_approx(-gate[i])) * up[i];
}

void add_norm(const float* residual, const float* y, const float* weight, float eps, float* sum,
              float* normed, int n) {
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int i = 0; i < n; ++i) {
    const float v = residual[i] + y[i];
    sum[i] = v;
    squares += v * v;
  }
  const float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
#pragma omp simd
  for (int i = 0; i < n; ++i) normed[i] = sum[i] * scale * weight[i];
}

}  // namespace
}  // namespace compllm
