// What one step of the decoder computes between two attentions, over the tables of tables.hpp:
// products with 8-bit weights, each token's own adapter, rotary embedding, SwiGLU, norms, and,
// where every sequence has one new token, the attention itself. decoder_ops.cpp makes OpenVINO
// operations of it.
#pragma once

#include <tbb/parallel_for.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "tables.hpp"

namespace compllm {

// Below this many floats of output, waking other threads costs more than they give.
constexpr long kShare = 16384;

// Calls f(first, last) over [0, n): shared out in multiples of `grain` when the work is worth it.
template <class F>
void share(int n, int grain, bool is_worth_it, F&& f) {
    if (!is_worth_it || n <= grain) return f(0, n);
    tbb::parallel_for(tbb::blocked_range<int>(0, (n + grain - 1) / grain),
                      [&](const tbb::blocked_range<int>& range) {
                          const int last = range.end() * grain;
                          f(range.begin() * grain, last < n ? last : n);
                      });
}

// Floats that start at a cache line: a load across two lines costs twice.
class Buffer {
  public:
    float* room(long size) {
        if (size > size_) {
            data_.reset(new (std::align_val_t{64}) float[static_cast<std::size_t>(size)]);
            size_ = size;
        }
        return data_.get();
    }

  private:
    struct Free {
        void operator()(float* p) const { ::operator delete[](p, std::align_val_t{64}); }
    };
    std::unique_ptr<float[], Free> data_;
    long size_ = 0;
};

// Intermediate rows of one step; kept by the engine's thread from step to step.
struct Scratch {
    Buffer prepared;
    Buffer wide;
    Buffer inner;
    Buffer normed;
    Buffer residual;
    Buffer q;
    Buffer k;
    Buffer v;
    Buffer attended;
};

// Where the sequences of a step keep their keys and values: one new token each.
struct Paging {
    const std::int32_t* past_lens;     // [T]
    const std::int32_t* blocks;        // of all sequences
    const std::int32_t* block_begins;  // [T + 1]
};

// One step over a layer's matrices and the adapters of its tokens.
struct Step {
    const Table& table;
    int num_tokens;
    const std::int32_t* slots;
    Scratch& scratch;

    // y = W x for all tokens.
    void linear(const Matrix& m, const float* x, float* y) const {
        const long size = kernels().prepared_size(m);
        const long room = (num_tokens * size + static_cast<long>(sizeof(float)) - 1) /
                          static_cast<long>(sizeof(float));
        auto* prepared = reinterpret_cast<char*>(scratch.prepared.room(room));
        share(num_tokens, 1, room >= kShare, [&](int first, int last) {
            kernels().prepare(m, x + static_cast<long>(first) * m.in, last - first,
                              prepared + first * size);
        });
        share(m.rows, 4 * kPanel, static_cast<long>(m.rows) * m.in >= kShare,
              [&](int first, int last) {
                  kernels().linear(m, x, prepared, y, num_tokens, first, last);
              });
    }

    const Matrix& matrix(int layer, Group group) const {
        return table.matrices[static_cast<std::size_t>(layer * kNumGroups + group)];
    }

    // Adds the adapters of tokens [first, last) to y; neighbours with one slot share their reads.
    void adapt(int layer, Group group, const float* x, float* y, int first, int last) const {
        thread_local Buffer buffer;
        const Matrix& m = matrix(layer, group);
        while (first < last) {
            int end = first + 1;
            while (end < last && slots[end] == slots[first]) ++end;
            const auto slot = static_cast<std::size_t>(slots[first]);
            if (slot > 0 && slot < table.slots.size() && table.slots[slot]) {
                const auto& data =
                    (*table.slots[slot])[static_cast<std::size_t>(layer * kNumGroups + group)];
                if (data)
                    kernels().lora(data->view, x + static_cast<long>(first) * m.in,
                                   y + static_cast<long>(first) * m.rows, m.rows, end - first,
                                   buffer.room(2 * data->view.rank));
            }
            first = end;
        }
    }

    // Calls f(first, last) over the tokens, each thread some of them: at once where they have
    // adapters, whose products are the most of what is done here.
    template <class F>
    void each_token(long width, F&& f) const {
        share(num_tokens, 1, num_tokens * width >= kShare || has_adapters(), f);
    }

    bool has_adapters() const {
        return slots != nullptr &&
               std::any_of(slots, slots + num_tokens, [](std::int32_t slot) { return slot > 0; });
    }

    // normed input of a layer's attention -> q and k, rotated, and v
    void qkv(int layer, const float* normed, const float* cos, const float* sin, float* q, float* k,
             float* v) const {
        const Matrix& m = matrix(layer, kQkv);
        float* wide = scratch.wide.room(static_cast<long>(num_tokens) * m.rows);
        linear(m, normed, wide);
        const int half = table.head_dim / 2;
        each_token(m.rows, [&](int first, int last) {
            adapt(layer, kQkv, normed, wide, first, last);
            for (long t = first; t < last; ++t) {
                const float* row = wide + t * m.rows;
                copy(q + t * table.q_size, row, table.q_size);
                copy(k + t * table.kv_size, row + table.q_size, table.kv_size);
                copy(v + t * table.kv_size, row + table.q_size + table.kv_size, table.kv_size);
                const auto place = 2 * static_cast<std::size_t>(layer);
                turn(q + t * table.q_size, table.q_size, layer, table.head_norms[place],
                     cos + t * half, sin + t * half);
                turn(k + t * table.kv_size, table.kv_size, layer, table.head_norms[place + 1],
                     cos + t * half, sin + t * half);
            }
        });
    }

    // A token's heads of queries or keys: normed where the model has such a norm, then rotated
    // where the layer is.
    void turn(float* heads, int size, int layer, const float* norm, const float* cos,
              const float* sin) const {
        const int dim = table.head_dim;
        if (norm != nullptr)
            for (float* head = heads; head < heads + size; head += dim)
                kernels().add_norm(head, nullptr, norm, table.eps, head, dim);
        if (table.is_rotated[static_cast<std::size_t>(layer)] != 0)
            kernels().rope(heads, size / dim, dim, cos, sin);
    }

    // sum += W x with W of o_proj or down_proj; normed = the norm of it
    void add_norm(int layer, Group group, const float* x, float* sum, const float* norm,
                  float* normed) const {
        const Matrix& m = matrix(layer, group);
        float* y = scratch.wide.room(static_cast<long>(num_tokens) * m.rows);
        linear(m, x, y);
        each_token(m.rows, [&](int first, int last) {
            adapt(layer, group, x, y, first, last);
            for (long t = first; t < last; ++t)
                kernels().add_norm(sum + t * m.rows, y + t * m.rows, norm, table.eps,
                                   normed + t * m.rows, m.rows);
        });
    }

    // inner = silu(gate) * up
    void gate_up(int layer, const float* normed, float* inner) const {
        const Matrix& m = matrix(layer, kGateUp);
        float* wide = scratch.wide.room(static_cast<long>(num_tokens) * m.rows);
        linear(m, normed, wide);
        each_token(m.rows, [&](int first, int last) {
            adapt(layer, kGateUp, normed, wide, first, last);
            for (long t = first; t < last; ++t)
                kernels().swiglu(wide + t * m.rows, wide + t * m.rows + table.inner,
                                 inner + t * table.inner, table.inner);
        });
    }

    // From the attention's result to the normed input of the next layer, or of the head; residual
    // becomes the one after this layer.
    void finish(int layer, const float* attended, float* residual, float* normed) const {
        float* inner = scratch.inner.room(static_cast<long>(num_tokens) * table.inner);
        const auto norm = [&](int place) {
            return table.norms[static_cast<std::size_t>(2 * layer + place)];
        };
        add_norm(layer, kOut, attended, residual, norm(1), normed);
        gate_up(layer, normed, inner);
        add_norm(layer, kDown, inner, residual, norm(2), normed);
    }

    // residual = the tokens' embeddings; normed = the norm of them
    void embed(const std::int32_t* ids, float* residual, float* normed) const {
        for (long t = 0; t < num_tokens; ++t) {
            kernels().row(table.embed, ids[t], residual + t * table.hidden);
            kernels().add_norm(residual + t * table.hidden, nullptr, table.norms[0], table.eps,
                               normed + t * table.hidden, table.hidden);
        }
    }

    // Puts each token's key and value into the cache, and attends to its sequence up to itself.
    void attend(int layer, const Paging& paging, const float* q, const float* k, const float* v,
                float* attended) const {
        const Cache& cache = table.caches[static_cast<std::size_t>(layer)];
        const int dim = table.head_dim;
        const int num_kv = table.kv_size / dim;
        const int group = table.q_size / table.kv_size;
        const long head_size = static_cast<long>(table.tokens_per_block) * dim;
        const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
        share(num_tokens * num_kv, 1, num_tokens > 1, [&](int first, int last) {
            thread_local Buffer scores;
            for (int i = first; i < last; ++i) {
                const int token = i / num_kv;
                const int head = i % num_kv;
                const int past = paging.past_lens[token];
                const std::int32_t* blocks = paging.blocks + paging.block_begins[token];
                const long place =
                    (static_cast<long>(blocks[past / table.tokens_per_block]) * num_kv + head) *
                        head_size +
                    static_cast<long>(past % table.tokens_per_block) * dim;
                const long from = static_cast<long>(token) * table.kv_size + head * dim;
                Attention a{};
                if (cache.half_keys != nullptr) {
                    kernels().to_half(k + from, cache.half_keys + place, dim);
                    kernels().to_half(v + from, cache.half_values + place, dim);
                    a.half_keys = cache.half_keys + head * head_size;
                    a.half_values = cache.half_values + head * head_size;
                } else {
                    copy(cache.keys + place, k + from, dim);
                    copy(cache.values + place, v + from, dim);
                    a.keys = cache.keys + head * head_size;
                    a.values = cache.values + head * head_size;
                }
                a.blocks = blocks;
                a.block_size = num_kv * head_size;
                a.tokens_per_block = table.tokens_per_block;
                a.num_tokens = past + 1;
                a.num_heads = group;
                a.head_dim = dim;
                a.scale = scale;
                const long at = static_cast<long>(token) * table.q_size + head * group * dim;
                kernels().attend(a, q + at, attended + at,
                                 scores.room(static_cast<long>(group) * a.num_tokens));
            }
        });
    }

    static void copy(float* to, const float* from, int n) {
        std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(float));
    }
};

}  // namespace compllm
