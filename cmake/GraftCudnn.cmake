# cuDNN's attention: graft_cudnn (headers only; libcudnn is loaded at run time), where both cudnn.h
# and cuDNN's frontend are found. cudnn.h comes with cuDNN (the CUDA toolkit's folder, a Debian
# package, or PyPI's nvidia-cudnn-cu13), the frontend is header-only and installed by setup.sh.
set(GRAFT_CUDNN_FOUND OFF)
if(GRAFT_CUDA_FOUND)
  get_filename_component(graft_cuda_root "${GRAFT_NVCC}" DIRECTORY)
  get_filename_component(graft_cuda_root "${graft_cuda_root}" DIRECTORY)
  find_path(GRAFT_CUDNN_INCLUDE cudnn.h HINTS ENV CUDNN_HOME
    PATHS ${graft_cuda_root} /usr /usr/local PATH_SUFFIXES include)
  find_path(GRAFT_CUDNN_FRONTEND_INCLUDE cudnn_frontend.h
    HINTS ${PROJECT_SOURCE_DIR}/.deps/cudnn_frontend PATH_SUFFIXES include)
  if(GRAFT_CUDNN_INCLUDE AND GRAFT_CUDNN_FRONTEND_INCLUDE)
    set(GRAFT_CUDNN_FOUND ON)
    add_library(graft_cudnn INTERFACE IMPORTED GLOBAL)
    target_include_directories(graft_cudnn SYSTEM INTERFACE
      ${GRAFT_CUDNN_FRONTEND_INCLUDE} ${GRAFT_CUDNN_INCLUDE} ${graft_cuda_root}/include)
    target_compile_definitions(graft_cudnn INTERFACE GRAFT_CUDNN
      NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING CUDNN_FRONTEND_SKIP_JSON_LIB)
    target_link_libraries(graft_cudnn INTERFACE ${CMAKE_DL_LIBS})
  endif()
endif()
message(STATUS "cuDNN's attention: ${GRAFT_CUDNN_FOUND}")
