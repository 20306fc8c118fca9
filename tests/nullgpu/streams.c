// Streams, events and graphs. What streams run has happened already, unless a stream is captured: then it is counted.
#include "nullgpu.h"

#include <pthread.h>

typedef struct {
  unsigned long long capture;  // in which it was recorded last; 0: in none
} Event;
typedef struct {
  long nodes;
} Graph;
static void* captured;             // the stream, one at a time; NULL: none
static unsigned long long number;  // of the capture
static Graph* graph;               // that it makes
static int broken;
static __thread int last_error;

static int fail(int error) {
  if (captured) broken = 1;
  return last_error = error;
}
int is_captured(void) { return captured != NULL; }
int enqueue(const void* stream) {
  if (captured && stream != captured) {  // it would run once, now, and be missing in the graph
    fprintf(stderr, "nullgpu: another stream works while one is captured\n");
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  return note(LAUNCH), 0;
}
void add_node(void) { __atomic_fetch_add(&graph->nodes, 1, __ATOMIC_RELAXED); }
int wait_for(const void* stream, int kind) {
  if (captured && (!stream || stream == captured)) return fail(cudaErrorStreamCaptureUnsupported);
  return note(kind), 0;
}
API cudaError_t cudaPeekAtLastError(void) { return last_error; }
API cudaError_t cudaGetLastError(void) {
  int error = last_error;
  last_error = 0;
  return error;
}

// Streams
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int priority) {
  *s = new_handle();
  return cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t s) { return wait_for(s, STREAM_WAIT); }
API cudaError_t cudaDeviceSynchronize(void) { return wait_for(NULL, DEVICE_WAIT); }
API cudaError_t cudaStreamGetPriority(cudaStream_t s, int* p) {
  *p = 0;
  return cudaSuccess;
}

// Events
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
  *e = calloc(1, sizeof(Event));
  return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
API cudaError_t cudaEventDestroy(cudaEvent_t e) {
  free(e);
  return cudaSuccess;
}
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) {
  ((Event*)e)->capture = captured && s == captured ? number : 0;
  return cudaSuccess;
}
API cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return cudaEventRecordWithFlags(e, s, 0); }
API cudaError_t cudaEventQuery(cudaEvent_t e) { return ((Event*)e)->capture ? fail(cudaErrorCapturedEvent) : 0; }
API cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  if (((Event*)e)->capture) return fail(cudaErrorCapturedEvent);
  note(EVENT_WAIT);
  return cudaSuccess;
}
API cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
  *ms = 1;
  return cudaSuccess;
}
API cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) {
  int inside = captured && ((Event*)e)->capture == number;
  if (captured && s == captured && !inside) return fail(cudaErrorStreamCaptureIsolation);
  if (inside && s != captured) return fail(cudaErrorStreamCaptureImplicit);  // here a graph has one stream
  return cudaSuccess;
}

// Graphs
API cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
  if (captured || !s) return fail(cudaErrorStreamCaptureUnsupported);
  captured = s, broken = 0, number++, graph = calloc(1, sizeof(Graph));
  return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* g) {
  int error = s != captured ? cudaErrorIllegalState : broken ? cudaErrorStreamCaptureInvalidated : 0;
  *g = error ? NULL : (void*)graph;
  captured = NULL;
  return last_error = error;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus* c) {
  *c = captured && s == captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
// Defined by another name: its last arguments differ between versions of CUDA.
API int capture_info(void* s, int* status, unsigned long long* id, void** g, ...) __asm__("cudaStreamGetCaptureInfo");
API int capture_info(void* s, int* status, unsigned long long* id, void** g, ...) {
  cudaStreamIsCapturing(s, (enum cudaStreamCaptureStatus*)status);
  if (*status && id) *id = number;
  if (*status && g) *g = graph;
  return cudaSuccess;
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t* nodes, size_t* n) {
  *n = ((Graph*)g)->nodes;
  return cudaSuccess;
}
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* e, cudaGraph_t g, unsigned long long flags) {
  *e = new_handle();
  return cudaSuccess;
}
API cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
  note(REPLAY);
  return enqueue(s);
}
