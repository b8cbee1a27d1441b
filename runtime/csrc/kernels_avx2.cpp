// The kernels for AVX2 with FMA and F16C (compiled with those flags; chosen at run time).
#include <immintrin.h>

#include "kernels.hpp"

#define WIDTH 8
#define VEC __m256
#define LOAD(p) _mm256_loadu_ps(p)
#define LOAD_HALF(p) _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))
#define LOAD_INT8(p) \
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))
#define STORE(p, v) _mm256_storeu_ps(p, v)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define ADD(a, b) _mm256_add_ps(a, b)
#define MUL(a, b) _mm256_mul_ps(a, b)
#define SPLAT(f) _mm256_set1_ps(f)
#define ZERO() _mm256_setzero_ps()
#define SUM(v) sum8(v)
#define HALF(h) _cvtsh_ss(h)
#define TO_HALF(f) _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT)
#define TILE_1 8
#define TILE_2 4
#define TILE_4 2

namespace compllm {
namespace {
inline float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
}  // namespace
}  // namespace compllm

#include "kernels.inl"

namespace compllm {
const Kernels kAvx2Kernels{"avx2", 1,      prepared_size, prepare, linear,   lora,
                           rope,   swiglu, attend,        to_half, add_norm, row<1>};
}
