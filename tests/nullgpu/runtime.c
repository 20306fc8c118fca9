// The CUDA runtime without a GPU: device memory is host memory, copies are memcpy, kernels are counted and do nothing.
#include "nullgpu.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>

enum { MOST_DEVICES = 64, PAGE = 4096 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int device = 0;

// Settings: read at every use, so that processes of one server can differ.
long setting(const char* name, long otherwise) {
  const char* value = getenv(name);
  return value && *value ? atol(value) : otherwise;
}
static int devices(void) { return setting("NULLGPU_DEVICES", 8); }
static int capability(void) { return setting("NULLGPU_CC", 90); }
static size_t total(void) { return (size_t)setting("NULLGPU_GB", 80) << 30; }

// Counters -----------------------------------------------------------------------------------------------------------
static const char* NAMES[] = {"launch",      "pinned_copy", "pageable_to_gpu", "pageable_from_gpu",
                              "stream_wait", "device_wait", "event_wait",      "copy_wait",
                              "collective",  "compilation", "replay",          "unknown"};
static long counts[KINDS];
static int has_context[MOST_DEVICES];
static void (*listener)(const char* kind);

API void nullgpu_listen(void (*function)(const char*)) { listener = function; }
API int nullgpu_context(int number) { return has_context[number]; }
API long nullgpu_count(const char* name) {
  for (int i = 0; i < KINDS; i++)
    if (!strcmp(NAMES[i], name)) return counts[i];
  return -1;
}
void note(int kind) {
  if (kind == LAUNCH && is_captured()) return add_node();
  __atomic_fetch_add(&counts[kind], 1, __ATOMIC_RELAXED);
  if (listener && kind >= PAGEABLE_TO_GPU && kind <= COPY_WAIT) listener(NAMES[kind]);
}
void* new_handle(void) {
  static uintptr_t next = 0x100000;
  return (void*)__atomic_fetch_add(&next, 16, __ATOMIC_RELAXED);
}

// Memory: pages that are taken where they are touched, so 80 GB cost nothing -----------------------------------------
typedef struct {
  char* begin;
  size_t bytes;
  int place;
} Piece;
static Piece* pieces;
static size_t n_pieces, room, held[MOST_DEVICES];

static cudaError_t take(void** address, size_t bytes, int where) {
  size_t whole = bytes ? (bytes + PAGE - 1) & ~(size_t)(PAGE - 1) : PAGE;
  has_context[device] = 1;
  *address = NULL;
  pthread_mutex_lock(&lock);
  if (where < 0 || held[where] + whole <= total()) {
    char* begin = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (begin != MAP_FAILED) {
      if (n_pieces == room) pieces = realloc(pieces, (room = room ? room * 2 : 1024) * sizeof(Piece));
      pieces[n_pieces++] = (Piece){begin, whole, where};
      if (where >= 0) held[where] += whole;
      *address = begin;
    }
  }
  pthread_mutex_unlock(&lock);
  return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}
static cudaError_t give_back(void* address) {
  pthread_mutex_lock(&lock);
  for (size_t i = n_pieces; i-- > 0;)
    if (pieces[i].begin == address) {
      Piece piece = pieces[i];
      pieces[i] = pieces[--n_pieces];
      if (piece.place >= 0) held[piece.place] -= piece.bytes;
      munmap(piece.begin, piece.bytes);
      break;
    }
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}
int place(const void* address) {
  int found = PAGEABLE;
  pthread_mutex_lock(&lock);
  for (size_t i = 0; i < n_pieces && found == PAGEABLE; i++)
    if ((char*)address >= pieces[i].begin && (char*)address < pieces[i].begin + pieces[i].bytes)
      found = pieces[i].place;
  pthread_mutex_unlock(&lock);
  return found;
}
API cudaError_t cudaMalloc(void** p, size_t n) { return take(p, n, device); }
API cudaError_t cudaFree(void* p) { return give_back(p); }
API cudaError_t cudaHostAlloc(void** p, size_t n, unsigned flags) { return take(p, n, PAGE_LOCKED); }
API cudaError_t cudaFreeHost(void* p) { return give_back(p); }
API cudaError_t cudaHostRegister(void* p, size_t n, unsigned flags) {
  pthread_mutex_lock(&lock);
  if (n_pieces == room) pieces = realloc(pieces, (room = room ? room * 2 : 1024) * sizeof(Piece));
  pieces[n_pieces++] = (Piece){p, n, PAGE_LOCKED};
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}
API cudaError_t cudaHostUnregister(void* p) {
  pthread_mutex_lock(&lock);
  for (size_t i = n_pieces; i-- > 0;)
    if (pieces[i].begin == p) {
      pieces[i] = pieces[--n_pieces];
      break;
    }
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}
API cudaError_t cudaMemGetInfo(size_t* unused, size_t* all) {
  *all = total();
  *unused = total() - held[device];
  return cudaSuccess;
}
API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* a, const void* p) {
  int where = place(p);
  memset(a, 0, sizeof *a);
  a->type = where >= 0 ? cudaMemoryTypeDevice : where == PAGE_LOCKED ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  a->device = where >= 0 ? where : where == PAGE_LOCKED ? 0 : -2;
  a->devicePointer = where >= 0 ? (void*)p : NULL;
  a->hostPointer = where < 0 ? (void*)p : NULL;
  return cudaSuccess;
}

// Copies -------------------------------------------------------------------------------------------------------------
static cudaError_t copy(void* to, const void* from, size_t n, int waits, cudaStream_t stream) {
  int source = place(from), target = place(to);
  if (is_captured())  // pageable memory may be gone when the graph runs
    return waits || source == PAGEABLE || target == PAGEABLE ? wait_for(NULL, COPY_WAIT) : enqueue(stream);
  memcpy(to, from, n);
  // One byte is a flag that a kernel would have set: "all are finite", "all are inside".
  if (source >= 0 && target < 0 && n == 1) *(char*)to = 1;
  if (source >= 0 && target == PAGEABLE)
    note(PAGEABLE_FROM_GPU);
  else if (target >= 0 && source == PAGEABLE)
    note(PAGEABLE_TO_GPU);
  else if (source == PAGE_LOCKED || target == PAGE_LOCKED)
    note(PINNED_COPY);
  else
    note(LAUNCH);
  if (waits) note(COPY_WAIT);
  return cudaSuccess;
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t n, enum cudaMemcpyKind k) { return copy(to, from, n, 1, NULL); }
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, enum cudaMemcpyKind k, cudaStream_t s) {
  return copy(to, from, n, 0, s);
}
API cudaError_t cudaMemcpyPeerAsync(void* to, int d, const void* from, int f, size_t n, cudaStream_t s) {
  return copy(to, from, n, 0, s);
}
API cudaError_t cudaMemsetAsync(void* p, int value, size_t n, cudaStream_t s) {
  int error = enqueue(s);
  if (error || is_captured()) return error;
  uintptr_t begin = ((uintptr_t)p + PAGE - 1) & ~(uintptr_t)(PAGE - 1),
            end = ((uintptr_t)p + n) & ~(uintptr_t)(PAGE - 1);
  if (value == 0 && end > begin) {  // give whole pages back instead of touching them
    memset(p, 0, begin - (uintptr_t)p);
    madvise((void*)begin, end - begin, MADV_DONTNEED);
    memset((void*)end, 0, (uintptr_t)p + n - end);
  } else
    memset(p, value, n);
  return cudaSuccess;
}
API cudaError_t cudaMemset(void* p, int value, size_t n) { return cudaMemsetAsync(p, value, n, NULL); }
API cudaError_t cudaGetSymbolAddress(void** p, const void* symbol) {
  static char memory[1 << 20];
  *p = memory;
  return cudaSuccess;
}

// Devices ------------------------------------------------------------------------------------------------------------
API cudaError_t cudaGetDeviceCount(int* n) {
  int fault = setting("NULLGPU_FAULT", 0);  // a cudaError_t: 35, the driver is too old; 802, no fabric manager
  *n = fault ? 0 : devices();
  return fault;
}
API cudaError_t cudaDriverGetVersion(int* v) {
  *v = setting("NULLGPU_FAULT", 0) == cudaErrorInsufficientDriver ? 12040 : 13000;
  return cudaSuccess;
}
API cudaError_t cudaRuntimeGetVersion(int* v) {
  *v = 13000;
  return cudaSuccess;
}
API cudaError_t cudaGetDevice(int* d) {
  *d = device;
  return cudaSuccess;
}
API cudaError_t cudaSetDevice(int d) {
  if (d < 0 || d >= devices()) return cudaErrorInvalidDevice;
  device = d;
  has_context[d] = 1;
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* p, int d) {
  int hopper = capability() >= 90;
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "Null GPU");
  memset(p->uuid.bytes, d + 1, 16);
  p->major = capability() / 10, p->minor = capability() % 10;
  p->totalGlobalMem = total(), p->totalConstMem = 65536, p->l2CacheSize = 50 << 20,
  p->persistingL2CacheMaxSize = 30 << 20;
  p->multiProcessorCount = hopper ? 132 : 108, p->maxThreadsPerMultiProcessor = 2048,
  p->maxBlocksPerMultiProcessor = 32;
  p->sharedMemPerBlock = 49152, p->reservedSharedMemPerBlock = 1024;
  p->sharedMemPerMultiprocessor = hopper ? 233472 : 167936, p->sharedMemPerBlockOptin = hopper ? 232448 : 166912;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->warpSize = 32, p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->memoryBusWidth = 5120, p->asyncEngineCount = 3, p->pciBusID = d + 1;
  p->unifiedAddressing = p->managedMemory = p->concurrentKernels = p->cooperativeLaunch = 1;
  p->streamPrioritiesSupported = p->memoryPoolsSupported = p->globalL1CacheSupported = p->localL1CacheSupported = 1;
  p->textureAlignment = p->surfaceAlignment = 512, p->texturePitchAlignment = 32;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetAttribute(int* v, enum cudaDeviceAttr attribute, int d) {
  struct cudaDeviceProp p;
  cudaGetDeviceProperties(&p, d);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *v = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: *v = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *v = 64; break;
    case cudaDevAttrMaxGridDimX: *v = p.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *v = p.maxGridSize[1]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = p.sharedMemPerBlock; break;
    case cudaDevAttrTotalConstantMemory: *v = p.totalConstMem; break;
    case cudaDevAttrWarpSize: *v = p.warpSize; break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: *v = p.regsPerBlock; break;
    case cudaDevAttrClockRate: *v = 1980000; break;
    case cudaDevAttrMultiProcessorCount: *v = p.multiProcessorCount; break;
    case cudaDevAttrPciBusId: *v = p.pciBusID; break;
    case cudaDevAttrMemoryClockRate: *v = 2619000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *v = p.memoryBusWidth; break;
    case cudaDevAttrL2CacheSize: *v = p.l2CacheSize; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrComputeCapabilityMajor: *v = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *v = p.minor; break;
    case cudaDevAttrStreamPrioritiesSupported:
    case cudaDevAttrCooperativeLaunch: *v = 1; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = p.sharedMemPerMultiprocessor; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = p.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *v = p.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *v = p.reservedSharedMemPerBlock; break;
    default: *v = 0;
  }
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetPCIBusId(char* s, int n, int d) {
  snprintf(s, n, "0000:%02x:00.0", d + 1);
  return cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int* v, int d, int peer) {
  *v = d != peer;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
API const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaErrorMemoryAllocation ? "out of memory"
         : e == cudaErrorSystemNotReady ? "system not yet initialized"
                                        : "null GPU error";
}
API const char* cudaGetErrorName(cudaError_t e) { return "cudaErrorNull"; }

// Kernels ------------------------------------------------------------------------------------------------------------
static cudaError_t launch(cudaStream_t stream) {
  has_context[device] = 1;
  return enqueue(stream);
}
typedef struct {
  dim3 grid, block;
  size_t shared;
  void* stream;
} Configuration;
static __thread Configuration stack[16];
static __thread int depth;
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  stack[depth++] = (Configuration){grid, block, shared, stream};
  return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  Configuration c = stack[--depth];
  *grid = c.grid, *block = c.block, *shared = c.shared, *(void**)stream = c.stream;
  return cudaSuccess;
}
API void** __cudaRegisterFatBinary(void* binary) {
  static void* none[1];
  return none;
}
API cudaError_t __cudaGetKernel(cudaKernel_t* k, const void* f) {
  *k = (cudaKernel_t)f;
  return cudaSuccess;
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void** a, size_t n, cudaStream_t s) {
  return launch(s);
}
API cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void** a, size_t n, cudaStream_t s) { return launch(s); }
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void** a) {
  return launch(c->stream);
}
API cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 g, dim3 b, void** a, size_t n, cudaStream_t s) {
  return launch(s);
}
API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* a, const void* f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->maxDynamicSharedSizeBytes = 49152;
  a->ptxVersion = a->binaryVersion = capability();
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f, int b, size_t s,
                                                                       unsigned g) {
  *n = 2;
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void* f, int b, size_t s) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, b, s, 0);
}
static long nothing(void) { return 0; }
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** f, unsigned version, unsigned long long flags,
                                                 enum cudaDriverEntryPointQueryResult* result) {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  *f = driver ? dlsym(driver, name) : NULL;
  if (!*f) *f = nothing;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
