// The kernels for AVX-512 with VNNI (compiled with those flags; chosen at run time): 8-bit weights
// are multiplied as the integers they are.
//
// A token's inputs become 24-bit integers, a scale beside them, and each integer three signed
// bytes; vpdpbusd adds up four products of bytes at a time. Those sums are exact (of up to 131,072
// inputs), and 24 bits of the largest input are what a float of its size keeps: the results are as
// near to the true ones as sums of floats are. A weight needs no widening, and three such
// instructions replace four multiply-adds.
#include "avx512.inl"

namespace compllm {
namespace {

constexpr int kGroup = 4;   // weights of a row that one lane multiplies
constexpr int kDigits = 3;  // base 256, signed
// No digit is beyond a byte below it, however the largest input is rounded.
constexpr float kLargest = 8355000.0f;
constexpr long kLine = 64;
// Bytes ahead of the products that the next weights are asked for. The weights are one stream.
constexpr long kFar = 8192;

// Sums in an integer type of their own: those of __m512i, which may alias anything, GCC 12 keeps in
// memory, at half the speed.
using Sums = std::int32_t __attribute__((vector_size(64)));

// Before a token's digits, which lie [ceil(in / kGroup), kDigits, kGroup] from the next cache line
// on, zeros beyond the last input.
struct Prepared {
    float scale;                 // of the integers
    float sum;                   // of the inputs
    std::int32_t sums[kDigits];  // of each digit
};

long num_groups(const Matrix& m) { return (m.in + kGroup - 1) / kGroup; }

// Lanes of the first n numbers.
__mmask16 first(int n) { return static_cast<__mmask16>(n >= WIDTH ? 0xffff : (1 << n) - 1); }

long vnni_prepared_size(const Matrix& m) {
    if (m.q == nullptr) return prepared_size(m);
    const long written = (m.in + WIDTH - 1L) / WIDTH * WIDTH * kDigits;
    return kLine + (written + kLine - 1) / kLine * kLine;
}

void prepare_token(const Matrix& m, const float* x, std::int8_t* to) {
    __m512 most = _mm512_setzero_ps();
    __m512 total = _mm512_setzero_ps();
    for (int i = 0; i < m.in; i += WIDTH) {
        const __m512 v = _mm512_maskz_loadu_ps(first(m.in - i), x + i);
        most = _mm512_max_ps(most, _mm512_abs_ps(v));
        total = _mm512_add_ps(total, v);
    }
    const float largest = _mm512_reduce_max_ps(most);
    const __m512 inverse = _mm512_set1_ps(largest > 0.0f ? kLargest / largest : 0.0f);
    // Digits of four groups, one digit after another -> one group after another.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, 12, 13, 14, 15);
    const auto low = [](__m512i v) { return _mm512_srai_epi32(_mm512_slli_epi32(v, 24), 24); };
    __m512i sums[kDigits] = {};
    std::int8_t* digits = to + kLine;
    for (int i = 0; i < m.in; i += WIDTH, digits += WIDTH * kDigits) {
        const __m512i integers = _mm512_cvtps_epi32(
            _mm512_mul_ps(_mm512_maskz_loadu_ps(first(m.in - i), x + i), inverse));
        const __m512i d0 = low(integers);
        const __m512i rest = _mm512_srai_epi32(_mm512_sub_epi32(integers, d0), 8);
        const __m512i d1 = low(rest);
        const __m512i d2 = _mm512_srai_epi32(_mm512_sub_epi32(rest, d1), 8);
        sums[0] = _mm512_add_epi32(sums[0], d0);
        sums[1] = _mm512_add_epi32(sums[1], d1);
        sums[2] = _mm512_add_epi32(sums[2], d2);
        __m512i bytes = _mm512_castsi128_si512(_mm512_cvtepi32_epi8(d0));
        bytes = _mm512_inserti32x4(bytes, _mm512_cvtepi32_epi8(d1), 1);
        bytes = _mm512_inserti32x4(bytes, _mm512_cvtepi32_epi8(d2), 2);
        _mm512_mask_storeu_epi32(digits, 0x0fff, _mm512_permutexvar_epi32(order, bytes));
    }
    auto& head = *reinterpret_cast<Prepared*>(to);
    for (int d = 0; d < kDigits; ++d) head.sums[d] = _mm512_reduce_add_epi32(sums[d]);
    // An input that is no number, or infinite, makes every output none.
    head.scale = largest / kLargest + 0.0f * _mm512_reduce_add_ps(total);
    head.sum =
        head.scale * (static_cast<float>(head.sums[0]) + 256.0f * static_cast<float>(head.sums[1]) +
                      65536.0f * static_cast<float>(head.sums[2]));
}

void vnni_prepare(const Matrix& m, const float* x, int num_tokens, void* prepared) {
    if (m.q == nullptr) return prepare(m, x, num_tokens, prepared);
    const long size = vnni_prepared_size(m);
    for (int t = 0; t < num_tokens; ++t)
        prepare_token(m, x + static_cast<long>(t) * m.in,
                      static_cast<std::int8_t*>(prepared) + t * size);
}

// y[t, row : row + kPanel] for NT tokens; rows from `last` on are not written.
template <int NT>
inline void panel_tile(const Matrix& m, const std::int8_t* prepared, float* y, int row, int last) {
    const long size = vnni_prepared_size(m);
    const auto head = [&](int t) -> const Prepared& {
        return *reinterpret_cast<const Prepared*>(prepared + t * size);
    };
    Sums acc[NT * kDigits];
    // vpdpbusd takes the weights without sign: 128 too much of every input is taken off beforehand.
#pragma GCC unroll 24
    for (int i = 0; i < NT * kDigits; ++i)
        acc[i] = (Sums)_mm512_set1_epi32(-128 * head(i / kDigits).sums[i % kDigits]);
    const std::int8_t* weights = m.q + row / kPanel * num_groups(m) * kPanel * kGroup;
    const std::int8_t* end = weights + num_groups(m) * kPanel * kGroup;
    const std::int8_t* digits = prepared + kLine;
    const __m512i signs = _mm512_set1_epi8(-128);
    for (; weights < end; weights += kPanel * kGroup, digits += kDigits * kGroup) {
        _mm_prefetch(reinterpret_cast<const char*>(weights) + kFar, _MM_HINT_T0);
        const __m512i w = _mm512_xor_si512(_mm512_loadu_si512(weights), signs);
#pragma GCC unroll 24
        for (int i = 0; i < NT * kDigits; ++i) {
            std::int32_t four;
            __builtin_memcpy(&four, digits + i / kDigits * size + i % kDigits * kGroup, 4);
            acc[i] = (Sums)_mm512_dpbusd_epi32((__m512i)acc[i], w, _mm512_set1_epi32(four));
        }
    }
    const __mmask16 mask = first(last - row);
    const __m512 zero_point = _mm512_maskz_loadu_ps(mask, m.zero_point + row);
    const __m512 scale = _mm512_maskz_loadu_ps(mask, m.scale + row);
    const __m512 bias =
        m.bias != nullptr ? _mm512_maskz_loadu_ps(mask, m.bias + row) : _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int t = 0; t < NT; ++t) {
        __m512 value = _mm512_cvtepi32_ps((__m512i)acc[t * kDigits]);
        value = FMA(_mm512_cvtepi32_ps((__m512i)acc[t * kDigits + 1]), SPLAT(256.0f), value);
        value = FMA(_mm512_cvtepi32_ps((__m512i)acc[t * kDigits + 2]), SPLAT(65536.0f), value);
        value = MUL(value, SPLAT(head(t).scale));
        value = MUL(FMA(zero_point, SPLAT(-head(t).sum), value), scale);
        _mm512_mask_storeu_ps(y + static_cast<long>(t) * m.rows + row, mask, ADD(value, bias));
    }
}

template <int NT>
inline void panel_rows(const Matrix& m, const std::int8_t* prepared, float* y, int first,
                       int last) {
    for (int row = first; row < last; row += kPanel) panel_tile<NT>(m, prepared, y, row, last);
}

// [tokens - 1]
constexpr decltype(&panel_rows<1>) kPanelRows[] = {panel_rows<1>, panel_rows<2>, panel_rows<3>,
                                                   panel_rows<4>, panel_rows<5>, panel_rows<6>,
                                                   panel_rows<7>, panel_rows<8>};
constexpr int kTokens = 8;

void vnni_linear(const Matrix& m, const float* x, const void* prepared, float* y, int num_tokens,
                 int first, int last) {
    if (m.q == nullptr) return linear(m, x, prepared, y, num_tokens, first, last);
    const long size = vnni_prepared_size(m);
    // A stretch of rows stays in the cache while all tokens pass over it, eight at a time.
    const int stretch = (131072 / m.in / kPanel + 1) * kPanel;
    for (int row = first; row < last; row += stretch) {
        const int end = row + stretch < last ? row + stretch : last;
        for (int t = 0; t < num_tokens; t += kTokens) {
            const int count = num_tokens - t < kTokens ? num_tokens - t : kTokens;
            kPanelRows[count - 1](m, static_cast<const std::int8_t*>(prepared) + t * size,
                                  y + static_cast<long>(t) * m.rows, row, end);
        }
    }
}

}  // namespace

const Kernels kVnniKernels{
    "vnni", kGroup,  vnni_prepared_size, vnni_prepare, vnni_linear, lora, rope, swiglu,
    attend, to_half, add_norm,           row<kGroup>};

}  // namespace compllm
