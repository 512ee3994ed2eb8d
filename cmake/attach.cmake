# Gives ggml, a target of llama.cpp, the plugin as one of its backends.
#
# ggml_rknpu_attach(STOCK): for sources of which nothing was changed. Its registry is told of the plugin by a header that is
# forced into it. Without STOCK, for sources with a patch of llama.cpp-patches, which call the plugin by themselves.
#
# With GGML_BACKEND_DL the plugin is a file beside the programs, which ggml loads with its other backends; else ggml links
# it, as it does with its own: the shared library, or, with BUILD_SHARED_LIBS off, the static one.
set(GGML_RKNPU_CMAKE_DIR "${CMAKE_CURRENT_LIST_DIR}")

function(ggml_rknpu_attach)
    cmake_parse_arguments(PARSE_ARGV 0 arg "STOCK" "" "")
    if (GGML_BACKEND_DL)
        add_dependencies(ggml ggml-rknpu-cargo)
    else()
        target_link_libraries(ggml PUBLIC ggml-rknpu)
        target_compile_definitions(ggml PRIVATE GGML_USE_RKNPU)
    endif()
    if (arg_STOCK)
        ggml_rknpu_attach_stock()
    endif()
    message(STATUS "Including RKNPU backend")
endfunction()

function(ggml_rknpu_attach_stock)
    get_target_property(dir ggml SOURCE_DIR)
    set(registry "${dir}/ggml-backend-reg.cpp")
    # What registry.h relies on.
    if (GGML_BACKEND_DL)
        set(expected "void ggml_backend_load_all_from_path(const char * dir_path) {")
        target_sources(ggml PRIVATE "${GGML_RKNPU_CMAKE_DIR}/load.cpp")
    else()
        set(expected "register_backend(ggml_backend_cpu_reg());")
    endif()
    set(text "")
    if (EXISTS "${registry}")
        file(READ "${registry}" text)
    endif()
    string(FIND "${text}" "${expected}" place)
    if (place EQUAL -1)
        message(FATAL_ERROR "LLAMA_RKNPU2: there is no '${expected}' in ${registry}, where llama.cpp of the last year has the "
                            "registry of its backends; build without LLAMA_RKNPU2 and with -DGGML_BACKEND_DL=ON, and name "
                            "the plugin by GGML_BACKEND_PATH")
    endif()
    set_source_files_properties("${registry}" TARGET_DIRECTORY ggml
        PROPERTIES COMPILE_OPTIONS "-include;${GGML_RKNPU_CMAKE_DIR}/registry.h"
                   OBJECT_DEPENDS "${GGML_RKNPU_CMAKE_DIR}/registry.h")
endfunction()
