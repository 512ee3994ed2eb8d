// Preloaded into programs of the host: their log is written by a thread, for which they do not wait at their end, so that
// the last lines, the summary for one, may be lost.
#define _GNU_SOURCE
#include <dlfcn.h>

__attribute__((destructor)) static void flush_log(void) {
    void *(*log)(void) = (void *(*)(void)) dlsym(RTLD_DEFAULT, "_Z15common_log_mainv");
    void (*flush)(void *) = (void (*)(void *)) dlsym(RTLD_DEFAULT, "_Z16common_log_flushP10common_log");
    // Also preloaded into whatever starts the program.
    if (log && flush) {
        flush(log());
    }
}
