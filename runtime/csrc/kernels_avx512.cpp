// The kernels for AVX-512F (compiled with that flag; chosen at run time).
#include "avx512.inl"

namespace compllm {
const Kernels kAvx512Kernels{"avx512", 1,      prepared_size, prepare, linear,   lora,
                             rope,     swiglu, attend,        to_half, add_norm, row<1>};
}
