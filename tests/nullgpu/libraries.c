// cuBLAS, cuFFT and cuDNN: descriptors exist, plans are found, and what would compute is counted.
#include "nullgpu.h"

#define CREATES(name)           \
  API int name(void** handle) { \
    *handle = new_handle();     \
    return 0;                   \
  }
#define COMPUTES(name) \
  API int name(void) { \
    note(LAUNCH);      \
    return 0;          \
  }
#define ANSWERS(name, type, value)           \
  API int name(void* handle, type* answer) { \
    *answer = value;                         \
    return 0;                                \
  }
CREATES(cublasCreate_v2)
CREATES(cublasLtMatmulDescCreate)
CREATES(cublasLtMatrixLayoutCreate)
CREATES(cublasLtMatmulPreferenceCreate)
CREATES(cudnnCreate)
ANSWERS(cublasGetPointerMode_v2, int, 0)
ANSWERS(cublasGetMathMode, int, 0)
COMPUTES(cublasSgemm_v2)
COMPUTES(cublasDgemm_v2)
COMPUTES(cublasGemmEx)
COMPUTES(cublasSgemmEx)
COMPUTES(cublasGemmStridedBatchedEx)
COMPUTES(cublasSgemmStridedBatched)
COMPUTES(cublasDgemmStridedBatched)
COMPUTES(cublasSgemv_v2)
COMPUTES(cublasDgemv_v2)
COMPUTES(cublasLtMatmul)
COMPUTES(cublasSdot_v2)
COMPUTES(cufftXtExec)
COMPUTES(cudnnBackendExecute)

API size_t cublasLtGetVersion(void) { return 130100; }
API int cublasLtMatmulAlgoGetHeuristic(void* h, void* o, void* a, void* b, void* c, void* d, void* p, int asked,
                                       void* found, int* n) {
  memset(found, 0, 96);
  *n = 1;
  return 0;
}
API int cufftCreate(int* plan) {
  *plan = 1;
  return 0;
}
API int cufftXtMakePlanMany(int p, int rank, long long* n, long long* ie, long long is, long long id, int it,
                            long long* oe, long long os, long long od, int ot, long long batch, size_t* work,
                            int type) {
  *work = 0;
  return 0;
}
API size_t cudnnGetVersion(void) { return 91900; }
API size_t cudnnGetCudartVersion(void) { return 13000; }
API int cudnnBackendCreateDescriptor(int type, void** descriptor) {
  *descriptor = new_handle();
  return 0;
}
API int cudnnBackendGetAttribute(void* d, int name, int type, long long asked, long long* found, void* out) {
  enum { ENGINES = 202, INT64 = 3, DESCRIPTOR = 15 };  // of cudnnBackendAttributeName_t, cudnnBackendAttributeType_t
  int one = name == ENGINES || (asked && (type == INT64 || type == DESCRIPTOR));
  if (name != ENGINES && asked && type == INT64) *(long long*)out = 0;  // the workspace: none
  if (found) *found = one;
  return 0;
}
