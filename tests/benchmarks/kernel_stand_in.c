/* A stand-in of the CUDA driver's calls that load and launch a kernel: it writes down what it is asked for.
   A launch's arguments are read as the kinds that stand_in_expects was told, 8 bytes of an address (p) or 4 of a number (i). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
static char said[1 << 16], kinds[64];
static int loaded = 0, current = 1, capability = 86, refusing = 0;

const char *stand_in_said(void) { return said; }
void stand_in_expects(const char *wanted) { said[0] = 0; strncpy(kinds, wanted, sizeof kinds - 1); }
void stand_in_set(int context, int sm, int launches_fail) { current = context; capability = sm; refusing = launches_fail; }
int stand_in_loaded(void) { return loaded; }

CUresult cuInit(unsigned flags) { return 0; }
CUresult cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
CUresult cuCtxGetCurrent(void **context) { *context = (void *)(long)current; return 0; }
CUresult cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)7; return 0; }
CUresult cuCtxSetCurrent(void *context) { current = (int)(long)context; return 0; }
CUresult cuCtxGetDevice(int *device) { *device = 0; return current ? 0 : 201; }
CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 0;
  return 0;
}
CUresult cuModuleLoadDataEx(void **module, const char *image, unsigned count, int *options, void **values) {
  if (strstr(image, "newer")) {
    for (unsigned index = 0; index < count; index++)
      if (options[index] == 5) strcpy(values[index], "ptxas fatal: Unsupported .version 9.9;\n current version is '8.5'");
    return 222;
  }
  loaded++;
  *module = strdup(image);
  return 0;
}
CUresult cuModuleGetFunction(void **function, void *module, const char *name) {
  char entry[256];
  snprintf(entry, sizeof entry, ".entry %s(", name);
  *function = module;
  return strstr(module, entry) ? 0 : 500;
}
CUresult cuModuleUnload(void *module) { loaded--; free(module); return 0; }
CUresult cuFuncSetAttribute(void *function, int attribute, int value) {
  sprintf(said + strlen(said), "attribute %d = %d\n", attribute, value);
  return value > 100000;
}
CUresult cuGetErrorString(int error, const char **text) {
  *text = error == 1 ? "invalid argument" : "named symbol not found";
  return error == 700;
}
CUresult cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, void *stream, void **arguments, void **extra) {
  if (refusing) return refusing;
  char *end = said + strlen(said);
  end += sprintf(end, "launch %u,%u,%u %u,%u,%u %u stream %lx:", gx, gy, gz, bx, by, bz, shared, (unsigned long)stream);
  for (int index = 0; kinds[index]; index++)
    end += kinds[index] == 'p' ? sprintf(end, " @%lx", *(unsigned long *)arguments[index])
                               : sprintf(end, " %d", *(int *)arguments[index]);
  sprintf(end, "\n");
  return 0;
}
