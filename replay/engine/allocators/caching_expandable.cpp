// Expandable segments: ranges of addresses that are given memory page by page.
#include <algorithm>

#include "allocators/caching.h"

namespace workbench::caching {

Block* Caching::grow_segment(Lane& lane, Bytes size) {
  Block* block = find_run(lane, size);
  if (block == nullptr) return nullptr;
  if (!block->mapped) {
    block = map_pages(*block, std::min(block->size, size));
  }
  while (block != nullptr && block->size < size) {
    if (block->after == nullptr) return nullptr;
    block = map_pages(*block->after, std::min(block->after->size, size - block->size));
  }
  if (block != nullptr) lane.free.remove(*block);
  return block;
}

Block* Caching::find_run(Lane& lane, Bytes size) {
  const auto room_from = [size](Block* block) {
    Bytes room = 0;
    for (; block != nullptr && block->is_free() && room < size; block = block->after) {
      room += block->size;
    }
    return room;
  };
  Block* block = lane.unmapped == nullptr ? nullptr : UnmappedTree::first(lane.unmapped);
  for (; block != nullptr; block = UnmappedTree::next(*block)) {
    Block* const start =
        block->before != nullptr && block->before->is_free() ? block->before : block;
    if (room_from(start) >= size) return start;
  }
  const Bytes page = page_of(lane);
  // Nine eighths of the device, in whole pages.
  const Bytes total = backend_.total();
  const Bytes range = round_up(total + total / 8 + (total % 8 == 0 ? 0 : 1), page);
  // A request beyond the device is not refused before it has a range: no memory comes behind it,
  // but it stays for those to come. Where there is no limit, nothing that large is served.
  if (range < size && backend_.capacity() == kUnlimited) return nullptr;
  const std::uint64_t address = backend_.reserve(range, page);
  if (address == 0) return nullptr;
  Block& whole = *add_segment(lane, address, range, true).first;
  whole.mapped = false;
  UnmappedTree::add(lane.unmapped, whole);
  return &whole;
}

Block* Caching::map_pages(Block& unmapped, Bytes size) {
  Segment& segment = *unmapped.segment;
  Lane& lane = *segment.lane;
  const Bytes bytes = round_up(size, page_of(lane));
  if (!backend_.map(unmapped.address, bytes)) return nullptr;
  write_journal(Action::kSegmentMap, unmapped.address, bytes, lane.stream, lane.private_number());
  UnmappedTree::remove(lane.unmapped, unmapped);
  if (bytes < unmapped.size) UnmappedTree::add(lane.unmapped, cut(unmapped, bytes));
  unmapped.mapped = true;
  Block* block = &unmapped;
  if (can_merge(block->before)) {
    block = block->before;
    lane.free.remove(*block);
    absorb_next(*block);
  }
  if (can_merge(block->after)) {
    lane.free.remove(*block->after);
    absorb_next(*block);
  }
  add_to_free(*block);
  segment.mapped += bytes;
  add_reserved(lane, bytes);
  ++shared_.device_allocs;
  return block;
}

void Caching::unmap_pages(Block& free_block) {
  Segment& segment = *free_block.segment;
  Lane& lane = *segment.lane;
  const Bytes page = page_of(lane);
  const auto offset = static_cast<Bytes>(free_block.position - segment.position);
  const Bytes begin = round_up(offset, page);
  const Bytes end = (offset + free_block.size) / page * page;
  if (begin >= end) return;
  lane.free.remove(free_block);
  Block* block = &free_block;
  if (begin > offset) {
    block = &cut(free_block, begin - offset);
    add_to_free(free_block);
  }
  if (block->size > end - begin) add_to_free(cut(*block, end - begin));
  backend_.unmap(block->address, block->size);
  segment.mapped -= block->size;
  remove_reserved(lane, block->size);
  ++shared_.device_frees;
  write_journal(Action::kSegmentUnmap, block->address, block->size, lane.stream,
                lane.private_number());
  block->mapped = false;
  if (block->after != nullptr && !block->after->mapped) {
    UnmappedTree::remove(lane.unmapped, *block->after);
    absorb_next(*block);
  }
  if (block->before != nullptr && !block->before->mapped) {
    block = block->before;
    UnmappedTree::remove(lane.unmapped, *block);
    absorb_next(*block);
  }
  if (block->is_split()) {
    UnmappedTree::add(lane.unmapped, *block);
  } else {
    backend_.unreserve(segment.address, segment.size);
    remove_segment(segment);
  }
}

void Caching::give_back_mapped(const Segment& segment) {
  const Block* block = segment.first;
  while (block != nullptr) {
    if (!block->mapped) {
      block = block->after;
      continue;
    }
    const std::uint64_t address = block->address;
    Bytes bytes = 0;
    for (; block != nullptr && block->mapped; block = block->after) bytes += block->size;
    backend_.unmap(address, bytes);
  }
}

}  // namespace workbench::caching
