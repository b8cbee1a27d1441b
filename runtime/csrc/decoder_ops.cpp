// The embedded engine's OpenVINO operations: everything of a decoder between two attentions in one
// node.
//
// OpenVINO keeps the paged attention, the cache and the graph; the products with 8-bit weights,
// each token's own adapter, rotary embedding, SwiGLU and norms happen here, over the tables of
// tables.hpp. Why not the plug-in's own products: on AVX2 they take two to three times as long at 1
// to 16 tokens. A step of decoding alone is one operation, DecoderStep, with its own attention over
// the same cache: a third of such a step was the plug-in's way from node to node and its attention
// to single tokens (docs/ENGINE.md compares).
#include <tbb/parallel_for.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>
#include <vector>

#include "tables.hpp"

namespace compllm {
namespace {

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
    Buffer sums;
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
        float* sums = scratch.sums.room(num_tokens);
        for (int t = 0; t < num_tokens; ++t)
            sums[t] = kernels().sum(x + static_cast<long>(t) * m.in, m.in);
        share(
            m.rows, 4 * kPanel, static_cast<long>(m.rows) * m.in >= kShare,
            [&](int first, int last) { kernels().linear(m, x, sums, y, num_tokens, first, last); });
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
                kernels().rope(q + t * table.q_size, table.q_size / table.head_dim, table.head_dim,
                               cos + t * half, sin + t * half);
                kernels().rope(k + t * table.kv_size, table.kv_size / table.head_dim,
                               table.head_dim, cos + t * half, sin + t * half);
            }
        });
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

Scratch& scratch() {
    thread_local Scratch buffers;
    return buffers;
}

std::size_t size(long n) { return static_cast<std::size_t>(n); }

// The operations' common part: which table, and the sizes their shapes come from.
class DecoderOp : public ov::op::Op {
  public:
    DecoderOp() = default;
    DecoderOp(const ov::OutputVector& inputs, long table, long layer, long hidden, long q_size,
              long kv_size)
        : Op(inputs),
          table_(table),
          layer_(layer),
          hidden_(hidden),
          q_size_(q_size),
          kv_size_(kv_size) {}
    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("table", table_);
        visitor.on_attribute("layer", layer_);
        visitor.on_attribute("hidden", hidden_);
        visitor.on_attribute("q_size", q_size_);
        visitor.on_attribute("kv_size", kv_size_);
        return true;
    }
    bool has_evaluate() const override { return true; }

  protected:
    void qkv_types(const ov::Dimension& tokens) {
        set_output_type(0, ov::element::f32, {tokens, q_size_});
        set_output_type(1, ov::element::f32, {tokens, kv_size_});
        set_output_type(2, ov::element::f32, {tokens, kv_size_});
        set_output_type(3, ov::element::f32, {tokens, hidden_});
    }
    void qkv_shapes(ov::TensorVector& outputs, std::size_t tokens) const {
        outputs[0].set_shape({tokens, size(q_size_)});
        outputs[1].set_shape({tokens, size(kv_size_)});
        outputs[2].set_shape({tokens, size(kv_size_)});
        outputs[3].set_shape({tokens, size(hidden_)});
    }

    long table_ = 0;
    long layer_ = 0;
    long hidden_ = 0;
    long q_size_ = 0;
    long kv_size_ = 0;
};

// inputs: ids i32 [T], slots i32 [T], cos [T, head_dim / 2], sin the same
// outputs: q, k, v of the first layer, and the residual [T, hidden]
class DecoderStart : public DecoderOp {
  public:
    OPENVINO_OP("DecoderStart", "compllm");
    DecoderStart() = default;
    template <class... Sizes>
    explicit DecoderStart(const ov::OutputVector& inputs, Sizes... sizes)
        : DecoderOp(inputs, sizes...) {
        constructor_validate_and_infer_types();
    }
    void validate_and_infer_types() override { qkv_types(get_input_partial_shape(0)[0]); }
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<DecoderStart>(inputs, table_, layer_, hidden_, q_size_, kv_size_);
    }
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const std::shared_lock lock(tables_mutex());
        const Table* table = find_table(table_);
        if (table == nullptr) return false;
        const auto tokens = inputs[0].get_shape()[0];
        qkv_shapes(outputs, tokens);
        const Step step{*table, static_cast<int>(tokens), inputs[1].data<const std::int32_t>(),
                        scratch()};
        const auto* ids = inputs[0].data<const std::int32_t>();
        auto* residual = outputs[3].data<float>();
        float* normed = step.scratch.normed.room(static_cast<long>(tokens) * hidden_);
        step.embed(ids, residual, normed);
        step.qkv(0, normed, inputs[2].data<const float>(), inputs[3].data<const float>(),
                 outputs[0].data<float>(), outputs[1].data<float>(), outputs[2].data<float>());
        return true;
    }
};

// Rest of layer `layer` after its attention, then the next layer up to its attention.
// inputs: attended [T, q], residual [T, hidden], slots i32 [T], cos, sin
// outputs: q, k, v of the next layer, and the residual
class DecoderBlock : public DecoderOp {
  public:
    OPENVINO_OP("DecoderBlock", "compllm");
    DecoderBlock() = default;
    template <class... Sizes>
    explicit DecoderBlock(const ov::OutputVector& inputs, Sizes... sizes)
        : DecoderOp(inputs, sizes...) {
        constructor_validate_and_infer_types();
    }
    void validate_and_infer_types() override { qkv_types(get_input_partial_shape(1)[0]); }
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<DecoderBlock>(inputs, table_, layer_, hidden_, q_size_, kv_size_);
    }
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const std::shared_lock lock(tables_mutex());
        const Table* table = find_table(table_);
        if (table == nullptr) return false;
        const auto tokens = inputs[1].get_shape()[0];
        qkv_shapes(outputs, tokens);
        const Step step{*table, static_cast<int>(tokens), inputs[2].data<const std::int32_t>(),
                        scratch()};
        auto* residual = outputs[3].data<float>();
        const float* normed = finish(step, inputs, residual);
        step.qkv(static_cast<int>(layer_) + 1, normed, inputs[3].data<const float>(),
                 inputs[4].data<const float>(), outputs[0].data<float>(), outputs[1].data<float>(),
                 outputs[2].data<float>());
        return true;
    }

  protected:
    // From the attention's result to the normed input of what follows; residual gets the new one.
    const float* finish(const Step& step, const ov::TensorVector& inputs, float* residual) const {
        std::memcpy(residual, inputs[1].data<const float>(), inputs[1].get_byte_size());
        float* normed = step.scratch.normed.room(static_cast<long>(step.num_tokens) * hidden_);
        step.finish(static_cast<int>(layer_), inputs[0].data<const float>(), residual, normed);
        return normed;
    }
};

// The last layer after its attention, and the head for the sampled tokens only.
// inputs: attended [T, q], residual [T, hidden], slots i32 [T], sampled i32 [N]; output: logits [N,
// vocab]
class DecoderEnd : public DecoderBlock {
  public:
    OPENVINO_OP("DecoderEnd", "compllm", DecoderBlock);
    DecoderEnd() = default;
    DecoderEnd(const ov::OutputVector& inputs, long table, long layer, long hidden, long q_size,
               long kv_size, long vocab)
        : vocab_(vocab) {
        table_ = table;
        layer_ = layer;
        hidden_ = hidden;
        q_size_ = q_size;
        kv_size_ = kv_size;
        set_arguments(inputs);
        constructor_validate_and_infer_types();
    }
    void validate_and_infer_types() override {
        set_output_type(0, ov::element::f32, {get_input_partial_shape(3)[0], vocab_});
    }
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<DecoderEnd>(inputs, table_, layer_, hidden_, q_size_, kv_size_,
                                            vocab_);
    }
    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("vocab", vocab_);
        return DecoderOp::visit_attributes(visitor);
    }
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const std::shared_lock lock(tables_mutex());
        const Table* table = find_table(table_);
        if (table == nullptr) return false;
        const auto tokens = inputs[1].get_shape()[0];
        const auto num_sampled = inputs[3].get_shape()[0];
        outputs[0].set_shape({num_sampled, size(vocab_)});
        Scratch& buffers = scratch();
        const Step step{*table, static_cast<int>(tokens), inputs[2].data<const std::int32_t>(),
                        buffers};
        thread_local Buffer residual;
        const float* normed =
            finish(step, inputs, residual.room(static_cast<long>(tokens) * hidden_));
        logits(*table, normed, inputs[3], outputs[0]);
        return true;
    }

  protected:
    // The head, for the sampled of the tokens.
    void logits(const Table& table, const float* normed, const ov::Tensor& sampled,
                ov::Tensor& output) const {
        const auto num_sampled = sampled.get_shape()[0];
        const auto* places = sampled.data<const std::int32_t>();
        Scratch& buffers = scratch();
        float* rows = buffers.inner.room(static_cast<long>(num_sampled) * hidden_);
        for (long n = 0; n < static_cast<long>(num_sampled); ++n)
            Step::copy(rows + n * hidden_, normed + places[n] * hidden_, static_cast<int>(hidden_));
        const Step last{table, static_cast<int>(num_sampled), nullptr, buffers};
        last.linear(table.head, rows, output.data<float>());
    }

    long vocab_ = 0;
};

// A whole step of decoding alone: one new token for each sequence, attention included.
// inputs: ids i32 [T], slots i32 [T], cos [T, head_dim / 2], sin the same, sampled i32 [N],
// past_lens i32 [T], blocks i32, block_begins i32 [T + 1]; output: logits [N, vocab]
class DecoderStep : public DecoderEnd {
  public:
    OPENVINO_OP("DecoderStep", "compllm", DecoderEnd);
    DecoderStep() = default;
    DecoderStep(const ov::OutputVector& inputs, long table, long hidden, long vocab) {
        table_ = table;
        hidden_ = hidden;
        vocab_ = vocab;
        set_arguments(inputs);
        constructor_validate_and_infer_types();
    }
    void validate_and_infer_types() override {
        set_output_type(0, ov::element::f32, {get_input_partial_shape(4)[0], vocab_});
    }
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<DecoderStep>(inputs, table_, hidden_, vocab_);
    }
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const std::shared_lock lock(tables_mutex());
        const Table* table = find_table(table_);
        if (table == nullptr || table->caches.empty()) return false;
        outputs[0].set_shape({inputs[4].get_shape()[0], size(vocab_)});
        const auto tokens = static_cast<long>(inputs[0].get_shape()[0]);
        Scratch& buffers = scratch();
        const Step step{*table, static_cast<int>(tokens), inputs[1].data<const std::int32_t>(),
                        buffers};
        const Paging paging{inputs[5].data<const std::int32_t>(),
                            inputs[6].data<const std::int32_t>(),
                            inputs[7].data<const std::int32_t>()};
        float* residual = buffers.residual.room(tokens * hidden_);
        float* normed = buffers.normed.room(tokens * hidden_);
        float* q = buffers.q.room(tokens * table->q_size);
        float* k = buffers.k.room(tokens * table->kv_size);
        float* v = buffers.v.room(tokens * table->kv_size);
        float* attended = buffers.attended.room(tokens * table->q_size);
        step.embed(inputs[0].data<const std::int32_t>(), residual, normed);
        for (int layer = 0; layer < table->num_layers; ++layer) {
            step.qkv(layer, normed, inputs[2].data<const float>(), inputs[3].data<const float>(), q,
                     k, v);
            step.attend(layer, paging, q, k, v, attended);
            step.finish(layer, attended, residual, normed);
        }
        logits(*table, normed, inputs[4], outputs[0]);
        return true;
    }
};

}  // namespace
}  // namespace compllm

OPENVINO_CREATE_EXTENSIONS(
    std::vector<ov::Extension::Ptr>({std::make_shared<ov::OpExtension<compllm::DecoderStart>>(),
                                     std::make_shared<ov::OpExtension<compllm::DecoderBlock>>(),
                                     std::make_shared<ov::OpExtension<compllm::DecoderEnd>>(),
                                     std::make_shared<ov::OpExtension<compllm::DecoderStep>>()}));
