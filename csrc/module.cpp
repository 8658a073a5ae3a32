// tunable_ops._C: build information. The operators are in a separate library that does not depend on Python.
#include <pybind11/pybind11.h>

#define TO_TEXT_(a) #a
#define TO_TEXT(a) TO_TEXT_(a)

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information of the compiled operators.";
#if defined(__clang__)
  m.attr("compiler") = "clang " __clang_version__;
#else
  m.attr("compiler") = "g++ " __VERSION__;
#endif
  m.attr("cxx_standard") = static_cast<long>(__cplusplus);
  m.attr("flags") = TO_TEXT(TO_FLAGS);
  m.attr("torch") = TO_TEXT(TO_TORCH_VERSION);
  m.attr("stable_abi") = TO_TEXT(TO_STABLE_ABI);
  m.attr("library") = "_ops_cpu";
}
