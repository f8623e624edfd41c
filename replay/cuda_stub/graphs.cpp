// Capture into CUDA graphs: a flag and a number for each stream, and graphs with nothing in them.
#include "device.h"

namespace {

struct Graph {};

thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

}  // namespace

using namespace cuda_stub;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode) {
  CUDA_STUB_ENTER();
  Stream* const found = stream_of(stream);
  if (found == nullptr) return result(cudaErrorInvalidResourceHandle);
  if (found->number == 0) return result(cudaErrorStreamCaptureUnsupported);
  if (found->capture != 0) return result(cudaErrorIllegalState);
  static unsigned long long last_capture = 0;
  found->capture = ++last_capture;
  found->is_origin = true;
  found->graph = reinterpret_cast<cudaGraph_t>(new Graph);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  CUDA_STUB_ENTER();
  *graph = nullptr;
  Stream* const found = stream_of(stream);
  if (found == nullptr) return result(cudaErrorInvalidResourceHandle);
  if (!found->is_origin) return result(cudaErrorIllegalState);
  const unsigned long long capture = found->capture;
  *graph = found->graph;
  for_each_stream([&](Stream& one) {
    if (one.capture != capture) return;
    one.capture = 0;
    one.is_origin = false;
    one.graph = nullptr;
  });
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus* status) {
  CUDA_STUB_ENTER();
  const Stream* const found = stream_of(stream);
  if (found == nullptr) return result(cudaErrorInvalidResourceHandle);
  *status = found->capture != 0 ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count) {
  CUDA_STUB_ENTER();
  const Stream* const found = stream_of(stream);
  if (found == nullptr) return result(cudaErrorInvalidResourceHandle);
  *status = found->capture != 0 ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  if (id != nullptr) *id = found->capture;
  if (graph != nullptr) *graph = found->graph;
  if (dependencies != nullptr) *dependencies = nullptr;
  if (edges != nullptr) *edges = nullptr;
  if (count != nullptr) *count = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t, cudaGraphNode_t*,
                                                const cudaGraphEdgeData*, size_t, unsigned) {
  CUDA_STUB_COUNT();
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode* mode) {
  CUDA_STUB_COUNT();
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) {
  CUDA_STUB_COUNT();
  *graph = reinterpret_cast<cudaGraph_t>(new Graph);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  CUDA_STUB_COUNT();
  delete reinterpret_cast<Graph*>(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* count) {
  CUDA_STUB_COUNT();
  *count = 0;
  return cudaSuccess;
}

cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t, cudaGraphNode_t*, cudaGraphEdgeData*,
                                         size_t* count) {
  CUDA_STUB_COUNT();
  *count = 0;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t, unsigned long long) {
  CUDA_STUB_COUNT();
  *made = reinterpret_cast<cudaGraphExec_t>(new Graph);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph,
                                          unsigned long long flags) {
  CUDA_STUB_COUNT();
  return cudaGraphInstantiate(made, graph, flags);
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
  CUDA_STUB_COUNT();
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t stream) {
  CUDA_STUB_ENTER();
  Stream* const found = stream_of(stream);
  if (found == nullptr) return result(cudaErrorInvalidResourceHandle);
  submit(*found, {});
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t made) {
  CUDA_STUB_COUNT();
  delete reinterpret_cast<Graph*>(made);
  return cudaSuccess;
}

}  // extern "C"
