#include "layers/decode/engine.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "layers/decode/compiler.h"

namespace mmfree {

Engine::Engine(const LM& lm, const EngineOptions& options)
    : options_(options), vocab_size_(lm.config().vocab_size), context_(std::numeric_limits<int64_t>::max()) {
  MMFREE_CHECK(UsageError, options.slots > 0 && options.context > 0 && options.chunk > 0 && options.threads >= 0,
               "engine: slots, context and chunk must be positive");
  options_.chunk = std::max(options.chunk, options.slots);
  if (options_.threads == 0) options_.threads = omp_get_max_threads();
  CompiledModel model = compile_decode(lm, options_);
  program_ = std::move(model.program);
  prepare_decode(program_, options_.chunk, options_.slots);
  buffers_ = std::move(model.buffers);
  recurrences_ = std::move(model.recurrences);
  caches_ = std::move(model.caches);
  logits_ = model.logits;
  for (const Tensor& t : buffers_) bytes_ += t.bytes();
  for (const auto& cache : caches_)
    if (!cache->window) context_ = options.context;
  const size_t slots = size_t(options_.slots);
  step_inputs_.reserve(slots);
  positions_.resize(slots), in_call_.resize(slots), spans_.resize(slots), wanted_.resize(slots), done_.resize(slots);
  ids_.resize(size_t(options_.chunk));
}

Engine::~Engine() = default;

Tensor Engine::run(std::span<const EngineInput> inputs) {
  check_inputs(inputs);
  std::fill(done_.begin(), done_.end(), 0);
  int64_t answers = 0;
  for (size_t first = 0; first < inputs.size();) {
    DecodeCall call{ids_.data(), 0, spans_.data(), 0, wanted_.data(), 0, answers, options_.threads};
    for (size_t i = first; i < inputs.size() && call.rows < options_.chunk; ++i) {
      const EngineInput& in = inputs[i];
      const size_t count = std::min(in.ids.size() - done_[i], size_t(options_.chunk - call.rows));
      std::copy_n(in.ids.data() + done_[i], count, ids_.data() + call.rows);
      spans_[size_t(call.span_count++)] = {call.rows, int64_t(count), in.slot, positions_[size_t(in.slot)]};
      call.rows += int64_t(count);
      done_[i] += count;
      if (done_[i] < in.ids.size()) break;
      if (in.logits) wanted_[size_t(call.wanted_count++)] = call.rows - 1;
      first = i + 1;
    }
    compute(call);
    answers += call.wanted_count;
  }
  return logits_.slice(0, answers);
}

void Engine::compute(const DecodeCall& call) {
  for (int64_t s = 0; s < call.span_count && program_.device == Device::cpu; ++s)
    for (const auto& cache : caches_) cache->make_room(call.spans[s].slot, call.spans[s].count);
  run_decode(program_, call);
  for (int64_t s = 0; s < call.span_count; ++s) {
    const auto [row, count, slot, position] = call.spans[s];
    positions_[size_t(slot)] += count;
    for (const auto& cache : caches_) cache->held[size_t(slot)] += count;
  }
}

void Engine::check_inputs(std::span<const EngineInput> inputs) {
  MMFREE_CHECK(UsageError, int64_t(inputs.size()) <= options_.slots, "engine: ", inputs.size(),
               " inputs for an engine of ", options_.slots, " slots");
  std::fill(in_call_.begin(), in_call_.end(), uint8_t(0));
  for (const EngineInput& in : inputs) {
    check_slot(in.slot);
    MMFREE_CHECK(UsageError, !in_call_[size_t(in.slot)], "engine: slot ", in.slot, " comes twice in one call");
    in_call_[size_t(in.slot)] = 1;
    MMFREE_CHECK(UsageError, !in.ids.empty(), "engine: the input for slot ", in.slot, " has no tokens");
    const int64_t room = context_ - positions_[size_t(in.slot)];
    MMFREE_CHECK(UsageError, int64_t(in.ids.size()) <= room, "engine: ", in.ids.size(), " more tokens after ",
                 positions_[size_t(in.slot)], " do not fit in a context of ", context_, "; make the context longer");
    for (int32_t id : in.ids)
      MMFREE_CHECK(DataError, id >= 0 && id < vocab_size_, "engine: token id ", id, " is outside 0..", vocab_size_ - 1,
                   "; was the text made with another tokenizer?");
  }
}

Tensor Engine::prefill(int64_t slot, std::span<const int32_t> ids) {
  const EngineInput input{slot, ids};
  return run({&input, 1});
}

Tensor Engine::step(std::span<const int64_t> slots, std::span<const int32_t> ids) {
  MMFREE_CHECK(UsageError, slots.size() == ids.size() && int64_t(slots.size()) <= options_.slots,
               "engine: ", ids.size(), " tokens for ", slots.size(), " of ", options_.slots, " slots");
  step_inputs_.clear();
  for (size_t i = 0; i < slots.size(); ++i) step_inputs_.push_back({slots[i], ids.subspan(i, 1)});
  return run(step_inputs_);
}

void Engine::check_slot(int64_t slot) const {
  MMFREE_CHECK(UsageError, slot >= 0 && slot < options_.slots, "engine: slot ", slot, " of an engine of ",
               options_.slots, " slots");
}

void Engine::copy(int64_t from, int64_t to) {
  check_slot(from), check_slot(to);
  if (from == to) return;
  const auto copy_row = [&](Tensor& t) { t.slice(to, to + 1).copy_from(t.slice(from, from + 1)); };
  for (const auto& r : recurrences_) copy_row(r->state);
  for (const auto& c : caches_) {
    c->held[size_t(to)] = c->held[size_t(from)];
    copy_row(c->keys), copy_row(c->values);
  }
  positions_[size_t(to)] = positions_[size_t(from)];
}

void Engine::reset(int64_t slot) {
  check_slot(slot);
  for (const auto& r : recurrences_) r->state.slice(slot, slot + 1).fill_zero();
  for (const auto& c : caches_) c->held[size_t(slot)] = 0;
  positions_[size_t(slot)] = 0;
}

SlotState Engine::state(int64_t slot) const {
  check_slot(slot);
  SlotState s{positions_[size_t(slot)], {}};
  for (const auto& r : recurrences_)
    s.tensors.push_back(r->state.slice(slot, slot + 1).to(Device::cpu).clone().reshape({r->width}));
  for (const auto& c : caches_)
    for (Tensor* t : {&c->keys, &c->values}) {
      Tensor seen({c->seen_of(s.position), t->dim(2), t->dim(3)}, DType::f32);
      float* to = seen.mut<float>();
      c->for_seen(slot, s.position, [&](int64_t place, int64_t tokens) {
        const int64_t count = tokens * c->width();
        copy_bytes(to, Device::cpu, c->at(*t, slot) + place * c->width(), t->device(), size_t(count) * sizeof(float));
        to += count;
      });
      s.tensors.push_back(seen);
    }
  return s;
}

void Engine::set_state(int64_t slot, const SlotState& state) {
  check_slot(slot);
  MMFREE_CHECK(DataError, state.position >= 0 && state.position <= context_, "engine: a state after ", state.position,
               " tokens does not fit in a context of ", context_);
  MMFREE_CHECK(DataError, state.tensors.size() == recurrences_.size() + 2 * caches_.size(), "engine: a state of ",
               state.tensors.size(), " tensors is of another model, expected ",
               recurrences_.size() + 2 * caches_.size());
  size_t i = 0;
  const auto check = [&](const Shape& shape) {
    const Tensor& t = state.tensors[i++];
    MMFREE_CHECK(DataError, t.defined() && t.dtype() == DType::f32 && t.shape() == shape, "engine: tensor ", i - 1,
                 " of a state is ", t.describe(), ", expected f32 ", shape);
  };
  for (const auto& r : recurrences_) check({r->width});
  for (const auto& c : caches_)
    for (const Tensor* t : {&c->keys, &c->values}) check({c->seen_of(state.position), t->dim(2), t->dim(3)});
  i = 0;
  for (const auto& r : recurrences_)
    r->state.slice(slot, slot + 1).copy_from(state.tensors[i++].reshape({1, r->width}));
  for (const auto& c : caches_) {
    c->held[size_t(slot)] = c->seen_of(state.position);
    for (Tensor* t : {&c->keys, &c->values}) {
      const float* from = state.tensors[i++].data<float>();
      c->for_seen(slot, state.position, [&](int64_t place, int64_t tokens) {
        const int64_t count = tokens * c->width();
        copy_bytes(c->at(*t, slot) + place * c->width(), t->device(), from, Device::cpu, size_t(count) * sizeof(float));
        from += count;
      });
    }
  }
  positions_[size_t(slot)] = state.position;
}

}  // namespace mmfree
