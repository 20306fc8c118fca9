// NCCL with results: processes meet in shared memory. As with NCCL, one that waits for a dead process waits for ever.
#include "nullgpu.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SLOT = 4 << 20, MOST_RANKS = 64, TEXT = 96 };
typedef struct {
  char bytes[128];
} Id;
typedef struct {
  volatile int arrived, generation;
  char calls[MOST_RANKS][TEXT];
} Meeting;
typedef struct {
  int rank, n;
  Meeting* meeting;
  char* slots;
} Comm;
static const size_t WIDTHS[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};  // of ncclDataType_t: int8, uint8, int32 ... bfloat16

static void meet(Comm* c) {
  struct timespec pause = {0, 20000};
  int generation = c->meeting->generation;
  if (__atomic_add_fetch(&c->meeting->arrived, 1, __ATOMIC_SEQ_CST) == c->n) {
    c->meeting->arrived = 0;
    __atomic_add_fetch(&c->meeting->generation, 1, __ATOMIC_SEQ_CST);
  }
  while (__atomic_load_n(&c->meeting->generation, __ATOMIC_SEQ_CST) == generation) nanosleep(&pause, NULL);
}
API int ncclGetVersion(int* v) {
  *v = 22809;
  return 0;
}
API int ncclGetUniqueId(Id* id) {
  int file = open("/dev/urandom", O_RDONLY);
  int failed = read(file, id->bytes, sizeof id->bytes) < 0;
  close(file);
  return failed;
}
API int ncclCommInitRankConfig(Comm** out, int n, Id id, int rank, void* config) {
  Comm* c = calloc(1, sizeof *c);
  size_t bytes = sizeof(Meeting) + (size_t)n * SLOT;
  char name[64] = "/nullnccl-";
  for (int i = 0; i < 16; i++) sprintf(name + strlen(name), "%02x", (unsigned char)id.bytes[i]);
  int file = shm_open(name, O_RDWR | O_CREAT, 0600);
  if (ftruncate(file, bytes)) return 1;
  c->rank = rank, c->n = n;
  c->meeting = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  c->slots = (char*)(c->meeting + 1);
  close(file);
  meet(c);
  if (rank == 0) shm_unlink(name);
  *out = c;
  return 0;
}
API int ncclCommCount(Comm* c, int* n) {
  *n = c->n;
  return 0;
}
API int ncclCommUserRank(Comm* c, int* rank) {
  *rank = c->rank;
  return 0;
}
API int ncclCommGetAsyncError(Comm* c, int* e) { return *e = 0; }
API const char* ncclGetErrorString(int e) { return "null NCCL"; }
API const char* ncclGetLastError(Comm* c) { return ""; }

#define REDUCE(TYPE)                                                                                      \
  {                                                                                                       \
    TYPE* a = to;                                                                                         \
    const TYPE* b = from;                                                                                 \
    for (size_t i = 0; i < n; i++)                                                                        \
      a[i] = op == 2 ? (a[i] > b[i] ? a[i] : b[i]) : op == 3 ? (a[i] < b[i] ? a[i] : b[i]) : a[i] + b[i]; \
    break;                                                                                                \
  }
static void reduce(void* to, const void* from, size_t n, int type, int op) {
  switch (op == 1 || op > 3 ? -1 : type) {  // op: 0 sum, 2 maximum, 3 minimum
    case 0: REDUCE(int8_t)
    case 1: REDUCE(uint8_t)
    case 2: REDUCE(int32_t)
    case 4: REDUCE(int64_t)
    case 7: REDUCE(float)
    case 8: REDUCE(double)
    default: fprintf(stderr, "nullgpu: NCCL's operation %d of type %d is not here\n", op, type); abort();
  }
}
enum { ALL_REDUCE, BROADCAST, ALL_GATHER };
static const char* NAMES[] = {"all_reduce", "broadcast", "all_gather"};

// Two meetings a piece of at most SLOT bytes: when all wrote theirs, when all read those of the others.
static int collective(int kind, const void* in, void* out, size_t n, int type, int op, int root, Comm* c) {
  size_t width = WIDTHS[type], most = SLOT / width;
  note(COLLECTIVE);
  if (place(in) < 0 || place(out) < 0) {
    fprintf(stderr, "nullgpu: %s got memory that is on no GPU\n", NAMES[kind]);
    return 4;  // ncclInvalidArgument
  }
  snprintf(c->meeting->calls[c->rank], TEXT, "%s n=%zu type=%d op=%d root=%d", NAMES[kind], n, type, op, root);
  meet(c);
  for (int rank = 0; rank < c->n; rank++)
    if (strcmp(c->meeting->calls[rank], c->meeting->calls[c->rank])) {
      fprintf(stderr, "nullgpu: rank %d calls %s, rank %d %s\n", c->rank, c->meeting->calls[c->rank], rank,
              c->meeting->calls[rank]);
      abort();
    }
  for (size_t first = 0; first < n; first += most) {
    size_t m = n - first < most ? n - first : most;
    char* target = (char*)out + first * width;
    memcpy(c->slots + (size_t)c->rank * SLOT, (const char*)in + first * width,
           kind != BROADCAST || c->rank == root ? m * width : 0);
    meet(c);
    if (kind == ALL_GATHER)
      for (int rank = 0; rank < c->n; rank++)
        memcpy(target + rank * n * width, c->slots + (size_t)rank * SLOT, m * width);
    else
      memcpy(target, c->slots + (size_t)root * SLOT, m * width);
    for (int rank = 1; kind == ALL_REDUCE && rank < c->n; rank++)
      reduce(target, c->slots + (size_t)rank * SLOT, m, type, op);
    meet(c);
  }
  return 0;
}
API int ncclAllReduce(const void* in, void* out, size_t n, int type, int op, Comm* c, void* s) {
  return collective(ALL_REDUCE, in, out, n, type, op, 0, c);
}
API int ncclBroadcast(const void* in, void* out, size_t n, int type, int root, Comm* c, void* s) {
  return collective(BROADCAST, in, out, n, type, 0, root, c);
}
API int ncclBcast(void* p, size_t n, int type, int root, Comm* c, void* s) {
  return collective(BROADCAST, p, p, n, type, 0, root, c);
}
API int ncclAllGather(const void* in, void* out, size_t n, int type, Comm* c, void* s) {
  return collective(ALL_GATHER, in, out, n, type, 0, 0, c);
}
