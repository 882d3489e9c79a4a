/* A libnvidia-ml.so.1 whose devices are lines of a text file, read anew at every call.
 *
 *     devices 2            how many there are
 *     0.power 350000       an answer of device 0; what has no line is not supported
 *     0.lost 1             every call about device 0 fails with "GPU is lost"
 *     0.mig 2              device 0 has two MIG instances, 0/0.memory_used ... are theirs
 *     0.field.230 4        field value 230, as an unsigned long long
 *     event 3 / event.device 0 / event.xid 79
 *                          the third event; an event set tells those after its creation
 *
 * The file's path is in FAKE_NVML. Without it, nvmlInit says that no driver is loaded. Only what
 * the collector asks for is here; signatures are NVML's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, NO_DRIVER = 9, TIMEOUT = 10, LOST = 15 };
enum { DEVICES = 8, INSTANCES = 8, WHOLE = -1 };

typedef struct { int index, instance; } device_t;
typedef struct { unsigned gpu, memory; } utilisation_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct {
    unsigned fieldId, scopeId;
    long long timestamp, latencyUsec;
    unsigned valueType, nvmlReturn;
    union { double d; unsigned ui; unsigned long ul; unsigned long long ull; } value;
} field_t;
typedef struct { device_t *device; unsigned long long type, data; unsigned gpuInstance, computeInstance; } event_t;
typedef struct {
    unsigned multiprocessors, copies, decoders, encoders, jpegs, ofas, gpuSlices, computeSlices;
    unsigned long long memoryMB;
} attributes_t;
typedef struct { unsigned version, isSupported; } gpm_support_t;
typedef struct { unsigned id, nvmlReturn; double value; const char *info[3]; } gpm_metric_t;
typedef struct { unsigned version, count; device_t **one, **two; gpm_metric_t metrics[]; } gpm_get_t;

static device_t devices[DEVICES][INSTANCES + 1];

static int look(const char *name, long long *value) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256], key[200];
    int found = 0;
    long long number;
    while (file && !found && fgets(line, sizeof line, file))
        if (sscanf(line, "%199s %lld", key, &number) == 2 && strcmp(key, name) == 0) {
            *value = number;
            found = 1;
        }
    if (file) fclose(file);
    return found;
}

static int ask(const device_t *device, const char *what, long long *value) {
    char name[200];
    snprintf(name, sizeof name, "%d.lost", device->index);
    if (look(name, value) && *value) return LOST;
    if (device->instance == WHOLE) snprintf(name, sizeof name, "%d.%s", device->index, what);
    else snprintf(name, sizeof name, "%d/%d.%s", device->index, device->instance, what);
    return look(name, value) ? OK : NOT_SUPPORTED;
}

static int ask_unsigned(const device_t *device, const char *what, unsigned *value) {
    long long number = 0;
    int result = ask(device, what, &number);
    *value = (unsigned)number;
    return result;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    for (int i = 0; i < DEVICES; i++)
        for (int j = 0; j <= INSTANCES; j++) devices[i][j] = (device_t){i, j - 1};
    return getenv("FAKE_NVML") ? OK : NO_DRIVER;
}

int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int result) {
    return result == NO_DRIVER ? "Driver Not Loaded" : result == LOST ? "GPU is lost" : "an error";
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    long long number = 0;
    look("devices", &number);
    *count = (unsigned)number;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t **device) {
    long long lost = 0;
    *device = &devices[index][0];
    ask(*device, "lost", &lost);
    return lost ? LOST : OK;
}

int nvmlDeviceGetIndex(const device_t *device, unsigned *index) {
    long long lost = 0;
    *index = (unsigned)device->index;
    return ask(device, "lost", &lost) == LOST ? LOST : OK;
}

int nvmlDeviceGetUUID(const device_t *device, char *uuid, unsigned length) {
    long long gone = 0;
    if (ask(device, "gone", &gone) == OK && gone) return NOT_FOUND;
    if (device->instance == WHOLE) snprintf(uuid, length, "GPU-%d", device->index);
    else snprintf(uuid, length, "MIG-%d-%d", device->index, device->instance);
    return OK;
}

int nvmlDeviceGetName(const device_t *device, char *name, unsigned length) {
    (void)device;
    snprintf(name, length, "Fake H100");
    return OK;
}

int nvmlDeviceGetTemperature(const device_t *d, int s, unsigned *v) { (void)s; return ask_unsigned(d, "temperature", v); }
int nvmlDeviceGetPowerUsage(const device_t *d, unsigned *v) { return ask_unsigned(d, "power", v); }
int nvmlDeviceGetEnforcedPowerLimit(const device_t *d, unsigned *v) { return ask_unsigned(d, "limit", v); }
int nvmlDeviceGetClockInfo(const device_t *d, int c, unsigned *v) { return ask_unsigned(d, c == 1 ? "sm_clock" : "memory_clock", v); }
int nvmlDeviceGetMaxMigDeviceCount(const device_t *d, unsigned *v) { (void)d; *v = INSTANCES - 1; return OK; }
int nvmlDeviceGetGpuInstanceId(const device_t *d, unsigned *v) { *v = (unsigned)d->instance + 1; return OK; }

int nvmlDeviceGetCurrentClocksEventReasons(const device_t *device, unsigned long long *reasons) {
    long long number = 0;
    int result = ask(device, "reasons", &number);
    *reasons = (unsigned long long)number;
    return result;
}

int nvmlDeviceGetUtilizationRates(const device_t *device, utilisation_t *rates) {
    int result = ask_unsigned(device, "utilisation", &rates->gpu);
    ask_unsigned(device, "memory_utilisation", &rates->memory);
    return result;
}

int nvmlDeviceGetMemoryInfo(const device_t *device, memory_t *memory) {
    long long total = 0, used = 0;
    int result = ask(device, "memory_total", &total);
    ask(device, "memory_used", &used);
    *memory = (memory_t){(unsigned long long)total, (unsigned long long)(total - used), (unsigned long long)used};
    return result;
}

int nvmlDeviceGetFieldValues(const device_t *device, int count, field_t *fields) {
    long long lost = 0;
    if (ask(device, "lost", &lost) == LOST) return LOST;
    for (int i = 0; i < count; i++) {
        char name[40];
        long long number = 0;
        snprintf(name, sizeof name, "field.%u", fields[i].fieldId);
        fields[i].nvmlReturn = (unsigned)ask(device, name, &number);
        fields[i].valueType = 3;
        fields[i].value.ull = (unsigned long long)number;
    }
    return OK;
}

int nvmlDeviceGetMigMode(const device_t *device, unsigned *current, unsigned *pending) {
    long long instances = 0;
    int result = ask(device, "mig", &instances);
    *current = *pending = instances > 0;
    return result;
}

int nvmlDeviceGetMigDeviceHandleByIndex(const device_t *device, unsigned index, device_t **instance) {
    long long instances = 0;
    ask(device, "mig", &instances);
    if (index >= instances) return NOT_FOUND;
    *instance = &devices[device->index][index + 1];
    return OK;
}

int nvmlDeviceGetAttributes_v2(const device_t *device, attributes_t *attributes) {
    memset(attributes, 0, sizeof *attributes);
    return ask_unsigned(device, "slices", &attributes->computeSlices);
}

int nvmlEventSetCreate(long long **told) {
    *told = calloc(1, sizeof **told);
    if (!*told) return INVALID;
    look("event", *told);
    return OK;
}

int nvmlEventSetFree(long long *told) { free(told); return OK; }

int nvmlDeviceRegisterEvents(const device_t *device, unsigned long long types, void *set) {
    long long refused = 0;
    (void)types, (void)set;
    ask(device, "no_events", &refused);
    return refused ? NOT_SUPPORTED : OK;
}

int nvmlEventSetWait_v2(long long *told, event_t *event, unsigned timeout_ms) {
    for (unsigned waited = 0;; waited += 5) {
        long long newest = 0, index = 0, xid = 0, instance = 0xFFFFFFFF;
        if (look("event", &newest) && newest > *told) {
            ++*told;
            look("event.device", &index);
            look("event.xid", &xid);
            look("event.instance", &instance);
            *event = (event_t){&devices[index][0], 8, (unsigned long long)xid, (unsigned)instance, 0xFFFFFFFF};
            return OK;
        }
        if (waited >= timeout_ms) return TIMEOUT;
        usleep(5000);
    }
}

int nvmlGpmQueryDeviceSupport(const device_t *device, gpm_support_t *support) {
    long long supported = 0;
    ask(device, "profiled", &supported);
    support->isSupported = supported != 0;
    return OK;
}

int nvmlGpmSampleAlloc(device_t ***sample) { *sample = calloc(1, sizeof **sample); return *sample ? OK : INVALID; }
int nvmlGpmSampleFree(device_t **sample) { free(sample); return OK; }
int nvmlGpmSampleGet(device_t *device, device_t **sample) { *sample = device; return OK; }

int nvmlGpmMigSampleGet(device_t *device, unsigned instance, device_t **sample) {
    *sample = &devices[device->index][instance];
    return OK;
}

int nvmlGpmMetricsGet(gpm_get_t *get) {
    for (unsigned i = 0; i < get->count; i++) {
        char name[40];
        long long number = 0;
        snprintf(name, sizeof name, "gpm.%u", get->metrics[i].id);
        get->metrics[i].nvmlReturn = (unsigned)ask(*get->two, name, &number);
        get->metrics[i].value = (double)number;
    }
    return OK;
}
