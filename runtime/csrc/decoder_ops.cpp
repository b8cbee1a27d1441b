// The embedded engine's OpenVINO operations: everything of a decoder between two attentions in one
// node.
//
// OpenVINO keeps the paged attention, the cache and the graph; the products with 8-bit weights,
// each token's own adapter, rotary embedding, SwiGLU and norms happen in decoder_step.hpp, over the
// tables of tables.hpp. Why not the plug-in's own products: on AVX2 they take two to three times as
// long at 1 to 16 tokens. A step of decoding alone is one operation, DecoderStep, with its own
// attention over the same cache: a third of such a step was the plug-in's way from node to node and
// its attention to single tokens (docs/ENGINE.md compares).
#include <cstring>
#include <memory>
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>
#include <vector>

#include "decoder_step.hpp"
#include "linear_op.hpp"

namespace compllm {
namespace {

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
                                     std::make_shared<ov::OpExtension<compllm::DecoderStep>>(),
                                     std::make_shared<ov::OpExtension<compllm::Linear>>()}));
