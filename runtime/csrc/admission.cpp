#include "admission.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <utility>

namespace compllm {
namespace {

// The low bits of a ticket name a slot, the high bits count arrivals: a slot is used again, a
// ticket never, and tickets sort by arrival.
constexpr int kSlotBits = 24;
constexpr std::size_t kMaxSlots = std::size_t{1} << kSlotBits;

std::size_t slot_of(Ticket ticket) { return static_cast<std::size_t>(ticket) & (kMaxSlots - 1); }

}  // namespace

AdmissionQueue::AdmissionQueue(std::vector<std::size_t> limits, Policy policy,
                               std::size_t max_waiting)
    : policy_(policy), max_waiting_(max_waiting) {
    if (limits.empty()) throw std::invalid_argument("an admission queue needs an engine");
    if (max_waiting > kMaxSlots)
        throw std::invalid_argument("max_waiting is " + std::to_string(max_waiting) + ", at most " +
                                    std::to_string(kMaxSlots) + " can wait");
    for (const std::size_t limit : limits) {
        if (limit == 0) throw std::invalid_argument("an engine with limit 0 would never answer");
        engines_.push_back({limit, 0, 0, {}});
    }
}

const AdmissionQueue::Engine& AdmissionQueue::at(std::size_t engine) const {
    if (engine >= engines_.size())
        throw std::out_of_range("there is no engine " + std::to_string(engine) + " among " +
                                std::to_string(engines_.size()));
    return engines_[engine];
}

AdmissionQueue::Engine& AdmissionQueue::at(std::size_t engine) {
    return const_cast<Engine&>(std::as_const(*this).at(engine));
}

std::optional<Ticket> AdmissionQueue::enter(const Request& request, std::size_t engine) {
    Engine& queue = at(engine);
    const Key key = key_of(request);
    if (queue.num_in_flight < queue.limit) {
        ++queue.num_in_flight;
        return std::nullopt;
    }
    if (num_waiting_ >= max_waiting_)
        throw QueueFull(std::to_string(num_waiting_) + " requests wait already, " +
                        std::to_string(max_waiting_) + " may: try again later");
    return push(key, engine);
}

std::optional<Ticket> AdmissionQueue::release(std::size_t engine) {
    Engine& queue = at(engine);
    if (queue.num_in_flight == 0)
        throw std::logic_error("engine " + std::to_string(engine) + " has nothing in flight");
    if (queue.num_waiting > 0) return pop(queue);
    --queue.num_in_flight;
    return std::nullopt;
}

AdmissionQueue::Key AdmissionQueue::key_of(const Request& request) const {
    // A NaN in a key would break the order of the whole heap.
    if (!std::isfinite(request.remaining_path) || !std::isfinite(request.remaining_work))
        throw std::invalid_argument("node " + std::to_string(request.node_id) +
                                    " has a remaining path or work that is not finite");
    const auto query = static_cast<double>(request.query_seq);
    const auto node = static_cast<double>(request.node_id);
    switch (policy_) {
        case Policy::fifo:
            return {};
        case Policy::deepest_first:
            return {-request.remaining_path, query, node};
        case Policy::least_remaining_work:
            return {request.remaining_work, query, -request.remaining_path};
        case Policy::oldest_query_first:
            break;
    }
    return {query, -request.remaining_path, node};
}

Ticket AdmissionQueue::push(const Key& key, std::size_t engine) {
    if (free_.empty()) {
        free_.push_back(static_cast<Slot>(entries_.size()));
        entries_.emplace_back();
    }
    const Slot slot = free_.back();
    free_.pop_back();
    const auto ticket = static_cast<Ticket>((num_arrivals_++ << kSlotBits) | slot);
    entries_[slot] = {ticket, static_cast<std::uint32_t>(engine), key};

    Engine& queue = engines_[engine];
    queue.heap.push_back({key, ticket});
    std::push_heap(queue.heap.begin(), queue.heap.end(), std::greater<>{});
    ++queue.num_waiting;
    ++num_waiting_;
    return ticket;
}

Ticket AdmissionQueue::pop(Engine& engine) {
    while (true) {
        std::pop_heap(engine.heap.begin(), engine.heap.end(), std::greater<>{});
        const Ticket ticket = engine.heap.back().ticket;
        engine.heap.pop_back();
        if (!is_waiting(ticket)) continue;  // cancelled
        remove(static_cast<Slot>(slot_of(ticket)));
        return ticket;
    }
}

bool AdmissionQueue::is_waiting(Ticket ticket) const {
    return ticket >= 0 && slot_of(ticket) < entries_.size() &&
           entries_[slot_of(ticket)].ticket == ticket;
}

// Frees the slot; its item stays in the heap and is passed over there.
void AdmissionQueue::remove(Slot slot) {
    Entry& entry = entries_[slot];
    --engines_[entry.engine].num_waiting;
    --num_waiting_;
    entry = Entry{};
    free_.push_back(slot);
}

// Cancelled items may be half of a heap before they are thrown out: constant cost for each.
void AdmissionQueue::sweep(Engine& engine) {
    if (engine.heap.size() < 64 || engine.heap.size() < 2 * engine.num_waiting) return;
    std::erase_if(engine.heap, [this](const Item& item) { return !is_waiting(item.ticket); });
    std::make_heap(engine.heap.begin(), engine.heap.end(), std::greater<>{});
}

bool AdmissionQueue::cancel(Ticket ticket) {
    if (!is_waiting(ticket)) return false;
    const auto slot = static_cast<Slot>(slot_of(ticket));
    Engine& engine = engines_[entries_[slot].engine];
    remove(slot);
    sweep(engine);
    return true;
}

std::optional<Ticket> AdmissionQueue::promote(Ticket ticket, const Request& request) {
    if (policy_ != Policy::oldest_query_first && policy_ != Policy::deepest_first)
        return std::nullopt;
    if (!is_waiting(ticket)) return std::nullopt;
    const Entry& entry = entries_[slot_of(ticket)];
    const Key key = key_of(request);
    if (!(key < entry.key)) return std::nullopt;
    const std::size_t engine = entry.engine;
    cancel(ticket);
    return push(key, engine);  // the engine is as full as it was
}

}  // namespace compllm
