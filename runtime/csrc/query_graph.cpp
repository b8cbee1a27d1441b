#include "query_graph.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_set>
#include <utility>

namespace compllm {
namespace {

std::string node_name(NodeId id) { return "node " + std::to_string(id); }

}  // namespace

const char* name_of(NodeState state) {
    switch (state) {
        case NodeState::waiting:
            return "waiting";
        case NodeState::ready:
            return "ready";
        case NodeState::running:
            return "running";
        case NodeState::done:
            return "done";
    }
    return "unknown";
}

QueryGraph::QueryGraph(std::size_t max_nodes, std::size_t max_depth)
    : max_nodes_(max_nodes), max_depth_(max_depth) {
    if (max_nodes == 0 || max_nodes > kMost || max_depth == 0 || max_depth > kMost)
        throw std::invalid_argument("max_nodes is " + std::to_string(max_nodes) +
                                    " and max_depth " + std::to_string(max_depth) +
                                    ": they lie between 1 and " + std::to_string(kMost));
}

QueryGraph::Index QueryGraph::index(NodeId id) const {
    const Index found = index_.find(id);
    if (found == kNone) throw UnknownNodeError("there is no " + node_name(id), id);
    return found;
}

void QueryGraph::check_cost(double cost, NodeId id) {
    if (!std::isfinite(cost) || cost < 0.0)
        throw std::invalid_argument(node_name(id) + " costs " + std::to_string(cost) +
                                    ": a cost is finite and not negative");
}

// ---- running ----

void QueryGraph::set_ready(Index node) {
    nodes_[node].state = NodeState::ready;
    nodes_[node].ready_position = static_cast<Index>(ready_.size());
    ready_.push_back(node);
}

void QueryGraph::take_from_ready(Index node) {
    const Index hole = std::exchange(nodes_[node].ready_position, kNone), last = ready_.back();
    ready_.pop_back();
    if (last == node) return;
    ready_[hole] = last;
    nodes_[last].ready_position = hole;
}

void QueryGraph::start(NodeId id) {
    const Index node = index(id);
    if (nodes_[node].state != NodeState::ready)
        throw std::logic_error(node_name(id) + " is " + name_of(nodes_[node].state) +
                               ": only a ready node can start");
    take_from_ready(node);
    nodes_[node].state = NodeState::running;
}

std::vector<NodeId> QueryGraph::done(NodeId id) {
    const Index node = index(id);
    if (nodes_[node].state != NodeState::ready && nodes_[node].state != NodeState::running)
        throw std::logic_error(node_name(id) + " is " + name_of(nodes_[node].state) +
                               ": only a ready or running node can be done");
    if (nodes_[node].state == NodeState::ready) take_from_ready(node);
    nodes_[node].state = NodeState::done;
    --num_unfinished_;
    remaining_work_ -= nodes_[node].cost;
    std::vector<Index> freed;
    for (Index e = nodes_[node].first_child; e != kNone; e = edges_[e].next_of_parent) {
        const Index child = edges_[e].child;
        if (--nodes_[child].num_pending > 0) continue;
        set_ready(child);
        freed.push_back(child);
    }
    return sorted_ids(std::move(freed));
}

std::vector<NodeId> QueryGraph::ready() const { return sorted_ids(ready_); }

// ---- paths and bounds ----

// A chain of n nodes that is read after each addition would change n values each time; so additions
// are collected, and each node above them is visited once, deepest first.
void QueryGraph::raise_paths() {
    std::vector<std::pair<Index, Index>> queue;  // a heap of depth, node
    const auto enqueue = [&](Index node) {
        if (nodes_[node].is_queued) return;
        nodes_[node].is_queued = true;
        queue.emplace_back(nodes_[node].depth, node);
        std::ranges::push_heap(queue);
    };
    for (const Index node : unpropagated_) enqueue(node);
    unpropagated_.clear();
    while (!queue.empty()) {
        std::ranges::pop_heap(queue);
        const Index node = queue.back().second;
        queue.pop_back();
        nodes_[node].is_queued = false;
        for (Index e = nodes_[node].first_parent; e != kNone; e = edges_[e].next_of_child) {
            const Index parent = edges_[e].parent;
            const double through = nodes_[parent].cost + nodes_[node].remaining;
            if (through <= nodes_[parent].remaining) continue;
            nodes_[parent].remaining = through;
            enqueue(parent);
        }
    }
}

double QueryGraph::remaining_path(NodeId id) {
    const Index node = index(id);
    if (!unpropagated_.empty()) raise_paths();
    return nodes_[node].remaining;
}

std::vector<QueryGraph::Index> QueryGraph::by_depth() const {
    std::vector<Index> begin(num_levels_ + 2, 0), order(nodes_.size());
    for (const Node& node : nodes_) ++begin[node.depth + 1];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    for (std::size_t node = 0; node < nodes_.size(); ++node)
        order[begin[nodes_[node].depth]++] = static_cast<Index>(node);
    return order;
}

StructuralBound QueryGraph::bound(std::span<const NodeId> ids,
                                  std::span<const double> costs) const {
    if (ids.size() != costs.size())
        throw std::invalid_argument(std::to_string(ids.size()) + " ids and " +
                                    std::to_string(costs.size()) + " costs were given");
    std::vector<double> cost_of(nodes_.size(), 0.0), end_at(nodes_.size(), 0.0);
    for (std::size_t i = 0; i < ids.size(); ++i) {
        check_cost(costs[i], ids[i]);
        cost_of[index(ids[i])] = costs[i];
    }
    StructuralBound bound{nodes_.size(), num_levels_, 0.0, 0.0};
    for (const Index node : by_depth()) {
        double start = 0.0;
        for (Index e = nodes_[node].first_parent; e != kNone; e = edges_[e].next_of_child)
            start = std::max(start, end_at[edges_[e].parent]);
        end_at[node] = start + cost_of[node];
        bound.total_cost += cost_of[node];
        bound.longest_path = std::max(bound.longest_path, end_at[node]);
    }
    return bound;
}

// ---- looking ----

std::vector<NodeId> QueryGraph::sorted_ids(std::vector<Index> nodes) const {
    std::vector<NodeId> ids;
    ids.reserve(nodes.size());
    for (const Index node : nodes) ids.push_back(nodes_[node].id);
    std::ranges::sort(ids);
    return ids;
}

std::vector<std::vector<NodeId>> QueryGraph::levels() const {
    std::vector<std::vector<NodeId>> levels(num_levels_);
    for (std::size_t node = 0; node < nodes_.size(); ++node)
        levels[nodes_[node].depth - 1].push_back(nodes_[node].id);
    for (auto& level : levels) std::ranges::sort(level);
    return levels;
}

std::vector<NodeId> QueryGraph::children(NodeId id) const {
    std::vector<Index> found;
    for (Index e = nodes_[index(id)].first_child; e != kNone; e = edges_[e].next_of_parent)
        found.push_back(edges_[e].child);
    return sorted_ids(std::move(found));
}

std::vector<NodeId> QueryGraph::ancestors(NodeId id) const {
    std::vector<Index> found, stack{index(id)};
    std::unordered_set<Index> seen;
    while (!stack.empty()) {
        const Index node = stack.back();
        stack.pop_back();
        for (Index e = nodes_[node].first_parent; e != kNone; e = edges_[e].next_of_child)
            if (const Index parent = edges_[e].parent; seen.insert(parent).second) {
                found.push_back(parent);
                stack.push_back(parent);
            }
    }
    return sorted_ids(std::move(found));
}

std::vector<NodeId> QueryGraph::leaves() const {
    std::vector<Index> found;
    for (std::size_t node = 0; node < nodes_.size(); ++node)
        if (nodes_[node].first_child == kNone) found.push_back(static_cast<Index>(node));
    return sorted_ids(std::move(found));
}

}  // namespace compllm
