// The compiler at run time, libnvrtc: a program of nothing, counted, because the first one takes a second on a GPU.
#include "nullgpu.h"

API int nvrtcVersion(int* major, int* minor) {
  *major = 13, *minor = 0;
  return 0;
}
API int nvrtcCreateProgram(void** p, const char* source, const char* name, int n, const char** h, const char** names) {
  *p = new_handle();
  return 0;
}
API int nvrtcCompileProgram(void* p, int n, const char** options) {
  note(COMPILATION);
  return 0;
}
API int nvrtcDestroyProgram(void** p) { return 0; }
API int nvrtcAddNameExpression(void* p, const char* name) { return 0; }
API int nvrtcGetLoweredName(void* p, const char* name, const char** lowered) {
  *lowered = "kernel";
  return 0;
}
API int nvrtcGetCUBINSize(void* p, size_t* n) {
  *n = 16;
  return 0;
}
API int nvrtcGetPTXSize(void* p, size_t* n) { return nvrtcGetCUBINSize(p, n); }
API int nvrtcGetCUBIN(void* p, char* code) {
  memset(code, 0, 16);
  return 0;
}
API int nvrtcGetPTX(void* p, char* code) { return nvrtcGetCUBIN(p, code); }
API int nvrtcGetProgramLogSize(void* p, size_t* n) {
  *n = 1;
  return 0;
}
API int nvrtcGetProgramLog(void* p, char* log) {
  *log = 0;
  return 0;
}
API const char* nvrtcGetErrorString(int e) { return "null nvrtc"; }
