// Which work of one stream is known to come after which of another: what CUDA events between them
// have established.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace workbench {

// Streams are numbered from 0 without large gaps; positions are those of the backend's CUDA events
// (StreamProgress), which rise over all streams together.
class StreamOrder {
 public:
  // The position on `on` up to which all work comes before what `stream` is given from now on; 0
  // where nothing is known.
  std::uint64_t after(std::size_t stream, std::size_t on) const {
    return stream < known_.size() && on < known_[stream].size() ? known_[stream][on] : 0;
  }
  // Whether anything is known of `stream`.
  bool knows(std::size_t stream) const { return stream < known_.size() && !known_[stream].empty(); }

  // CUDA event `event` marks what `stream` was given up to `position`, and what came before that.
  void record(std::size_t event, std::size_t stream, std::uint64_t position) {
    if (event >= events_.size()) events_.resize(event + 1);
    events_[event] = clock_of(stream, position);
  }
  // `stream` waits for the event as it was last recorded; for one never recorded there is nothing
  // to wait for.
  void wait(std::size_t event, std::size_t stream) {
    if (event < events_.size()) learn(stream, events_[event]);
  }
  // `stream` waits for all that `on` was given up to `position`.
  void join(std::size_t stream, std::size_t on, std::uint64_t position) {
    learn(stream, clock_of(on, position));
  }
  // Likewise, where what `on` itself had waited for by then is no longer known.
  void join_only(std::size_t stream, std::size_t on, std::uint64_t position) {
    Clock alone(on + 1);
    alone[on] = position;
    learn(stream, alone);
  }

 private:
  using Clock = std::vector<std::uint64_t>;  // by stream

  Clock clock_of(std::size_t stream, std::uint64_t position) const {
    Clock clock = stream < known_.size() ? known_[stream] : Clock();
    if (stream >= clock.size()) clock.resize(stream + 1);
    clock[stream] = position;
    return clock;
  }
  void learn(std::size_t stream, const Clock& clock) {
    if (stream >= known_.size()) known_.resize(stream + 1);
    Clock& mine = known_[stream];
    if (clock.size() > mine.size()) mine.resize(clock.size());
    for (std::size_t on = 0; on < clock.size(); ++on) mine[on] = std::max(mine[on], clock[on]);
  }

  std::vector<Clock> known_;   // by stream
  std::vector<Clock> events_;  // by number
};

}  // namespace workbench
