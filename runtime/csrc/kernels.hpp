// Arithmetic of the embedded engine's decoder operations, one implementation per instruction set.
//
// Everything here is plain pointers and floats: the files compiled with wider instruction sets must
// not instantiate inline library code, or the linker could pick that copy for every machine. Each
// output of each token is summed in one fixed order whatever else is in the batch, so that a
// request's tokens do not depend on its neighbours.
#pragma once

#include <cstdint>

namespace compllm {

// Rows of a weight matrix that lie interleaved in memory.
constexpr int kPanel = 16;

// A weight matrix [rows, in]: 8-bit rows with a scale and a zero point each, or half precision.
// Weights lie in panels, [ceil(rows / kPanel), in, kPanel], rows beyond the last filled up with
// anything: a product reads memory strictly forwards, and adds up kPanel outputs side by side with
// nothing to sum across lanes at the end. Where the kernels take several 8-bit weights of a row at
// once (Kernels::group), a panel is [ceil(in / group), kPanel, group], filled up likewise.
struct Matrix {
    const std::int8_t* q = nullptr;       // panels; weight = (q - zero_point) * scale
    const std::uint16_t* half = nullptr;  // panels; instead of q
    const float* scale = nullptr;         // [rows]
    const float* zero_point = nullptr;    // [rows]
    const float* bias = nullptr;          // [rows] or null
    int rows = 0;
    int in = 0;
};

// One adapted matrix: y[y_offset : y_offset + out] += scale B t[t_offset : t_offset + rank].
struct LoraModule {
    const std::uint16_t* b;  // IEEE half, [rank, out]: B transposed
    int rank;
    int out;
    int t_offset;
    int y_offset;
    float scale;  // alpha / rank, kept apart: folded into B it would be rounded to half with it
};

// All adapted matrices that share one input, for one adapter and layer.
struct LoraGroup {
    const std::uint16_t*
        a;  // IEEE half, [rank, in]: the A factors of the modules, one below another
    int in;
    int rank;  // sum over the modules
    const LoraModule* modules;
    int num_modules;
};

// One token's query heads that share a key/value head, and the cache they look back on. A cache is
// [blocks, key/value heads, tokens_per_block, head_dim].
struct Attention {
    const std::uint16_t* half_keys;  // of this key/value head in block 0; IEEE half, or null
    const std::uint16_t* half_values;
    const float* keys;  // instead of the halves
    const float* values;
    const std::int32_t* blocks;  // of the sequence, in order
    long block_size;             // numbers from one block to the next
    int tokens_per_block;
    int num_tokens;  // to look back on, the token itself among them
    int num_heads;
    int head_dim;  // a multiple of kPanel
    float scale;
};

struct Kernels {
    const char* name;
    int group;  // 8-bit weights of a row that lie side by side
    // Bytes that `prepare` needs for a token, at the start of a cache line.
    long (*prepared_size)(const Matrix& matrix);
    // What `linear` wants to know of num_tokens rows of x, once for all rows of the matrix.
    void (*prepare)(const Matrix& matrix, const float* x, int num_tokens, void* prepared);
    // y[t, first : last] = (W x[t])[first : last] for num_tokens rows of x; first is a multiple of
    // kPanel.
    void (*linear)(const Matrix& matrix, const float* x, const void* prepared, float* y,
                   int num_tokens, int first, int last);
    // y[t] += B (A x[t]); scratch holds 2 * group.rank floats; y_width floats between rows of y.
    void (*lora)(const LoraGroup& group, const float* x, float* y, long y_width, int num_tokens,
                 float* scratch);
    // Rotates num_heads heads of head_dim in place (the half-split form of Llama and Qwen2).
    void (*rope)(float* heads, int num_heads, int head_dim, const float* cos, const float* sin);
    // out[i] = silu(gate[i]) * up[i]
    void (*swiglu)(const float* gate, const float* up, float* out, int n);
    // out[h] = softmax(scale * q[h] keys^T) values, h < num_heads, both [num_heads, head_dim];
    // scores holds num_heads * num_tokens floats.
    void (*attend)(const Attention& attention, const float* q, float* out, float* scores);
    // to[i] = from[i] as IEEE half, to nearest even
    void (*to_half)(const float* from, std::uint16_t* to, int n);
    // sum += y (nothing where y is null); normed = sum / rms(sum) * weight
    void (*add_norm)(float* sum, const float* y, const float* weight, float eps, float* normed,
                     int n);
    // out = row of the matrix as floats
    void (*row)(const Matrix& matrix, long row, float* out);
};

// The widest implementation this processor runs; COMPLLM_ISA=generic|avx2|avx512 narrows
// it.
const Kernels& kernels();

extern const Kernels kGenericKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kVnniKernels;
#endif

}  // namespace compllm
