# The target ggml-rknpu, what builds it and what installs it. Included by the project's own CMakeLists.txt, and by
# rknpu.cmake in the folder of a host's ggml, where nothing of a project of ours may be relied on.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
include("${CMAKE_CURRENT_LIST_DIR}/cargo.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/attach.cmake")

if (DEFINED BUILD_SHARED_LIBS AND NOT BUILD_SHARED_LIBS AND NOT GGML_BACKEND_DL)
    set(kind STATIC)
    set(file "libggml-rknpu.a")
else()
    set(kind SHARED)
    set(file "libggml-rknpu.so")
    # Whoever links the shared library needs nothing besides.
    set(GGML_RKNPU_SYSTEM_LIBRARIES "")
    set(GGML_RKNPU_LINK_OPTIONS "")
endif()
# A host finds its backends beside its programs.
if (CMAKE_RUNTIME_OUTPUT_DIRECTORY AND kind STREQUAL "SHARED")
    set(GGML_RKNPU_LIBRARY "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}/${file}")
else()
    set(GGML_RKNPU_LIBRARY "${CMAKE_CURRENT_BINARY_DIR}/${file}")
endif()
ggml_rknpu_find_cargo()
ggml_rknpu_cargo_library(ggml-rknpu-cargo "${GGML_RKNPU_LIBRARY}" ${kind})

add_library(ggml-rknpu ${kind} IMPORTED GLOBAL)
add_dependencies(ggml-rknpu ggml-rknpu-cargo)
set_target_properties(ggml-rknpu PROPERTIES
    IMPORTED_LOCATION "${GGML_RKNPU_LIBRARY}"
    IMPORTED_SONAME "${file}"
    INTERFACE_INCLUDE_DIRECTORIES "${GGML_RKNPU_ROOT}/include"
    INTERFACE_LINK_LIBRARIES "${GGML_RKNPU_SYSTEM_LIBRARIES}"
    INTERFACE_LINK_OPTIONS "${GGML_RKNPU_LINK_OPTIONS}")
add_library(ggml-rknpu::ggml-rknpu ALIAS ggml-rknpu)

if (GGML_BACKEND_DL AND GGML_BACKEND_DIR)
    set(library_dir "${GGML_BACKEND_DIR}")
elseif (GGML_BACKEND_DL)
    # As ggml does with its own backends.
    set(library_dir "${CMAKE_INSTALL_BINDIR}")
else()
    set(library_dir "${CMAKE_INSTALL_LIBDIR}")
endif()
install(PROGRAMS "${GGML_RKNPU_LIBRARY}" DESTINATION "${library_dir}")
install(FILES "${GGML_RKNPU_ROOT}/include/ggml-rknpu.h" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/ggml-rknpu")
configure_package_config_file("${GGML_RKNPU_ROOT}/cmake/ggml-rknpu-config.cmake.in"
    "${CMAKE_CURRENT_BINARY_DIR}/ggml-rknpu-config.cmake"
    INSTALL_DESTINATION "${package_dir}" PATH_VARS library_dir CMAKE_INSTALL_INCLUDEDIR)
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/ggml-rknpu-config-version.cmake"
    VERSION "${GGML_RKNPU_VERSION}" COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/ggml-rknpu-config.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/ggml-rknpu-config-version.cmake" DESTINATION "${package_dir}")
