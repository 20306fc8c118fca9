// What the files of the stand-in share: counters, and whose memory an address is.
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))

// What is counted. NAMES in runtime.c has the same order.
enum {
  LAUNCH,
  PINNED_COPY,
  PAGEABLE_TO_GPU,
  PAGEABLE_FROM_GPU,
  STREAM_WAIT,
  DEVICE_WAIT,
  EVENT_WAIT,
  COPY_WAIT,
  COLLECTIVE,
  COMPILATION,
  REPLAY,
  UNKNOWN,
  KINDS
};
enum { PAGE_LOCKED = -1, PAGEABLE = -2 };  // in place of a device's number

API void note(int kind) __asm__("nullgpu_note");
API int enqueue(const void* stream) __asm__("nullgpu_enqueue");  // count a launch, or a node of the captured graph
int wait_for(const void* stream, int kind);                       // count a wait; NULL: for all streams
int is_captured(void);                                            // whether a stream is captured
void add_node(void);                                              // to its graph
int place(const void* address);  // device, PAGE_LOCKED or PAGEABLE
void* new_handle(void);
long setting(const char* name, long otherwise);  // of the environment
