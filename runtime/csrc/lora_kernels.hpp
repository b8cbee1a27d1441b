// Arithmetic of the embedded engine's fused LoRA operations, one implementation per instruction set.
//
// Everything here is plain pointers and floats: the files compiled with wider instruction sets must not
// instantiate inline library code, or the linker could pick that copy for every machine.
// Each (token, rank) and each (token, output) is summed in one fixed order whatever else is in the batch,
// so that a request's tokens do not depend on its neighbours.
#pragma once

#include <cstdint>

namespace compllm {

// One adapted matrix: y[y_offset : y_offset + out] += B t[t_offset : t_offset + rank].
struct LoraModule {
  const std::uint16_t* b;  // IEEE half, [rank, out]: B transposed, alpha / rank folded in
  int rank;
  int out;
  int t_offset;
  int y_offset;
};

// All adapted matrices that share one input, for one adapter and layer.
struct LoraGroup {
  const std::uint16_t* a;  // IEEE half, [rank, in]: the A factors of the modules, one below another
  int in;
  int rank;  // sum over the modules
  const LoraModule* modules;
  int num_modules;
};

struct Kernels {
  const char* name;
  // y[t] += B (A x[t]) for num_tokens rows; strides in floats; scratch holds 2 * group.rank floats.
  void (*lora)(const LoraGroup& group, const float* x, long x_stride, float* y, long y_stride,
               int num_tokens, float* scratch);
  // Rotates num_heads heads of head_dim in place (the half-split form of Llama and Qwen2).
  void (*rope)(float* heads, int num_heads, int head_dim, const float* cos, const float* sin);
  // out[i] = silu(gate[i]) * up[i]
  void (*swiglu)(const float* gate, const float* up, float* out, int n);
  // sum = residual + y; normed = sum / rms(sum) * weight
  void (*add_norm)(const float* residual, const float* y, const float* weight, float eps, float* sum,
                   float* normed, int n);
};

// The widest implementation this processor runs; COMPLLM_LORA_ISA=generic|avx2|avx512 narrows it.
const Kernels& kernels();

extern const Kernels kGenericKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace compllm
