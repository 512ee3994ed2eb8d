// Preloaded into the host's test-llama-archs: loads the backends, which a build with GGML_BACKEND_DL leaves to the program
// and this program forgets, and writes the logits that it looks at to the file that ARCHITECTURES_LOGITS names.
//
// A record is a line "architecture experts logits\n", experts empty for what has none, and then the logits as f32.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

__attribute__((constructor)) static void load_backends(void) {
    void (*load_all)(void) = (void (*)(void)) dlsym(RTLD_DEFAULT, "ggml_backend_load_all");
    // Also preloaded into whatever starts the program.
    if (load_all) {
        load_all();
    }
}

float *llama_get_logits_ith(void *context, int32_t index) {
    static float *(*logits)(void *, int32_t);
    static const void *(*model_of)(const void *);
    static int32_t (*meta)(const void *, const char *, char *, size_t);
    static const void *(*vocab_of)(const void *);
    static int32_t (*tokens)(const void *);
    static FILE *out;
    if (!out) {
        logits = (float *(*)(void *, int32_t)) dlsym(RTLD_NEXT, "llama_get_logits_ith");
        model_of = (const void *(*)(const void *)) dlsym(RTLD_NEXT, "llama_get_model");
        meta = (int32_t(*)(const void *, const char *, char *, size_t)) dlsym(RTLD_NEXT, "llama_model_meta_val_str");
        vocab_of = (const void *(*)(const void *)) dlsym(RTLD_NEXT, "llama_model_get_vocab");
        tokens = (int32_t(*)(const void *)) dlsym(RTLD_NEXT, "llama_vocab_n_tokens");
        const char *path = getenv("ARCHITECTURES_LOGITS");
        out = path ? fopen(path, "wb") : NULL;
        if (!logits || !model_of || !meta || !vocab_of || !tokens || !out) {
            fprintf(stderr, "the preloaded library lacks a function of the host, or cannot write its file\n");
            exit(1);
        }
    }
    float *row = logits(context, index);
    const void *model = model_of(context);
    char architecture[64], key[96], experts[16];
    meta(model, "general.architecture", architecture, sizeof architecture);
    snprintf(key, sizeof key, "%s.expert_count", architecture);
    // Writes nothing but the end of the text where there is no such key.
    meta(model, key, experts, sizeof experts);
    int32_t count = row ? tokens(vocab_of(model)) : 0;
    fprintf(out, "%s %s %d\n", architecture, experts, count);
    if (count > 0 && fwrite(row, sizeof *row, (size_t) count, out) != (size_t) count) {
        fprintf(stderr, "cannot write the logits\n");
        exit(1);
    }
    fflush(out);
    return row;
}
