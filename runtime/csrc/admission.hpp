// The admission queue: which waiting request of all live queries goes to an engine next.
//
// Engine requests carry no priority, so the order under load is made here, before the engine.
// Engines are numbered from 0; each takes a limited number of requests at a time. All operations
// are O(log n) amortised. No Python here. One thread at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <vector>

namespace compllm {

using Ticket = std::int64_t;

// Ties go to the older query, then the longer remaining path, then the smaller node id; at last,
// and with least_remaining_work instead of the node id, the earlier arrival.
enum class Policy : std::uint8_t {
    // By query, inside a query the longest remaining path first. Only requests of earlier queries
    // overtake a waiting one, so none starves and the order needs no term for age.
    oldest_query_first,
    fifo,                  // by arrival in the queue
    deepest_first,         // longest remaining path of all queries; starves short ones under load
    least_remaining_work,  // the query that has least left to do
};

struct QueueFull : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Request {
    std::int64_t query_seq;  // rises with the arrival of queries
    std::int64_t node_id;
    double remaining_path;  // longest path of costs from the node to a leaf
    double remaining_work;  // costs of all the query's unfinished nodes
};

class AdmissionQueue {
  public:
    // limits[engine]: requests in flight at most. max_waiting: over all engines.
    AdmissionQueue(std::vector<std::size_t> limits, Policy policy, std::size_t max_waiting);

    // Takes a free slot and returns nothing, or joins the queue and returns a ticket. No slot is
    // free while a request waits for it. Throws QueueFull.
    std::optional<Ticket> enter(const Request& request, std::size_t engine);

    // Ends a request that held a slot. Returns the ticket of the next one, which holds it now.
    std::optional<Ticket> release(std::size_t engine);

    bool cancel(Ticket ticket);  // false when the request no longer waits

    // Moves a waiting request forward to the place that `request` would take at the same engine.
    // Returns its new ticket, or nothing when it stays: it no longer waits, or that place is no
    // earlier. Policies that do not order by query or path (fifo, least_remaining_work) move none.
    std::optional<Ticket> promote(Ticket ticket, const Request& request);

    std::size_t num_waiting() const { return num_waiting_; }
    std::size_t num_waiting(std::size_t engine) const { return at(engine).num_waiting; }
    std::size_t num_in_flight(std::size_t engine) const { return at(engine).num_in_flight; }
    std::size_t limit(std::size_t engine) const { return at(engine).limit; }

  private:
    using Slot = std::uint32_t;
    using Key = std::array<double, 3>;

    // What a heap holds: the smallest goes first.
    struct Item {
        Key key;
        Ticket ticket;  // rises with arrival: the last tie-break

        // By hand: the three-way comparison of doubles took twice as long.
        bool operator>(const Item& other) const {
            for (std::size_t i = 0; i < key.size(); ++i)
                if (key[i] != other.key[i]) return key[i] > other.key[i];
            return ticket > other.ticket;
        }
    };

    // A waiting request.
    struct Entry {
        Ticket ticket = -1;  // -1: free
        std::uint32_t engine = 0;
        Key key{};
    };

    struct Engine {
        std::size_t limit = 0, num_in_flight = 0, num_waiting = 0;
        std::vector<Item> heap;  // cancelled ones stay until they come up or are too many
    };

    const Engine& at(std::size_t engine) const;
    Engine& at(std::size_t engine);
    Ticket push(const Key& key, std::size_t engine);
    Ticket pop(Engine& engine);
    Key key_of(const Request& request) const;
    bool is_waiting(Ticket ticket) const;
    void remove(Slot slot);
    void sweep(Engine& engine);

    Policy policy_;
    std::size_t max_waiting_;
    std::size_t num_waiting_ = 0;
    std::uint64_t num_arrivals_ = 0;
    std::vector<Engine> engines_;
    std::vector<Entry> entries_;
    std::vector<Slot> free_;
};

}  // namespace compllm
