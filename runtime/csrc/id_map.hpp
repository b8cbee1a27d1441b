// From ids to dense indices 0, 1, 2, ... in the order they were added.
#pragma once

#include <cstdint>
#include <unordered_map>

namespace compllm {

// Plans number their lines one after another; such ids need no table. The first that is not the
// one after the last, and all that follow it, go into a hash table.
class IdMap {
  public:
    using Index = std::int32_t;
    static constexpr Index kNone = -1;

    Index find(std::int64_t id) const {
        // Unsigned, as the difference of two ids may not fit.
        const auto offset = static_cast<std::uint64_t>(id) - static_cast<std::uint64_t>(first_);
        if (offset < static_cast<std::uint64_t>(num_consecutive_))
            return static_cast<Index>(offset);
        if (rest_.empty()) return kNone;
        const auto found = rest_.find(id);
        return found == rest_.end() ? kNone : found->second;
    }

    bool contains(std::int64_t id) const { return find(id) != kNone; }

    // The id must be new.
    Index add(std::int64_t id) {
        const Index index = num_consecutive_ + static_cast<Index>(rest_.size());
        if (index == 0) first_ = id;
        const auto offset = static_cast<std::uint64_t>(id) - static_cast<std::uint64_t>(first_);
        if (rest_.empty() && offset == static_cast<std::uint64_t>(index))
            ++num_consecutive_;
        else
            rest_.emplace(id, index);
        return index;
    }

  private:
    std::int64_t first_ = 0;
    Index num_consecutive_ = 0;
    std::unordered_map<std::int64_t, Index> rest_;
};

}  // namespace compllm
