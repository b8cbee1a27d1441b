// The embedded engine's OpenVINO operations: each takes a fully connected layer's output, adds each token's
// own adapter to it, and finishes what follows (rotary embedding, SwiGLU, or residual and RMS norm), so that a
// layer is four matrix products, four of these and the attention.
//
// Adapters live in tables outside the graph and are loaded, swapped and removed between inferences through
// the C functions at the end (called by ctypes from compllm/embedded/lora.py). Slot 0 is the bare base.
#include <tbb/parallel_for.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

#include "lora_kernels.hpp"

namespace compllm {
namespace {

constexpr int kGroups = 4;  // qkv, o, gate_up, down

struct GroupData {
  std::vector<std::uint16_t> a;
  std::vector<std::uint16_t> b;
  std::vector<LoraModule> modules;
  LoraGroup view{};
};

using Adapter = std::vector<std::unique_ptr<GroupData>>;  // [layer * kGroups + group]; null: not adapted

struct Table {
  int num_layers;
  std::vector<std::unique_ptr<Adapter>> slots;
};

// Writers are the engine's own thread between two inferences; the lock only makes misuse harmless.
std::shared_mutex g_mutex;
std::unordered_map<long, std::unique_ptr<Table>> g_tables;
long g_next_table = 1;

// Calls f(first, last) over [0, n), on all threads when there is enough to share.
template <class F>
void for_tokens(int n, F&& f) {
  if (n < 2) return f(0, n);
  const int grain = n <= 4 ? 1 : (n + 7) / 8;
  tbb::parallel_for(tbb::blocked_range<int>(0, n, grain),
                    [&](const tbb::blocked_range<int>& range) { f(range.begin(), range.end()); });
}

class FusedLora : public ov::op::Op {
 public:
  FusedLora() = default;
  FusedLora(const ov::OutputVector& inputs, long table, long layer) : Op(inputs), table_(table), layer_(layer) {}

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("table", table_);
    visitor.on_attribute("layer", layer_);
    return true;
  }
  bool has_evaluate() const override { return true; }

 protected:
  // Adds the adapters of tokens [first, last) to y; neighbours with one slot share their reads.
  void add(const Table* table, int group, const std::int32_t* slots, const float* x, long in, float* y,
           long out, int first, int last) const {
    if (table == nullptr) return;
    thread_local std::vector<float> scratch;
    while (first < last) {
      int end = first + 1;
      while (end < last && slots[end] == slots[first]) ++end;
      const auto slot = static_cast<std::size_t>(slots[first]);
      if (slot > 0 && slot < table->slots.size() && table->slots[slot]) {
        const auto& data = (*table->slots[slot])[static_cast<std::size_t>(layer_ * kGroups + group)];
        if (data) {
          scratch.resize(2 * static_cast<std::size_t>(data->view.rank));
          kernels().lora(data->view, x + first * in, in, y + first * out, out, end - first,
                         scratch.data());
        }
      }
      first = end;
    }
  }

  const Table* table() const {
    const auto found = g_tables.find(table_);
    return found == g_tables.end() ? nullptr : found->second.get();
  }

  long table_ = 0;
  long layer_ = 0;
};

// inputs: qkv [T, q + 2 kv], x [T, hidden], slots i32 [T], cos [T, head_dim / 2], sin the same
// outputs: q [T, q] and k [T, kv], rotated, and v [T, kv]
class LoraQkvRope : public FusedLora {
 public:
  OPENVINO_OP("LoraQkvRope", "compllm");
  LoraQkvRope() = default;
  LoraQkvRope(const ov::OutputVector& inputs, long table, long layer, long q_size, long kv_size,
              long head_dim)
      : FusedLora(inputs, table, layer), q_size_(q_size), kv_size_(kv_size), head_dim_(head_dim) {
    constructor_validate_and_infer_types();
  }
  void validate_and_infer_types() override {
    const auto tokens = get_input_partial_shape(0)[0];
    set_output_type(0, ov::element::f32, {tokens, q_size_});
    set_output_type(1, ov::element::f32, {tokens, kv_size_});
    set_output_type(2, ov::element::f32, {tokens, kv_size_});
  }
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<LoraQkvRope>(inputs, table_, layer_, q_size_, kv_size_, head_dim_);
  }
  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("q_size", q_size_);
    visitor.on_attribute("kv_size", kv_size_);
    visitor.on_attribute("head_dim", head_dim_);
    return FusedLora::visit_attributes(visitor);
  }
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const std::shared_lock lock(g_mutex);
    const int tokens = static_cast<int>(inputs[0].get_shape()[0]);
    const long in = static_cast<long>(inputs[1].get_shape()[1]);
    const long width = q_size_ + 2 * kv_size_;
    outputs[0].set_shape({static_cast<std::size_t>(tokens), static_cast<std::size_t>(q_size_)});
    outputs[1].set_shape({static_cast<std::size_t>(tokens), static_cast<std::size_t>(kv_size_)});
    outputs[2].set_shape({static_cast<std::size_t>(tokens), static_cast<std::size_t>(kv_size_)});
    const auto* x = inputs[1].data<const float>();
    const auto* slots = inputs[2].data<const std::int32_t>();
    const auto* cos = inputs[3].data<const float>();
    const auto* sin = inputs[4].data<const float>();
    // The product's own buffer belongs to this node alone (its only reader), so it is changed in place.
    auto* qkv = const_cast<float*>(inputs[0].data<const float>());
    auto* q = outputs[0].data<float>();
    auto* k = outputs[1].data<float>();
    auto* v = outputs[2].data<float>();
    const Table* adapters = table();
    const int dim = static_cast<int>(head_dim_);
    for_tokens(tokens, [&](int first, int last) {
      add(adapters, 0, slots, x, in, qkv, width, first, last);
      for (int t = first; t < last; ++t) {
        const float* row = qkv + t * width;
        std::memcpy(q + t * q_size_, row, static_cast<std::size_t>(q_size_) * sizeof(float));
        std::memcpy(k + t * kv_size_, row + q_size_, static_cast<std::size_t>(kv_size_) * sizeof(float));
        std::memcpy(v + t * kv_size_, row + q_size_ + kv_size_,
                    static_cast<std::size_t>(kv_size_) * sizeof(float));
        const float* c = cos + static_cast<long>(t) * (dim / 2);
        const float* s = sin + static_cast<long>(t) * (dim / 2);
        kernels().rope(q + t * q_size_, static_cast<int>(q_size_) / dim, dim, c, s);
        kernels().rope(k + t * kv_size_, static_cast<int>(kv_size_) / dim, dim, c, s);
      }
    });
    return true;
  }

 private:
  long q_size_ = 0;
  long kv_size_ = 0;
  long head_dim_ = 0;
};

// inputs: gate_up [T, 2 n], x [T, hidden], slots i32 [T]; output: silu(gate) * up [T, n]
class LoraSwiGlu : public FusedLora {
 public:
  OPENVINO_OP("LoraSwiGlu", "compllm");
  LoraSwiGlu() = default;
  LoraSwiGlu(const ov::OutputVector& inputs, long table, long layer) : FusedLora(inputs, table, layer) {
    constructor_validate_and_infer_types();
  }
  void validate_and_infer_types() override {
    const auto& shape = get_input_partial_shape(0);
    set_output_type(0, ov::element::f32, {shape[0], shape[1].get_length() / 2});
  }
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<LoraSwiGlu>(inputs, table_, layer_);
  }
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const std::shared_lock lock(g_mutex);
    const auto shape = inputs[0].get_shape();
    const int tokens = static_cast<int>(shape[0]);
    const long width = static_cast<long>(shape[1]);
    const long in = static_cast<long>(inputs[1].get_shape()[1]);
    outputs[0].set_shape({shape[0], shape[1] / 2});
    auto* gate_up = const_cast<float*>(inputs[0].data<const float>());
    const auto* x = inputs[1].data<const float>();
    const auto* slots = inputs[2].data<const std::int32_t>();
    auto* out = outputs[0].data<float>();
    const Table* adapters = table();
    for_tokens(tokens, [&](int first, int last) {
      add(adapters, 2, slots, x, in, gate_up, width, first, last);
      for (int t = first; t < last; ++t) {
        const float* row = gate_up + t * width;
        kernels().swiglu(row, row + width / 2, out + t * (width / 2), static_cast<int>(width / 2));
      }
    });
    return true;
  }
};

// inputs: y [T, hidden] of o_proj (group 1) or down_proj (group 3), its input x [T, in], residual [T, hidden],
// norm weight [hidden], slots i32 [T]; outputs: residual + y [T, hidden], its RMS norm [T, hidden]
class LoraAddNorm : public FusedLora {
 public:
  OPENVINO_OP("LoraAddNorm", "compllm");
  LoraAddNorm() = default;
  LoraAddNorm(const ov::OutputVector& inputs, long table, long layer, long group, double eps)
      : FusedLora(inputs, table, layer), group_(group), eps_(eps) {
    constructor_validate_and_infer_types();
  }
  void validate_and_infer_types() override {
    set_output_type(0, ov::element::f32, get_input_partial_shape(2));
    set_output_type(1, ov::element::f32, get_input_partial_shape(2));
  }
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<LoraAddNorm>(inputs, table_, layer_, group_, eps_);
  }
  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("group", group_);
    visitor.on_attribute("eps", eps_);
    return FusedLora::visit_attributes(visitor);
  }
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const std::shared_lock lock(g_mutex);
    const auto shape = inputs[2].get_shape();
    const int tokens = static_cast<int>(shape[0]);
    const long hidden = static_cast<long>(shape[1]);
    const long in = static_cast<long>(inputs[1].get_shape()[1]);
    outputs[0].set_shape(shape);
    outputs[1].set_shape(shape);
    auto* y = const_cast<float*>(inputs[0].data<const float>());
    const auto* x = inputs[1].data<const float>();
    const auto* residual = inputs[2].data<const float>();
    const auto* weight = inputs[3].data<const float>();
    const auto* slots = inputs[4].data<const std::int32_t>();
    auto* sum = outputs[0].data<float>();
    auto* normed = outputs[1].data<float>();
    const Table* adapters = table();
    for_tokens(tokens, [&](int first, int last) {
      add(adapters, static_cast<int>(group_), slots, x, in, y, hidden, first, last);
      for (int t = first; t < last; ++t)
        kernels().add_norm(residual + t * hidden, y + t * hidden, weight, static_cast<float>(eps_),
                           sum + t * hidden, normed + t * hidden, static_cast<int>(hidden));
    });
    return true;
  }

 private:
  long group_ = 0;
  double eps_ = 0.0;
};

}  // namespace
}  // namespace compllm

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>(
    {std::make_shared<ov::OpExtension<compllm::LoraQkvRope>>(),
     std::make_shared<ov::OpExtension<compllm::LoraSwiGlu>>(),
     std::make_shared<ov::OpExtension<compllm::LoraAddNorm>>()}));

#define COMPLLM_API extern "C" __attribute__((visibility("default")))

// Returns the new table's id; it holds slots 1 .. num_slots.
COMPLLM_API long compllm_lora_new(int num_layers, int num_slots) {
  const std::unique_lock lock(compllm::g_mutex);
  auto table = std::make_unique<compllm::Table>();
  table->num_layers = num_layers;
  table->slots.resize(static_cast<std::size_t>(num_slots) + 1);
  compllm::g_tables[compllm::g_next_table] = std::move(table);
  return compllm::g_next_table++;
}

COMPLLM_API void compllm_lora_free(long id) {
  const std::unique_lock lock(compllm::g_mutex);
  compllm::g_tables.erase(id);
}

// Copies one group of an adapter into a slot. a: half [sum of ranks, in]; b: half, the modules' [rank, out] one
// after another; per module rank, out and y_offset. Returns 0, or -1 for a table, slot or layer that is not there.
COMPLLM_API int compllm_lora_set(long id, int slot, int layer, int group, int in, const std::uint16_t* a,
                                 const std::uint16_t* b, int num_modules, const int* ranks,
                                 const int* outs, const int* y_offsets) {
  const std::unique_lock lock(compllm::g_mutex);
  const auto found = compllm::g_tables.find(id);
  if (found == compllm::g_tables.end()) return -1;
  auto& table = *found->second;
  if (slot < 1 || static_cast<std::size_t>(slot) >= table.slots.size() || layer < 0 ||
      layer >= table.num_layers || group < 0 || group >= compllm::kGroups)
    return -1;
  auto data = std::make_unique<compllm::GroupData>();
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
    data->modules.push_back({data->b.data() + b_offset, ranks[m], outs[m], t_offset, y_offsets[m]});
    t_offset += ranks[m];
    b_offset += static_cast<long>(ranks[m]) * outs[m];
  }
  data->view = {data->a.data(), in, rank, data->modules.data(), num_modules};
  auto& adapter = table.slots[static_cast<std::size_t>(slot)];
  if (!adapter) {
    adapter = std::make_unique<compllm::Adapter>();
    adapter->resize(static_cast<std::size_t>(table.num_layers * compllm::kGroups));
  }
  (*adapter)[static_cast<std::size_t>(layer * compllm::kGroups + group)] = std::move(data);
  return 0;
}

COMPLLM_API int compllm_lora_clear(long id, int slot) {
  const std::unique_lock lock(compllm::g_mutex);
  const auto found = compllm::g_tables.find(id);
  if (found == compllm::g_tables.end() || slot < 1 ||
      static_cast<std::size_t>(slot) >= found->second->slots.size())
    return -1;
  found->second->slots[static_cast<std::size_t>(slot)].reset();
  return 0;
}

COMPLLM_API const char* compllm_lora_isa() { return compllm::kernels().name; }
