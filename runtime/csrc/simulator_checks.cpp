// What the simulator refuses: inputs that make no sense, each with its reason. simulator.cpp calls
// these before it simulates anything.
#include <cmath>
#include <stdexcept>
#include <string>

#include "simulator.hpp"

namespace compllm {
namespace {

void require(bool is_right, const std::string& message) {
    if (!is_right) throw std::invalid_argument(message);
}

}  // namespace

void Load::check(const std::vector<GraphSpec>& specs) const {
    require(graphs.size() == arrivals_ms.size(),
            std::to_string(arrivals_ms.size()) + " queries arrive, " +
                std::to_string(graphs.size()) + " have a graph");
    double last = 0.0;
    for (const double arrival : arrivals_ms) {
        require(std::isfinite(arrival) && arrival >= last,
                "the arrivals do not rise from 0: " + std::to_string(arrival) + " ms follows " +
                    std::to_string(last));
        last = arrival;
    }
    std::size_t num_responses = 0;
    for (const std::int32_t graph : graphs) {
        require(graph >= 0 && static_cast<std::size_t>(graph) < specs.size(),
                "there is no graph " + std::to_string(graph) + " among " +
                    std::to_string(specs.size()));
        num_responses += specs[graph].num_nodes() + 1;
    }
    require(responses.size() == num_responses,
            std::to_string(responses.size()) + " response lengths are given, the queries have " +
                std::to_string(num_responses));
    for (const std::int32_t length : responses)
        require(length >= 1,
                "a response has " + std::to_string(length) + " tokens: it needs at least 1");
}

void GraphSpec::check() const {
    const std::size_t num = gates.size();
    require(num > 0, "a graph has no nodes");
    require(quotes.size() == num && prompt_tokens.size() == num && quoted_tokens.size() == num,
            "gates, quotes, prompt_tokens and quoted_tokens do not fit each other");
    require(line_ends.empty() || (line_ends.size() == num && plan_prompt_tokens > 0),
            "a plan of " + std::to_string(line_ends.size()) + " lines after a prompt of " +
                std::to_string(plan_prompt_tokens) + " tokens does not fit " + std::to_string(num) +
                " nodes");
    std::int32_t last = 0;
    for (const std::int32_t end : line_ends) {
        require(end > last, "the line ends do not rise: " + std::to_string(end) + " follows " +
                                std::to_string(last));
        last = end;
    }
    for (std::size_t node = 0; node < num; ++node) {
        require(prompt_tokens[node] > 0 && quoted_tokens[node] >= 0,
                "node " + std::to_string(node) + " has no prompt, or negative tokens");
        for (const auto* parents : {&gates[node], &quotes[node]})
            for (const std::int64_t parent : *parents)
                require(parent >= 0 && parent < static_cast<std::int64_t>(num),
                        "node " + std::to_string(node) + " waits for or quotes node " +
                            std::to_string(parent) + ", which is not there");
    }
    for (const std::int64_t leaf : leaves)
        require(leaf >= 0 && leaf < static_cast<std::int64_t>(num),
                "there is no leaf " + std::to_string(leaf));
    require(answer_prompt_tokens >= 0, "answer_prompt_tokens is negative");
}

void HostModel::check() const {
    for (const double value : {to_engine_ms, from_engine_ms, handover_ms, route_ms})
        require(std::isfinite(value) && value >= 0.0, "a time of the host is " +
                                                          std::to_string(value) +
                                                          ": times are finite and not negative");
}

}  // namespace compllm
