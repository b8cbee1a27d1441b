#include "simulated_engine.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace compllm {

void EngineModel::check() const {
    if (step_ms.size() < 2)
        throw std::invalid_argument("step_ms has " + std::to_string(step_ms.size()) +
                                    " entries: it needs those of 0 and 1 sequences at least");
    if (max_num_tokens == 0) throw std::invalid_argument("max_num_tokens is 0: no step could run");
    auto values = step_ms;
    values.insert(values.end(), {prefill_ms_per_token, context_ms_per_token, mixed_ms});
    for (const double value : values)
        if (!std::isfinite(value) || value < 0.0)
            throw std::invalid_argument("a time of the engine is " + std::to_string(value) +
                                        ": times are finite and not negative");
    for (std::size_t i = 1; i < step_ms.size(); ++i)
        if (step_ms[i] <= 0.0)
            throw std::invalid_argument("a step of " + std::to_string(i) + " sequences takes 0 ms");
}

bool SimulatedEngine::submit(const Job& job, double now) {
    inbox_.push_back(job);
    ++use_.num_requests;
    if (num_steps_ <= 1 || running_.size() >= model_->max_batch_size()) return false;
    // The first step that ends at or after `now` becomes the run's last.
    std::int64_t low = 1, high = num_steps_;
    while (low < high) {
        const std::int64_t middle = low + (high - low) / 2;
        if (start_ms_ + duration(middle) >= now)
            high = middle;
        else
            low = middle + 1;
    }
    if (low == num_steps_) return false;
    num_steps_ = low;
    return true;
}

void SimulatedEngine::admit() {
    while (!inbox_.empty() && running_.size() < model_->max_batch_size()) {
        const Job& job = inbox_.front();
        running_.push_back(
            {.job = job, .left = job.prompt_tokens, .chunk = 0, .is_started = false});
        ++num_unstarted_;
        inbox_.pop_front();
    }
}

bool SimulatedEngine::begin(double now) {
    admit();
    if (running_.empty()) return false;
    start_ms_ = now;
    num_steps_ = 1;
    if (num_unstarted_ > 0) {
        plan_prefill();
        return true;
    }
    std::int64_t next = running_.front().mark_step;
    for (const Sequence& sequence : running_) next = std::min(next, sequence.mark_step);
    num_steps_ = next - step_;
    step_cost_ms_ = model_->step_ms[running_.size()] +
                    model_->context_ms_per_token * static_cast<double>(context_);
    return true;
}

// As the executor's scheduler: each decode one token (the last token of a prompt is one too), then
// chunks in the order of admission with what is left of the budget.
void SimulatedEngine::plan_prefill() {
    auto budget = static_cast<std::int64_t>(model_->max_num_tokens);
    std::size_t num_decodes = 0;
    for (Sequence& sequence : running_) {
        sequence.chunk = sequence.left == 1 ? 1 : 0;
        num_decodes += static_cast<std::size_t>(sequence.chunk);
    }
    budget -= static_cast<std::int64_t>(num_decodes);
    std::int64_t num_prefill = 0;
    for (Sequence& sequence : running_) {
        if (sequence.left == 1) continue;
        if (budget <= 0) break;
        sequence.chunk = std::min(sequence.left, budget);
        budget -= sequence.chunk;
        num_prefill += sequence.chunk;
    }
    step_cost_ms_ = model_->step_ms[num_decodes] +
                    model_->prefill_ms_per_token * static_cast<double>(num_prefill) +
                    model_->context_ms_per_token * static_cast<double>(context_);
    if (num_decodes > 0 && num_prefill > 0) step_cost_ms_ += model_->mixed_ms;
}

// The context of each sequence grows by a token a step.
double SimulatedEngine::duration(std::int64_t num_steps) const {
    const auto steps = static_cast<double>(num_steps);
    const double growth =
        model_->context_ms_per_token * static_cast<double>(running_.size() - num_unstarted_);
    return steps * step_cost_ms_ + growth * (steps * (steps - 1.0) / 2.0);
}

void SimulatedEngine::finish(std::vector<Mark>& marks) {
    const double now = end_ms();
    use_.busy_ms += now - start_ms_;
    use_.num_steps += num_steps_;
    step_ += num_steps_;
    const auto num_started = static_cast<std::int64_t>(running_.size() - num_unstarted_);
    context_ += num_steps_ * num_started;
    use_.num_output_tokens += num_steps_ * num_started;
    use_.num_sequence_steps += num_steps_ * num_started;
    for (Sequence& sequence : running_) {
        if (sequence.is_started) continue;
        use_.num_sequence_steps += sequence.chunk > 0;
        use_.num_prefill_tokens += sequence.chunk;
        sequence.left -= sequence.chunk;
        sequence.chunk = 0;
        if (sequence.left > 0) continue;
        sequence.left = 1;
        sequence.is_started = true;
        sequence.first_step = step_;
        sequence.mark_step = step_ + sequence.job.marks.front() - 1;
        sequence.first_token_ms = now;
        --num_unstarted_;
        context_ += sequence.job.prompt_tokens + 1;
        ++use_.num_output_tokens;
    }
    num_steps_ = 0;
    std::size_t num_kept = 0;
    for (std::size_t i = 0; i < running_.size(); ++i) {
        Sequence& sequence = running_[i];
        if (sequence.is_started && sequence.mark_step == step_ && reach_mark(sequence, marks))
            continue;
        if (num_kept != i) running_[num_kept] = sequence;
        ++num_kept;
    }
    running_.resize(num_kept);
}

// True when it was the last one.
bool SimulatedEngine::reach_mark(Sequence& sequence, std::vector<Mark>& marks) {
    const auto& job = sequence.job;
    const bool is_last = ++sequence.next_mark == job.marks.size();
    marks.push_back({job.id, is_last, sequence.first_token_ms});
    if (is_last)
        context_ -= job.prompt_tokens + job.marks.back();
    else
        sequence.mark_step = sequence.first_step + job.marks[sequence.next_mark] - 1;
    return is_last;
}

}  // namespace compllm
