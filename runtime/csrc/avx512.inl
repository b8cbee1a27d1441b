// The vectors of AVX-512F for kernels.inl. Included by the files compiled for it.
#include <immintrin.h>

#include "kernels.hpp"

#define WIDTH 16
#define VEC __m512
#define LOAD(p) _mm512_loadu_ps(p)
#define LOAD_HALF(p) _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))
#define LOAD_INT8(p) \
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))
#define STORE(p, v) _mm512_storeu_ps(p, v)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define ADD(a, b) _mm512_add_ps(a, b)
#define MUL(a, b) _mm512_mul_ps(a, b)
#define SPLAT(f) _mm512_set1_ps(f)
#define ZERO() _mm512_setzero_ps()
#define SUM(v) _mm512_reduce_add_ps(v)
#define HALF(h) _cvtsh_ss(h)
#define TO_HALF(f) _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT)
#define TILE_1 4
#define TILE_2 4
#define TILE_4 4

#include "kernels.inl"
