// The driver's library, libcuda.so.1, which torch's lazy parts and Triton ask for by name. It rests on runtime.c.
#include "nullgpu.h"

int cudaDeviceGetAttributeOf(int*, int, int) __asm__("cudaDeviceGetAttribute");  // both have the same numbers
int nullgpu_context(int device);

static void* current = (void*)0x10;
API int cuDriverGetVersion(int* v) { return cudaDriverGetVersion(v); }
API int cuDeviceGet(int* d, int number) {
  *d = number;
  return 0;
}
API int cuDeviceGetCount(int* n) { return cudaGetDeviceCount(n); }
API int cuDeviceGetName(char* s, int n, int d) { return snprintf(s, n, "Null GPU") < 0; }
API int cuDeviceGetUuid(void* u, int d) {
  memset(u, d + 1, 16);
  return 0;
}
API int cuDeviceGetAttribute(int* v, int attribute, int d) { return cudaDeviceGetAttributeOf(v, attribute, d); }
API int cuDevicePrimaryCtxGetState(int d, unsigned* flags, int* active) {
  *flags = 0;
  *active = nullgpu_context(d);
  return 0;
}
API int cuDevicePrimaryCtxRetain(void** c, int d) {
  *c = (void*)(uintptr_t)(0x10 + d);
  return 0;
}
API int cuCtxGetCurrent(void** c) {
  *c = current;
  return 0;
}
API int cuCtxSetCurrent(void* c) {
  current = c;
  return 0;
}
API int cuCtxGetDevice(int* d) { return cudaGetDevice(d); }
API int cuCtxGetLimit(size_t* v, int limit) {
  *v = 1 << 20;
  return 0;
}
API int cuGetErrorString(int e, const char** s) {
  *s = "null CUDA";
  return 0;
}
API int cuGetErrorName(int e, const char** s) { return cuGetErrorString(e, s); }
API int cuPointerGetAttribute(void* v, int attribute, uint64_t p) {
  enum { MEMORY_TYPE = 2, DEVICE_ORDINAL = 9, ON_DEVICE = 2 };
  if (attribute == MEMORY_TYPE)
    *(int*)v = ON_DEVICE;
  else if (attribute == DEVICE_ORDINAL)
    *(int*)v = 0;
  else
    *(uint64_t*)v = p;
  return 0;
}
API int cuMemGetAddressRange_v2(uint64_t* begin, size_t* n, uint64_t p) {
  *begin = p;
  *n = 1 << 20;
  return 0;
}

// Modules and kernels
API int cuModuleLoadData(void** m, const void* image) {
  *m = new_handle();
  return 0;
}
API int cuModuleLoadDataEx(void** m, const void* image, unsigned n, void* options, void** values) {
  return cuModuleLoadData(m, image);
}
API int cuModuleLoad(void** m, const char* path) { return cuModuleLoadData(m, path); }
API int cuModuleGetFunction(void** f, void* m, const char* name) { return cuModuleLoadData(f, name); }
API int cuFuncGetAttribute(int* v, int attribute, void* f) {
  enum { MAX_THREADS = 0, REGISTERS = 4 };
  *v = attribute == MAX_THREADS ? 1024 : attribute == REGISTERS ? 32 : 0;
  return 0;
}
typedef struct {
  unsigned grid[3], block[3], shared;
  void* stream;
} Launch;
API int cuLaunchKernel(void* f, int x, int y, int z, int bx, int by, int bz, int shared, void* stream) {
  return enqueue(stream);
}
API int cuLaunchCooperativeKernel(void* f, int x, int y, int z, int bx, int by, int bz, int shared, void* stream) {
  return enqueue(stream);
}
API int cuLaunchKernelEx(const Launch* launch) { return enqueue(launch->stream); }
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void* f, int b, size_t s) {
  *n = 2;
  return 0;
}
API int cuOccupancyMaxActiveClusters(int* n, void* f, void* c) {
  *n = 8;
  return 0;
}

// What does nothing, but must be there where a library is linked with it or looks it up.
#define NONE(name) \
  API int name(void) { return 0; }
NONE(cuInit)
NONE(cuCtxSetLimit)
NONE(cuCtxPopCurrent)
NONE(cuCtxPushCurrent)
NONE(cuModuleUnload)
NONE(cuFuncSetAttribute)
NONE(cuFuncSetCacheConfig)
NONE(cuStreamSynchronize)
NONE(cuStreamWriteValue32)
NONE(cuTensorMapEncodeTiled)
NONE(cuMemsetD32Async)
NONE(cuMemcpyHtoD_v2)
NONE(cuMemAlloc_v2)
