// Included once per instruction set, after the macros below are defined:
//   WIDTH, VEC, LOAD(p), LOAD_HALF(p), LOAD_INT8(p), STORE(p, v), FMA(a, b, c), ADD(a, b), MUL(a,
//   b), SPLAT(f), ZERO(), SUM(v), HALF(u16), TO_HALF(f), and TILE_1, TILE_2, TILE_4: vectors of
//   rows of a tile for one, two or three, and four to six tokens, as many sums as the registers
//   hold.
// See kernels.hpp for the rules this file must obey.

namespace compllm {
namespace {

// The two storage forms of a weight, behind one name.
struct Int8 {
    static const std::int8_t* data(const Matrix& m) { return m.q; }
    static VEC load(const std::int8_t* p) { return LOAD_INT8(p); }
};
struct Half {
    static const std::uint16_t* data(const Matrix& m) { return m.half; }
    static VEC load(const std::uint16_t* p) { return LOAD_HALF(p); }
};

// NR rows times NT tokens of row-major halves: NR * NT independent sums hide the latency of the
// multiply-add, each weight is converted once for NT tokens and each input read once for NR rows.
template <int NR, int NT>
inline void row_tile(const std::uint16_t* w, int in, const float* x, float* out) {
    VEC acc[NR][NT];
    for (int r = 0; r < NR; ++r)
        for (int k = 0; k < NT; ++k) acc[r][k] = ZERO();
    int i = 0;
    for (; i + WIDTH <= in; i += WIDTH) {
        VEC rows[NR];
        for (int r = 0; r < NR; ++r) rows[r] = LOAD_HALF(w + static_cast<long>(r) * in + i);
        for (int k = 0; k < NT; ++k) {
            const VEC xs = LOAD(x + static_cast<long>(k) * in + i);
            for (int r = 0; r < NR; ++r) acc[r][k] = FMA(rows[r], xs, acc[r][k]);
        }
    }
    for (int r = 0; r < NR; ++r)
        for (int k = 0; k < NT; ++k) {
            float sum = SUM(acc[r][k]);
            for (int j = i; j < in; ++j)
                sum += HALF(w[static_cast<long>(r) * in + j]) * x[static_cast<long>(k) * in + j];
            out[r * NT + k] = sum;
        }
}

// Vectors of a panel.
constexpr int kVectors = kPanel / WIDTH;
// Bytes ahead of the products that the next weights are asked for.
constexpr int kAhead = 1024;

// NV vectors of rows, from panel `w` on, times NT tokens, as raw sums: NV * NT of them hide the
// latency of the multiply-add.
template <class Form, int NV, int NT, class T>
inline void panel_sums(const T* w, int in, const float* x, VEC (&acc)[NV][NT]) {
    constexpr int kPanels = (NV + kVectors - 1) / kVectors;
    const T* panel[kPanels];
    for (int g = 0; g < kPanels; ++g) panel[g] = w + static_cast<long>(g) * kPanel * in;
    for (int v = 0; v < NV; ++v)
        for (int t = 0; t < NT; ++t) acc[v][t] = ZERO();
    const auto add = [&](int k) __attribute__((always_inline)) {
        // The shorter side stays in registers while the longer one passes.
        if constexpr (NV > NT) {
            VEC xs[NT];
            for (int t = 0; t < NT; ++t) xs[t] = SPLAT(x[static_cast<long>(t) * in + k]);
            for (int v = 0; v < NV; ++v) {
                const VEC ws = Form::load(panel[v / kVectors] + k * kPanel + v % kVectors * WIDTH);
                for (int t = 0; t < NT; ++t) acc[v][t] = FMA(ws, xs[t], acc[v][t]);
            }
        } else {
            VEC ws[NV];
            for (int v = 0; v < NV; ++v)
                ws[v] = Form::load(panel[v / kVectors] + k * kPanel + v % kVectors * WIDTH);
            for (int t = 0; t < NT; ++t) {
                const VEC xs = SPLAT(x[static_cast<long>(t) * in + k]);
                for (int v = 0; v < NV; ++v) acc[v][t] = FMA(ws[v], xs, acc[v][t]);
            }
        }
    };
    int k = 0;
    for (; k + 4 <= in; k += 4) {
        // Four steps of a panel are one cache line of 8-bit weights, two of halves.
        for (int g = 0; g < kPanels; ++g) {
            const char* next = reinterpret_cast<const char*>(panel[g] + k * kPanel) + kAhead;
            __builtin_prefetch(next);
            if constexpr (sizeof(T) == 2) __builtin_prefetch(next + 64);
        }
        add(k);
        add(k + 1);
        add(k + 2);
        add(k + 3);
    }
    for (; k < in; ++k) add(k);
}

// y[t, row : row + NV * WIDTH] for NT tokens; rows from `last` on are not written.
template <class Form, int NV, int NT>
inline void linear_tile(const Matrix& m, const float* x, const float* x_sums, float* y, int row,
                        int last) {
    VEC acc[NV][NT];
    panel_sums<Form, NV, NT>(Form::data(m) + static_cast<long>(row) * m.in, m.in, x, acc);
    const bool is_whole = row + NV * WIDTH <= last;
    for (int v = 0; v < NV; ++v) {
        const int at = row + v * WIDTH;
        for (int t = 0; t < NT; ++t) {
            float* to = y + static_cast<long>(t) * m.rows + at;
            if (is_whole) {
                VEC value = acc[v][t];
                if (m.scale != nullptr)
                    value = MUL(FMA(LOAD(m.zero_point + at), SPLAT(-x_sums[t]), value),
                                LOAD(m.scale + at));
                if (m.bias != nullptr) value = ADD(value, LOAD(m.bias + at));
                STORE(to, value);
                continue;
            }
            float values[WIDTH];
            STORE(values, acc[v][t]);
            for (int i = 0; i < WIDTH && at + i < last; ++i) {
                float value = values[i];
                if (m.scale != nullptr)
                    value = (value - m.zero_point[at + i] * x_sums[t]) * m.scale[at + i];
                to[i] = m.bias != nullptr ? value + m.bias[at + i] : value;
            }
        }
    }
}

template <class Form, int NT>
inline void linear_tokens(const Matrix& m, const float* x, const float* x_sums, float* y, int first,
                          int last) {
    constexpr int kTile = NT == 1 ? TILE_1 : NT >= 4 ? TILE_4 : TILE_2;
    int row = first;
    for (; row + kTile * WIDTH <= last; row += kTile * WIDTH)
        linear_tile<Form, kTile, NT>(m, x, x_sums, y, row, last);
    for (; row < last; row += kPanel) linear_tile<Form, kVectors, NT>(m, x, x_sums, y, row, last);
}

template <class Form>
inline void linear_form(const Matrix& m, const float* x, const float* x_sums, float* y,
                        int num_tokens, int first, int last) {
    // A stretch of rows stays in the cache while all tokens pass over it.
    const int stretch = (131072 / m.in / 64 + 1) * 64;
    for (int row = first; row < last; row += stretch) {
        const int end = row + stretch < last ? row + stretch : last;
        const auto at = [&](int token) { return x + static_cast<long>(token) * m.in; };
        const auto to = [&](int token) { return y + static_cast<long>(token) * m.rows; };
        // Four at a time, the last five or six too: one or two more cost less than a pass of
        // theirs.
        int k = 0;
        for (; k + 7 <= num_tokens || k + 4 == num_tokens; k += 4)
            linear_tokens<Form, 4>(m, at(k), x_sums + k, to(k), row, end);
        switch (num_tokens - k) {
            case 1:
                linear_tokens<Form, 1>(m, at(k), x_sums + k, to(k), row, end);
                break;
            case 2:
                linear_tokens<Form, 2>(m, at(k), x_sums + k, to(k), row, end);
                break;
            case 3:
                linear_tokens<Form, 3>(m, at(k), x_sums + k, to(k), row, end);
                break;
            case 5:
                linear_tokens<Form, 5>(m, at(k), x_sums + k, to(k), row, end);
                break;
            case 6:
                linear_tokens<Form, 6>(m, at(k), x_sums + k, to(k), row, end);
                break;
            default:
                break;
        }
    }
}

// Sums of the inputs, for the zero points.
[[maybe_unused]] long prepared_size(const Matrix&) { return sizeof(float); }

[[maybe_unused]] void prepare(const Matrix& m, const float* x, int num_tokens, void* prepared) {
    for (int t = 0; t < num_tokens; ++t, x += m.in) {
        float total = 0.0f;
#pragma omp simd reduction(+ : total)
        for (int i = 0; i < m.in; ++i) total += x[i];
        static_cast<float*>(prepared)[t] = total;
    }
}

void linear(const Matrix& m, const float* x, const void* prepared, float* y, int num_tokens,
            int first, int last) {
    const auto* x_sums = static_cast<const float*>(prepared);
    if (m.q != nullptr)
        linear_form<Int8>(m, x, x_sums, y, num_tokens, first, last);
    else
        linear_form<Half>(m, x, x_sums, y, num_tokens, first, last);
}

template <int GROUP>
void row(const Matrix& m, long place, float* out) {
    if (m.q != nullptr) {
        const long num_groups = (m.in + GROUP - 1) / GROUP;
        const std::int8_t* q = m.q + place / kPanel * kPanel * num_groups * GROUP;
        for (int i = 0; i < m.in; ++i) {
            const long at = (i / GROUP * kPanel + place % kPanel) * GROUP + i % GROUP;
            out[i] = (static_cast<float>(q[at]) - m.zero_point[place]) * m.scale[place];
        }
        return;
    }
    const std::uint16_t* half = m.half + place / kPanel * kPanel * m.in + place % kPanel;
    for (int i = 0; i < m.in; ++i) out[i] = HALF(half[static_cast<long>(i) * kPanel]);
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
inline void lora_block(const LoraGroup& g, const float* x, float* y, long y_width, float* t) {
    float out[4 * NT];
    int r = 0;
    for (; r + 4 <= g.rank; r += 4) {
        row_tile<4, NT>(g.a + static_cast<long>(r) * g.in, g.in, x, out);
        for (int i = 0; i < 4; ++i)
            for (int k = 0; k < NT; ++k) t[k * g.rank + r + i] = out[i * NT + k];
    }
    for (; r < g.rank; ++r) {
        row_tile<1, NT>(g.a + static_cast<long>(r) * g.in, g.in, x, out);
        for (int k = 0; k < NT; ++k) t[k * g.rank + r] = out[k];
    }
    for (int m = 0; m < g.num_modules; ++m) {
        const LoraModule& module = g.modules[m];
        for (int k = 0; k < NT; ++k) {
            float* low = t + k * g.rank + module.t_offset;
            for (int i = 0; i < module.rank; ++i) low[i] *= module.scale;
        }
        expand<NT>(module, t + module.t_offset, g.rank, y + module.y_offset, y_width);
    }
}

void lora(const LoraGroup& g, const float* x, float* y, long y_width, int num_tokens,
          float* scratch) {
    int k = 0;
    for (; k + 2 <= num_tokens; k += 2)
        lora_block<2>(g, x + static_cast<long>(k) * g.in, y + k * y_width, y_width, scratch);
    if (k < num_tokens)
        lora_block<1>(g, x + static_cast<long>(k) * g.in, y + k * y_width, y_width, scratch);
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

// exp without branches, so that the loop around it becomes vector code. Relative error below 3e-7
// on the clamped range (degree-6 polynomial on [-ln2/2, ln2/2] after range reduction; Cephes'
// coefficients).
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

void softmax(float* x, int n) {
    float most = x[0];
    for (int i = 1; i < n; ++i) most = x[i] > most ? x[i] : most;
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (int i = 0; i < n; ++i) {
        x[i] = exp_approx(x[i] - most);
        total += x[i];
    }
    const float scale = 1.0f / total;
#pragma omp simd
    for (int i = 0; i < n; ++i) x[i] *= scale;
}

#include "attention.inl"

void swiglu(const float* gate, const float* up, float* out, int n) {
#pragma omp simd
    for (int i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + exp_approx(-gate[i])) * up[i];
}

void to_half(const float* from, std::uint16_t* to, int n) {
    for (int i = 0; i < n; ++i) to[i] = TO_HALF(from[i]);
}

void add_norm(float* sum, const float* y, const float* weight, float eps, float* normed, int n) {
    float squares = 0.0f;
    if (y != nullptr) {
#pragma omp simd
        for (int i = 0; i < n; ++i) sum[i] += y[i];
    }
#pragma omp simd reduction(+ : squares)
    for (int i = 0; i < n; ++i) squares += sum[i] * sum[i];
    const float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
#pragma omp simd
    for (int i = 0; i < n; ++i) normed[i] = sum[i] * scale * weight[i];
}

}  // namespace
}  // namespace compllm
