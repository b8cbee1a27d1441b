// A model of an in-flight batching engine: how long its steps take, and which requests they hold.
//
// What the embedded executor does, without computing anything: a step holds one token of each
// running decode and chunks of prefill under a token budget; requests join and leave between steps,
// first come, first served. Steps of decoding alone are taken many at once, up to the next token
// that a caller waits for: the cost of a request does not grow with its tokens. The cache is taken
// to be large enough for `max_batch_size` sequences. Times are milliseconds. No Python here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

namespace compllm {

struct EngineModel {
    std::vector<double> step_ms;  // by decoding sequences; [0] is prefill's own share of a step
    double prefill_ms_per_token = 0.0;
    double context_ms_per_token = 0.0;  // of the decoding sequences
    double mixed_ms = 0.0;              // more, where a step holds decodes and prefill
    std::size_t max_num_tokens = 0;     // in a step

    std::size_t max_batch_size() const { return step_ms.size() - 1; }
    void check() const;  // throws std::invalid_argument
};

// A request at the engine. marks: rising numbers of output tokens, each reported to the caller when
// it is reached; the last one ends the request. They must outlive it.
struct Job {
    std::uint32_t id = 0;
    std::int64_t prompt_tokens = 0;
    std::span<const std::int32_t> marks;
};

struct Mark {
    std::uint32_t job;
    bool is_last;
    double first_token_ms;  // when the job's first token was there
};

struct EngineUse {
    double busy_ms = 0.0;
    std::int64_t num_steps = 0;
    std::int64_t num_sequence_steps = 0;  // sequences in a step, over all steps
    std::int64_t num_output_tokens = 0;
    std::int64_t num_prefill_tokens = 0;
    std::int64_t num_requests = 0;
};

class SimulatedEngine {
  public:
    explicit SimulatedEngine(const EngineModel& model) : model_(&model) {}

    // True when the run under way now ends sooner: the new job joins at the next step.
    bool submit(const Job& job, double now);

    // Starts as many steps as nothing can come between; false when there is nothing to do.
    bool begin(double now);
    bool is_running() const { return num_steps_ > 0; }
    double end_ms() const { return start_ms_ + duration(num_steps_); }

    // The run has ended, which is now; appends what its last step produced, oldest job first.
    void finish(std::vector<Mark>& marks);

    const EngineUse& use() const { return use_; }

  private:
    struct Sequence {
        Job job;
        std::int64_t left;   // tokens to compute before the next one is drawn
        std::int64_t chunk;  // of them in this step
        bool is_started;     // its first token was drawn
        std::int64_t first_step = 0, mark_step = 0;  // counted like step_
        std::size_t next_mark = 0;
        double first_token_ms = 0.0;
    };

    void admit();
    void plan_prefill();
    double duration(std::int64_t num_steps) const;
    bool reach_mark(Sequence& sequence, std::vector<Mark>& marks);

    const EngineModel* model_;
    std::deque<Job> inbox_;
    std::vector<Sequence> running_;  // in the order of admission
    std::size_t num_unstarted_ = 0;  // of running_
    std::int64_t step_ = 0;          // steps so far
    std::int64_t context_ = 0;       // tokens that the started sequences look back on
    double start_ms_ = 0.0, step_cost_ms_ = 0.0;
    std::int64_t num_steps_ = 0;  // of the run under way; 0: there is none
    EngineUse use_;
};

}  // namespace compllm
