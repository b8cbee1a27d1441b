// The C functions through which Python (compllm/embedded/ops.py, by ctypes) fills tables.
#include "tables.hpp"

#include <mutex>
#include <unordered_map>

namespace compllm {
namespace {

std::unordered_map<long, std::unique_ptr<Table>> g_tables;
long g_next_table = 1;

}  // namespace

std::shared_mutex& tables_mutex() {
    static std::shared_mutex mutex;
    return mutex;
}

const Table* find_table(long id) {
    const auto found = g_tables.find(id);
    return found == g_tables.end() ? nullptr : found->second.get();
}

}  // namespace compllm

using compllm::g_tables;

#define COMPLLM_API extern "C" __attribute__((visibility("default")))

// Returns the new table's id; it holds adapter slots 1 .. num_slots.
COMPLLM_API long compllm_table_new(int num_layers, int hidden, int inner, int q_size, int kv_size,
                                   int head_dim, float eps, int num_slots) {
    const std::unique_lock lock(compllm::tables_mutex());
    auto table = std::make_unique<compllm::Table>();
    table->num_layers = num_layers;
    table->hidden = hidden;
    table->inner = inner;
    table->q_size = q_size;
    table->kv_size = kv_size;
    table->head_dim = head_dim;
    table->eps = eps;
    table->matrices.resize(static_cast<std::size_t>(num_layers) * compllm::kNumGroups);
    table->norms.resize(2 * static_cast<std::size_t>(num_layers) + 1);
    table->head_norms.resize(2 * static_cast<std::size_t>(num_layers));
    table->is_rotated.assign(static_cast<std::size_t>(num_layers), 1);
    table->slots.resize(static_cast<std::size_t>(num_slots) + 1);
    g_tables[compllm::g_next_table] = std::move(table);
    return compllm::g_next_table++;
}

COMPLLM_API void compllm_table_free(long id) {
    const std::unique_lock lock(compllm::tables_mutex());
    g_tables.erase(id);
}

// Sets a matrix of the base: place -1 is the embedding, -2 the head, else layer * 4 + group. The
// arrays are not copied. q with scale and zero_point, or half; bias may be null. Returns 0, or -1
// for a wrong place.
COMPLLM_API int compllm_table_matrix(long id, int place, int rows, int in, const std::int8_t* q,
                                     const std::uint16_t* half, const float* scale,
                                     const float* zero_point, const float* bias) {
    const std::unique_lock lock(compllm::tables_mutex());
    const auto found = g_tables.find(id);
    if (found == g_tables.end() || place < -2 ||
        place >= static_cast<int>(found->second->matrices.size()))
        return -1;
    auto& table = *found->second;
    auto& matrix = place == -1   ? table.embed
                   : place == -2 ? table.head
                                 : table.matrices[static_cast<std::size_t>(place)];
    matrix = {q, half, scale, zero_point, bias, rows, in};
    return 0;
}

// Sets a norm's weight, not copied; places as in Table::norms. Returns 0, or -1 for a wrong place.
COMPLLM_API int compllm_table_norm(long id, int place, const float* weight) {
    const std::unique_lock lock(compllm::tables_mutex());
    const auto found = g_tables.find(id);
    if (found == g_tables.end() || place < 0 ||
        place >= static_cast<int>(found->second->norms.size()))
        return -1;
    found->second->norms[static_cast<std::size_t>(place)] = weight;
    return 0;
}

// Sets the norms of a layer's heads of queries and keys, not copied. Returns 0, or -1 for a wrong
// layer.
COMPLLM_API int compllm_table_head_norms(long id, int layer, const float* q, const float* k) {
    const std::unique_lock lock(compllm::tables_mutex());
    const auto found = g_tables.find(id);
    if (found == g_tables.end() || layer < 0 || layer >= found->second->num_layers) return -1;
    auto& norms = found->second->head_norms;
    norms[2 * static_cast<std::size_t>(layer)] = q;
    norms[2 * static_cast<std::size_t>(layer) + 1] = k;
    return 0;
}

// From now on the layer's queries and keys are not rotated. Returns 0, or -1 for a wrong layer.
COMPLLM_API int compllm_table_unrotated(long id, int layer) {
    const std::unique_lock lock(compllm::tables_mutex());
    const auto found = g_tables.find(id);
    if (found == g_tables.end() || layer < 0 || layer >= found->second->num_layers) return -1;
    found->second->is_rotated[static_cast<std::size_t>(layer)] = 0;
    return 0;
}

// Sets a layer's cache, not copied: of IEEE halves or of floats. Returns 0, or -1 for a wrong
// layer.
COMPLLM_API int compllm_table_cache(long id, int layer, int tokens_per_block, int is_half,
                                    void* keys, void* values) {
    const std::unique_lock lock(compllm::tables_mutex());
    const auto found = g_tables.find(id);
    if (found == g_tables.end() || layer < 0 || layer >= found->second->num_layers) return -1;
    auto& table = *found->second;
    table.caches.resize(static_cast<std::size_t>(table.num_layers));
    table.tokens_per_block = tokens_per_block;
    auto& cache = table.caches[static_cast<std::size_t>(layer)];
    cache = {};
    if (is_half != 0) {
        cache.half_keys = static_cast<std::uint16_t*>(keys);
        cache.half_values = static_cast<std::uint16_t*>(values);
    } else {
        cache.keys = static_cast<float*>(keys);
        cache.values = static_cast<float*>(values);
    }
    return 0;
}

// Copies one group of an adapter into a slot. a: half [sum of ranks, in]; b: half, the modules'
// [rank, out] one after another; per module rank, out, y_offset and the scale of B A. Returns 0, or
// -1 for a table, slot or layer that is not there.
COMPLLM_API int compllm_adapter_set(long id, int slot, int layer, int group, int in,
                                    const std::uint16_t* a, const std::uint16_t* b, int num_modules,
                                    const int* ranks, const int* outs, const int* y_offsets,
                                    const float* scales) {
    const std::unique_lock lock(compllm::tables_mutex());
    const auto found = g_tables.find(id);
    if (found == g_tables.end()) return -1;
    auto& table = *found->second;
    if (slot < 1 || static_cast<std::size_t>(slot) >= table.slots.size() || layer < 0 ||
        layer >= table.num_layers || group < 0 || group >= compllm::kNumGroups)
        return -1;
    auto data = std::make_unique<compllm::AdapterGroup>();
    int rank = 0;
    long size = 0;
    for (int m = 0; m < num_modules; ++m) {
        rank += ranks[m];
        size += static_cast<long>(ranks[m]) * outs[m];
    }
    data->a.assign(a, a + static_cast<long>(rank) * in);
    data->b.assign(b, b + size);
    int t_offset = 0;
    long b_offset = 0;
    for (int m = 0; m < num_modules; ++m) {
        data->modules.push_back(
            {data->b.data() + b_offset, ranks[m], outs[m], t_offset, y_offsets[m], scales[m]});
        t_offset += ranks[m];
        b_offset += static_cast<long>(ranks[m]) * outs[m];
    }
    data->view = {data->a.data(), in, rank, data->modules.data(), num_modules};
    auto& adapter = table.slots[static_cast<std::size_t>(slot)];
    if (!adapter) {
        adapter = std::make_unique<compllm::Adapter>();
        adapter->resize(static_cast<std::size_t>(table.num_layers) * compllm::kNumGroups);
    }
    (*adapter)[static_cast<std::size_t>(layer * compllm::kNumGroups + group)] = std::move(data);
    return 0;
}

COMPLLM_API int compllm_adapter_clear(long id, int slot) {
    const std::unique_lock lock(compllm::tables_mutex());
    const auto found = g_tables.find(id);
    if (found == g_tables.end() || slot < 1 ||
        static_cast<std::size_t>(slot) >= found->second->slots.size())
        return -1;
    found->second->slots[static_cast<std::size_t>(slot)].reset();
    return 0;
}

COMPLLM_API const char* compllm_isa() { return compllm::kernels().name; }

// 8-bit weights of a row that lie side by side in a panel.
COMPLLM_API int compllm_group() { return compllm::kernels().group; }
