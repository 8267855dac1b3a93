// A host in C++ that exports gr_register_kernel is told of each kernel when its library is loaded; Python needs none.
#pragma once
extern "C" __attribute__((weak)) void gr_register_kernel(const char* name, const char* key, void* entry);

struct Registration {
  Registration(const char* name, const char* key, void* entry) {
    if (gr_register_kernel) gr_register_kernel(name, key, entry);
  }
};
