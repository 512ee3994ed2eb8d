//! Sizes and offsets of our structs against the real headers of the fetched host, checked by a C compiler.

use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::PathBuf;
use std::process::Command;

use ggml_sys::host::Generation;
use ggml_sys::sys::*;

#[allow(dead_code)]
#[path = "../../tests/common/skip.rs"]
mod skip;
use skip::skip;

macro_rules! check {
    ($out:ident, $kind:ident: $($field:ident),* $(,)?) => {{
        // Ours of older generations end with the generation.
        let name = stringify!($kind).trim_end_matches("_v2");
        writeln!($out, "_Static_assert(sizeof(struct {name}) == {}, \"size of {name}\");", size_of::<$kind>()).unwrap();
        $(
            let field = stringify!($field).trim_end_matches('_');
            writeln!(
                $out,
                "_Static_assert(offsetof(struct {name}, {field}) == {}, \"{name}.{field}\");",
                offset_of!($kind, $field)
            ).unwrap();
        )*
    }};
}

macro_rules! constant {
    ($out:ident: $($theirs:literal == $ours:ident),* $(,)?) => {
        $(writeln!($out, "_Static_assert({} == {}, \"{}\");", $theirs, $ours, $theirs).unwrap();)*
    };
}

fn asserts(generation: Generation) -> String {
    let mut out =
        String::from("#include <stddef.h>\n#include \"ggml.h\"\n#include \"ggml-backend-impl.h\"\n");
    check!(out, ggml_tensor: type_, buffer, ne, nb, op, op_params, flags, src, view_src, view_offs, data, name, extra, padding);
    check!(out, ggml_type_traits: type_name, blck_size, blck_size_interleave, type_size, is_quantized, to_float, from_float_ref);
    check!(out, ggml_init_params: mem_size, mem_buffer, no_alloc);
    if generation == Generation::V3 {
        check!(out, ggml_backend_buffer_type_i: get_name, alloc_buffer, alloc_buffer_n, get_alignment, get_max_size, get_alloc_size, get_alloc_size_n, is_host);
        check!(out, ggml_backend_buffer_type: iface, device, context);
        constant!(out: "GGML_BACKEND_API_VERSION" == GGML_HOST_API_VERSION);
    } else {
        check!(out, ggml_backend_buffer_type_i_v2: get_name, alloc_buffer, get_alignment, get_max_size, get_alloc_size, is_host);
        check!(out, ggml_backend_buffer_type_v2: iface, device, context);
        constant!(out: "GGML_BACKEND_API_VERSION" == GGML_HOST_API_VERSION_V2);
    }
    if generation == Generation::V2 {
        check!(out, ggml_backend_buffer_i_v2: free_buffer, get_base, init_tensor, memset_tensor, set_tensor, get_tensor, cpy_tensor, clear, reset);
        check!(out, ggml_backend_buffer_v2: iface, buft, context, size, usage);
        check!(out, ggml_backend_i_v2: get_name, free, set_tensor_async, get_tensor_async, cpy_tensor_async, synchronize, graph_plan_create, graph_plan_free, graph_plan_update, graph_plan_compute, graph_compute, event_record, event_wait, graph_optimize);
        check!(out, ggml_backend_v2: guid, iface, device, context);
        // The byte of mmap_support is padding there: whoever asks for properties has room for it.
        check!(out, ggml_backend_dev_props: name, description, memory_free, memory_total, type_, device_id, caps);
        writeln!(out, "_Static_assert(sizeof(struct ggml_backend_dev_caps) == 4, \"caps\");").unwrap();
    } else {
        check!(out, ggml_backend_buffer_i: free_buffer, get_base, init_tensor, memset_tensor, set_tensor, get_tensor, set_tensor_2d, get_tensor_2d, cpy_tensor, clear, reset);
        check!(out, ggml_backend_buffer: iface, buft, context, size, usage);
        check!(out, ggml_backend_i: get_name, free, set_tensor_async, get_tensor_async, set_tensor_2d_async, get_tensor_2d_async, cpy_tensor_async, synchronize, graph_plan_create, graph_plan_free, graph_plan_update, graph_plan_compute, graph_compute, event_record, event_wait, graph_optimize);
        check!(out, ggml_backend: guid, iface, device, context);
        check!(out, ggml_backend_dev_caps: async_, host_buffer, buffer_from_host_ptr, events, mmap_support);
    }
    check!(out, ggml_backend_dev_props: name, description, memory_free, memory_total, type_, device_id, caps);
    check!(out, ggml_backend_device_i: get_name, get_description, get_memory, get_type, get_props, init_backend, get_buffer_type, get_host_buffer_type, buffer_from_host_ptr, supports_op, supports_buft, offload_op, event_new, event_free, event_synchronize);
    check!(out, ggml_backend_device: iface, reg, context);
    check!(out, ggml_backend_reg_i: get_name, get_device_count, get_device, get_proc_address);
    check!(out, ggml_backend_reg: api_version, iface, context);
    constant!(out:
        "GGML_MAX_DIMS" == GGML_HOST_MAX_DIMS,
        "GGML_MAX_SRC" == GGML_HOST_MAX_SRC,
        "GGML_MAX_NAME" == GGML_HOST_MAX_NAME,
        "GGML_MAX_OP_PARAMS" == GGML_HOST_MAX_OP_PARAMS,
        "GGML_STATUS_ALLOC_FAILED" == GGML_HOST_STATUS_ALLOC_FAILED,
        "GGML_STATUS_FAILED" == GGML_HOST_STATUS_FAILED,
        "GGML_STATUS_SUCCESS" == GGML_HOST_STATUS_SUCCESS,
        "GGML_STATUS_ABORTED" == GGML_HOST_STATUS_ABORTED,
        "GGML_BACKEND_BUFFER_USAGE_ANY" == GGML_HOST_USAGE_ANY,
        "GGML_BACKEND_BUFFER_USAGE_WEIGHTS" == GGML_HOST_USAGE_WEIGHTS,
        "GGML_BACKEND_BUFFER_USAGE_COMPUTE" == GGML_HOST_USAGE_COMPUTE,
        "GGML_BACKEND_DEVICE_TYPE_CPU" == GGML_HOST_DEVICE_CPU,
        "GGML_BACKEND_DEVICE_TYPE_ACCEL" == GGML_HOST_DEVICE_ACCEL,
        "GGML_TENSOR_FLAG_COMPUTE" == GGML_HOST_TENSOR_FLAG_COMPUTE,
        "GGML_TYPE_F32" == GGML_HOST_TYPE_F32,
        "GGML_TYPE_F16" == GGML_HOST_TYPE_F16,
        "GGML_TYPE_I32" == GGML_HOST_TYPE_I32,
        "GGML_TYPE_BF16" == GGML_HOST_TYPE_BF16,
    );
    out
}

/// Compiles `code` against the host's headers; `Err` holds the compiler's words.
fn compile(source: &std::path::Path, code: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("layout.c");
    std::fs::write(&file, code).unwrap();
    // On another machine's processor, in qemu, that of the processor.
    let cc = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = Command::new(cc)
        .args(["-std=c11", "-fsyntax-only", "-I"])
        .arg(source.join("ggml/include"))
        .arg("-I")
        .arg(source.join("ggml/src"))
        .arg(&file)
        .output()
        .expect("cc runs");
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Checks our structs of a generation against the headers of a host of it.
fn check(variable: &str, generation: Generation, test: &str) {
    let Some(source) = std::env::var_os(variable).map(PathBuf::from) else {
        skip(test, &format!("{variable} is not set, run cargo xtask test"));
        return;
    };
    let mut code = asserts(generation);
    if test == UNMARKED {
        let known = code.lines().filter(|line| !line.contains("GGML_TENSOR_FLAG_COMPUTE"));
        code = known.collect::<Vec<_>>().join("\n");
    }
    assert!(code.matches("_Static_assert").count() > 115, "the list of asserts is complete");
    compile(&source, &code).unwrap_or_else(|errors| panic!("{errors}"));
    // The check can fail: one wrong offset is found.
    let wrong = code.replacen("ggml_tensor, ne) == 16", "ggml_tensor, ne) == 17", 1);
    assert_ne!(wrong, code);
    assert!(compile(&source, &wrong).is_err());
}

#[test]
fn our_structs_lie_as_the_hosts_headers_say() {
    let test = "our_structs_lie_as_the_hosts_headers_say";
    check("GGML_RKNPU_TEST_HOST_SOURCE", Generation::V3, test);
}

#[test]
fn those_of_v2_with_2d_copies_lie_as_its_headers_say() {
    let test = "those_of_v2_with_2d_copies_lie_as_its_headers_say";
    check("GGML_RKNPU_TEST_HOST_V2_2D_SOURCE", Generation::V2With2d, test);
}

/// The test of the host that does not know the flag of nodes that are to be computed.
const UNMARKED: &str = "those_of_v2_lie_as_its_oldest_headers_say";

#[test]
fn those_of_v2_lie_as_its_oldest_headers_say() {
    check("GGML_RKNPU_TEST_HOST_V2_UNMARKED_SOURCE", Generation::V2, UNMARKED);
}

#[test]
fn those_of_v2_lie_as_its_headers_say() {
    check("GGML_RKNPU_TEST_HOST_V2_SOURCE", Generation::V2, "those_of_v2_lie_as_its_headers_say");
}
