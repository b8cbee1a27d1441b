// Makes the query graph and the admission queue a Python module, together with
// bindings_simulator.cpp. Only these two files use pybind11.
#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <utility>
#include <vector>

#include "admission.hpp"
#include "query_graph.hpp"

namespace py = pybind11;
using namespace py::literals;

void bind_simulator(py::module_& m);  // bindings_simulator.cpp

namespace {

using compllm::AdmissionQueue;
using compllm::NodeId;
using compllm::QueryGraph;

// Our errors of C++ become those of compllm.errors; standard ones go pybind11's usual way.
void raise(const char* type, const std::exception& error, const py::dict& fields) {
    const py::object cls = py::module_::import("compllm.errors").attr(type);
    const py::object value = cls(error.what(), **fields);
    PyErr_SetObject(cls.ptr(), value.ptr());
}

void translate(std::exception_ptr thrown) {
    try {
        if (thrown) std::rethrow_exception(thrown);
    } catch (const compllm::CycleError& error) {
        raise("CycleError", error, py::dict("nodes"_a = py::tuple(py::cast(error.nodes))));
    } catch (const compllm::UnknownNodeError& error) {
        raise("UnknownNodeError", error, py::dict("node_id"_a = error.node));
    } catch (const compllm::PlanError& error) {
        raise("PlanError", error, py::dict("node_id"_a = error.node));
    } catch (const compllm::QueueFull& error) {
        raise("BackendUnavailable", error, py::dict());
    }
}

void add_nodes(QueryGraph& graph, const std::vector<NodeId>& ids,
               const std::vector<std::vector<NodeId>>& parents, const std::vector<double>& costs) {
    std::vector<std::size_t> offsets{0};
    std::vector<NodeId> flat;
    offsets.reserve(parents.size() + 1);
    for (const auto& row : parents) {
        flat.insert(flat.end(), row.begin(), row.end());
        offsets.push_back(flat.size());
    }
    graph.add_nodes(ids, offsets, flat, costs);
}

void bind_graph(py::module_& m) {
    py::class_<compllm::StructuralBound>(m, "StructuralBound",
                                         "What the shape of a graph allows on any machine.")
        .def_readonly("num_nodes", &compllm::StructuralBound::num_nodes)
        .def_readonly("depth", &compllm::StructuralBound::depth)
        .def_readonly("total_cost", &compllm::StructuralBound::total_cost)
        .def_readonly("longest_path", &compllm::StructuralBound::longest_path);

    py::class_<QueryGraph>(m, "QueryGraph", "A DAG that grows while its nodes run.")
        .def(py::init<std::size_t, std::size_t>(), "max_nodes"_a, "max_depth"_a)
        // Only here may the lock be released: no other thread holds the graph yet.
        .def_static(
            "build",
            [](const std::vector<NodeId>& ids, const std::vector<std::vector<NodeId>>& parents,
               const std::vector<double>& costs, std::size_t max_nodes, std::size_t max_depth) {
                QueryGraph graph(max_nodes, max_depth);
                add_nodes(graph, ids, parents, costs);
                return graph;
            },
            "ids"_a, "parents"_a, "costs"_a, "max_nodes"_a, "max_depth"_a,
            py::call_guard<py::gil_scoped_release>())
        .def(
            "add_node",
            [](QueryGraph& graph, NodeId id, const std::vector<NodeId>& parents, double cost) {
                return graph.add_node(id, parents, cost);
            },
            "id"_a, "parents"_a = py::tuple(), "cost"_a = 1.0)
        .def("add_nodes", &add_nodes, "ids"_a, "parents"_a, "costs"_a)
        .def("start", &QueryGraph::start, "id"_a)
        .def("done", &QueryGraph::done, "id"_a)
        .def("ready", &QueryGraph::ready)
        // As text: making an object of a Python enum takes five times as long.
        .def(
            "state",
            [](const QueryGraph& graph, NodeId id) { return compllm::name_of(graph.state(id)); },
            "id"_a)
        .def_property_readonly("is_finished", &QueryGraph::is_finished)
        .def_property_readonly("remaining_work", &QueryGraph::remaining_work)
        .def("remaining_path", &QueryGraph::remaining_path, "id"_a)
        .def_property_readonly("depth", &QueryGraph::depth)
        .def("levels", &QueryGraph::levels)
        .def("children", &QueryGraph::children, "id"_a)
        .def("ancestors", &QueryGraph::ancestors, "id"_a)
        .def("leaves", &QueryGraph::leaves)
        .def(
            "bound",
            [](const QueryGraph& graph, const py::dict& costs) {
                std::vector<NodeId> ids;
                std::vector<double> values;
                for (const auto& [id, cost] : costs) {
                    ids.push_back(id.cast<NodeId>());
                    values.push_back(cost.cast<double>());
                }
                return graph.bound(ids, values);
            },
            "costs"_a);
}

void bind_admission(py::module_& m) {
    py::native_enum<compllm::Policy>(m, "Policy", "enum.Enum")
        .value("oldest_query_first", compllm::Policy::oldest_query_first)
        .value("fifo", compllm::Policy::fifo)
        .value("deepest_first", compllm::Policy::deepest_first)
        .value("least_remaining_work", compllm::Policy::least_remaining_work)
        .finalize();

    py::class_<AdmissionQueue>(m, "AdmissionQueue", "Which request goes to an engine next.")
        .def(py::init<std::vector<std::size_t>, compllm::Policy, std::size_t>(), "limits"_a,
             "policy"_a, "max_waiting"_a)
        .def(
            "enter",
            [](AdmissionQueue& queue, std::int64_t query_seq, std::int64_t node_id,
               double remaining_path, double remaining_work, std::size_t engine) {
                return queue.enter({query_seq, node_id, remaining_path, remaining_work}, engine);
            },
            "query_seq"_a, "node_id"_a, "remaining_path"_a, "remaining_work"_a, "engine"_a)
        .def("release", &AdmissionQueue::release, "engine"_a)
        .def("cancel", &AdmissionQueue::cancel, "ticket"_a)
        .def(
            "promote",
            [](AdmissionQueue& queue, compllm::Ticket ticket, std::int64_t query_seq,
               std::int64_t node_id, double remaining_path, double remaining_work) {
                return queue.promote(ticket, {query_seq, node_id, remaining_path, remaining_work});
            },
            "ticket"_a, "query_seq"_a, "node_id"_a, "remaining_path"_a, "remaining_work"_a)
        .def("num_waiting",
             py::overload_cast<std::size_t>(&AdmissionQueue::num_waiting, py::const_), "engine"_a)
        .def("num_in_flight", &AdmissionQueue::num_in_flight, "engine"_a)
        .def("limit", &AdmissionQueue::limit, "engine"_a);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "Query graph, admission queue and simulator, for one thread at a time.";
    py::register_local_exception_translator(&translate);
    bind_graph(m);
    bind_admission(m);
    bind_simulator(m);
}
