// How the graph grows: one node, many nodes, a late edge. Everything is checked before anything
// changes, so that a plan that breaks a rule leaves the graph as it was.
#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>
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

}  // namespace

void QueryGraph::check_edges(std::size_t num_new, NodeId id) const {
    if (num_new > kMost - edges_.size())
        throw PlanError("the graph would have more than " + std::to_string(kMost) + " edges", id);
}

void QueryGraph::check_new(NodeId id, std::size_t num_new) const {
    if (num_new > max_nodes_ - ids_.size())
        throw PlanError("the graph would have " + std::to_string(ids_.size() + num_new) +
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
        const auto found = index_.find(parent);
        if (found == index_.end()) throw_unknown(parent, id);
        above.push_back(found->second);
        depth = std::max(depth, depth_[found->second] + 1);
    }
    check_depth(static_cast<std::size_t>(depth), id);
    auto unique = above;
    std::ranges::sort(unique);
    if (const auto twin = std::ranges::adjacent_find(unique); twin != unique.end())
        throw_twin(ids_[*twin], id);

    const Index node = append(id, cost);
    for (const Index parent : above) link(parent, node);
    depth_[node] = depth;
    num_levels_ = std::max(num_levels_, static_cast<std::size_t>(depth));
    unpropagated_.push_back(node);
    return settle(node);
}

void QueryGraph::add_nodes(std::span<const NodeId> ids, std::span<const std::size_t> offsets,
                           std::span<const NodeId> parents, std::span<const double> costs) {
    const std::size_t num_new = ids.size();
    if (offsets.size() != num_new + 1 || costs.size() != num_new || offsets.front() != 0 ||
        offsets.back() != parents.size() || !std::ranges::is_sorted(offsets))
        throw std::invalid_argument("ids, offsets, parents and costs do not fit each other");
    if (num_new == 0) return;
    check_edges(parents.size(), ids.front());

    std::unordered_map<NodeId, Index> fresh;
    fresh.reserve(num_new);
    for (std::size_t i = 0; i < num_new; ++i) {
        check_new(ids[i], num_new);
        check_cost(costs[i], ids[i]);
        if (!fresh.emplace(ids[i], static_cast<Index>(i)).second)
            throw PlanError(node_name(ids[i]) + " is given twice", ids[i]);
    }
    const auto parents_of = [&](std::size_t i) {
        return parents.subspan(offsets[i], offsets[i + 1] - offsets[i]);
    };
    std::vector<Index> num_before(num_new, 0), depth(num_new, 1);
    std::vector<std::size_t> child_begin(num_new + 1, 0);  // compressed adjacency of the new nodes
    std::vector<Index> last_child(ids_.size() + num_new, kNone);  // of each old, then new, parent
    for (std::size_t i = 0; i < num_new; ++i) {
        for (const NodeId parent : parents_of(i)) {
            std::size_t at;
            if (const auto old = index_.find(parent); old != index_.end()) {
                at = static_cast<std::size_t>(old->second);
                depth[i] = std::max(depth[i], depth_[at] + 1);
            } else if (const auto found = fresh.find(parent); found != fresh.end()) {
                at = ids_.size() + static_cast<std::size_t>(found->second);
                ++num_before[i];
                ++child_begin[static_cast<std::size_t>(found->second) + 1];
            } else {
                throw_unknown(parent, ids[i]);
            }
            if (std::exchange(last_child[at], static_cast<Index>(i)) == static_cast<Index>(i))
                throw_twin(parent, ids[i]);
        }
    }
    std::partial_sum(child_begin.begin(), child_begin.end(), child_begin.begin());
    std::vector<Index> child_list(child_begin.back());
    auto fill = child_begin;
    for (std::size_t i = 0; i < num_new; ++i)
        for (const NodeId parent : parents_of(i))
            if (const auto found = fresh.find(parent); found != fresh.end())
                child_list[fill[static_cast<std::size_t>(found->second)]++] = static_cast<Index>(i);

    // Kahn, "Topological sorting of large networks" (1962): what never gets free holds a cycle.
    std::vector<Index> order;
    order.reserve(num_new);
    for (std::size_t i = 0; i < num_new; ++i)
        if (num_before[i] == 0) order.push_back(static_cast<Index>(i));
    for (std::size_t at = 0; at < order.size(); ++at) {
        const auto node = static_cast<std::size_t>(order[at]);
        check_depth(static_cast<std::size_t>(depth[node]), ids[node]);
        for (std::size_t e = child_begin[node]; e < child_begin[node + 1]; ++e) {
            const Index child = child_list[e];
            depth[child] = std::max(depth[child], depth[node] + 1);
            if (--num_before[child] == 0) order.push_back(child);
        }
    }
    if (order.size() < num_new) {
        // Every node left has a parent left: walking up must come round.
        std::vector<Index> step_of(num_new, kNone), walk;
        auto node = static_cast<Index>(
            std::ranges::find_if(num_before, [](Index n) { return n > 0; }) - num_before.begin());
        while (step_of[node] == kNone) {
            step_of[node] = static_cast<Index>(walk.size());
            walk.push_back(node);
            for (const NodeId parent : parents_of(static_cast<std::size_t>(node)))
                if (const auto found = fresh.find(parent);
                    found != fresh.end() && num_before[found->second] > 0) {
                    node = found->second;
                    break;
                }
        }
        std::vector<NodeId> cycle;
        for (std::size_t i = walk.size(); i > static_cast<std::size_t>(step_of[node]); --i)
            cycle.push_back(ids[walk[i - 1]]);
        throw_cycle(std::move(cycle));
    }

    index_.reserve(ids_.size() + num_new);
    for (const Index i : order) {
        const Index node = append(ids[i], costs[i]);
        for (const NodeId parent : parents_of(static_cast<std::size_t>(i)))
            link(index_.find(parent)->second, node);
        depth_[node] = depth[i];
        num_levels_ = std::max(num_levels_, static_cast<std::size_t>(depth[i]));
        unpropagated_.push_back(node);
        settle(node);
    }
}

void QueryGraph::add_edge(NodeId parent_id, NodeId child_id) {
    const Index parent = index(parent_id), child = index(child_id);
    if (state_[child] != NodeState::waiting && state_[child] != NodeState::ready)
        throw std::logic_error(node_name(child_id) + " is " + name_of(state_[child]) +
                               ": a new parent comes too late");
    for (Index e = first_parent_[child]; e != kNone; e = edges_[e].next_of_child)
        if (edges_[e].parent == parent) throw_twin(parent_id, child_id);
    check_edges(1, child_id);
    check_acyclic(parent, child);
    const auto deeper = deepened(parent, child);

    for (const auto& [node, depth] : deeper) {
        depth_[node] = depth;
        num_levels_ = std::max(num_levels_, static_cast<std::size_t>(depth));
    }
    if (state_[child] == NodeState::ready) take_from_ready(child);
    state_[child] = NodeState::waiting;
    link(parent, child);
    unpropagated_.push_back(child);
    settle(child);
}

// A path from the child up to the parent would close a cycle. Depth rises along every path, so the
// search never needs to go deeper than the parent, and a child below it already needs none.
void QueryGraph::check_acyclic(Index parent, Index child) const {
    if (parent == child) throw_cycle({ids_[child]});
    if (depth_[child] >= depth_[parent]) return;
    std::unordered_map<Index, Index> from{{child, kNone}};
    std::vector<Index> stack{child};
    while (!stack.empty()) {
        const Index node = stack.back();
        stack.pop_back();
        for (Index e = first_child_[node]; e != kNone; e = edges_[e].next_of_parent) {
            const Index next = edges_[e].child;
            if (next == parent) {
                std::vector<NodeId> cycle{ids_[parent]};
                for (Index at = node; at != kNone; at = from.at(at)) cycle.push_back(ids_[at]);
                std::ranges::reverse(cycle);
                throw_cycle(std::move(cycle));
            }
            if (depth_[next] < depth_[parent] && from.emplace(next, node).second)
                stack.push_back(next);
        }
    }
}

// The nodes that an edge pushes deeper, with their new depths. The old depth is a topological order
// of what lies below the child, so that each node is settled in one visit.
std::vector<std::pair<QueryGraph::Index, QueryGraph::Index>> QueryGraph::deepened(
    Index parent, Index child) const {
    std::vector<std::pair<Index, Index>> result;
    if (depth_[child] > depth_[parent]) return result;
    std::unordered_map<Index, Index> depth{{child, depth_[parent] + 1}};
    using Entry = std::pair<Index, Index>;  // old depth, node
    std::priority_queue<Entry, std::vector<Entry>, std::greater<>> queue;
    queue.emplace(depth_[child], child);
    while (!queue.empty()) {
        const Index node = queue.top().second;
        queue.pop();
        const Index now = depth.at(node);
        check_depth(static_cast<std::size_t>(now), ids_[node]);
        result.emplace_back(node, now);
        for (Index e = first_child_[node]; e != kNone; e = edges_[e].next_of_parent) {
            const Index next = edges_[e].child;
            if (now + 1 <= depth_[next]) continue;
            const auto [known, is_new] = depth.emplace(next, now + 1);
            if (is_new)
                queue.emplace(depth_[next], next);
            else
                known->second = std::max(known->second, now + 1);
        }
    }
    return result;
}

QueryGraph::Index QueryGraph::append(NodeId id, double cost) {
    const auto node = static_cast<Index>(ids_.size());
    index_.emplace(id, node);
    ids_.push_back(id);
    state_.push_back(NodeState::waiting);
    cost_.push_back(cost);
    remaining_.push_back(cost);
    depth_.push_back(1);
    num_pending_.push_back(0);
    first_child_.push_back(kNone);
    first_parent_.push_back(kNone);
    ready_position_.push_back(kNone);
    is_queued_.push_back(false);
    ++num_unfinished_;
    remaining_work_ += cost;
    return node;
}

void QueryGraph::link(Index parent, Index child) {
    const auto edge = static_cast<Index>(edges_.size());
    edges_.push_back({parent, child, first_child_[parent], first_parent_[child]});
    first_child_[parent] = edge;
    first_parent_[child] = edge;
    if (state_[parent] != NodeState::done) ++num_pending_[child];
}

// Gives a node that got its parents its state; true when that is ready.
bool QueryGraph::settle(Index node) {
    for (Index e = first_parent_[node]; e != kNone; e = edges_[e].next_of_child) {
        const NodeState above = state_[edges_[e].parent];
        if (above != NodeState::failed && above != NodeState::skipped) continue;
        end(node, NodeState::skipped);
        // Only a late edge finds descendants here; a new node has none.
        std::vector<Index> stack{node};
        while (!stack.empty()) {
            const Index at = stack.back();
            stack.pop_back();
            for (Index c = first_child_[at]; c != kNone; c = edges_[c].next_of_parent)
                if (const Index child = edges_[c].child; state_[child] == NodeState::waiting) {
                    end(child, NodeState::skipped);
                    stack.push_back(child);
                }
        }
        return false;
    }
    if (num_pending_[node] > 0) return false;
    set_ready(node);
    return true;
}

}  // namespace compllm
