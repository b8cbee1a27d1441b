// The simulator's part of the Python module; bindings.cpp calls it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <utility>
#include <vector>

#include "simulator.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace {

using compllm::EngineModel;
using compllm::EngineUse;
using compllm::GraphSpec;
using compllm::HostModel;
using compllm::RequestTrace;
using compllm::Simulated;

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
std::span<const T> view(const Array<T>& array) {
    return {array.data(), static_cast<std::size_t>(array.size())};
}

// The array owns the numbers: a million of them are not copied.
py::array_t<double> give(std::vector<double>&& values) {
    auto owner = std::make_unique<std::vector<double>>(std::move(values));
    const auto size = static_cast<py::ssize_t>(owner->size());
    const double* data = owner->data();
    const py::capsule base(owner.get(),
                           [](void* kept) { delete static_cast<std::vector<double>*>(kept); });
    owner.release();
    return py::array_t<double>(size, data, base);
}

Simulated run(const std::vector<GraphSpec>& graphs, const EngineModel& engine,
              const HostModel& host, compllm::Policy policy, std::size_t max_in_flight,
              const Array<double>& arrivals_ms, const Array<std::int32_t>& graph_of,
              const Array<std::int32_t>& responses, std::size_t num_engines, bool is_streamed,
              bool is_traced) {
    const compllm::Setup setup{engine, host, policy, num_engines, max_in_flight, is_streamed};
    const compllm::Load load{view(arrivals_ms), view(graph_of), view(responses)};
    const py::gil_scoped_release unlocked;
    // Ctrl-C ends a long run.
    return compllm::simulate(graphs, setup, load, is_traced, [] {
        const py::gil_scoped_acquire locked;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    });
}

void bind_models(py::module_& m) {
    using Nodes = std::vector<std::vector<std::int64_t>>;
    using Counts = std::vector<std::int64_t>;
    py::class_<GraphSpec>(m, "GraphSpec", "One shape of query, nodes counted from 0.")
        .def(py::init([](Nodes gates, Nodes quotes, Counts prompt_tokens, Counts quoted_tokens,
                         Counts leaves, std::vector<std::int32_t> line_ends,
                         std::int64_t plan_prompt_tokens, std::int64_t answer_prompt_tokens) {
                 GraphSpec spec{std::move(gates),         std::move(quotes),
                                std::move(prompt_tokens), std::move(quoted_tokens),
                                std::move(line_ends),     plan_prompt_tokens,
                                answer_prompt_tokens,     std::move(leaves)};
                 spec.check();
                 return spec;
             }),
             "gates"_a, "quotes"_a, "prompt_tokens"_a, "quoted_tokens"_a, "leaves"_a,
             "line_ends"_a = py::tuple(), "plan_prompt_tokens"_a = 0, "answer_prompt_tokens"_a = 0);

    py::class_<EngineModel>(m, "EngineModel", "How long a step of a batched engine takes.")
        .def(py::init([](std::vector<double> step_ms, double prefill_ms_per_token,
                         std::size_t max_num_tokens, double context_ms_per_token, double mixed_ms) {
                 EngineModel model{std::move(step_ms), prefill_ms_per_token, context_ms_per_token,
                                   mixed_ms, max_num_tokens};
                 model.check();
                 return model;
             }),
             "step_ms"_a, "prefill_ms_per_token"_a, "max_num_tokens"_a,
             "context_ms_per_token"_a = 0.0, "mixed_ms"_a = 0.0);

    py::class_<HostModel>(m, "HostModel", "What the way between two steps of a query takes.")
        .def(py::init([](double to_engine_ms, double from_engine_ms, double handover_ms,
                         double route_ms) {
                 HostModel model{to_engine_ms, from_engine_ms, handover_ms, route_ms};
                 model.check();
                 return model;
             }),
             "to_engine_ms"_a = 0.0, "from_engine_ms"_a = 0.0, "handover_ms"_a = 0.0,
             "route_ms"_a = 0.0);
}

void bind_results(py::module_& m) {
    py::class_<EngineUse>(m, "EngineUse", "What one simulated engine did.")
        .def_readonly("busy_ms", &EngineUse::busy_ms)
        .def_readonly("num_steps", &EngineUse::num_steps)
        .def_readonly("num_sequence_steps", &EngineUse::num_sequence_steps)
        .def_readonly("num_output_tokens", &EngineUse::num_output_tokens)
        .def_readonly("num_prefill_tokens", &EngineUse::num_prefill_tokens)
        .def_readonly("num_requests", &EngineUse::num_requests);

    py::class_<RequestTrace>(m, "RequestTrace", "One simulated request.")
        .def_readonly("query", &RequestTrace::query)
        .def_readonly("node", &RequestTrace::node)
        .def_readonly("engine", &RequestTrace::engine)
        .def_readonly("ready_ms", &RequestTrace::ready_ms)
        .def_readonly("admitted_ms", &RequestTrace::admitted_ms)
        .def_readonly("first_token_ms", &RequestTrace::first_token_ms)
        .def_readonly("end_ms", &RequestTrace::end_ms);

    py::class_<Simulated>(m, "Simulated", "What a load of queries saw.")
        .def("take_latency_ms",
             [](Simulated& result) { return give(std::move(result.latency_ms)); })
        .def("take_ttft_ms", [](Simulated& result) { return give(std::move(result.ttft_ms)); })
        .def("take_wait_ms", [](Simulated& result) { return give(std::move(result.wait_ms)); })
        .def_readonly("engines", &Simulated::engines)
        .def_readonly("requests", &Simulated::requests)
        .def_readonly("end_ms", &Simulated::end_ms)
        .def_readonly("total_wait_ms", &Simulated::total_wait_ms)
        .def_readonly("num_requests", &Simulated::num_requests)
        .def_readonly("max_waiting", &Simulated::max_waiting);
}

}  // namespace

void bind_simulator(py::module_& m) {
    bind_models(m);
    bind_results(m);
    m.def("simulate", &run, "graphs"_a, "engine"_a, "host"_a, "policy"_a, "max_in_flight"_a,
          "arrivals_ms"_a, "graph_of"_a, "responses"_a, "num_engines"_a = 1, "is_streamed"_a = true,
          "is_traced"_a = false);
}
