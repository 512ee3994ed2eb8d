# The plugin as a backend of a llama.cpp of which nothing is changed:
#
#   cmake -B build -DLLAMA_RKNPU2=ON -DCMAKE_PROJECT_INCLUDE=/path/to/ggml-rknpu/cmake/rknpu.cmake
#
# CMake includes this file in each project() of the build. It waits for ggml, whether that is llama.cpp's or another
# program's, until its targets are there. Shared, static (BUILD_SHARED_LIBS=OFF) and loaded (GGML_BACKEND_DL=ON) builds.
if (NOT PROJECT_NAME STREQUAL "ggml")
    return()
endif()
option(LLAMA_RKNPU2 "ggml: the NPU of Rockchip boards, by ggml-rknpu" OFF)
if (NOT LLAMA_RKNPU2)
    return()
endif()
if (CMAKE_VERSION VERSION_LESS 3.19)
    message(FATAL_ERROR "LLAMA_RKNPU2 needs CMake 3.19 or later, this is ${CMAKE_VERSION}")
endif()

set(GGML_RKNPU_CMAKE_DIR "${CMAKE_CURRENT_LIST_DIR}")
function(ggml_rknpu_attach_when_there)
    if (TARGET ggml-rknpu)
        message(FATAL_ERROR "LLAMA_RKNPU2: this llama.cpp has a patch of ggml-rknpu, which needs no CMAKE_PROJECT_INCLUDE; "
                            "leave it away, or take the patch out by cargo xtask patch --revert")
    endif()
    # No subdirectory, which CMake does not let anybody add so late.
    include("${GGML_RKNPU_CMAKE_DIR}/library.cmake")
    ggml_rknpu_attach(STOCK)
endfunction()
# At the end of ggml's own CMakeLists.txt.
cmake_language(DEFER CALL ggml_rknpu_attach_when_there)
