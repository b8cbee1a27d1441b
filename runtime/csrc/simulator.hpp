// What a load of queries would see: a discrete-event simulation of the runtime before its engines.
//
// Each query takes the path of the live runtime: a request for the plan, whose lines become nodes
// of a QueryGraph as they end; a request for each node that is ready; a request for the answer. All
// of them go through the very AdmissionQueue that the runtime has, to engines of
// simulated_engine.hpp. Nothing is drawn at random here: arrivals and lengths are the caller's, and
// the same input gives the same output. Times are milliseconds. No Python here.
//
// At one time: steps end (engines by number), then queries arrive, then what the host does happens
// in the order in which it was made due, then engines begin their next steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "admission.hpp"
#include "query_graph.hpp"
#include "simulated_engine.hpp"

namespace compllm {

// One shape of query. Nodes are counted from 0 in the order of the plan's lines; gates of a
// streamed plan stand before their node.
struct GraphSpec {
    std::vector<std::vector<std::int64_t>> gates;   // nodes whose end a node waits for
    std::vector<std::vector<std::int64_t>> quotes;  // nodes whose responses its prompt holds
    std::vector<std::int64_t> prompt_tokens;        // of each node, without what it quotes
    std::vector<std::int64_t> quoted_tokens;        // of quoting it, without its response's tokens
    std::vector<std::int32_t> line_ends;    // tokens of the plan up to each line's end; or none:
    std::int64_t plan_prompt_tokens = 0;    // the plan is there when the query arrives
    std::int64_t answer_prompt_tokens = 0;  // without the leaves'; 0: nothing is composed
    std::vector<std::int64_t> leaves;       // what the answer quotes

    std::size_t num_nodes() const { return gates.size(); }
    void check() const;  // throws std::invalid_argument
};

struct HostModel {
    double to_engine_ms = 0.0;    // from the admission of a request to the engine's inbox
    double from_engine_ms = 0.0;  // from the step that made it to the waiting caller
    double handover_ms = 0.0;     // from the last parent's end to the child's request
    double route_ms = 0.0;        // from the end of a plan's line to its node

    void check() const;
};

struct Setup {
    EngineModel engine;
    HostModel host;
    Policy policy = Policy::oldest_query_first;
    std::size_t num_engines = 1;    // a request goes to the one with the fewest, then the first
    std::size_t max_in_flight = 1;  // at an engine
    bool is_streamed = true;  // a line's node exists when the line ends, not when the plan does
};

struct Load {
    std::span<const double> arrivals_ms;      // rising
    std::span<const std::int32_t> graphs;     // which spec each query is
    std::span<const std::int32_t> responses;  // tokens: of its nodes, then of its answer, by query

    void check(const std::vector<GraphSpec>& specs) const;  // throws std::invalid_argument
};

// One request, for tests and drawings. node: 0 is the plan, -1 the answer, others count from 1.
struct RequestTrace {
    std::int64_t query, node, engine;
    double ready_ms, admitted_ms, first_token_ms, end_ms;  // the last two as the caller sees them
};

struct Simulated {
    std::vector<double> latency_ms, ttft_ms;  // by query; without composing, both are the end
    std::vector<double> wait_ms;              // by query: its longest wait for admission
    std::vector<EngineUse> engines;
    std::vector<RequestTrace> requests;  // in the order of their ends; only where asked for
    double end_ms = 0.0;                 // of the last query
    double total_wait_ms = 0.0;          // over all requests
    std::int64_t num_requests = 0;
    std::size_t max_waiting = 0;  // requests that waited for admission at one time
};

// poll is called every few thousand queries; what it throws ends the simulation.
Simulated simulate(const std::vector<GraphSpec>& graphs, const Setup& setup, const Load& load,
                   bool is_traced, const std::function<void()>& poll);

}  // namespace compllm
