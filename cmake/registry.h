// Forced into the stock ggml-backend-reg.cpp, which knows the backends of its own tree only; see attach.cmake.
#pragma once

// Before the names below change their meaning.
#include "ggml-backend.h"
#include "ggml-cpu.h"

#ifdef GGML_BACKEND_DL

// load.cpp has functions of these names, which call the stock ones and then load the plugin.
#define ggml_backend_load_all ggml_rknpu_stock_load_all
#define ggml_backend_load_all_from_path ggml_rknpu_stock_load_all_from_path
void ggml_rknpu_stock_load_all();
void ggml_rknpu_stock_load_all_from_path(const char * dir_path);

#else

#include "ggml-rknpu.h"

// The registry's constructor says register_backend(ggml_backend_cpu_reg()), last of all: it registers the plugin first. As
// with its own backends nothing is opened before somebody asks for a backend.
#define ggml_backend_cpu_reg() \
    (register_backend(static_cast<ggml_backend_reg_t>(ggml_backend_rknpu_reg())), ggml_backend_cpu_reg())

#endif
