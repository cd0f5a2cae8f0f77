/* The functions of NVIDIA's management library that the harness calls, so that nvidia-ml-py runs without a driver.
   What a GPU refuses is set by stand_in_set; everything else is a figure of a made-up GPU that draws a steady power. */
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, GPU_IS_LOST = 15 };
enum { ENERGY = 1, INSTANT = 2, USAGE = 4, CLOCKS = 8, TEMPERATURE = 16, REASONS = 32, OLD_REASONS = 64, MEMORY = 128 };

static uint64_t gives = 255, milliwatts = 100000, reasons = 0, lost = 0, update_ms = 20, shut = 0, gpus = 1;

void stand_in_set(const char *name, uint64_t value) {
  if (!strcmp(name, "gives")) gives = value;
  if (!strcmp(name, "milliwatts")) milliwatts = value;
  if (!strcmp(name, "reasons")) reasons = value;
  if (!strcmp(name, "lost")) lost = value;
  if (!strcmp(name, "update_ms")) update_ms = value;
  if (!strcmp(name, "shut")) shut = value;
  if (!strcmp(name, "gpus")) gpus = value;
}
uint64_t stand_in_shut(void) { return shut; }

static int answer(uint64_t what) { return lost ? GPU_IS_LOST : gives & what ? SUCCESS : NOT_SUPPORTED; }

int nvmlInitWithFlags(unsigned flags) { return SUCCESS; }
int nvmlShutdown(void) { shut++; return SUCCESS; }
const char *nvmlErrorString(int code) {
  return code == GPU_IS_LOST ? "GPU is lost" : code == NOT_SUPPORTED ? "Not Supported" : "some error";
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)1; return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = gpus; return SUCCESS; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) {
  *device = (void *)2;
  return strncmp(id, "0000:", 5) ? NOT_FOUND : SUCCESS;
}
int nvmlDeviceGetName(void *device, char *name, unsigned size) {
  strncpy(name, device == (void *)2 ? "Second GPU" : "Stand-in GPU", size);
  return SUCCESS;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  uint64_t ms = (uint64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
  *millijoules = ms / update_ms * update_ms * milliwatts / 1000;
  return answer(ENERGY);
}
typedef struct {
  uint32_t field, scope;
  int64_t timestamp, latency;
  int32_t type, code;
  union { double d; unsigned ui; unsigned long long ull; } value;
} Field;
int nvmlDeviceGetFieldValues(void *device, int count, Field *fields) {
  for (int i = 0; i < count; i++) {
    fields[i].code = fields[i].field == 186 ? answer(INSTANT) : NOT_SUPPORTED;
    fields[i].value.ui = milliwatts;
  }
  return SUCCESS;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *power) { *power = milliwatts; return answer(USAGE); }
int nvmlDeviceGetClockInfo(void *device, int type, unsigned *clock) { *clock = type == 1 ? 1980 : 2619; return answer(CLOCKS); }
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *degrees) { *degrees = 41; return answer(TEMPERATURE); }
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *bits) { *bits = reasons; return answer(REASONS); }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *bits) { *bits = reasons; return answer(OLD_REASONS); }
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) { /* total, free, used */
  memory[0] = 4096ull << 20, memory[1] = 3072ull << 20, memory[2] = 1024ull << 20;
  return answer(MEMORY);
}
