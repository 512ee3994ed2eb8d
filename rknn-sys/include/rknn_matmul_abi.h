/*
 * The matmul part of the librknnrt ABI, as this project declares it.
 *
 * Written from facts about the binary interface (sizes, orders, values) of
 * librknnrt 2.1 to 2.3.2 on LP64; it is not the vendor's header. Rust sees it
 * through src/sys.rs, which bindgen makes from this file and a test keeps in step.
 *
 * The functions are declared as pointer types, because nothing links to the
 * library: it is opened at run time.
 */
#ifndef RKNN_MATMUL_ABI_H
#define RKNN_MATMUL_ABI_H

#include <stdint.h>

#define RKNN_ABI_NAME_LEN 256
#define RKNN_ABI_MAX_DIMS 16

/* Return codes. */
#define RKNN_ABI_OK 0
#define RKNN_ABI_ERR_FAIL (-1)
#define RKNN_ABI_ERR_TIMEOUT (-2)
#define RKNN_ABI_ERR_DEVICE_UNAVAILABLE (-3)
#define RKNN_ABI_ERR_MALLOC_FAIL (-4)
#define RKNN_ABI_ERR_PARAM_INVALID (-5)
#define RKNN_ABI_ERR_MODEL_INVALID (-6)
#define RKNN_ABI_ERR_CTX_INVALID (-7)
#define RKNN_ABI_ERR_INPUT_INVALID (-8)
#define RKNN_ABI_ERR_OUTPUT_INVALID (-9)
#define RKNN_ABI_ERR_DEVICE_UNMATCH (-10)
#define RKNN_ABI_ERR_PRE_COMPILE (-11)
#define RKNN_ABI_ERR_OPTIMISATION (-12)
#define RKNN_ABI_ERR_TARGET_UNMATCH (-13)

/* rknn_matmul_info.type: A x B -> C. */
#define RKNN_ABI_F16_F16_TO_F32 1
#define RKNN_ABI_I8_I8_TO_I32 2
#define RKNN_ABI_I8_I8_TO_I8 3
#define RKNN_ABI_F16_F16_TO_F16 4
#define RKNN_ABI_F16_I8_TO_F32 5
#define RKNN_ABI_F16_I8_TO_F16 6
#define RKNN_ABI_F16_I4_TO_F32 7
#define RKNN_ABI_F16_I4_TO_F16 8
#define RKNN_ABI_I8_I8_TO_F32 9
#define RKNN_ABI_I4_I4_TO_I16 10
#define RKNN_ABI_I8_I4_TO_I32 11
#define RKNN_ABI_F16_I4_TO_BF16 12
#define RKNN_ABI_I8_I4_TO_F16 15

/* Tensor element types. */
#define RKNN_ABI_TENSOR_F32 0
#define RKNN_ABI_TENSOR_F16 1
#define RKNN_ABI_TENSOR_I8 2
#define RKNN_ABI_TENSOR_U8 3
#define RKNN_ABI_TENSOR_I16 4
#define RKNN_ABI_TENSOR_U16 5
#define RKNN_ABI_TENSOR_I32 6
#define RKNN_ABI_TENSOR_U32 7
#define RKNN_ABI_TENSOR_I64 8
#define RKNN_ABI_TENSOR_BOOL 9
#define RKNN_ABI_TENSOR_I4 10
#define RKNN_ABI_TENSOR_BF16 11

/* Layouts of A, B, C. */
#define RKNN_ABI_LAYOUT_NORM 0
#define RKNN_ABI_LAYOUT_NATIVE 1
#define RKNN_ABI_LAYOUT_TP_NORM 2

/* Quantisation of B and of A/C. */
#define RKNN_ABI_QUANT_PER_LAYER_SYM 0
#define RKNN_ABI_QUANT_PER_LAYER_ASYM 1
#define RKNN_ABI_QUANT_PER_CHANNEL_SYM 2
#define RKNN_ABI_QUANT_PER_CHANNEL_ASYM 3
#define RKNN_ABI_QUANT_PER_GROUP_SYM 4
#define RKNN_ABI_QUANT_PER_GROUP_ASYM 5

/* Core masks. */
#define RKNN_ABI_CORE_AUTO 0
#define RKNN_ABI_CORE_0 1
#define RKNN_ABI_CORE_1 2
#define RKNN_ABI_CORE_2 4
#define RKNN_ABI_CORE_0_1 3
#define RKNN_ABI_CORE_0_1_2 7
#define RKNN_ABI_CORE_ALL 0xffff

/* rknn_mem_sync modes. */
#define RKNN_ABI_SYNC_TO_DEVICE 1
#define RKNN_ABI_SYNC_FROM_DEVICE 2
#define RKNN_ABI_SYNC_BIDIRECTIONAL 3

/* rknn_create_mem2 flags. */
#define RKNN_ABI_MEM_CACHEABLE 1
#define RKNN_ABI_MEM_NON_CACHEABLE 2
#define RKNN_ABI_MEM_TRY_SRAM 4
#define RKNN_ABI_MEM_NO_CONTEXT 0x20000

/* rknn_query commands. */
#define RKNN_ABI_QUERY_SDK_VERSION 5

typedef uint64_t rknn_context;

typedef struct {
    int32_t M;
    int32_t K;
    int32_t N;
    int32_t type;
    int16_t B_layout;
    int16_t B_quant_type;
    int16_t AC_layout;
    int16_t AC_quant_type;
    int32_t iommu_domain_id;
    int16_t group_size;
    int8_t reserved[34];
} rknn_matmul_info;

typedef struct {
    char name[RKNN_ABI_NAME_LEN];
    uint32_t n_dims;
    uint32_t dims[RKNN_ABI_MAX_DIMS];
    uint32_t size;
    int32_t type;
} rknn_matmul_tensor_attr;

typedef struct {
    rknn_matmul_tensor_attr A;
    rknn_matmul_tensor_attr B;
    rknn_matmul_tensor_attr C;
} rknn_matmul_io_attr;

typedef struct {
    int32_t M;
    int32_t K;
    int32_t N;
} rknn_matmul_shape;

typedef struct {
    char name[RKNN_ABI_NAME_LEN];
    float *scale;
    int32_t scale_len;
    int32_t *zp;
    int32_t zp_len;
} rknn_quant_params;

typedef struct {
    void *virt_addr;
    uint64_t phys_addr;
    int32_t fd;
    int32_t offset;
    uint32_t size;
    uint32_t flags;
    void *priv_data;
} rknn_tensor_mem;

typedef struct {
    char api_version[RKNN_ABI_NAME_LEN];
    char drv_version[RKNN_ABI_NAME_LEN];
} rknn_sdk_version;

typedef int (*rknn_matmul_create_fn)(rknn_context *ctx, rknn_matmul_info *info, rknn_matmul_io_attr *io_attr);
typedef int (*rknn_matmul_create_dynamic_shape_fn)(rknn_context *ctx, rknn_matmul_info *info, int shape_num,
                                                   rknn_matmul_shape shapes[], rknn_matmul_io_attr io_attrs[]);
typedef int (*rknn_matmul_set_io_mem_fn)(rknn_context ctx, rknn_tensor_mem *mem, rknn_matmul_tensor_attr *attr);
typedef int (*rknn_matmul_set_core_mask_fn)(rknn_context ctx, int32_t core_mask);
typedef int (*rknn_matmul_set_quant_params_fn)(rknn_context ctx, rknn_quant_params *params);
typedef int (*rknn_matmul_get_quant_params_fn)(rknn_context ctx, rknn_quant_params *params, float *scale);
typedef int (*rknn_matmul_set_dynamic_shape_fn)(rknn_context ctx, rknn_matmul_shape *shape);
typedef int (*rknn_matmul_run_fn)(rknn_context ctx);
typedef int (*rknn_matmul_destroy_fn)(rknn_context ctx);
typedef rknn_tensor_mem *(*rknn_create_mem_fn)(rknn_context ctx, uint32_t size);
typedef rknn_tensor_mem *(*rknn_create_mem2_fn)(rknn_context ctx, uint64_t size, uint64_t flags);
typedef rknn_tensor_mem *(*rknn_create_mem_from_fd_fn)(rknn_context ctx, int32_t fd, void *virt_addr,
                                                       uint32_t size, int32_t offset);
typedef int (*rknn_destroy_mem_fn)(rknn_context ctx, rknn_tensor_mem *mem);
typedef int (*rknn_mem_sync_fn)(rknn_context ctx, rknn_tensor_mem *mem, int32_t mode);
typedef int (*rknn_query_fn)(rknn_context ctx, int32_t cmd, void *info, uint32_t size);
typedef int (*rknn_B_normal_layout_to_native_layout_fn)(void *b_in, void *b_out, int32_t K, int32_t N,
                                                        rknn_matmul_info *info);

/*
 * Not the vendor's: the name of the chip that this project's emulator plays
 * ("rk3588"), a static string. librknnrt does not have it, so its presence
 * tells the emulator from silicon.
 */
typedef const char *(*rknpu_emulator_soc_fn)(void);

#endif
