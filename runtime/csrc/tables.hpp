// What the decoder operations compute with, outside any graph: the base's weights, and adapters by
// slot.
#pragma once

#include <cstdint>
#include <memory>
#include <shared_mutex>
#include <vector>

#include "kernels.hpp"

namespace compllm {

enum Group { kQkv = 0, kOut = 1, kGateUp = 2, kDown = 3, kNumGroups = 4 };

// One group of matrices of one adapter and layer, with its storage.
struct AdapterGroup {
    std::vector<std::uint16_t> a;
    std::vector<std::uint16_t> b;
    std::vector<LoraModule> modules;
    LoraGroup view{};
};

using Adapter =
    std::vector<std::unique_ptr<AdapterGroup>>;  // [layer * kNumGroups + group]; null: untouched

// One layer's keys and values, [blocks, key/value heads, tokens_per_block, head_dim].
struct Cache {
    std::uint16_t* half_keys = nullptr;  // IEEE half, or null
    std::uint16_t* half_values = nullptr;
    float* keys = nullptr;  // instead of the halves
    float* values = nullptr;
};

// A base model and its adapters. The arrays of the base belong to the caller and outlive the table.
struct Table {
    int num_layers = 0;
    int hidden = 0;
    int inner = 0;
    int q_size = 0;
    int kv_size = 0;
    int head_dim = 0;
    float eps = 0.0f;
    Matrix embed;
    Matrix head;
    std::vector<Matrix> matrices;  // [layer * kNumGroups + group]
    std::vector<const float*>
        norms;  // input norm of layer 0, post norm 0, input norm 1, ..., final norm
    // [2 * layer] of each head of queries, [2 * layer + 1] of keys, before they are rotated; null:
    // none.
    std::vector<const float*> head_norms;
    std::vector<char> is_rotated;                 // by layer
    std::vector<std::unique_ptr<Adapter>> slots;  // [0] is the base: always empty
    std::vector<Cache> caches;                    // by layer
    int tokens_per_block = 0;
};

// Writers are the engine's own thread between two inferences; the lock only makes misuse harmless.
std::shared_mutex& tables_mutex();
// Null for an id that is not there. The caller holds the lock.
const Table* find_table(long id);

}  // namespace compllm
