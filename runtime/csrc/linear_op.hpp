// A product with one matrix of a table as an OpenVINO operation: the sentence encoder's
// (compllm/embedded/matmul_offload.py), whose graph stays OpenVINO's for all the rest.
#pragma once

#include <memory>
#include <openvino/op/op.hpp>
#include <shared_mutex>

#include "decoder_step.hpp"

namespace compllm {

// input: x f32 [..., in]; output: f32 [..., rows], W x and the bias. The matrix stands at `place`
// in the table.
class Linear : public ov::op::Op {
  public:
    OPENVINO_OP("Linear", "compllm");
    Linear() = default;
    Linear(const ov::OutputVector& inputs, long table, long place, long rows)
        : Op(inputs), table_(table), place_(place), rows_(rows) {
        constructor_validate_and_infer_types();
    }
    void validate_and_infer_types() override {
        ov::PartialShape shape = get_input_partial_shape(0);
        if (shape.rank().is_static()) shape[shape.size() - 1] = rows_;
        set_output_type(0, ov::element::f32, shape);
    }
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<Linear>(inputs, table_, place_, rows_);
    }
    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("table", table_);
        visitor.on_attribute("place", place_);
        visitor.on_attribute("rows", rows_);
        return true;
    }
    bool has_evaluate() const override { return true; }
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        thread_local Scratch buffers;
        const std::shared_lock lock(tables_mutex());
        const Table* table = find_table(table_);
        if (table == nullptr || place_ < 0 ||
            static_cast<std::size_t>(place_) >= table->matrices.size())
            return false;
        const Matrix& matrix = table->matrices[static_cast<std::size_t>(place_)];
        ov::Shape shape = inputs[0].get_shape();
        if (matrix.rows != rows_ || shape.back() != static_cast<std::size_t>(matrix.in))
            return false;
        const auto tokens = static_cast<int>(inputs[0].get_size() / shape.back());
        shape.back() = static_cast<std::size_t>(rows_);
        outputs[0].set_shape(shape);
        const Step step{*table, tokens, nullptr, buffers};
        step.linear(matrix, inputs[0].data<const float>(), outputs[0].data<float>());
        return true;
    }

  private:
    long table_ = 0;
    long place_ = 0;
    long rows_ = 0;
};

}  // namespace compllm
