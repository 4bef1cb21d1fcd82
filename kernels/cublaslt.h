// The functions of cuBLASLt that graft calls, as a table (internal; included by .cu files). On a
// GPU they are those of the machine's libcublasLt.so, loaded at the first product; on the emulated
// device they are made of the CPU's products (emu/cublaslt.cpp).
#pragma once

#include <string>

#include "kernels/launch.h"

#if defined(__CUDACC__)
#include <cublasLt.h>
#else
#include "kernels/emu/cublaslt.h"
#endif

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {

struct CublasLt {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtGetStatusString) status_string;
  decltype(&cublasLtMatmulDescInit_internal) product_init;
  decltype(&cublasLtMatmulDescSetAttribute) product_set;
  decltype(&cublasLtMatrixLayoutInit_internal) layout_init;
  decltype(&cublasLtMatmulPreferenceInit_internal) preference_init;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristics;
  decltype(&cublasLtMatmulAlgoCheck) check;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) algorithm_get;
  decltype(&cublasLtMatmul) multiply;
};

// NULL, with the reason, where there is no such library.
const CublasLt* cublaslt(std::string* reason);

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
