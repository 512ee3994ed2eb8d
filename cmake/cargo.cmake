# How CMake's configuration becomes cargo's: build type, processor, linker, folder. Nothing here knows ggml.
set(GGML_RKNPU_CARGO_DIR "${CMAKE_CURRENT_BINARY_DIR}/cargo" CACHE PATH "Where cargo builds")
set(GGML_RKNPU_RUSTC "" CACHE FILEPATH "The rustc that cargo takes; empty for its own")
set(GGML_RKNPU_RUST_TARGET "" CACHE STRING "Rust's name of the target; empty to tell it by CMAKE_SYSTEM_PROCESSOR")
set(GGML_RKNPU_CARGO_FLAGS "" CACHE STRING "More options for cargo build, such as --offline")
get_filename_component(GGML_RKNPU_ROOT "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)

# A value that Cargo.toml gives to the whole workspace.
function(ggml_rknpu_workspace_value key variable)
    file(STRINGS "${GGML_RKNPU_ROOT}/Cargo.toml" line REGEX "^${key} = \"" LIMIT_COUNT 1)
    string(REGEX REPLACE ".*\"([0-9.]+)\".*" "\\1" value "${line}")
    set(${variable} "${value}" PARENT_SCOPE)
endfunction()
ggml_rknpu_workspace_value(version GGML_RKNPU_VERSION)

# What a program needs besides that links the static library (rustc --print native-static-libs), and how it lets the
# library find ggml's functions, which are looked up by name at run time.
set(GGML_RKNPU_SYSTEM_LIBRARIES gcc_s pthread m dl c)
set(GGML_RKNPU_LINK_OPTIONS "LINKER:--export-dynamic")

# Finds cargo and a rustc that builds for the target; sets in the caller's scope:
# CARGO, rknpu_environment, rknpu_options, rknpu_output (where in its folder cargo puts files).
function(ggml_rknpu_find_cargo)
    find_program(CARGO cargo)
    if (NOT CARGO)
        message(FATAL_ERROR "ggml-rknpu: cargo is not on PATH; install Rust (https://rustup.rs, or your distribution's "
                            "cargo), or set -DCARGO=/path/to/cargo")
    endif()
    ggml_rknpu_workspace_value(rust-version oldest)
    set(rustc rustc)
    set(environment "")
    if (GGML_RKNPU_RUSTC)
        set(rustc "${GGML_RKNPU_RUSTC}")
        list(APPEND environment "RUSTC=${GGML_RKNPU_RUSTC}")
    endif()
    execute_process(COMMAND "${rustc}" --version OUTPUT_VARIABLE version ERROR_QUIET RESULT_VARIABLE failed)
    string(REGEX REPLACE "^rustc ([0-9]+\\.[0-9]+).*" "\\1" number "${version}")
    if (failed OR number VERSION_LESS oldest)
        string(STRIP "${version}" version)
        message(FATAL_ERROR "ggml-rknpu: ${rustc} is '${version}'; expected Rust ${oldest} or later: rustup update, or name "
                            "another one by -DGGML_RKNPU_RUSTC=/path/to/rustc")
    endif()

    set(target "${GGML_RKNPU_RUST_TARGET}")
    if (NOT target AND CMAKE_CROSSCOMPILING)
        if (NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
            message(FATAL_ERROR "ggml-rknpu: CMAKE_SYSTEM_NAME is ${CMAKE_SYSTEM_NAME}; expected Linux, which the boards run")
        elseif (CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
            set(target aarch64-unknown-linux-gnu)
        elseif (CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
            set(target x86_64-unknown-linux-gnu)
        else()
            message(FATAL_ERROR "ggml-rknpu: CMAKE_SYSTEM_PROCESSOR is '${CMAKE_SYSTEM_PROCESSOR}'; expected aarch64 or "
                                "x86_64: set it in the toolchain file, or name Rust's target by -DGGML_RKNPU_RUST_TARGET=…")
        endif()
    endif()
    if (target)
        execute_process(COMMAND "${rustc}" --print target-libdir --target "${target}"
                        OUTPUT_VARIABLE libdir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
        file(GLOB std "${libdir}/libstd-*.rlib")
        if (failed OR NOT std)
            message(FATAL_ERROR "ggml-rknpu: ${rustc} has no standard library for ${target}; run: rustup target add "
                                "${target}, or on Debian install libstd-rust-dev for it and set "
                                "-DGGML_RKNPU_RUSTC=/usr/bin/rustc")
        endif()
        string(TOUPPER "${target}" upper)
        string(REPLACE "-" "_" upper "${upper}")
        list(APPEND environment "CARGO_TARGET_${upper}_LINKER=${CMAKE_C_COMPILER}")
        if (CMAKE_SYSROOT)
            list(APPEND environment "CARGO_TARGET_${upper}_RUSTFLAGS=-Clink-arg=--sysroot=${CMAKE_SYSROOT}")
        endif()
    endif()

    set(options --locked --manifest-path "${GGML_RKNPU_ROOT}/Cargo.toml")
    if (CMAKE_BUILD_TYPE STREQUAL "Debug")
        set(profile debug)
    else()
        set(profile release)
        list(APPEND options --release)
        if (CMAKE_BUILD_TYPE STREQUAL "RelWithDebInfo")
            list(APPEND options --config profile.release.debug=true)
        endif()
    endif()
    set(output "${profile}")
    if (target)
        list(APPEND options --target "${target}")
        set(output "${target}/${profile}")
    endif()
    set(rknpu_environment "${environment}" PARENT_SCOPE)
    set(rknpu_options "${options};${GGML_RKNPU_CARGO_FLAGS}" PARENT_SCOPE)
    set(rknpu_output "${output}" PARENT_SCOPE)
    if (NOT target)
        set(target "this machine")
    endif()
    message(STATUS "ggml-rknpu: ${profile} for ${target}, by ${CARGO}")
endfunction()

# A target that builds the plugin's library as `file`; `kind` is STATIC or SHARED.
function(ggml_rknpu_cargo_library name file kind)
    if (kind STREQUAL "STATIC")
        # A crate type of its own: the plugin is not built as a static library unless somebody asks.
        set(build rustc --lib --crate-type staticlib --package ggml-rknpu)
        set(made libggml_rknpu.a)
    else()
        set(build build --package ggml-rknpu)
        set(made libggml_rknpu.so)
    endif()
    ggml_rknpu_cargo_target("${name}" "${build}" "" "${made}" "${file}")
endfunction()

# A target that builds a program of `package` as `file`. In a folder of its own: of one package alone cargo builds what it
# depends on with other features than of another, and the library, whose file has but one name, would be built anew each time.
function(ggml_rknpu_cargo_program name package file)
    ggml_rknpu_cargo_target("${name}" "build;--package;${package}" "/${package}" "${package}" "${file}")
endfunction()

# Cargo itself knows what is fresh, so it is asked each time; it names the library with an underscore, hosts and people
# expect a hyphen.
function(ggml_rknpu_cargo_target name build folder made file)
    add_custom_target(${name} ALL
        COMMAND "${CMAKE_COMMAND}" -E env ${rknpu_environment} "${CARGO}" ${build} ${rknpu_options}
                --target-dir "${GGML_RKNPU_CARGO_DIR}${folder}"
        COMMAND "${CMAKE_COMMAND}" -E copy_if_different
                "${GGML_RKNPU_CARGO_DIR}${folder}/${rknpu_output}/${made}" "${file}"
        BYPRODUCTS "${file}"
        WORKING_DIRECTORY "${GGML_RKNPU_ROOT}"
        COMMENT "Building ${made} with cargo"
        USES_TERMINAL VERBATIM)
endfunction()
