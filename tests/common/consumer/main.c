// Registers the plugin that is linked in, and says what its device is.
#include <stdio.h>

#include "ggml-backend.h"
#include "ggml-rknpu.h"

int main(void) {
    ggml_backend_reg_t reg = (ggml_backend_reg_t) ggml_backend_rknpu_reg();
    if (!reg) {
        return 1;
    }
    ggml_backend_register(reg);
    ggml_backend_dev_t device = ggml_backend_dev_by_name("RKNPU");
    if (!device) {
        return 2;
    }
    puts(ggml_backend_dev_description(device));
    return 0;
}
