// Made by bindgen from include/ggml_host_abi.h; see tests/bindings.rs. Do not edit.

pub const GGML_HOST_API_VERSION: u32 = 3;
pub const GGML_HOST_API_VERSION_V2: u32 = 2;
pub const GGML_HOST_MAX_DIMS: u32 = 4;
pub const GGML_HOST_MAX_SRC: u32 = 10;
pub const GGML_HOST_MAX_NAME: u32 = 64;
pub const GGML_HOST_MAX_OP_PARAMS: u32 = 64;
pub const GGML_HOST_STATUS_ALLOC_FAILED: i32 = -2;
pub const GGML_HOST_STATUS_FAILED: i32 = -1;
pub const GGML_HOST_STATUS_SUCCESS: u32 = 0;
pub const GGML_HOST_STATUS_ABORTED: u32 = 1;
pub const GGML_HOST_USAGE_ANY: u32 = 0;
pub const GGML_HOST_USAGE_WEIGHTS: u32 = 1;
pub const GGML_HOST_USAGE_COMPUTE: u32 = 2;
pub const GGML_HOST_DEVICE_CPU: u32 = 0;
pub const GGML_HOST_DEVICE_GPU: u32 = 1;
pub const GGML_HOST_DEVICE_IGPU: u32 = 2;
pub const GGML_HOST_DEVICE_ACCEL: u32 = 3;
pub const GGML_HOST_TENSOR_FLAG_OUTPUT: u32 = 2;
pub const GGML_HOST_TENSOR_FLAG_COMPUTE: u32 = 16;
pub const GGML_HOST_TYPE_F32: u32 = 0;
pub const GGML_HOST_TYPE_F16: u32 = 1;
pub const GGML_HOST_TYPE_I32: u32 = 26;
pub const GGML_HOST_TYPE_BF16: u32 = 30;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_cgraph {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_context {
    _unused: [u8; 0],
}
pub type ggml_backend_buffer_type_t = *mut ggml_backend_buffer_type;
pub type ggml_backend_buffer_t = *mut ggml_backend_buffer;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_event {
    _unused: [u8; 0],
}
pub type ggml_backend_event_t = *mut ggml_backend_event;
pub type ggml_backend_t = *mut ggml_backend;
pub type ggml_backend_reg_t = *mut ggml_backend_reg;
pub type ggml_backend_dev_t = *mut ggml_backend_device;
pub type ggml_backend_graph_plan_t = *mut ::core::ffi::c_void;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_tensor {
    pub type_: i32,
    pub buffer: *mut ggml_backend_buffer,
    pub ne: [i64; 4usize],
    pub nb: [usize; 4usize],
    pub op: i32,
    pub op_params: [i32; 16usize],
    pub flags: i32,
    pub src: [*mut ggml_tensor; 10usize],
    pub view_src: *mut ggml_tensor,
    pub view_offs: usize,
    pub data: *mut ::core::ffi::c_void,
    pub name: [::core::ffi::c_char; 64usize],
    pub extra: *mut ::core::ffi::c_void,
    pub padding: [::core::ffi::c_char; 8usize],
}
pub type ggml_to_float_t =
    ::core::option::Option<unsafe extern "C" fn(x: *const ::core::ffi::c_void, y: *mut f32, k: i64)>;
pub type ggml_from_float_t =
    ::core::option::Option<unsafe extern "C" fn(x: *const f32, y: *mut ::core::ffi::c_void, k: i64)>;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_type_traits {
    pub type_name: *const ::core::ffi::c_char,
    pub blck_size: i64,
    pub blck_size_interleave: i64,
    pub type_size: usize,
    pub is_quantized: bool,
    pub to_float: ggml_to_float_t,
    pub from_float_ref: ggml_from_float_t,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_init_params {
    pub mem_size: usize,
    pub mem_buffer: *mut ::core::ffi::c_void,
    pub no_alloc: bool,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_buffer_type_i {
    pub get_name: ::core::option::Option<
        unsafe extern "C" fn(buft: ggml_backend_buffer_type_t) -> *const ::core::ffi::c_char,
    >,
    pub alloc_buffer: ::core::option::Option<
        unsafe extern "C" fn(buft: ggml_backend_buffer_type_t, size: usize) -> ggml_backend_buffer_t,
    >,
    pub alloc_buffer_n: ::core::option::Option<
        unsafe extern "C" fn(
            buft: ggml_backend_buffer_type_t,
            tensors: *mut *mut ggml_tensor,
            n_tensors: ::core::ffi::c_int,
        ) -> ggml_backend_buffer_t,
    >,
    pub get_alignment:
        ::core::option::Option<unsafe extern "C" fn(buft: ggml_backend_buffer_type_t) -> usize>,
    pub get_max_size: ::core::option::Option<unsafe extern "C" fn(buft: ggml_backend_buffer_type_t) -> usize>,
    pub get_alloc_size: ::core::option::Option<
        unsafe extern "C" fn(buft: ggml_backend_buffer_type_t, tensor: *const ggml_tensor) -> usize,
    >,
    pub get_alloc_size_n: ::core::option::Option<
        unsafe extern "C" fn(
            buft: ggml_backend_buffer_type_t,
            tensors: *mut *mut ggml_tensor,
            n_tensors: ::core::ffi::c_int,
        ) -> usize,
    >,
    pub is_host: ::core::option::Option<unsafe extern "C" fn(buft: ggml_backend_buffer_type_t) -> bool>,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_buffer_type {
    pub iface: ggml_backend_buffer_type_i,
    pub device: ggml_backend_dev_t,
    pub context: *mut ::core::ffi::c_void,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_buffer_i {
    pub free_buffer: ::core::option::Option<unsafe extern "C" fn(buffer: ggml_backend_buffer_t)>,
    pub get_base: ::core::option::Option<
        unsafe extern "C" fn(buffer: ggml_backend_buffer_t) -> *mut ::core::ffi::c_void,
    >,
    pub init_tensor: ::core::option::Option<
        unsafe extern "C" fn(buffer: ggml_backend_buffer_t, tensor: *mut ggml_tensor) -> i32,
    >,
    pub memset_tensor: ::core::option::Option<
        unsafe extern "C" fn(
            buffer: ggml_backend_buffer_t,
            tensor: *mut ggml_tensor,
            value: u8,
            offset: usize,
            size: usize,
        ),
    >,
    pub set_tensor: ::core::option::Option<
        unsafe extern "C" fn(
            buffer: ggml_backend_buffer_t,
            tensor: *mut ggml_tensor,
            data: *const ::core::ffi::c_void,
            offset: usize,
            size: usize,
        ),
    >,
    pub get_tensor: ::core::option::Option<
        unsafe extern "C" fn(
            buffer: ggml_backend_buffer_t,
            tensor: *const ggml_tensor,
            data: *mut ::core::ffi::c_void,
            offset: usize,
            size: usize,
        ),
    >,
    pub set_tensor_2d: ::core::option::Option<
        unsafe extern "C" fn(
            buffer: ggml_backend_buffer_t,
            tensor: *mut ggml_tensor,
            data: *const ::core::ffi::c_void,
            offset: usize,
            size: usize,
            n_copies: usize,
            stride_tensor: usize,
            stride_data: usize,
        ),
    >,
    pub get_tensor_2d: ::core::option::Option<
        unsafe extern "C" fn(
            buffer: ggml_backend_buffer_t,
            tensor: *const ggml_tensor,
            data: *mut ::core::ffi::c_void,
            offset: usize,
            size: usize,
            n_copies: usize,
            stride_tensor: usize,
            stride_data: usize,
        ),
    >,
    pub cpy_tensor: ::core::option::Option<
        unsafe extern "C" fn(
            buffer: ggml_backend_buffer_t,
            src: *const ggml_tensor,
            dst: *mut ggml_tensor,
        ) -> bool,
    >,
    pub clear: ::core::option::Option<unsafe extern "C" fn(buffer: ggml_backend_buffer_t, value: u8)>,
    pub reset: ::core::option::Option<unsafe extern "C" fn(buffer: ggml_backend_buffer_t)>,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_buffer {
    pub iface: ggml_backend_buffer_i,
    pub buft: ggml_backend_buffer_type_t,
    pub context: *mut ::core::ffi::c_void,
    pub size: usize,
    pub usage: i32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_graph_optimize_params {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_i {
    pub get_name:
        ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t) -> *const ::core::ffi::c_char>,
    pub free: ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t)>,
    pub set_tensor_async: ::core::option::Option<
        unsafe extern "C" fn(
            backend: ggml_backend_t,
            tensor: *mut ggml_tensor,
            data: *const ::core::ffi::c_void,
            offset: usize,
            size: usize,
        ),
    >,
    pub get_tensor_async: ::core::option::Option<
        unsafe extern "C" fn(
            backend: ggml_backend_t,
            tensor: *const ggml_tensor,
            data: *mut ::core::ffi::c_void,
            offset: usize,
            size: usize,
        ),
    >,
    pub set_tensor_2d_async: ::core::option::Option<
        unsafe extern "C" fn(
            backend: ggml_backend_t,
            tensor: *mut ggml_tensor,
            data: *const ::core::ffi::c_void,
            offset: usize,
            size: usize,
            n_copies: usize,
            stride_tensor: usize,
            stride_data: usize,
        ),
    >,
    pub get_tensor_2d_async: ::core::option::Option<
        unsafe extern "C" fn(
            backend: ggml_backend_t,
            tensor: *const ggml_tensor,
            data: *mut ::core::ffi::c_void,
            offset: usize,
            size: usize,
            n_copies: usize,
            stride_tensor: usize,
            stride_data: usize,
        ),
    >,
    pub cpy_tensor_async: ::core::option::Option<
        unsafe extern "C" fn(
            backend_src: ggml_backend_t,
            backend_dst: ggml_backend_t,
            src: *const ggml_tensor,
            dst: *mut ggml_tensor,
        ) -> bool,
    >,
    pub synchronize: ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t)>,
    pub graph_plan_create: ::core::option::Option<
        unsafe extern "C" fn(
            backend: ggml_backend_t,
            cgraph: *const ggml_cgraph,
        ) -> ggml_backend_graph_plan_t,
    >,
    pub graph_plan_free: ::core::option::Option<
        unsafe extern "C" fn(backend: ggml_backend_t, plan: ggml_backend_graph_plan_t),
    >,
    pub graph_plan_update: ::core::option::Option<
        unsafe extern "C" fn(
            backend: ggml_backend_t,
            plan: ggml_backend_graph_plan_t,
            cgraph: *const ggml_cgraph,
        ),
    >,
    pub graph_plan_compute: ::core::option::Option<
        unsafe extern "C" fn(backend: ggml_backend_t, plan: ggml_backend_graph_plan_t) -> i32,
    >,
    pub graph_compute: ::core::option::Option<
        unsafe extern "C" fn(backend: ggml_backend_t, cgraph: *mut ggml_cgraph) -> i32,
    >,
    pub event_record:
        ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t, event: ggml_backend_event_t)>,
    pub event_wait:
        ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t, event: ggml_backend_event_t)>,
    pub graph_optimize: ::core::option::Option<
        unsafe extern "C" fn(
            backend: ggml_backend_t,
            cgraph: *mut ggml_cgraph,
            params: *mut ggml_backend_graph_optimize_params,
        ),
    >,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend {
    pub guid: *mut [u8; 16usize],
    pub iface: ggml_backend_i,
    pub device: ggml_backend_dev_t,
    pub context: *mut ::core::ffi::c_void,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_buffer_type_i_v2 {
    pub get_name: ::core::option::Option<
        unsafe extern "C" fn(buft: ggml_backend_buffer_type_t) -> *const ::core::ffi::c_char,
    >,
    pub alloc_buffer: ::core::option::Option<
        unsafe extern "C" fn(buft: ggml_backend_buffer_type_t, size: usize) -> ggml_backend_buffer_t,
    >,
    pub get_alignment:
        ::core::option::Option<unsafe extern "C" fn(buft: ggml_backend_buffer_type_t) -> usize>,
    pub get_max_size: ::core::option::Option<unsafe extern "C" fn(buft: ggml_backend_buffer_type_t) -> usize>,
    pub get_alloc_size: ::core::option::Option<
        unsafe extern "C" fn(buft: ggml_backend_buffer_type_t, tensor: *const ggml_tensor) -> usize,
    >,
    pub is_host: ::core::option::Option<unsafe extern "C" fn(buft: ggml_backend_buffer_type_t) -> bool>,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_buffer_type_v2 {
    pub iface: ggml_backend_buffer_type_i_v2,
    pub device: ggml_backend_dev_t,
    pub context: *mut ::core::ffi::c_void,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_buffer_i_v2 {
    pub free_buffer: ::core::option::Option<unsafe extern "C" fn(buffer: ggml_backend_buffer_t)>,
    pub get_base: ::core::option::Option<
        unsafe extern "C" fn(buffer: ggml_backend_buffer_t) -> *mut ::core::ffi::c_void,
    >,
    pub init_tensor: ::core::option::Option<
        unsafe extern "C" fn(buffer: ggml_backend_buffer_t, tensor: *mut ggml_tensor) -> i32,
    >,
    pub memset_tensor: ::core::option::Option<
        unsafe extern "C" fn(
            buffer: ggml_backend_buffer_t,
            tensor: *mut ggml_tensor,
            value: u8,
            offset: usize,
            size: usize,
        ),
    >,
    pub set_tensor: ::core::option::Option<
        unsafe extern "C" fn(
            buffer: ggml_backend_buffer_t,
            tensor: *mut ggml_tensor,
            data: *const ::core::ffi::c_void,
            offset: usize,
            size: usize,
        ),
    >,
    pub get_tensor: ::core::option::Option<
        unsafe extern "C" fn(
            buffer: ggml_backend_buffer_t,
            tensor: *const ggml_tensor,
            data: *mut ::core::ffi::c_void,
            offset: usize,
            size: usize,
        ),
    >,
    pub cpy_tensor: ::core::option::Option<
        unsafe extern "C" fn(
            buffer: ggml_backend_buffer_t,
            src: *const ggml_tensor,
            dst: *mut ggml_tensor,
        ) -> bool,
    >,
    pub clear: ::core::option::Option<unsafe extern "C" fn(buffer: ggml_backend_buffer_t, value: u8)>,
    pub reset: ::core::option::Option<unsafe extern "C" fn(buffer: ggml_backend_buffer_t)>,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_buffer_v2 {
    pub iface: ggml_backend_buffer_i_v2,
    pub buft: ggml_backend_buffer_type_t,
    pub context: *mut ::core::ffi::c_void,
    pub size: usize,
    pub usage: i32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_i_v2 {
    pub get_name:
        ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t) -> *const ::core::ffi::c_char>,
    pub free: ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t)>,
    pub set_tensor_async: ::core::option::Option<
        unsafe extern "C" fn(
            backend: ggml_backend_t,
            tensor: *mut ggml_tensor,
            data: *const ::core::ffi::c_void,
            offset: usize,
            size: usize,
        ),
    >,
    pub get_tensor_async: ::core::option::Option<
        unsafe extern "C" fn(
            backend: ggml_backend_t,
            tensor: *const ggml_tensor,
            data: *mut ::core::ffi::c_void,
            offset: usize,
            size: usize,
        ),
    >,
    pub cpy_tensor_async: ::core::option::Option<
        unsafe extern "C" fn(
            backend_src: ggml_backend_t,
            backend_dst: ggml_backend_t,
            src: *const ggml_tensor,
            dst: *mut ggml_tensor,
        ) -> bool,
    >,
    pub synchronize: ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t)>,
    pub graph_plan_create: ::core::option::Option<
        unsafe extern "C" fn(
            backend: ggml_backend_t,
            cgraph: *const ggml_cgraph,
        ) -> ggml_backend_graph_plan_t,
    >,
    pub graph_plan_free: ::core::option::Option<
        unsafe extern "C" fn(backend: ggml_backend_t, plan: ggml_backend_graph_plan_t),
    >,
    pub graph_plan_update: ::core::option::Option<
        unsafe extern "C" fn(
            backend: ggml_backend_t,
            plan: ggml_backend_graph_plan_t,
            cgraph: *const ggml_cgraph,
        ),
    >,
    pub graph_plan_compute: ::core::option::Option<
        unsafe extern "C" fn(backend: ggml_backend_t, plan: ggml_backend_graph_plan_t) -> i32,
    >,
    pub graph_compute: ::core::option::Option<
        unsafe extern "C" fn(backend: ggml_backend_t, cgraph: *mut ggml_cgraph) -> i32,
    >,
    pub event_record:
        ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t, event: ggml_backend_event_t)>,
    pub event_wait:
        ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t, event: ggml_backend_event_t)>,
    pub graph_optimize:
        ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t, cgraph: *mut ggml_cgraph)>,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_v2 {
    pub guid: *mut [u8; 16usize],
    pub iface: ggml_backend_i_v2,
    pub device: ggml_backend_dev_t,
    pub context: *mut ::core::ffi::c_void,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_dev_caps {
    pub async_: bool,
    pub host_buffer: bool,
    pub buffer_from_host_ptr: bool,
    pub events: bool,
    pub mmap_support: bool,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_dev_props {
    pub name: *const ::core::ffi::c_char,
    pub description: *const ::core::ffi::c_char,
    pub memory_free: usize,
    pub memory_total: usize,
    pub type_: i32,
    pub device_id: *const ::core::ffi::c_char,
    pub caps: ggml_backend_dev_caps,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_device_i {
    pub get_name:
        ::core::option::Option<unsafe extern "C" fn(dev: ggml_backend_dev_t) -> *const ::core::ffi::c_char>,
    pub get_description:
        ::core::option::Option<unsafe extern "C" fn(dev: ggml_backend_dev_t) -> *const ::core::ffi::c_char>,
    pub get_memory: ::core::option::Option<
        unsafe extern "C" fn(dev: ggml_backend_dev_t, free: *mut usize, total: *mut usize),
    >,
    pub get_type: ::core::option::Option<unsafe extern "C" fn(dev: ggml_backend_dev_t) -> i32>,
    pub get_props: ::core::option::Option<
        unsafe extern "C" fn(dev: ggml_backend_dev_t, props: *mut ggml_backend_dev_props),
    >,
    pub init_backend: ::core::option::Option<
        unsafe extern "C" fn(dev: ggml_backend_dev_t, params: *const ::core::ffi::c_char) -> ggml_backend_t,
    >,
    pub get_buffer_type:
        ::core::option::Option<unsafe extern "C" fn(dev: ggml_backend_dev_t) -> ggml_backend_buffer_type_t>,
    pub get_host_buffer_type:
        ::core::option::Option<unsafe extern "C" fn(dev: ggml_backend_dev_t) -> ggml_backend_buffer_type_t>,
    pub buffer_from_host_ptr: ::core::option::Option<
        unsafe extern "C" fn(
            dev: ggml_backend_dev_t,
            ptr: *mut ::core::ffi::c_void,
            size: usize,
            max_tensor_size: usize,
        ) -> ggml_backend_buffer_t,
    >,
    pub supports_op:
        ::core::option::Option<unsafe extern "C" fn(dev: ggml_backend_dev_t, op: *const ggml_tensor) -> bool>,
    pub supports_buft: ::core::option::Option<
        unsafe extern "C" fn(dev: ggml_backend_dev_t, buft: ggml_backend_buffer_type_t) -> bool,
    >,
    pub offload_op:
        ::core::option::Option<unsafe extern "C" fn(dev: ggml_backend_dev_t, op: *const ggml_tensor) -> bool>,
    pub event_new:
        ::core::option::Option<unsafe extern "C" fn(dev: ggml_backend_dev_t) -> ggml_backend_event_t>,
    pub event_free:
        ::core::option::Option<unsafe extern "C" fn(dev: ggml_backend_dev_t, event: ggml_backend_event_t)>,
    pub event_synchronize:
        ::core::option::Option<unsafe extern "C" fn(dev: ggml_backend_dev_t, event: ggml_backend_event_t)>,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_device {
    pub iface: ggml_backend_device_i,
    pub reg: ggml_backend_reg_t,
    pub context: *mut ::core::ffi::c_void,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_reg_i {
    pub get_name:
        ::core::option::Option<unsafe extern "C" fn(reg: ggml_backend_reg_t) -> *const ::core::ffi::c_char>,
    pub get_device_count: ::core::option::Option<unsafe extern "C" fn(reg: ggml_backend_reg_t) -> usize>,
    pub get_device: ::core::option::Option<
        unsafe extern "C" fn(reg: ggml_backend_reg_t, index: usize) -> ggml_backend_dev_t,
    >,
    pub get_proc_address: ::core::option::Option<
        unsafe extern "C" fn(
            reg: ggml_backend_reg_t,
            name: *const ::core::ffi::c_char,
        ) -> *mut ::core::ffi::c_void,
    >,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ggml_backend_reg {
    pub api_version: ::core::ffi::c_int,
    pub iface: ggml_backend_reg_i,
    pub context: *mut ::core::ffi::c_void,
}
pub type ggml_backend_buffer_init_fn = ::core::option::Option<
    unsafe extern "C" fn(
        buft: ggml_backend_buffer_type_t,
        iface: ggml_backend_buffer_i,
        context: *mut ::core::ffi::c_void,
        size: usize,
    ) -> ggml_backend_buffer_t,
>;
pub type ggml_backend_buffer_init_v2_fn = ::core::option::Option<
    unsafe extern "C" fn(
        buft: ggml_backend_buffer_type_t,
        iface: ggml_backend_buffer_i_v2,
        context: *mut ::core::ffi::c_void,
        size: usize,
    ) -> ggml_backend_buffer_t,
>;
pub type ggml_backend_buffer_get_type_fn =
    ::core::option::Option<unsafe extern "C" fn(buffer: ggml_backend_buffer_t) -> ggml_backend_buffer_type_t>;
pub type ggml_backend_buffer_get_usage_fn =
    ::core::option::Option<unsafe extern "C" fn(buffer: ggml_backend_buffer_t) -> i32>;
pub type ggml_backend_buffer_set_usage_fn =
    ::core::option::Option<unsafe extern "C" fn(buffer: ggml_backend_buffer_t, usage: i32)>;
pub type ggml_backend_get_device_fn =
    ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t) -> ggml_backend_dev_t>;
pub type ggml_backend_cpu_buffer_type_fn =
    ::core::option::Option<unsafe extern "C" fn() -> ggml_backend_buffer_type_t>;
pub type ggml_backend_buft_is_host_fn =
    ::core::option::Option<unsafe extern "C" fn(buft: ggml_backend_buffer_type_t) -> bool>;
pub type ggml_op_name_fn =
    ::core::option::Option<unsafe extern "C" fn(op: i32) -> *const ::core::ffi::c_char>;
pub type ggml_glu_op_name_fn =
    ::core::option::Option<unsafe extern "C" fn(op: i32) -> *const ::core::ffi::c_char>;
pub type ggml_get_type_traits_fn =
    ::core::option::Option<unsafe extern "C" fn(type_: i32) -> *const ggml_type_traits>;
pub type ggml_graph_n_nodes_fn =
    ::core::option::Option<unsafe extern "C" fn(cgraph: *mut ggml_cgraph) -> ::core::ffi::c_int>;
pub type ggml_graph_nodes_fn =
    ::core::option::Option<unsafe extern "C" fn(cgraph: *mut ggml_cgraph) -> *mut *mut ggml_tensor>;
pub type ggml_init_fn =
    ::core::option::Option<unsafe extern "C" fn(params: ggml_init_params) -> *mut ggml_context>;
pub type ggml_free_fn = ::core::option::Option<unsafe extern "C" fn(ctx: *mut ggml_context)>;
pub type ggml_tensor_overhead_fn = ::core::option::Option<unsafe extern "C" fn() -> usize>;
pub type ggml_new_tensor_2d_fn = ::core::option::Option<
    unsafe extern "C" fn(ctx: *mut ggml_context, type_: i32, ne0: i64, ne1: i64) -> *mut ggml_tensor,
>;
pub type ggml_mul_mat_fn = ::core::option::Option<
    unsafe extern "C" fn(
        ctx: *mut ggml_context,
        a: *mut ggml_tensor,
        b: *mut ggml_tensor,
    ) -> *mut ggml_tensor,
>;
pub type ggml_set_name_fn = ::core::option::Option<
    unsafe extern "C" fn(tensor: *mut ggml_tensor, name: *const ::core::ffi::c_char) -> *mut ggml_tensor,
>;
pub type ggml_build_forward_expand_fn =
    ::core::option::Option<unsafe extern "C" fn(cgraph: *mut ggml_cgraph, tensor: *mut ggml_tensor)>;
pub type ggml_graph_overhead_custom_fn =
    ::core::option::Option<unsafe extern "C" fn(size: usize, grads: bool) -> usize>;
pub type ggml_new_graph_custom_fn = ::core::option::Option<
    unsafe extern "C" fn(ctx: *mut ggml_context, size: usize, grads: bool) -> *mut ggml_cgraph,
>;
pub type ggml_graph_add_node_fn =
    ::core::option::Option<unsafe extern "C" fn(cgraph: *mut ggml_cgraph, tensor: *mut ggml_tensor)>;
pub type ggml_graph_clear_fn = ::core::option::Option<unsafe extern "C" fn(cgraph: *mut ggml_cgraph)>;
pub type ggml_backend_graph_compute_fn =
    ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t, cgraph: *mut ggml_cgraph) -> i32>;
pub type ggml_backend_free_fn = ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t)>;
pub type ggml_backend_init_by_type_fn = ::core::option::Option<
    unsafe extern "C" fn(type_: i32, params: *const ::core::ffi::c_char) -> ggml_backend_t,
>;
pub type ggml_backend_dev_backend_reg_fn =
    ::core::option::Option<unsafe extern "C" fn(device: ggml_backend_dev_t) -> ggml_backend_reg_t>;
pub type ggml_backend_reg_get_proc_address_fn = ::core::option::Option<
    unsafe extern "C" fn(
        reg: ggml_backend_reg_t,
        name: *const ::core::ffi::c_char,
    ) -> *mut ::core::ffi::c_void,
>;
pub type ggml_backend_set_n_threads_fn =
    ::core::option::Option<unsafe extern "C" fn(backend: ggml_backend_t, n_threads: ::core::ffi::c_int)>;
pub type ggml_backend_dev_get_extra_bufts_fn = ::core::option::Option<
    unsafe extern "C" fn(device: ggml_backend_dev_t) -> *mut ggml_backend_buffer_type_t,
>;
pub type ggml_backend_dev_supports_op_fn =
    ::core::option::Option<unsafe extern "C" fn(device: ggml_backend_dev_t, op: *const ggml_tensor) -> bool>;
pub type ggml_backend_buft_alloc_buffer_fn = ::core::option::Option<
    unsafe extern "C" fn(buft: ggml_backend_buffer_type_t, size: usize) -> ggml_backend_buffer_t,
>;
pub type ggml_backend_buft_get_alloc_size_fn = ::core::option::Option<
    unsafe extern "C" fn(buft: ggml_backend_buffer_type_t, tensor: *const ggml_tensor) -> usize,
>;
pub type ggml_backend_buffer_get_base_fn =
    ::core::option::Option<unsafe extern "C" fn(buffer: ggml_backend_buffer_t) -> *mut ::core::ffi::c_void>;
pub type ggml_backend_buffer_free_fn =
    ::core::option::Option<unsafe extern "C" fn(buffer: ggml_backend_buffer_t)>;
pub type ggml_backend_tensor_alloc_fn = ::core::option::Option<
    unsafe extern "C" fn(
        buffer: ggml_backend_buffer_t,
        tensor: *mut ggml_tensor,
        addr: *mut ::core::ffi::c_void,
    ) -> i32,
>;
pub type ggml_backend_tensor_set_fn = ::core::option::Option<
    unsafe extern "C" fn(
        tensor: *mut ggml_tensor,
        data: *const ::core::ffi::c_void,
        offset: usize,
        size: usize,
    ),
>;
pub type ggml_version_fn = ::core::option::Option<unsafe extern "C" fn() -> *const ::core::ffi::c_char>;
pub type ggml_backend_cpu_reg_fn = ::core::option::Option<unsafe extern "C" fn() -> ggml_backend_reg_t>;
