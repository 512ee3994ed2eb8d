/*
 * A made-up host of a generation to come: it has ggml's functions by which v3 is told, and a CPU backend that says
 * version 4. Nothing of it may be called but what says versions.
 *
 * unknown PLUGIN: prints what the plugin registers, "null" for nothing.
 */

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

struct registration {
    int api_version;
};

void ggml_backend_buffer_init(void) { abort(); }
void ggml_backend_tensor_set_2d(void) { abort(); }
void ggml_backend_buft_alloc_buffer_n(void) { abort(); }

const char *ggml_version(void) { return "0.99.0"; }

struct registration *ggml_backend_cpu_reg(void) {
    static struct registration reg = {4};
    return &reg;
}

int main(int argc, char **argv) {
    void *plugin = argc > 1 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    void *(*init)(void) = NULL;
    if (plugin) {
        *(void **) &init = dlsym(plugin, "ggml_backend_init");
    }
    if (!init) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    printf("%s\n", init() ? "a registration" : "null");
    return 0;
}
