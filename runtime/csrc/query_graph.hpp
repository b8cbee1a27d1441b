// The query graph: a DAG of sub-queries that grows while its nodes run.
//
// Nodes are known outside by any integer id and inside by a dense index. Edges live in one flat
// array, linked twice: as the children of their parent and as the parents of their child. No
// Python here: the live runtime, the offline replay and the simulator share it. One thread at a
// time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "id_map.hpp"

namespace compllm {

using NodeId = std::int64_t;

// A plan breaks a rule: duplicate node or parent, too many nodes, too deep. `node` is the culprit.
struct PlanError : std::invalid_argument {
    PlanError(const std::string& message, NodeId node)
        : std::invalid_argument(message), node(node) {}
    NodeId node;
};

struct UnknownNodeError : std::out_of_range {
    UnknownNodeError(const std::string& message, NodeId node)
        : std::out_of_range(message), node(node) {}
    NodeId node;
};

// `nodes`: each is a parent of the next, and the last one of the first.
struct CycleError : std::invalid_argument {
    CycleError(const std::string& message, std::vector<NodeId> nodes)
        : std::invalid_argument(message), nodes(std::move(nodes)) {}
    std::vector<NodeId> nodes;
};

enum class NodeState : std::uint8_t { waiting, ready, running, done };

const char* name_of(NodeState state);

// What the shape of the graph allows, whatever the machine.
struct StructuralBound {
    std::size_t num_nodes;
    std::size_t depth;    // nodes on the longest path
    double total_cost;    // one after another
    double longest_path;  // all that can run together does
};

class QueryGraph {
  public:
    QueryGraph(std::size_t max_nodes, std::size_t max_depth);

    // Adds one node below existing parents; true when it can start at once. Costs are non-negative,
    // in any one unit. An error changes nothing, here as in add_nodes.
    bool add_node(NodeId id, std::span<const NodeId> parents, double cost);

    // Adds many nodes in any order; the parents of ids[i] are
    // parents[offsets[i]] .. parents[offsets[i + 1] - 1], among the old and the new nodes.
    void add_nodes(std::span<const NodeId> ids, std::span<const std::size_t> offsets,
                   std::span<const NodeId> parents, std::span<const double> costs);

    void start(NodeId id);                // ready -> running
    std::vector<NodeId> done(NodeId id);  // ready or running -> done; the ids it made ready
    std::vector<NodeId> ready() const;    // ascending ids, like every list of ids below
    NodeState state(NodeId id) const { return nodes_[index(id)].state; }

    std::size_t size() const { return nodes_.size(); }
    bool is_finished() const { return num_unfinished_ == 0; }  // all nodes so far are done
    double remaining_work() const { return num_unfinished_ == 0 ? 0.0 : remaining_work_; }

    // Longest path of costs from the node to a leaf, its own cost included.
    double remaining_path(NodeId id);

    std::size_t depth() const { return num_levels_; }
    std::vector<std::vector<NodeId>> levels() const;  // by depth
    std::vector<NodeId> children(NodeId id) const;
    std::vector<NodeId> ancestors(NodeId id) const;
    std::vector<NodeId> leaves() const;

    // `costs[i]` is that of `ids[i]`, whatever the node was added with; a node not named costs
    // nothing.
    StructuralBound bound(std::span<const NodeId> ids, std::span<const double> costs) const;

  private:
    using Index = IdMap::Index;
    static constexpr Index kNone = IdMap::kNone;
    static constexpr auto kMost = static_cast<std::size_t>(std::numeric_limits<Index>::max());

    // One record: what an event touches of a node lies in one cache line.
    struct Node {
        NodeId id;
        double cost;
        double remaining;       // longest path of costs to a leaf, up to date but for unpropagated_
        Index depth;            // 1 without parents
        Index num_pending = 0;  // parents that are not done
        Index first_child = kNone, first_parent = kNone;  // edges
        Index ready_position = kNone;
        NodeState state = NodeState::waiting;
        bool is_queued = false;  // scratch of raise_paths
    };

    struct Edge {
        Index parent, child;
        Index next_of_parent, next_of_child;
    };

    static void check_cost(double cost, NodeId id);
    Index index(NodeId id) const;
    void check_edges(std::size_t num_new, NodeId id) const;
    void check_new(NodeId id, std::size_t num_new) const;
    void check_depth(std::size_t depth, NodeId id) const;
    Index append(NodeId id, double cost, Index depth);
    void link(Index parent, Index child);
    bool make_ready_if_free(Index node);
    void set_ready(Index node);
    void take_from_ready(Index node);
    void raise_paths();
    std::vector<Index> by_depth() const;
    std::vector<NodeId> sorted_ids(std::vector<Index> nodes) const;

    std::size_t max_nodes_, max_depth_;
    IdMap index_;
    std::vector<Node> nodes_;
    std::vector<Edge> edges_;
    std::vector<Index> ready_;         // unordered; Node::ready_position points into it
    std::vector<Index> unpropagated_;  // Node::remaining may be too small above these
    std::size_t num_levels_ = 0, num_unfinished_ = 0;  // unfinished: waiting, ready or running
    double remaining_work_ = 0.0;
};

}  // namespace compllm
