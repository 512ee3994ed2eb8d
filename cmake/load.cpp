// For stock builds with GGML_BACKEND_DL, which look for backends of the names that they know: loads the plugin from the same
// folders, after the others. See registry.h.
#include "ggml-backend.h"

#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

void ggml_rknpu_stock_load_all_from_path(const char * dir_path);

namespace fs = std::filesystem;

static std::vector<fs::path> search_paths(const char * dir_path) {
    if (dir_path) {
        return { fs::path(dir_path) };
    }
    std::vector<fs::path> paths;
#ifdef GGML_BACKEND_DIR
    paths.emplace_back(GGML_BACKEND_DIR);
#endif
    std::error_code error;
    const fs::path program = fs::read_symlink("/proc/self/exe", error);
    if (!error) {
        paths.push_back(program.parent_path());
    }
    return paths;
}

void ggml_backend_load_all_from_path(const char * dir_path) {
    ggml_rknpu_stock_load_all_from_path(dir_path);
    // GGML_BACKEND_PATH may have named one already.
    if (ggml_backend_reg_by_name("RKNPU")) {
        return;
    }
    for (const fs::path & path : search_paths(dir_path)) {
        const fs::path file = path / "libggml-rknpu.so";
        std::error_code error;
        if (fs::exists(file, error)) {
            ggml_backend_load(file.string().c_str());
            return;
        }
    }
}

void ggml_backend_load_all() {
    ggml_backend_load_all_from_path(nullptr);
}
