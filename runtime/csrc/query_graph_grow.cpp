// How the graph grows: one node or many nodes. Everything is checked before anything
// changes, so that a plan that breaks a rule leaves the graph as it was.
#include <algorithm>
#include <numeric>
#include <utility>

#include "query_graph.hpp"

namespace compllm {
namespace {

std::string node_name(NodeId id) { return "node " + std::to_string(id); }

[[noreturn]] void throw_cycle(std::vector<NodeId> nodes) {
    // A plan of a thousand nodes must not make a message of a thousand numbers.
    constexpr std::size_t kMaxNamed = 16;
    std::string path;
    for (std::size_t i = 0; i < std::min(nodes.size(), kMaxNamed); ++i)
        path += std::to_string(nodes[i]) + " -> ";
    if (nodes.size() > kMaxNamed) path += "... -> ";
    path += std::to_string(nodes.front());
    path = "the dependencies form a cycle of " + std::to_string(nodes.size()) + " nodes: " + path;
    throw CycleError(path, std::move(nodes));
}

[[noreturn]] void throw_unknown(NodeId parent, NodeId child) {
    throw UnknownNodeError(
        node_name(child) + " depends on " + node_name(parent) + ", which is not there", child);
}

[[noreturn]] void throw_twin(NodeId parent, NodeId child) {
    throw PlanError(node_name(child) + " names its parent " + std::to_string(parent) + " twice",
                    child);
}

using Index = IdMap::Index;

// Every node that never got free has a parent of that kind: walking up must come round.
[[noreturn]] void throw_cycle_above(std::span<const std::size_t> offsets,
                                    std::span<const Index> above, Index num_old,
                                    std::span<const NodeId> ids,
                                    const std::vector<Index>& num_before) {
    std::vector<Index> step_of(ids.size(), IdMap::kNone), walk;
    auto node = static_cast<Index>(
        std::ranges::find_if(num_before, [](Index num) { return num > 0; }) - num_before.begin());
    while (step_of[node] == IdMap::kNone) {
        step_of[node] = static_cast<Index>(walk.size());
        walk.push_back(node);
        const auto parents = above.subspan(offsets[node], offsets[node + 1] - offsets[node]);
        node = *std::ranges::find_if(parents, [&](Index parent) {
            return parent >= num_old && num_before[parent - num_old] > 0;
        }) - num_old;
    }
    std::vector<NodeId> cycle;
    for (std::size_t i = walk.size(); i > static_cast<std::size_t>(step_of[node]); --i)
        cycle.push_back(ids[walk[i - 1]]);
    throw_cycle(std::move(cycle));
}

// A topological order of new nodes, from 0, and their depths (given: those below old parents
// alone). Kahn, "Topological sorting of large networks" (1962): what never gets free lies below a
// cycle.
std::vector<Index> sort_batch(std::span<const std::size_t> offsets, std::span<const Index> above,
                              Index num_old, std::span<const NodeId> ids,
                              std::vector<Index>& depth) {
    const std::size_t num_new = ids.size();
    std::vector<Index> num_before(num_new, 0);
    std::vector<std::size_t> begin(num_new + 1, 0);  // compressed adjacency: children of new nodes
    for (std::size_t i = 0; i < num_new; ++i)
        for (std::size_t e = offsets[i]; e < offsets[i + 1]; ++e)
            if (above[e] >= num_old) {
                ++num_before[i];
                ++begin[static_cast<std::size_t>(above[e] - num_old) + 1];
            }
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    std::vector<Index> children(begin.back());
    auto fill = begin;
    for (std::size_t i = 0; i < num_new; ++i)
        for (std::size_t e = offsets[i]; e < offsets[i + 1]; ++e)
            if (above[e] >= num_old) children[fill[above[e] - num_old]++] = static_cast<Index>(i);

    std::vector<Index> order;
    order.reserve(num_new);
    for (std::size_t i = 0; i < num_new; ++i)
        if (num_before[i] == 0) order.push_back(static_cast<Index>(i));
    for (std::size_t at = 0; at < order.size(); ++at) {
        const auto node = static_cast<std::size_t>(order[at]);
        for (std::size_t e = begin[node]; e < begin[node + 1]; ++e) {
            const Index child = children[e];
            depth[child] = std::max(depth[child], depth[node] + 1);
            if (--num_before[child] == 0) order.push_back(child);
        }
    }
    if (order.size() < num_new) throw_cycle_above(offsets, above, num_old, ids, num_before);
    return order;
}

}  // namespace

void QueryGraph::check_edges(std::size_t num_new, NodeId id) const {
    if (num_new > kMost - edges_.size())
        throw PlanError("the graph would have more than " + std::to_string(kMost) + " edges", id);
}

void QueryGraph::check_new(NodeId id, std::size_t num_new) const {
    if (num_new > max_nodes_ - nodes_.size())
        throw PlanError("the graph would have " + std::to_string(nodes_.size() + num_new) +
                            " nodes, more than the " + std::to_string(max_nodes_) + " allowed",
                        id);
    if (index_.contains(id)) throw PlanError(node_name(id) + " is given twice", id);
}

void QueryGraph::check_depth(std::size_t depth, NodeId id) const {
    if (depth > max_depth_)
        throw PlanError(node_name(id) + " lies at depth " + std::to_string(depth) +
                            ", deeper than the " + std::to_string(max_depth_) + " allowed",
                        id);
}

bool QueryGraph::add_node(NodeId id, std::span<const NodeId> parents, double cost) {
    check_new(id, 1);
    check_edges(parents.size(), id);
    check_cost(cost, id);
    std::vector<Index> above;
    above.reserve(parents.size());
    Index depth = 1;
    for (const NodeId parent : parents) {
        if (parent == id) throw_cycle({id});
        const Index found = index_.find(parent);
        if (found == kNone) throw_unknown(parent, id);
        above.push_back(found);
        depth = std::max(depth, nodes_[found].depth + 1);
    }
    check_depth(static_cast<std::size_t>(depth), id);
    std::ranges::sort(above);
    if (const auto twin = std::ranges::adjacent_find(above); twin != above.end())
        throw_twin(nodes_[*twin].id, id);

    const Index node = append(id, cost, depth);
    for (const Index parent : above) link(parent, node);
    return make_ready_if_free(node);
}

void QueryGraph::add_nodes(std::span<const NodeId> ids, std::span<const std::size_t> offsets,
                           std::span<const NodeId> parents, std::span<const double> costs) {
    const std::size_t num_new = ids.size(), num_old = nodes_.size();
    if (offsets.size() != num_new + 1 || costs.size() != num_new || offsets.front() != 0 ||
        offsets.back() != parents.size() || !std::ranges::is_sorted(offsets))
        throw std::invalid_argument("ids, offsets, parents and costs do not fit each other");
    if (num_new == 0) return;
    check_edges(parents.size(), ids.front());

    IdMap fresh;
    for (std::size_t i = 0; i < num_new; ++i) {
        check_new(ids[i], num_new);
        check_cost(costs[i], ids[i]);
        if (fresh.contains(ids[i])) throw PlanError(node_name(ids[i]) + " is given twice", ids[i]);
        fresh.add(ids[i]);
    }

    // From here on a node is its index to be: the old ones keep theirs, new node i gets num_old +
    // i.
    std::vector<Index> above(parents.size()), depth(num_new, 1);
    std::vector<Index> last_child(num_old + num_new, kNone);
    for (std::size_t i = 0; i < num_new; ++i)
        for (std::size_t e = offsets[i]; e < offsets[i + 1]; ++e) {
            if (const Index old = index_.find(parents[e]); old != kNone) {
                above[e] = old;
                depth[i] = std::max(depth[i], nodes_[old].depth + 1);
            } else if (const Index found = fresh.find(parents[e]); found != kNone) {
                above[e] = static_cast<Index>(num_old) + found;
            } else {
                throw_unknown(parents[e], ids[i]);
            }
            const auto self = static_cast<Index>(i);
            if (std::exchange(last_child[above[e]], self) == self) throw_twin(parents[e], ids[i]);
        }
    const auto order = sort_batch(offsets, above, static_cast<Index>(num_old), ids, depth);
    for (const Index i : order) check_depth(static_cast<std::size_t>(depth[i]), ids[i]);

    for (std::size_t i = 0; i < num_new; ++i) append(ids[i], costs[i], depth[i]);
    for (const Index i : order) {
        const Index node = static_cast<Index>(num_old) + i;
        for (std::size_t e = offsets[i]; e < offsets[i + 1]; ++e) link(above[e], node);
        make_ready_if_free(node);
    }
}

QueryGraph::Index QueryGraph::append(NodeId id, double cost, Index depth) {
    const Index node = index_.add(id);
    nodes_.push_back({.id = id, .cost = cost, .remaining = cost, .depth = depth});
    num_levels_ = std::max(num_levels_, static_cast<std::size_t>(depth));
    ++num_unfinished_;
    remaining_work_ += cost;
    unpropagated_.push_back(node);
    return node;
}

void QueryGraph::link(Index parent, Index child) {
    const auto edge = static_cast<Index>(edges_.size());
    edges_.push_back({parent, child, nodes_[parent].first_child, nodes_[child].first_parent});
    nodes_[parent].first_child = edge;
    nodes_[child].first_parent = edge;
    if (nodes_[parent].state != NodeState::done) ++nodes_[child].num_pending;
}

// For a node that got its parents; true when it can start.
bool QueryGraph::make_ready_if_free(Index node) {
    if (nodes_[node].num_pending > 0) return false;
    set_ready(node);
    return true;
}

}  // namespace compllm
