/*
 * The C interface of libggml-rknpu: a ggml backend for the NPU of Rockchip boards.
 *
 * Made by cbindgen from src/ffi/exports.rs; see tests/header.rs. Do not edit.
 */

#ifndef GGML_RKNPU_H
#define GGML_RKNPU_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 The registration of this backend (`ggml_backend_reg_t`), or null where the host's ggml cannot be served.

 ggml calls it after it has opened the library; a library that is linked into a program calls
 `ggml_backend_register` with it.
 */
void *ggml_backend_rknpu_reg(void);

/*
 As `ggml_backend_rknpu_reg`, under the name that ggml's loader looks for.
 */
void *ggml_backend_init(void);

/*
 0 when `RKNPU_DISABLE` is set, so that ggml's loader passes the library over; otherwise 1.
 */
int ggml_backend_score(void);

/*
 A new backend (`ggml_backend_t`) on the NPU, or null when there is none; free it with `ggml_backend_free`.
 */
void *ggml_backend_rknpu_init(void);

/*
 Whether `backend` (`ggml_backend_t`, may be null) is one of this library's.

 # Safety
 `backend` is null or a live backend.
 */
bool ggml_backend_is_rknpu(const void *backend);

/*
 The NPU's buffer type (`ggml_backend_buffer_type_t`), or null when there is no NPU.
 */
void *ggml_backend_rknpu_buffer_type(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* GGML_RKNPU_H */
