// Columns of numbers between Python and the engine.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace workbench {

namespace nb = nanobind;

template <class T>
using Column = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
std::span<const T> view(const Column<T>& column) {
  return {column.data(), column.size()};
}

// A numpy array that owns `values`.
template <class T>
nb::object numpy(std::vector<T> values) {
  auto owned = std::make_unique<std::vector<T>>(std::move(values));
  T* const data = owned->data();
  const std::size_t size = owned->size();
  nb::capsule owner(owned.release(),
                    [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(data, {size}, owner));
}

// A numpy array of `get(row)` for each row.
template <class Rows, class Get>
nb::object numpy_of(const Rows& rows, Get&& get) {
  std::vector<decltype(get(*rows.begin()))> values;
  values.reserve(rows.size());
  for (const auto& row : rows) values.push_back(get(row));
  return numpy(std::move(values));
}

}  // namespace workbench
