// Made by bindgen from include/rknn_matmul_abi.h; see tests/bindings.rs. Do not edit.

pub const RKNN_ABI_NAME_LEN: u32 = 256;
pub const RKNN_ABI_MAX_DIMS: u32 = 16;
pub const RKNN_ABI_OK: u32 = 0;
pub const RKNN_ABI_ERR_FAIL: i32 = -1;
pub const RKNN_ABI_ERR_TIMEOUT: i32 = -2;
pub const RKNN_ABI_ERR_DEVICE_UNAVAILABLE: i32 = -3;
pub const RKNN_ABI_ERR_MALLOC_FAIL: i32 = -4;
pub const RKNN_ABI_ERR_PARAM_INVALID: i32 = -5;
pub const RKNN_ABI_ERR_MODEL_INVALID: i32 = -6;
pub const RKNN_ABI_ERR_CTX_INVALID: i32 = -7;
pub const RKNN_ABI_ERR_INPUT_INVALID: i32 = -8;
pub const RKNN_ABI_ERR_OUTPUT_INVALID: i32 = -9;
pub const RKNN_ABI_ERR_DEVICE_UNMATCH: i32 = -10;
pub const RKNN_ABI_ERR_PRE_COMPILE: i32 = -11;
pub const RKNN_ABI_ERR_OPTIMISATION: i32 = -12;
pub const RKNN_ABI_ERR_TARGET_UNMATCH: i32 = -13;
pub const RKNN_ABI_F16_F16_TO_F32: u32 = 1;
pub const RKNN_ABI_I8_I8_TO_I32: u32 = 2;
pub const RKNN_ABI_I8_I8_TO_I8: u32 = 3;
pub const RKNN_ABI_F16_F16_TO_F16: u32 = 4;
pub const RKNN_ABI_F16_I8_TO_F32: u32 = 5;
pub const RKNN_ABI_F16_I8_TO_F16: u32 = 6;
pub const RKNN_ABI_F16_I4_TO_F32: u32 = 7;
pub const RKNN_ABI_F16_I4_TO_F16: u32 = 8;
pub const RKNN_ABI_I8_I8_TO_F32: u32 = 9;
pub const RKNN_ABI_I4_I4_TO_I16: u32 = 10;
pub const RKNN_ABI_I8_I4_TO_I32: u32 = 11;
pub const RKNN_ABI_F16_I4_TO_BF16: u32 = 12;
pub const RKNN_ABI_I8_I4_TO_F16: u32 = 15;
pub const RKNN_ABI_TENSOR_F32: u32 = 0;
pub const RKNN_ABI_TENSOR_F16: u32 = 1;
pub const RKNN_ABI_TENSOR_I8: u32 = 2;
pub const RKNN_ABI_TENSOR_U8: u32 = 3;
pub const RKNN_ABI_TENSOR_I16: u32 = 4;
pub const RKNN_ABI_TENSOR_U16: u32 = 5;
pub const RKNN_ABI_TENSOR_I32: u32 = 6;
pub const RKNN_ABI_TENSOR_U32: u32 = 7;
pub const RKNN_ABI_TENSOR_I64: u32 = 8;
pub const RKNN_ABI_TENSOR_BOOL: u32 = 9;
pub const RKNN_ABI_TENSOR_I4: u32 = 10;
pub const RKNN_ABI_TENSOR_BF16: u32 = 11;
pub const RKNN_ABI_LAYOUT_NORM: u32 = 0;
pub const RKNN_ABI_LAYOUT_NATIVE: u32 = 1;
pub const RKNN_ABI_LAYOUT_TP_NORM: u32 = 2;
pub const RKNN_ABI_QUANT_PER_LAYER_SYM: u32 = 0;
pub const RKNN_ABI_QUANT_PER_LAYER_ASYM: u32 = 1;
pub const RKNN_ABI_QUANT_PER_CHANNEL_SYM: u32 = 2;
pub const RKNN_ABI_QUANT_PER_CHANNEL_ASYM: u32 = 3;
pub const RKNN_ABI_QUANT_PER_GROUP_SYM: u32 = 4;
pub const RKNN_ABI_QUANT_PER_GROUP_ASYM: u32 = 5;
pub const RKNN_ABI_CORE_AUTO: u32 = 0;
pub const RKNN_ABI_CORE_0: u32 = 1;
pub const RKNN_ABI_CORE_1: u32 = 2;
pub const RKNN_ABI_CORE_2: u32 = 4;
pub const RKNN_ABI_CORE_0_1: u32 = 3;
pub const RKNN_ABI_CORE_0_1_2: u32 = 7;
pub const RKNN_ABI_CORE_ALL: u32 = 65535;
pub const RKNN_ABI_SYNC_TO_DEVICE: u32 = 1;
pub const RKNN_ABI_SYNC_FROM_DEVICE: u32 = 2;
pub const RKNN_ABI_SYNC_BIDIRECTIONAL: u32 = 3;
pub const RKNN_ABI_MEM_CACHEABLE: u32 = 1;
pub const RKNN_ABI_MEM_NON_CACHEABLE: u32 = 2;
pub const RKNN_ABI_MEM_TRY_SRAM: u32 = 4;
pub const RKNN_ABI_MEM_NO_CONTEXT: u32 = 131072;
pub const RKNN_ABI_QUERY_SDK_VERSION: u32 = 5;
pub type rknn_context = u64;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct rknn_matmul_info {
    pub M: i32,
    pub K: i32,
    pub N: i32,
    pub type_: i32,
    pub B_layout: i16,
    pub B_quant_type: i16,
    pub AC_layout: i16,
    pub AC_quant_type: i16,
    pub iommu_domain_id: i32,
    pub group_size: i16,
    pub reserved: [i8; 34usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of rknn_matmul_info"][::core::mem::size_of::<rknn_matmul_info>() - 64usize];
    ["Alignment of rknn_matmul_info"][::core::mem::align_of::<rknn_matmul_info>() - 4usize];
    ["Offset of field: rknn_matmul_info::M"][::core::mem::offset_of!(rknn_matmul_info, M) - 0usize];
    ["Offset of field: rknn_matmul_info::K"][::core::mem::offset_of!(rknn_matmul_info, K) - 4usize];
    ["Offset of field: rknn_matmul_info::N"][::core::mem::offset_of!(rknn_matmul_info, N) - 8usize];
    ["Offset of field: rknn_matmul_info::type_"][::core::mem::offset_of!(rknn_matmul_info, type_) - 12usize];
    ["Offset of field: rknn_matmul_info::B_layout"]
        [::core::mem::offset_of!(rknn_matmul_info, B_layout) - 16usize];
    ["Offset of field: rknn_matmul_info::B_quant_type"]
        [::core::mem::offset_of!(rknn_matmul_info, B_quant_type) - 18usize];
    ["Offset of field: rknn_matmul_info::AC_layout"]
        [::core::mem::offset_of!(rknn_matmul_info, AC_layout) - 20usize];
    ["Offset of field: rknn_matmul_info::AC_quant_type"]
        [::core::mem::offset_of!(rknn_matmul_info, AC_quant_type) - 22usize];
    ["Offset of field: rknn_matmul_info::iommu_domain_id"]
        [::core::mem::offset_of!(rknn_matmul_info, iommu_domain_id) - 24usize];
    ["Offset of field: rknn_matmul_info::group_size"]
        [::core::mem::offset_of!(rknn_matmul_info, group_size) - 28usize];
    ["Offset of field: rknn_matmul_info::reserved"]
        [::core::mem::offset_of!(rknn_matmul_info, reserved) - 30usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct rknn_matmul_tensor_attr {
    pub name: [::core::ffi::c_char; 256usize],
    pub n_dims: u32,
    pub dims: [u32; 16usize],
    pub size: u32,
    pub type_: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of rknn_matmul_tensor_attr"][::core::mem::size_of::<rknn_matmul_tensor_attr>() - 332usize];
    ["Alignment of rknn_matmul_tensor_attr"][::core::mem::align_of::<rknn_matmul_tensor_attr>() - 4usize];
    ["Offset of field: rknn_matmul_tensor_attr::name"]
        [::core::mem::offset_of!(rknn_matmul_tensor_attr, name) - 0usize];
    ["Offset of field: rknn_matmul_tensor_attr::n_dims"]
        [::core::mem::offset_of!(rknn_matmul_tensor_attr, n_dims) - 256usize];
    ["Offset of field: rknn_matmul_tensor_attr::dims"]
        [::core::mem::offset_of!(rknn_matmul_tensor_attr, dims) - 260usize];
    ["Offset of field: rknn_matmul_tensor_attr::size"]
        [::core::mem::offset_of!(rknn_matmul_tensor_attr, size) - 324usize];
    ["Offset of field: rknn_matmul_tensor_attr::type_"]
        [::core::mem::offset_of!(rknn_matmul_tensor_attr, type_) - 328usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct rknn_matmul_io_attr {
    pub A: rknn_matmul_tensor_attr,
    pub B: rknn_matmul_tensor_attr,
    pub C: rknn_matmul_tensor_attr,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of rknn_matmul_io_attr"][::core::mem::size_of::<rknn_matmul_io_attr>() - 996usize];
    ["Alignment of rknn_matmul_io_attr"][::core::mem::align_of::<rknn_matmul_io_attr>() - 4usize];
    ["Offset of field: rknn_matmul_io_attr::A"][::core::mem::offset_of!(rknn_matmul_io_attr, A) - 0usize];
    ["Offset of field: rknn_matmul_io_attr::B"][::core::mem::offset_of!(rknn_matmul_io_attr, B) - 332usize];
    ["Offset of field: rknn_matmul_io_attr::C"][::core::mem::offset_of!(rknn_matmul_io_attr, C) - 664usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct rknn_matmul_shape {
    pub M: i32,
    pub K: i32,
    pub N: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of rknn_matmul_shape"][::core::mem::size_of::<rknn_matmul_shape>() - 12usize];
    ["Alignment of rknn_matmul_shape"][::core::mem::align_of::<rknn_matmul_shape>() - 4usize];
    ["Offset of field: rknn_matmul_shape::M"][::core::mem::offset_of!(rknn_matmul_shape, M) - 0usize];
    ["Offset of field: rknn_matmul_shape::K"][::core::mem::offset_of!(rknn_matmul_shape, K) - 4usize];
    ["Offset of field: rknn_matmul_shape::N"][::core::mem::offset_of!(rknn_matmul_shape, N) - 8usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct rknn_quant_params {
    pub name: [::core::ffi::c_char; 256usize],
    pub scale: *mut f32,
    pub scale_len: i32,
    pub zp: *mut i32,
    pub zp_len: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of rknn_quant_params"][::core::mem::size_of::<rknn_quant_params>() - 288usize];
    ["Alignment of rknn_quant_params"][::core::mem::align_of::<rknn_quant_params>() - 8usize];
    ["Offset of field: rknn_quant_params::name"][::core::mem::offset_of!(rknn_quant_params, name) - 0usize];
    ["Offset of field: rknn_quant_params::scale"]
        [::core::mem::offset_of!(rknn_quant_params, scale) - 256usize];
    ["Offset of field: rknn_quant_params::scale_len"]
        [::core::mem::offset_of!(rknn_quant_params, scale_len) - 264usize];
    ["Offset of field: rknn_quant_params::zp"][::core::mem::offset_of!(rknn_quant_params, zp) - 272usize];
    ["Offset of field: rknn_quant_params::zp_len"]
        [::core::mem::offset_of!(rknn_quant_params, zp_len) - 280usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct rknn_tensor_mem {
    pub virt_addr: *mut ::core::ffi::c_void,
    pub phys_addr: u64,
    pub fd: i32,
    pub offset: i32,
    pub size: u32,
    pub flags: u32,
    pub priv_data: *mut ::core::ffi::c_void,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of rknn_tensor_mem"][::core::mem::size_of::<rknn_tensor_mem>() - 40usize];
    ["Alignment of rknn_tensor_mem"][::core::mem::align_of::<rknn_tensor_mem>() - 8usize];
    ["Offset of field: rknn_tensor_mem::virt_addr"]
        [::core::mem::offset_of!(rknn_tensor_mem, virt_addr) - 0usize];
    ["Offset of field: rknn_tensor_mem::phys_addr"]
        [::core::mem::offset_of!(rknn_tensor_mem, phys_addr) - 8usize];
    ["Offset of field: rknn_tensor_mem::fd"][::core::mem::offset_of!(rknn_tensor_mem, fd) - 16usize];
    ["Offset of field: rknn_tensor_mem::offset"][::core::mem::offset_of!(rknn_tensor_mem, offset) - 20usize];
    ["Offset of field: rknn_tensor_mem::size"][::core::mem::offset_of!(rknn_tensor_mem, size) - 24usize];
    ["Offset of field: rknn_tensor_mem::flags"][::core::mem::offset_of!(rknn_tensor_mem, flags) - 28usize];
    ["Offset of field: rknn_tensor_mem::priv_data"]
        [::core::mem::offset_of!(rknn_tensor_mem, priv_data) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct rknn_sdk_version {
    pub api_version: [::core::ffi::c_char; 256usize],
    pub drv_version: [::core::ffi::c_char; 256usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of rknn_sdk_version"][::core::mem::size_of::<rknn_sdk_version>() - 512usize];
    ["Alignment of rknn_sdk_version"][::core::mem::align_of::<rknn_sdk_version>() - 1usize];
    ["Offset of field: rknn_sdk_version::api_version"]
        [::core::mem::offset_of!(rknn_sdk_version, api_version) - 0usize];
    ["Offset of field: rknn_sdk_version::drv_version"]
        [::core::mem::offset_of!(rknn_sdk_version, drv_version) - 256usize];
};
pub type rknn_matmul_create_fn = ::core::option::Option<
    unsafe extern "C" fn(
        ctx: *mut rknn_context,
        info: *mut rknn_matmul_info,
        io_attr: *mut rknn_matmul_io_attr,
    ) -> ::core::ffi::c_int,
>;
pub type rknn_matmul_create_dynamic_shape_fn = ::core::option::Option<
    unsafe extern "C" fn(
        ctx: *mut rknn_context,
        info: *mut rknn_matmul_info,
        shape_num: ::core::ffi::c_int,
        shapes: *mut rknn_matmul_shape,
        io_attrs: *mut rknn_matmul_io_attr,
    ) -> ::core::ffi::c_int,
>;
pub type rknn_matmul_set_io_mem_fn = ::core::option::Option<
    unsafe extern "C" fn(
        ctx: rknn_context,
        mem: *mut rknn_tensor_mem,
        attr: *mut rknn_matmul_tensor_attr,
    ) -> ::core::ffi::c_int,
>;
pub type rknn_matmul_set_core_mask_fn =
    ::core::option::Option<unsafe extern "C" fn(ctx: rknn_context, core_mask: i32) -> ::core::ffi::c_int>;
pub type rknn_matmul_set_quant_params_fn = ::core::option::Option<
    unsafe extern "C" fn(ctx: rknn_context, params: *mut rknn_quant_params) -> ::core::ffi::c_int,
>;
pub type rknn_matmul_get_quant_params_fn = ::core::option::Option<
    unsafe extern "C" fn(
        ctx: rknn_context,
        params: *mut rknn_quant_params,
        scale: *mut f32,
    ) -> ::core::ffi::c_int,
>;
pub type rknn_matmul_set_dynamic_shape_fn = ::core::option::Option<
    unsafe extern "C" fn(ctx: rknn_context, shape: *mut rknn_matmul_shape) -> ::core::ffi::c_int,
>;
pub type rknn_matmul_run_fn =
    ::core::option::Option<unsafe extern "C" fn(ctx: rknn_context) -> ::core::ffi::c_int>;
pub type rknn_matmul_destroy_fn =
    ::core::option::Option<unsafe extern "C" fn(ctx: rknn_context) -> ::core::ffi::c_int>;
pub type rknn_create_mem_fn =
    ::core::option::Option<unsafe extern "C" fn(ctx: rknn_context, size: u32) -> *mut rknn_tensor_mem>;
pub type rknn_create_mem2_fn = ::core::option::Option<
    unsafe extern "C" fn(ctx: rknn_context, size: u64, flags: u64) -> *mut rknn_tensor_mem,
>;
pub type rknn_create_mem_from_fd_fn = ::core::option::Option<
    unsafe extern "C" fn(
        ctx: rknn_context,
        fd: i32,
        virt_addr: *mut ::core::ffi::c_void,
        size: u32,
        offset: i32,
    ) -> *mut rknn_tensor_mem,
>;
pub type rknn_destroy_mem_fn = ::core::option::Option<
    unsafe extern "C" fn(ctx: rknn_context, mem: *mut rknn_tensor_mem) -> ::core::ffi::c_int,
>;
pub type rknn_mem_sync_fn = ::core::option::Option<
    unsafe extern "C" fn(ctx: rknn_context, mem: *mut rknn_tensor_mem, mode: i32) -> ::core::ffi::c_int,
>;
pub type rknn_query_fn = ::core::option::Option<
    unsafe extern "C" fn(
        ctx: rknn_context,
        cmd: i32,
        info: *mut ::core::ffi::c_void,
        size: u32,
    ) -> ::core::ffi::c_int,
>;
pub type rknn_B_normal_layout_to_native_layout_fn = ::core::option::Option<
    unsafe extern "C" fn(
        b_in: *mut ::core::ffi::c_void,
        b_out: *mut ::core::ffi::c_void,
        K: i32,
        N: i32,
        info: *mut rknn_matmul_info,
    ) -> ::core::ffi::c_int,
>;
pub type rknpu_emulator_soc_fn = ::core::option::Option<unsafe extern "C" fn() -> *const ::core::ffi::c_char>;
