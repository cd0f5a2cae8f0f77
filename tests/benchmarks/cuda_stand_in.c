/* A stand-in for libcuda.so.1: memory is the host's, a stream runs at once, and a captured graph calls back what was captured.
 * Lets the engine runner's own calls run where there is no GPU. STAND_IN_NO_CAPTURE makes it refuse captures. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int CUresult;
static int capturing = 0;
static void (*captured)(void) = 0;

void stand_in_captures(void (*run)(void)) { captured = run; }
int stand_in_capturing(void) { return capturing; }

CUresult cuInit(unsigned flags) { return 0; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return 0; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return 0; }
CUresult cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
CUresult cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Stand-in GPU", size); return 0; }
CUresult cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : attribute == 76 ? 6 : 0; return 0; }
CUresult cuDeviceGetPCIBusId(char *id, int size, int device) { strncpy(id, "0000:41:00.0", size); return 0; }
CUresult cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
CUresult cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
CUresult cuCtxPushCurrent_v2(void *context) { return 0; }
CUresult cuCtxPopCurrent_v2(void **context) { if (context) *context = (void *)1; return 0; }
CUresult cuCtxGetDevice(int *device) { *device = 0; return 0; }
CUresult cuCtxSynchronize(void) { return 0; }
CUresult cuMemAlloc_v2(void **memory, size_t size) { *memory = malloc(size); return *memory ? 0 : 2; }
CUresult cuMemFree_v2(void *memory) { free(memory); return 0; }
CUresult cuMemHostAlloc(void **memory, size_t size, unsigned flags) { *memory = malloc(size); return *memory ? 0 : 2; }
CUresult cuMemFreeHost(void *memory) { free(memory); return 0; }
CUresult cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *stream) { memcpy(to, from, size); return 0; }
CUresult cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t size, void *stream) { memcpy(to, from, size); return 0; }
CUresult cuStreamCreate(void **stream, unsigned flags) { *stream = malloc(1); return 0; }
CUresult cuStreamDestroy_v2(void *stream) { free(stream); return 0; }
CUresult cuStreamSynchronize(void *stream) { return 0; }
CUresult cuEventCreate(void **event, unsigned flags) { *event = calloc(1, sizeof(struct timespec)); return 0; }
CUresult cuEventDestroy_v2(void *event) { free(event); return 0; }
CUresult cuEventSynchronize(void *event) { return 0; }
CUresult cuEventRecord(void *event, void *stream) { clock_gettime(CLOCK_MONOTONIC, event); return 0; }
CUresult cuEventElapsedTime_v2(float *ms, struct timespec *start, struct timespec *end) {
  *ms = (end->tv_sec - start->tv_sec) * 1e3 + (end->tv_nsec - start->tv_nsec) / 1e6;
  return 0;
}
CUresult cuStreamBeginCapture_v2(void *stream, int mode) {
  if (getenv("STAND_IN_NO_CAPTURE")) return 900;
  capturing = 1;
  return 0;
}
CUresult cuStreamEndCapture(void *stream, void **graph) { capturing = 0; *graph = (void *)2; return 0; }
CUresult cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) { *executable = (void *)3; return 0; }
CUresult cuGraphLaunch(void *executable, void *stream) { if (captured) captured(); return 0; }
CUresult cuGraphExecDestroy(void *executable) { return 0; }
CUresult cuGraphDestroy(void *graph) { return 0; }
