/*
 * The part of ggml's plugin ABI that this project uses: generation v3
 * (GGML_BACKEND_API_VERSION 3, ggml 0.26, llama.cpp b11434), and where v2-2d
 * (ggml 0.25) and v2 (ggml 0.9) differ from it.
 *
 * Written from facts about the interface (orders, types, values); it is not
 * ggml's header. Rust sees it through src/sys.rs, which bindgen makes from this
 * file and a test keeps in step; another test compares every size and offset
 * with the real headers of the host that the tests fetch.
 *
 * Functions are declared as pointer types, because nothing links to ggml: the
 * symbols are looked up in the process that loads the plugin.
 */
#ifndef GGML_HOST_ABI_H
#define GGML_HOST_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GGML_HOST_API_VERSION 3
#define GGML_HOST_API_VERSION_V2 2

#define GGML_HOST_MAX_DIMS 4
#define GGML_HOST_MAX_SRC 10
#define GGML_HOST_MAX_NAME 64
#define GGML_HOST_MAX_OP_PARAMS 64

/* enum ggml_status */
#define GGML_HOST_STATUS_ALLOC_FAILED (-2)
#define GGML_HOST_STATUS_FAILED (-1)
#define GGML_HOST_STATUS_SUCCESS 0
#define GGML_HOST_STATUS_ABORTED 1

/* enum ggml_backend_buffer_usage */
#define GGML_HOST_USAGE_ANY 0
#define GGML_HOST_USAGE_WEIGHTS 1
#define GGML_HOST_USAGE_COMPUTE 2

/* enum ggml_backend_dev_type */
#define GGML_HOST_DEVICE_CPU 0
#define GGML_HOST_DEVICE_GPU 1
#define GGML_HOST_DEVICE_IGPU 2
#define GGML_HOST_DEVICE_ACCEL 3

/* ggml_tensor.flags: somebody reads the node's data after the graph; the node is to be computed, which ggml before 0.9.6
 * does not know. */
#define GGML_HOST_TENSOR_FLAG_OUTPUT 2
#define GGML_HOST_TENSOR_FLAG_COMPUTE 16

/* enum ggml_type: part of the GGUF file format, so these never move. */
#define GGML_HOST_TYPE_F32 0
#define GGML_HOST_TYPE_F16 1
#define GGML_HOST_TYPE_I32 26
#define GGML_HOST_TYPE_BF16 30

struct ggml_cgraph;
struct ggml_context;

typedef struct ggml_backend_buffer_type *ggml_backend_buffer_type_t;
typedef struct ggml_backend_buffer *ggml_backend_buffer_t;
typedef struct ggml_backend_event *ggml_backend_event_t;
typedef struct ggml_backend *ggml_backend_t;
typedef struct ggml_backend_reg *ggml_backend_reg_t;
typedef struct ggml_backend_device *ggml_backend_dev_t;
typedef void *ggml_backend_graph_plan_t;

struct ggml_tensor {
    int32_t type;
    struct ggml_backend_buffer *buffer;
    int64_t ne[GGML_HOST_MAX_DIMS];
    size_t nb[GGML_HOST_MAX_DIMS];
    int32_t op;
    int32_t op_params[GGML_HOST_MAX_OP_PARAMS / 4];
    int32_t flags;
    struct ggml_tensor *src[GGML_HOST_MAX_SRC];
    struct ggml_tensor *view_src;
    size_t view_offs;
    void *data;
    char name[GGML_HOST_MAX_NAME];
    void *extra;
    char padding[8];
};

typedef void (*ggml_to_float_t)(const void *x, float *y, int64_t k);
typedef void (*ggml_from_float_t)(const float *x, void *y, int64_t k);

struct ggml_type_traits {
    const char *type_name;
    int64_t blck_size;
    int64_t blck_size_interleave;
    size_t type_size;
    bool is_quantized;
    ggml_to_float_t to_float;
    ggml_from_float_t from_float_ref;
};

struct ggml_init_params {
    size_t mem_size;
    void *mem_buffer;
    bool no_alloc;
};

struct ggml_backend_buffer_type_i {
    const char *(*get_name)(ggml_backend_buffer_type_t buft);
    ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t buft, size_t size);
    ggml_backend_buffer_t (*alloc_buffer_n)(ggml_backend_buffer_type_t buft, struct ggml_tensor **tensors, int n_tensors);
    size_t (*get_alignment)(ggml_backend_buffer_type_t buft);
    size_t (*get_max_size)(ggml_backend_buffer_type_t buft);
    size_t (*get_alloc_size)(ggml_backend_buffer_type_t buft, const struct ggml_tensor *tensor);
    size_t (*get_alloc_size_n)(ggml_backend_buffer_type_t buft, struct ggml_tensor **tensors, int n_tensors);
    bool (*is_host)(ggml_backend_buffer_type_t buft);
};

struct ggml_backend_buffer_type {
    struct ggml_backend_buffer_type_i iface;
    ggml_backend_dev_t device;
    void *context;
};

struct ggml_backend_buffer_i {
    void (*free_buffer)(ggml_backend_buffer_t buffer);
    void *(*get_base)(ggml_backend_buffer_t buffer);
    int32_t (*init_tensor)(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor);
    void (*memset_tensor)(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor, uint8_t value, size_t offset, size_t size);
    void (*set_tensor)(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor, const void *data, size_t offset, size_t size);
    void (*get_tensor)(ggml_backend_buffer_t buffer, const struct ggml_tensor *tensor, void *data, size_t offset, size_t size);
    void (*set_tensor_2d)(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor, const void *data, size_t offset, size_t size, size_t n_copies, size_t stride_tensor, size_t stride_data);
    void (*get_tensor_2d)(ggml_backend_buffer_t buffer, const struct ggml_tensor *tensor, void *data, size_t offset, size_t size, size_t n_copies, size_t stride_tensor, size_t stride_data);
    bool (*cpy_tensor)(ggml_backend_buffer_t buffer, const struct ggml_tensor *src, struct ggml_tensor *dst);
    void (*clear)(ggml_backend_buffer_t buffer, uint8_t value);
    void (*reset)(ggml_backend_buffer_t buffer);
};

struct ggml_backend_buffer {
    struct ggml_backend_buffer_i iface;
    ggml_backend_buffer_type_t buft;
    void *context;
    size_t size;
    int32_t usage;
};

struct ggml_backend_graph_optimize_params;

struct ggml_backend_i {
    const char *(*get_name)(ggml_backend_t backend);
    void (*free)(ggml_backend_t backend);
    void (*set_tensor_async)(ggml_backend_t backend, struct ggml_tensor *tensor, const void *data, size_t offset, size_t size);
    void (*get_tensor_async)(ggml_backend_t backend, const struct ggml_tensor *tensor, void *data, size_t offset, size_t size);
    void (*set_tensor_2d_async)(ggml_backend_t backend, struct ggml_tensor *tensor, const void *data, size_t offset, size_t size, size_t n_copies, size_t stride_tensor, size_t stride_data);
    void (*get_tensor_2d_async)(ggml_backend_t backend, const struct ggml_tensor *tensor, void *data, size_t offset, size_t size, size_t n_copies, size_t stride_tensor, size_t stride_data);
    bool (*cpy_tensor_async)(ggml_backend_t backend_src, ggml_backend_t backend_dst, const struct ggml_tensor *src, struct ggml_tensor *dst);
    void (*synchronize)(ggml_backend_t backend);
    ggml_backend_graph_plan_t (*graph_plan_create)(ggml_backend_t backend, const struct ggml_cgraph *cgraph);
    void (*graph_plan_free)(ggml_backend_t backend, ggml_backend_graph_plan_t plan);
    void (*graph_plan_update)(ggml_backend_t backend, ggml_backend_graph_plan_t plan, const struct ggml_cgraph *cgraph);
    int32_t (*graph_plan_compute)(ggml_backend_t backend, ggml_backend_graph_plan_t plan);
    int32_t (*graph_compute)(ggml_backend_t backend, struct ggml_cgraph *cgraph);
    void (*event_record)(ggml_backend_t backend, ggml_backend_event_t event);
    void (*event_wait)(ggml_backend_t backend, ggml_backend_event_t event);
    void (*graph_optimize)(ggml_backend_t backend, struct ggml_cgraph *cgraph, struct ggml_backend_graph_optimize_params *params);
};

struct ggml_backend {
    uint8_t (*guid)[16];
    struct ggml_backend_i iface;
    ggml_backend_dev_t device;
    void *context;
};

/*
 * The same in older generations. Buffer types are these in v2 and v2-2d; buffers and backends are these in v2, before
 * the 2-D copies. All else is the same in all three, but that v2 has no mmap_support: its byte is padding there.
 */
struct ggml_backend_buffer_type_i_v2 {
    const char *(*get_name)(ggml_backend_buffer_type_t buft);
    ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t buft, size_t size);
    size_t (*get_alignment)(ggml_backend_buffer_type_t buft);
    size_t (*get_max_size)(ggml_backend_buffer_type_t buft);
    size_t (*get_alloc_size)(ggml_backend_buffer_type_t buft, const struct ggml_tensor *tensor);
    bool (*is_host)(ggml_backend_buffer_type_t buft);
};

struct ggml_backend_buffer_type_v2 {
    struct ggml_backend_buffer_type_i_v2 iface;
    ggml_backend_dev_t device;
    void *context;
};

struct ggml_backend_buffer_i_v2 {
    void (*free_buffer)(ggml_backend_buffer_t buffer);
    void *(*get_base)(ggml_backend_buffer_t buffer);
    int32_t (*init_tensor)(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor);
    void (*memset_tensor)(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor, uint8_t value, size_t offset, size_t size);
    void (*set_tensor)(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor, const void *data, size_t offset, size_t size);
    void (*get_tensor)(ggml_backend_buffer_t buffer, const struct ggml_tensor *tensor, void *data, size_t offset, size_t size);
    bool (*cpy_tensor)(ggml_backend_buffer_t buffer, const struct ggml_tensor *src, struct ggml_tensor *dst);
    void (*clear)(ggml_backend_buffer_t buffer, uint8_t value);
    void (*reset)(ggml_backend_buffer_t buffer);
};

struct ggml_backend_buffer_v2 {
    struct ggml_backend_buffer_i_v2 iface;
    ggml_backend_buffer_type_t buft;
    void *context;
    size_t size;
    int32_t usage;
};

struct ggml_backend_i_v2 {
    const char *(*get_name)(ggml_backend_t backend);
    void (*free)(ggml_backend_t backend);
    void (*set_tensor_async)(ggml_backend_t backend, struct ggml_tensor *tensor, const void *data, size_t offset, size_t size);
    void (*get_tensor_async)(ggml_backend_t backend, const struct ggml_tensor *tensor, void *data, size_t offset, size_t size);
    bool (*cpy_tensor_async)(ggml_backend_t backend_src, ggml_backend_t backend_dst, const struct ggml_tensor *src, struct ggml_tensor *dst);
    void (*synchronize)(ggml_backend_t backend);
    ggml_backend_graph_plan_t (*graph_plan_create)(ggml_backend_t backend, const struct ggml_cgraph *cgraph);
    void (*graph_plan_free)(ggml_backend_t backend, ggml_backend_graph_plan_t plan);
    void (*graph_plan_update)(ggml_backend_t backend, ggml_backend_graph_plan_t plan, const struct ggml_cgraph *cgraph);
    int32_t (*graph_plan_compute)(ggml_backend_t backend, ggml_backend_graph_plan_t plan);
    int32_t (*graph_compute)(ggml_backend_t backend, struct ggml_cgraph *cgraph);
    void (*event_record)(ggml_backend_t backend, ggml_backend_event_t event);
    void (*event_wait)(ggml_backend_t backend, ggml_backend_event_t event);
    void (*graph_optimize)(ggml_backend_t backend, struct ggml_cgraph *cgraph);
};

struct ggml_backend_v2 {
    uint8_t (*guid)[16];
    struct ggml_backend_i_v2 iface;
    ggml_backend_dev_t device;
    void *context;
};

struct ggml_backend_dev_caps {
    bool async;
    bool host_buffer;
    bool buffer_from_host_ptr;
    bool events;
    bool mmap_support;
};

struct ggml_backend_dev_props {
    const char *name;
    const char *description;
    size_t memory_free;
    size_t memory_total;
    int32_t type;
    const char *device_id;
    struct ggml_backend_dev_caps caps;
};

struct ggml_backend_device_i {
    const char *(*get_name)(ggml_backend_dev_t dev);
    const char *(*get_description)(ggml_backend_dev_t dev);
    void (*get_memory)(ggml_backend_dev_t dev, size_t *free, size_t *total);
    int32_t (*get_type)(ggml_backend_dev_t dev);
    void (*get_props)(ggml_backend_dev_t dev, struct ggml_backend_dev_props *props);
    ggml_backend_t (*init_backend)(ggml_backend_dev_t dev, const char *params);
    ggml_backend_buffer_type_t (*get_buffer_type)(ggml_backend_dev_t dev);
    ggml_backend_buffer_type_t (*get_host_buffer_type)(ggml_backend_dev_t dev);
    ggml_backend_buffer_t (*buffer_from_host_ptr)(ggml_backend_dev_t dev, void *ptr, size_t size, size_t max_tensor_size);
    bool (*supports_op)(ggml_backend_dev_t dev, const struct ggml_tensor *op);
    bool (*supports_buft)(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft);
    bool (*offload_op)(ggml_backend_dev_t dev, const struct ggml_tensor *op);
    ggml_backend_event_t (*event_new)(ggml_backend_dev_t dev);
    void (*event_free)(ggml_backend_dev_t dev, ggml_backend_event_t event);
    void (*event_synchronize)(ggml_backend_dev_t dev, ggml_backend_event_t event);
};

struct ggml_backend_device {
    struct ggml_backend_device_i iface;
    ggml_backend_reg_t reg;
    void *context;
};

struct ggml_backend_reg_i {
    const char *(*get_name)(ggml_backend_reg_t reg);
    size_t (*get_device_count)(ggml_backend_reg_t reg);
    ggml_backend_dev_t (*get_device)(ggml_backend_reg_t reg, size_t index);
    void *(*get_proc_address)(ggml_backend_reg_t reg, const char *name);
};

struct ggml_backend_reg {
    int api_version;
    struct ggml_backend_reg_i iface;
    void *context;
};

/* Functions of libggml-base (and, for the registry, libggml) that are looked up by name. */
typedef ggml_backend_buffer_t (*ggml_backend_buffer_init_fn)(ggml_backend_buffer_type_t buft, struct ggml_backend_buffer_i iface, void *context, size_t size);
typedef ggml_backend_buffer_t (*ggml_backend_buffer_init_v2_fn)(ggml_backend_buffer_type_t buft, struct ggml_backend_buffer_i_v2 iface, void *context, size_t size);
typedef ggml_backend_buffer_type_t (*ggml_backend_buffer_get_type_fn)(ggml_backend_buffer_t buffer);
typedef int32_t (*ggml_backend_buffer_get_usage_fn)(ggml_backend_buffer_t buffer);
typedef void (*ggml_backend_buffer_set_usage_fn)(ggml_backend_buffer_t buffer, int32_t usage);
typedef ggml_backend_dev_t (*ggml_backend_get_device_fn)(ggml_backend_t backend);
typedef ggml_backend_buffer_type_t (*ggml_backend_cpu_buffer_type_fn)(void);
typedef bool (*ggml_backend_buft_is_host_fn)(ggml_backend_buffer_type_t buft);
typedef const char *(*ggml_op_name_fn)(int32_t op);
typedef const char *(*ggml_glu_op_name_fn)(int32_t op);
typedef const struct ggml_type_traits *(*ggml_get_type_traits_fn)(int32_t type);
typedef int (*ggml_graph_n_nodes_fn)(struct ggml_cgraph *cgraph);
typedef struct ggml_tensor **(*ggml_graph_nodes_fn)(struct ggml_cgraph *cgraph);
typedef struct ggml_context *(*ggml_init_fn)(struct ggml_init_params params);
typedef void (*ggml_free_fn)(struct ggml_context *ctx);
typedef size_t (*ggml_tensor_overhead_fn)(void);
typedef struct ggml_tensor *(*ggml_new_tensor_2d_fn)(struct ggml_context *ctx, int32_t type, int64_t ne0, int64_t ne1);
typedef struct ggml_tensor *(*ggml_mul_mat_fn)(struct ggml_context *ctx, struct ggml_tensor *a, struct ggml_tensor *b);
typedef struct ggml_tensor *(*ggml_set_name_fn)(struct ggml_tensor *tensor, const char *name);
typedef void (*ggml_build_forward_expand_fn)(struct ggml_cgraph *cgraph, struct ggml_tensor *tensor);
typedef size_t (*ggml_graph_overhead_custom_fn)(size_t size, bool grads);
typedef struct ggml_cgraph *(*ggml_new_graph_custom_fn)(struct ggml_context *ctx, size_t size, bool grads);
typedef void (*ggml_graph_add_node_fn)(struct ggml_cgraph *cgraph, struct ggml_tensor *tensor);
typedef void (*ggml_graph_clear_fn)(struct ggml_cgraph *cgraph);
typedef int32_t (*ggml_backend_graph_compute_fn)(ggml_backend_t backend, struct ggml_cgraph *cgraph);
typedef void (*ggml_backend_free_fn)(ggml_backend_t backend);
typedef ggml_backend_t (*ggml_backend_init_by_type_fn)(int32_t type, const char *params);
typedef ggml_backend_reg_t (*ggml_backend_dev_backend_reg_fn)(ggml_backend_dev_t device);
typedef void *(*ggml_backend_reg_get_proc_address_fn)(ggml_backend_reg_t reg, const char *name);
typedef void (*ggml_backend_set_n_threads_fn)(ggml_backend_t backend, int n_threads);
typedef ggml_backend_buffer_type_t *(*ggml_backend_dev_get_extra_bufts_fn)(ggml_backend_dev_t device);
typedef bool (*ggml_backend_dev_supports_op_fn)(ggml_backend_dev_t device, const struct ggml_tensor *op);
typedef ggml_backend_buffer_t (*ggml_backend_buft_alloc_buffer_fn)(ggml_backend_buffer_type_t buft, size_t size);
typedef size_t (*ggml_backend_buft_get_alloc_size_fn)(ggml_backend_buffer_type_t buft, const struct ggml_tensor *tensor);
typedef void *(*ggml_backend_buffer_get_base_fn)(ggml_backend_buffer_t buffer);
typedef void (*ggml_backend_buffer_free_fn)(ggml_backend_buffer_t buffer);
typedef int32_t (*ggml_backend_tensor_alloc_fn)(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor, void *addr);
typedef void (*ggml_backend_tensor_set_fn)(struct ggml_tensor *tensor, const void *data, size_t offset, size_t size);

/* Optional: what a host may say of itself. The second is of the host's CPU backend. */
typedef const char *(*ggml_version_fn)(void);
typedef ggml_backend_reg_t (*ggml_backend_cpu_reg_fn)(void);

#endif
