/*
 * Loads a model, decodes a few tokens and frees it, as often as is said, in one process. After each round a line with
 * the process's file descriptors, threads and resident kB:
 *
 *     loads MODEL ROUNDS
 *
 * The environment names the plugin, as for any program of the host.
 */
#include "llama.h"

#include <dirent.h>
#include <dlfcn.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void say_nothing(enum ggml_log_level level, const char *text, void *data) {
    (void) data;
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

/* Entries of a folder of /proc/self, the two dots and the reader's own descriptor among them. */
static int entries(const char *folder) {
    DIR *dir = opendir(folder);
    int count = 0;
    while (dir && readdir(dir)) {
        count++;
    }
    if (dir) {
        closedir(dir);
    }
    return count;
}

static long resident_kb(void) {
    char line[256];
    long kb = -1;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) {
        if (sscanf(line, "VmRSS: %ld", &kb) == 1) {
            break;
        }
    }
    if (status) {
        fclose(status);
    }
    return kb;
}

/* The emulator keeps calls until somebody asks for its time: with nobody asking, memory would rise and fall over rounds. */
static void ask_the_clock(void) {
    const char *path = getenv("RKNPU_LIBRARY");
    void *npu = path ? dlopen(path, RTLD_NOW | RTLD_NOLOAD) : NULL;
    unsigned long long (*clock_ns)(int) = NULL;
    if (npu) {
        *(void **) &clock_ns = dlsym(npu, "rknpu_emulator_clock_ns");
        dlclose(npu);
    }
    if (clock_ns) {
        clock_ns(-1);
    }
}

static int round_of(const char *path) {
    struct llama_model_params of_model = llama_model_default_params();
    struct llama_model *model = llama_model_load_from_file(path, of_model);
    if (!model) {
        return 1;
    }
    struct llama_context_params of_context = llama_context_default_params();
    of_context.n_ctx = 64;
    of_context.n_batch = 32;
    of_context.n_threads = 2;
    of_context.n_threads_batch = 2;
    struct llama_context *context = llama_init_from_model(model, of_context);
    if (!context) {
        return 2;
    }
    /* A prompt of more rows than are few, then a token. */
    llama_token tokens[20];
    for (int i = 0; i < 20; i++) {
        tokens[i] = 100 + i;
    }
    int failed = llama_decode(context, llama_batch_get_one(tokens, 20)) != 0
        || llama_decode(context, llama_batch_get_one(tokens, 1)) != 0
        || llama_get_logits(context) == NULL;
    llama_free(context);
    llama_model_free(model);
    return failed ? 3 : 0;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        return 64;
    }
    llama_log_set(say_nothing, NULL);
    ggml_backend_load_all();
    llama_backend_init();
    for (int i = 0; i < atoi(argv[2]); i++) {
        int failed = round_of(argv[1]);
        if (failed) {
            fprintf(stderr, "round %d failed (%d)\n", i, failed);
            return failed;
        }
        ask_the_clock();
        /* What the allocator keeps for later is no leak. */
        malloc_trim(0);
        printf("%d %d %ld\n", entries("/proc/self/fd"), entries("/proc/self/task"), resident_kb());
        fflush(stdout);
    }
    return 0;
}
