# LibTorch as imported targets: graft_torch (headers, torch_cpu, c10).
#
# Looked for in this order: $GRAFT_LIBTORCH, .deps/libtorch, the torch of python3. The last folder
# of each is the one that holds include/ and lib/. find_package(Torch) is not used: it links every
# CUDA library and slows each program's start from 0.25 s to 1.4 s.

set(candidates "$ENV{GRAFT_LIBTORCH}" "$ENV{GRAFT_LIBTORCH}/torch"
    ${PROJECT_SOURCE_DIR}/.deps/libtorch/torch)
find_program(GRAFT_PYTHON3 python3)
if(GRAFT_PYTHON3)
  execute_process(
    COMMAND ${GRAFT_PYTHON3} -c
      "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE python_torch OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  list(APPEND candidates ${python_torch})
endif()
set(torch_root "")
foreach(candidate IN LISTS candidates)
  if(NOT torch_root AND EXISTS "${candidate}/lib/libtorch_cpu.so"
     AND EXISTS "${candidate}/include/ATen/core/Tensor.h")
    get_filename_component(torch_root "${candidate}" REALPATH)
  endif()
endforeach()
if(NOT torch_root)
  message(FATAL_ERROR "LibTorch not found in $GRAFT_LIBTORCH, .deps/libtorch or python3; "
                      "`make deps` installs it, -DGRAFT_TORCH=OFF builds without graft-train")
endif()
message(STATUS "LibTorch: ${torch_root}")

add_library(graft_torch INTERFACE IMPORTED GLOBAL)
target_include_directories(graft_torch SYSTEM INTERFACE
  ${torch_root}/include ${torch_root}/include/torch/csrc/api/include)
target_link_libraries(graft_torch INTERFACE
  ${torch_root}/lib/libtorch_cpu.so ${torch_root}/lib/libc10.so)
# The libraries that LibTorch itself needs (cudart, cupti) are found through its own run path.
target_link_options(graft_torch INTERFACE -Wl,--allow-shlib-undefined)
set(GRAFT_TORCH_ROOT ${torch_root})
