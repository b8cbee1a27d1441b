#include "simulator.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <queue>
#include <stdexcept>
#include <string>
#include <unordered_map>

namespace compllm {
namespace {

// As in pipeline.py: the whole query waits for these two requests.
constexpr double kWholePath = 1e9;
// The live runtime does not know either how long a response will be.
constexpr double kNodeCost = 1.0;
constexpr std::int64_t kPlanNode = 0, kAnswerNode = -1;

constexpr std::size_t kMostWaiting = std::size_t{1} << 24;
constexpr std::size_t kQueriesPerPoll = 4096;

// Kinds in the order in which they happen at one time; arrivals stand between the first two.
enum class Kind : std::uint8_t { step_end, line, reply, enter, submit, begin };

struct Event {
    double time;
    std::uint64_t order;  // the class of the kind in the high bits, then what came due first
    Kind kind;
    std::uint32_t subject;  // an engine, a query's slot or a request
    std::int32_t detail;    // a node, or the generation of a run

    bool operator>(const Event& other) const {
        return time != other.time ? time > other.time : order > other.order;
    }
};

constexpr std::uint64_t kClass = std::uint64_t{1} << 62;
constexpr std::uint64_t kHost = kClass, kBegin = 2 * kClass;

class Simulation {
  public:
    Simulation(const std::vector<GraphSpec>& graphs, const Setup& setup, const Load& load,
               bool is_traced, const std::function<void()>& poll)
        : graphs_(graphs),
          setup_(setup),
          load_(load),
          is_traced_(is_traced),
          poll_(poll),
          admission_(std::vector<std::size_t>(setup.num_engines, setup.max_in_flight), setup.policy,
                     kMostWaiting),
          engines_(setup.num_engines, SimulatedEngine(setup.engine)),
          generations_(setup.num_engines, 0),
          is_begin_due_(setup.num_engines, false) {
        const std::size_t num_queries = load.arrivals_ms.size();
        result_.latency_ms.resize(num_queries);
        result_.ttft_ms.resize(num_queries);
        result_.wait_ms.resize(num_queries, 0.0);
    }

    Simulated run() {
        while (true) {
            const bool has_arrival = next_query_ < load_.arrivals_ms.size();
            if (events_.empty() && !has_arrival) break;
            if (has_arrival && is_arrival_next()) {
                now_ = load_.arrivals_ms[next_query_];
                if (next_query_ % kQueriesPerPoll == 0 && poll_) poll_();
                arrive();
                continue;
            }
            const Event event = events_.top();
            events_.pop();
            now_ = event.time;
            handle(event);
        }
        for (const SimulatedEngine& engine : engines_) result_.engines.push_back(engine.use());
        return std::move(result_);
    }

  private:
    struct Query {
        std::size_t number = 0;
        const GraphSpec* spec = nullptr;
        const std::int32_t* responses = nullptr;
        std::optional<QueryGraph> graph;
        std::size_t num_lines = 0;           // of the plan that ended
        std::vector<std::uint32_t> waiting;  // its requests in the queue
    };

    struct Live {  // a request
        std::uint32_t query = 0;
        std::int64_t node = 0;
        std::uint32_t engine = 0;
        Ticket ticket = 0;  // while it waits
        double ready_ms = 0.0, admitted_ms = 0.0, first_token_ms = 0.0;
    };

    // ---- events

    bool is_arrival_next() const {
        if (events_.empty()) return true;
        const Event& next = events_.top();
        const double arrival = load_.arrivals_ms[next_query_];
        return arrival < next.time || (arrival == next.time && next.kind != Kind::step_end);
    }

    void due(double time, Kind kind, std::uint32_t subject, std::int32_t detail = 0) {
        events_.push({time, kHost | num_due_++, kind, subject, detail});
    }

    void handle(const Event& event) {
        switch (event.kind) {
            case Kind::step_end:
                // A run that was cut short left its old end behind.
                if (generations_[event.subject] == event.detail) end_step(event.subject);
                return;
            case Kind::line:
                return end_line(event.subject);
            case Kind::reply:
                return end_request(event.subject);
            case Kind::enter:
                return enter(event.subject, event.detail);
            case Kind::submit:
                return submit(event.subject);
            case Kind::begin:
                is_begin_due_[event.subject] = false;
                return begin_step(event.subject);
        }
    }

    // ---- engines

    void schedule_end(std::uint32_t engine) {
        events_.push(
            {engines_[engine].end_ms(), engine, Kind::step_end, engine, ++generations_[engine]});
    }

    void begin_step(std::uint32_t engine) {
        if (engines_[engine].begin(now_)) schedule_end(engine);
    }

    // The next step waits for everything else that happens now: it may bring a request.
    void begin_step_last(std::uint32_t engine) {
        if (is_begin_due_[engine]) return;
        const bool is_last =
            (events_.empty() || events_.top().time > now_) &&
            (next_query_ == load_.arrivals_ms.size() || load_.arrivals_ms[next_query_] > now_);
        if (is_last) return begin_step(engine);
        is_begin_due_[engine] = true;
        events_.push({now_, kBegin | engine, Kind::begin, engine, 0});
    }

    void end_step(std::uint32_t engine) {
        marks_.clear();
        engines_[engine].finish(marks_);
        for (const Mark& mark : marks_) {
            Live& request = requests_[mark.job];
            const double seen_ms = now_ + setup_.host.from_engine_ms;
            request.first_token_ms = mark.first_token_ms + setup_.host.from_engine_ms;
            if (mark.is_last) due(seen_ms, Kind::reply, mark.job);
            if (request.node == kPlanNode)
                due(seen_ms + setup_.host.route_ms, Kind::line, request.query);
        }
        begin_step_last(engine);
    }

    void submit(std::uint32_t id) {
        const Live& request = requests_[id];
        SimulatedEngine& engine = engines_[request.engine];
        if (engine.submit(job_of(id), now_)) schedule_end(request.engine);
        if (!engine.is_running()) begin_step_last(request.engine);
    }

    Job job_of(std::uint32_t id) const {
        const Live& request = requests_[id];
        const Query& query = queries_[request.query];
        const GraphSpec& spec = *query.spec;
        if (request.node == kPlanNode) return {id, spec.plan_prompt_tokens, spec.line_ends};
        const bool is_answer = request.node == kAnswerNode;
        const std::size_t index =
            is_answer ? spec.num_nodes() : static_cast<std::size_t>(request.node - 1);
        std::int64_t prompt = is_answer ? spec.answer_prompt_tokens : spec.prompt_tokens[index];
        for (const std::int64_t parent : is_answer ? spec.leaves : spec.quotes[index])
            prompt += spec.quoted_tokens[parent] + query.responses[parent];
        return {id, prompt, std::span(query.responses + index, 1)};
    }

    // ---- admission

    void enter(std::uint32_t slot, std::int64_t node) {
        Query& query = queries_[slot];
        const std::uint32_t id = new_request();
        requests_[id] = {.query = slot, .node = node, .engine = least_loaded(), .ready_ms = now_};
        const bool is_node = node > 0;
        if (is_node) query.graph->start(node);
        const double path = is_node ? query.graph->remaining_path(node) : kWholePath;
        const double work = is_node ? query.graph->remaining_work() : kWholePath;
        const auto ticket = admission_.enter(
            {static_cast<std::int64_t>(query.number), node, path, work}, requests_[id].engine);
        ++result_.num_requests;
        if (!ticket) return admit(id);
        wait(id, *ticket);
        query.waiting.push_back(id);
        result_.max_waiting = std::max(result_.max_waiting, admission_.num_waiting());
    }

    void wait(std::uint32_t id, Ticket ticket) {
        waiting_.emplace(ticket, id);
        requests_[id].ticket = ticket;
    }

    // A new line is one more below its ancestors: those that wait are worth more now.
    void move_up(Query& query) {
        const auto number = static_cast<std::int64_t>(query.number);
        const double work = query.graph->remaining_work();
        for (const std::uint32_t id : query.waiting) {
            const Live& request = requests_[id];
            if (request.node <= 0) continue;
            const double path = query.graph->remaining_path(request.node);
            const Ticket old = request.ticket;
            const auto ticket = admission_.promote(old, {number, request.node, path, work});
            if (!ticket) continue;
            waiting_.erase(old);
            wait(id, *ticket);
        }
    }

    std::uint32_t least_loaded() const {
        const auto load = [this](std::size_t engine) {
            return admission_.num_in_flight(engine) + admission_.num_waiting(engine);
        };
        std::size_t best = 0;
        for (std::size_t engine = 1; engine < setup_.num_engines; ++engine)
            if (load(engine) < load(best)) best = engine;
        return static_cast<std::uint32_t>(best);
    }

    void admit(std::uint32_t id) {
        Live& request = requests_[id];
        request.admitted_ms = now_;
        const double wait = now_ - request.ready_ms;
        double& longest = result_.wait_ms[queries_[request.query].number];
        longest = std::max(longest, wait);
        result_.total_wait_ms += wait;
        due(now_ + setup_.host.to_engine_ms, Kind::submit, id);
    }

    // ---- the path of a query

    void arrive() {
        const std::uint32_t slot = new_query();
        Query& query = queries_[slot];
        query.number = next_query_;
        query.spec = &graphs_[load_.graphs[next_query_]];
        query.responses = load_.responses.data() + next_response_;
        query.num_lines = 0;
        const std::size_t num_nodes = query.spec->num_nodes();
        query.graph.emplace(num_nodes, num_nodes);
        next_response_ += num_nodes + 1;
        ++next_query_;
        if (!query.spec->line_ends.empty()) return enter(slot, kPlanNode);
        query.num_lines = num_nodes;
        add_all(slot);
    }

    void end_line(std::uint32_t slot) {
        Query& query = queries_[slot];
        const std::size_t num_nodes = query.spec->num_nodes();
        ++query.num_lines;
        if (setup_.is_streamed) {
            const bool is_ready = add_node(query, query.num_lines - 1);
            move_up(query);
            if (is_ready) enter(slot, static_cast<std::int64_t>(query.num_lines));
        } else if (query.num_lines == num_nodes) {
            add_all(slot);
        }
    }

    // Together, as a node may wait for one of a later line where a whole level waits for another.
    void add_all(std::uint32_t slot) {
        Query& query = queries_[slot];
        ids_.clear();
        offsets_.assign(1, 0);
        parents_.clear();
        for (const auto& gates : query.spec->gates) {
            ids_.push_back(static_cast<NodeId>(ids_.size()) + 1);
            for (const std::int64_t gate : gates) parents_.push_back(gate + 1);
            offsets_.push_back(parents_.size());
        }
        costs_.assign(ids_.size(), kNodeCost);
        query.graph->add_nodes(ids_, offsets_, parents_, costs_);
        for (const NodeId node : query.graph->ready()) enter(slot, node);
    }

    bool add_node(Query& query, std::size_t index) {
        parents_.clear();
        for (const std::int64_t gate : query.spec->gates[index]) parents_.push_back(gate + 1);
        return query.graph->add_node(static_cast<NodeId>(index) + 1, parents_, kNodeCost);
    }

    void end_request(std::uint32_t id) {
        const Live request = requests_[id];
        free_requests_.push_back(id);
        if (is_traced_)
            result_.requests.push_back({static_cast<std::int64_t>(queries_[request.query].number),
                                        request.node, request.engine, request.ready_ms,
                                        request.admitted_ms, request.first_token_ms, now_});
        // The slot goes on before the children ask for one, as in the live runtime.
        if (const auto ticket = admission_.release(request.engine)) {
            const auto found = waiting_.find(*ticket);
            const std::uint32_t next = found->second;
            waiting_.erase(found);
            std::erase(queries_[requests_[next].query].waiting, next);
            admit(next);
        }
        if (request.node > 0) return end_node(request);
        if (request.node == kAnswerNode) end_query(request.query, request.first_token_ms);
    }

    void end_node(const Live& request) {
        Query& query = queries_[request.query];
        const double next_ms = now_ + setup_.host.handover_ms;
        for (const NodeId child : query.graph->done(request.node))
            due(next_ms, Kind::enter, request.query, static_cast<std::int32_t>(child));
        const std::size_t num_nodes = query.spec->num_nodes();
        if (query.graph->size() < num_nodes || !query.graph->is_finished()) return;
        if (query.spec->answer_prompt_tokens > 0)
            due(next_ms, Kind::enter, request.query, static_cast<std::int32_t>(kAnswerNode));
        else
            end_query(request.query, now_);
    }

    void end_query(std::uint32_t slot, double first_token_ms) {
        Query& query = queries_[slot];
        const double arrival = load_.arrivals_ms[query.number];
        result_.latency_ms[query.number] = now_ - arrival;
        result_.ttft_ms[query.number] = first_token_ms - arrival;
        result_.end_ms = now_;
        query.graph.reset();
        free_queries_.push_back(slot);
    }

    // ---- places

    std::uint32_t new_query() { return place(queries_, free_queries_); }
    std::uint32_t new_request() { return place(requests_, free_requests_); }

    template <typename T>
    static std::uint32_t place(std::vector<T>& items, std::vector<std::uint32_t>& free) {
        if (free.empty()) {
            free.push_back(static_cast<std::uint32_t>(items.size()));
            items.emplace_back();
        }
        const std::uint32_t index = free.back();
        free.pop_back();
        return index;
    }

    const std::vector<GraphSpec>& graphs_;
    const Setup& setup_;
    const Load& load_;
    const bool is_traced_;
    const std::function<void()>& poll_;
    AdmissionQueue admission_;
    std::vector<SimulatedEngine> engines_;
    std::vector<std::int32_t> generations_;  // of each engine's run
    std::vector<bool> is_begin_due_;
    std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
    std::uint64_t num_due_ = 0;
    double now_ = 0.0;
    std::size_t next_query_ = 0, next_response_ = 0;
    std::vector<Query> queries_;
    std::vector<Live> requests_;
    std::vector<std::uint32_t> free_queries_, free_requests_;
    std::unordered_map<Ticket, std::uint32_t> waiting_;
    std::vector<Mark> marks_;
    std::vector<NodeId> ids_, parents_;  // scratch of add_all and add_node
    std::vector<std::size_t> offsets_;
    std::vector<double> costs_;
    Simulated result_;
};

}  // namespace

Simulated simulate(const std::vector<GraphSpec>& graphs, const Setup& setup, const Load& load,
                   bool is_traced, const std::function<void()>& poll) {
    for (const GraphSpec& graph : graphs) graph.check();
    setup.engine.check();
    setup.host.check();
    if (setup.num_engines == 0)
        throw std::invalid_argument("num_engines is 0: at least 1 is needed");
    load.check(graphs);
    return Simulation(graphs, setup, load, is_traced, poll).run();
}

}  // namespace compllm
