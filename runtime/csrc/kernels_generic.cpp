// The portable kernels, and the choice among the implementations.
#include "kernels.hpp"

#include <cstdlib>
#include <cstring>

namespace compllm {
namespace {

// IEEE half to float without hardware support: exact, subnormals and infinities included.
inline float half_to_float(std::uint16_t h) {
    const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
    const std::uint32_t magnitude = h & 0x7fffu;
    union {
        std::uint32_t u;
        float f;
    } value;
    if (magnitude >= 0x7c00u) {
        value.u = sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13);
        return value.f;
    }
    // Put the bits where a float keeps them, then let a multiplication by 2^112 fix the exponent.
    value.u = magnitude << 13;
    value.f *= 5.192296858534828e+33f;
    value.u |= sign;
    return value.f;
}

// Float to IEEE half, to nearest even.
inline std::uint16_t float_to_half(float f) {
    union {
        float f;
        std::uint32_t u;
    } value{f};
    const std::uint32_t sign = (value.u >> 16) & 0x8000u;
    value.u &= 0x7fffffffu;
    std::uint32_t half;
    if (value.u > 0x7f800000u) {
        half = 0x7e00u;  // not a number
    } else if (value.u >= 0x477ff000u) {
        half = 0x7c00u;  // rounds to infinity
    } else if (value.u < 0x38800000u) {
        // A subnormal half: the sum with 0.5 rounds its last bit to the last of the significand.
        value.f += 0.5f;
        half = value.u - 0x3f000000u;
    } else {
        half = (value.u - 0x38000000u + 0xfffu + ((value.u >> 13) & 1u)) >> 13;
    }
    return static_cast<std::uint16_t>(sign | half);
}

}  // namespace
}  // namespace compllm

#define WIDTH 1
#define VEC float
#define LOAD(p) (*(p))
#define LOAD_HALF(p) half_to_float(*(p))
#define LOAD_INT8(p) static_cast<float>(*(p))
#define STORE(p, v) (*(p) = (v))
#define FMA(a, b, c) ((a) * (b) + (c))
#define ADD(a, b) ((a) + (b))
#define MUL(a, b) ((a) * (b))
#define SPLAT(f) (f)
#define ZERO() 0.0f
#define SUM(v) (v)
#define HALF(h) half_to_float(h)
#define TO_HALF(f) float_to_half(f)
#define TILE_1 16
#define TILE_2 16
#define TILE_4 16

#include "kernels.inl"

namespace compllm {

const Kernels kGenericKernels{"generic", 1,      prepared_size, prepare, linear,   lora,
                              rope,      swiglu, attend,        to_half, add_norm, row<1>};

namespace {

const Kernels& choose() {
#if defined(__x86_64__)
    const char* wanted = std::getenv("COMPLLM_ISA");
    const auto is_most = [&](const char* isa) {
        return wanted != nullptr && std::strcmp(wanted, isa) == 0;
    };
    if (is_most("generic")) return kGenericKernels;
    __builtin_cpu_init();
    const bool is_wide = !is_most("avx2") && __builtin_cpu_supports("avx512f") &&
                         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512vl");
    if (is_wide && !is_most("avx512") && __builtin_cpu_supports("avx512vnni")) return kVnniKernels;
    if (is_wide) return kAvx512Kernels;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        return kAvx2Kernels;
#endif
    return kGenericKernels;
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

}  // namespace compllm
