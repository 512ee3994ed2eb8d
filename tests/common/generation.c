/*
 * A small host, written against ggml's own headers: compiled with those of each generation, linked with its libraries.
 *
 * generation PLUGIN [BACKEND...]: loads the backends, then the plugin, checks its registration by the header's layout, and
 * has products computed in the way of llama.cpp: by the scheduler, weights in the plugin's buffer. One line for each check
 * that holds; for a product its name and the mean squared error, relative to the f64 oracle's mean square.
 */

#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what)                                                       \
    do {                                                                  \
        if (!(what)) {                                                    \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); \
            exit(1);                                                      \
        }                                                                 \
    } while (0)

enum { K = 256, N = 96, ROWS = 20, PIECES = 3 };

static float number(unsigned *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float) (*state >> 8) / 8388608.0f - 1.0f;
}

static struct ggml_context *context(void) {
    struct ggml_init_params params = {1 << 20, NULL, true};
    return ggml_init(params);
}

/* What the table of each struct says, read as the header lays it out. */
static void check_tables(ggml_backend_reg_t reg, ggml_backend_dev_t dev) {
    CHECK(reg->api_version == GGML_BACKEND_API_VERSION);
    CHECK(reg->iface.get_device_count(reg) == 1 && reg->iface.get_device(reg, 0) == dev);
    CHECK(dev->reg == reg && dev->iface.get_type(dev) == GGML_BACKEND_DEVICE_TYPE_ACCEL);

    struct ggml_backend_dev_props props;
    memset(&props, 0x55, sizeof props);
    dev->iface.get_props(dev, &props);
    CHECK(strcmp(props.name, "RKNPU") == 0 && props.type == GGML_BACKEND_DEVICE_TYPE_ACCEL);
    CHECK(props.device_id == NULL && props.memory_free <= props.memory_total);
    CHECK(!props.caps.async && !props.caps.host_buffer && props.caps.buffer_from_host_ptr && !props.caps.events);

    ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(dev);
    CHECK(buft->device == dev && strcmp(buft->iface.get_name(buft), "RKNPU") == 0);
    CHECK(buft->iface.get_alignment(buft) == 128 && buft->iface.is_host(buft));
    CHECK(ggml_backend_buft_get_max_size(buft) == SIZE_MAX);

    ggml_backend_t backend = ggml_backend_dev_init(dev, NULL);
    CHECK(backend->device == dev && strcmp(ggml_backend_name(backend), "RKNPU") == 0);
    CHECK(backend->iface.graph_optimize && !backend->iface.event_record && backend->iface.graph_compute);
    ggml_backend_synchronize(backend);
    ggml_backend_free(backend);
    printf("tables\n");
}

/* Each way to a buffer's bytes. */
static void check_buffers(ggml_backend_dev_t dev) {
    static float lent[1024] __attribute__((aligned(4096)));
    ggml_backend_buffer_t buffers[] = {
        ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(dev), sizeof lent),
        ggml_backend_dev_buffer_from_host_ptr(dev, lent, sizeof lent, sizeof lent),
    };
    for (int i = 0; i < 2; i++) {
        ggml_backend_buffer_t buffer = buffers[i];
        CHECK(buffer && ggml_backend_buffer_get_size(buffer) == sizeof lent && ggml_backend_buffer_is_host(buffer));
        struct ggml_context *ctx = context();
        struct ggml_tensor *a = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 8, 8);
        struct ggml_tensor *b = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 8, 8);
        char *base = ggml_backend_buffer_get_base(buffer);
        CHECK(ggml_backend_tensor_alloc(buffer, a, base) == GGML_STATUS_SUCCESS);
        CHECK(ggml_backend_tensor_alloc(buffer, b, base + 512) == GGML_STATUS_SUCCESS);
        float values[64], back[64];
        for (int j = 0; j < 64; j++) {
            values[j] = (float) j;
        }
        ggml_backend_buffer_clear(buffer, 0);
        ggml_backend_tensor_set(a, values, 0, 100);
        ggml_backend_tensor_set(a, values + 25, 100, 156);
        ggml_backend_tensor_copy(a, b);
        ggml_backend_tensor_get(b, back, 0, 256);
        CHECK(memcmp(values, back, 256) == 0);
        ggml_backend_tensor_memset(b, 0, 128, 128);
        ggml_backend_tensor_get(b, back, 0, 256);
        CHECK(back[31] == 31.0f && back[32] == 0.0f);
#ifdef HOST_HAS_2D
        /* The plugin has no function of its own for these: the host makes them of the plain ones. */
        ggml_backend_tensor_set_2d(b, values, 0, 8, 4, 32, 8);
        ggml_backend_tensor_get_2d(b, back, 0, 8, 4, 32, 8);
        CHECK(memcmp(values, back, 32) == 0);
#endif
        ggml_backend_buffer_reset(buffer);
        ggml_free(ctx);
        ggml_backend_buffer_free(buffer);
    }
    printf("buffers\n");
}

/*
 * A product, its norm, the product once more, which is to come before the norm, and a difference that only the CPU does. The norm
 * is put on the CPU, as llama.cpp does; of a loaded model it is the device's all the same.
 */
static void check_product(ggml_backend_dev_t dev, enum ggml_type type, bool experts) {
    int n_experts = experts ? 3 : 1;

    struct ggml_context *of_weights = context();
    struct ggml_tensor *weight = ggml_new_tensor_3d(of_weights, type, K, N, n_experts);
    ggml_set_name(weight, "blk.0.ffn_up.weight");
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(of_weights, ggml_backend_dev_buffer_type(dev));
    CHECK(buffer);
    ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    CHECK(ggml_backend_buffer_get_usage(buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    CHECK(ggml_backend_buffer_get_type(buffer) != ggml_backend_cpu_buffer_type());

    ggml_backend_t backends[] = {
        ggml_backend_dev_init(dev, NULL),
        ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, NULL),
    };
    CHECK(backends[0] && backends[1]);
    CHECK(ggml_backend_get_default_buffer_type(backends[0]) == ggml_backend_cpu_buffer_type());
    CHECK(ggml_backend_dev_buffer_type(dev) == ggml_backend_buffer_get_type(buffer));

    /* The weight in pieces, and what it is after its own rounding. */
    int64_t count = (int64_t) K * N * n_experts;
    size_t bytes = ggml_nbytes(weight);
    float *values = malloc(count * sizeof(float));
    char *data = malloc(bytes);
    unsigned state = 1;
    for (int64_t i = 0; i < count; i++) {
        values[i] = number(&state);
    }
    ggml_quantize_chunk(type, values, data, 0, (int64_t) N * n_experts, K, NULL);
    if (type == GGML_TYPE_F32) {
        memcpy(values, data, bytes);
    } else {
        ggml_get_type_traits(type)->to_float(data, values, count);
    }
    for (size_t i = 0; i < PIECES; i++) {
        size_t from = bytes * i / PIECES / 32 * 32;
        size_t to = i + 1 == PIECES ? bytes : bytes * (i + 1) / PIECES / 32 * 32;
        ggml_backend_tensor_set(weight, data + from, from, to - from);
    }

    struct ggml_context *of_graph = context();
    int used = experts ? 2 : 1;
    struct ggml_tensor *rows = experts ? ggml_new_tensor_3d(of_graph, GGML_TYPE_F32, K, 1, ROWS)
                                       : ggml_new_tensor_2d(of_graph, GGML_TYPE_F32, K, ROWS);
    struct ggml_tensor *ids = experts ? ggml_new_tensor_2d(of_graph, GGML_TYPE_I32, used, ROWS) : NULL;
    ggml_set_input(rows);
    if (ids) {
        ggml_set_input(ids);
    }
    struct ggml_tensor *product = experts ? ggml_mul_mat_id(of_graph, weight, rows, ids) : ggml_mul_mat(of_graph, weight, rows);
    CHECK(ggml_backend_dev_supports_op(dev, product));
    struct ggml_cgraph *graph = ggml_new_graph(of_graph);
    struct ggml_tensor *normed = NULL, *again = product;
    if (!experts) {
        normed = ggml_rms_norm(of_graph, product, 1e-9f);
        CHECK(ggml_backend_dev_supports_op(dev, normed));
        ggml_set_output(normed);
        ggml_build_forward_expand(graph, normed);
        again = ggml_mul_mat(of_graph, weight, rows);
    }
    struct ggml_tensor *sum = ggml_sub(of_graph, product, ggml_neg(of_graph, again));
    CHECK(!ggml_backend_dev_supports_op(dev, sum));
    ggml_set_output(sum);
    ggml_build_forward_expand(graph, sum);

    ggml_backend_sched_t sched = ggml_backend_sched_new(backends, NULL, 2, 64, false, false);
    if (normed) {
        ggml_backend_sched_set_tensor_backend(sched, normed, backends[1]);
    }
    CHECK(ggml_backend_sched_alloc_graph(sched, graph));
    CHECK(ggml_backend_sched_get_tensor_backend(sched, product) == backends[0]);
    if (normed) {
        CHECK(ggml_backend_sched_get_tensor_backend(sched, normed) == backends[0]);
        CHECK(ggml_graph_node(graph, 0) == product && ggml_graph_node(graph, 1) == again);
    }
    float *activations = malloc(sizeof(float) * K * ROWS);
    int chosen[2 * ROWS] = {0};
    for (int i = 0; i < K * ROWS; i++) {
        activations[i] = number(&state);
    }
    ggml_backend_tensor_set(rows, activations, 0, sizeof(float) * K * ROWS);
    if (ids) {
        for (int i = 0; i < used * ROWS; i++) {
            chosen[i] = (i + i / used) % n_experts;
        }
        ggml_backend_tensor_set(ids, chosen, 0, sizeof(int) * used * ROWS);
    }
    CHECK(ggml_backend_sched_graph_compute(sched, graph) == GGML_STATUS_SUCCESS);

    float *out = malloc(sizeof(float) * N * used * ROWS);
    ggml_backend_tensor_get(sum, out, 0, sizeof(float) * N * used * ROWS);
    double error = 0, square = 0;
    for (int row = 0; row < used * ROWS; row++) {
        for (int column = 0; column < N; column++) {
            const float *a = activations + (size_t) (row / used) * K;
            const float *w = values + ((size_t) chosen[row] * N + column) * K;
            double want = 0;
            for (int k = 0; k < K; k++) {
                want += 2.0 * a[k] * w[k];
            }
            error += pow(out[row * N + column] - want, 2);
            square += want * want;
        }
    }
    if (normed) {
        float *norms = malloc(sizeof(float) * N * ROWS);
        ggml_backend_tensor_get(normed, norms, 0, sizeof(float) * N * ROWS);
        for (int row = 0; row < ROWS; row++) {
            double squares = 0;
            for (int column = 0; column < N; column++) {
                squares += pow(out[row * N + column], 2);
            }
            for (int column = 0; column < N; column++) {
                CHECK(fabs(norms[row * N + column] - out[row * N + column] / sqrt(squares / N)) < 1e-4);
            }
        }
        free(norms);
    }
    printf("%s %s %g\n", experts ? "mul_mat_id" : "mul_mat", ggml_type_name(type), error / square);

    ggml_backend_sched_free(sched);
    ggml_free(of_graph);
    ggml_backend_buffer_free(buffer);
    ggml_free(of_weights);
    ggml_backend_free(backends[0]);
    ggml_backend_free(backends[1]);
    free(values);
    free(data);
    free(activations);
    free(out);
}

int main(int argc, char **argv) {
    CHECK(argc > 1);
    for (int i = 2; i < argc; i++) {
        CHECK(ggml_backend_load(argv[i]));
    }
    ggml_backend_reg_t reg = ggml_backend_load(argv[1]);
    CHECK(reg);
    ggml_backend_dev_t dev = ggml_backend_dev_by_name("RKNPU");
    CHECK(dev);
    check_tables(reg, dev);
    check_buffers(dev);
    const enum ggml_type types[] = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        check_product(dev, types[i], false);
    }
    check_product(dev, GGML_TYPE_Q8_0, true);
    printf("ggml %s\n", ggml_version());
    return 0;
}
