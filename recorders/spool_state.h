// Where the conversion of a spool stands, so that another process can go on with it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "spool_merge.h"

namespace workbench {

// An allocation that has not been freed, or not completely.
struct Block {
  std::int64_t id;
  std::int64_t size;
  std::int32_t stream;
  std::int32_t pool;
  std::int32_t thread;
  std::uint32_t scope;
  std::uint32_t stack;
  std::uint16_t device;
  bool used_elsewhere;  // on other streams: its free may be completed later
};

struct BlockAt {
  std::uint64_t address;
  Block block;
};

// A record that was taken ahead of its place.
struct TakenRecord {
  std::uint64_t segment;
  std::uint64_t end;

  static TakenRecord Of(const MergedRecord& merged) { return {merged.segment, merged.end}; }
  bool operator==(const TakenRecord&) const = default;
};

struct SpoolState {
  std::vector<SegmentProgress> begun;
  FinishedSegments finished;
  std::vector<std::pair<std::int32_t, std::uint64_t>> threads;
  std::vector<std::uint32_t> scopes;
  std::vector<BlockAt> live;
  std::vector<BlockAt> freed;  // and not yet completed
  std::vector<TakenRecord> taken;
  std::int64_t next_id = 0;
  std::int64_t last_time = 0;
  std::int64_t rows = 0;  // so far
  std::uint64_t unmatched_frees = 0;
  std::uint64_t reused_addresses = 0;
  std::int32_t step = 0;
  std::uint8_t phase = 0;

  std::string ToBytes() const;
  // Throws std::invalid_argument where the bytes are not what ToBytes gave.
  static SpoolState FromBytes(std::string_view bytes);
};

}  // namespace workbench
