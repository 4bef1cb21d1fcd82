# libgraft_cuda.so: the .cu files compiled by nvcc, loaded with dlopen when there is a driver
# (kernels/device.cpp). nvcc is called by hand: CMake 3.25 gives CUDA at most C++17, and its language
# support would make a compiler that is missing or broken an error of the whole configuration.
#
# Defines graft_cuda (a target, when nvcc is found) and GRAFT_CUDA_FOUND. What ptxas says of each
# kernel goes to <build>/kernels/ptxas.log, which a test compares with kernels/ptxas.txt.

set(GRAFT_CUDA_FOUND OFF)
if(NOT GRAFT_CUDA STREQUAL "off")
  find_program(GRAFT_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH
    PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(GRAFT_NVCC)
    execute_process(COMMAND ${GRAFT_NVCC} --version
      OUTPUT_VARIABLE graft_nvcc_version RESULT_VARIABLE graft_nvcc_result ERROR_QUIET)
    if(graft_nvcc_result EQUAL 0)
      string(REGEX MATCH "V[0-9.]+" graft_nvcc_version "${graft_nvcc_version}")
      set(GRAFT_CUDA_FOUND ON)
    endif()
  endif()
  if(NOT GRAFT_CUDA_FOUND AND GRAFT_CUDA STREQUAL "on")
    message(FATAL_ERROR "GRAFT_CUDA=on, but no working nvcc was found; "
      "install CUDA 12.8 or newer, or set CUDA_HOME")
  endif()
endif()

# graft_cuda_library(name SOURCES files… DEPENDS headers… DIGEST header)
function(graft_cuda_library name)
  cmake_parse_arguments(ARG "" "DIGEST" "SOURCES;DEPENDS" ${ARGN})
  set(log ${CMAKE_BINARY_DIR}/kernels/ptxas.log)
  set(library ${CMAKE_LIBRARY_OUTPUT_DIRECTORY}/libgraft_cuda.so)
  # -fmad=false: a product and a sum are rounded apart unless a kernel asks for fma, as on the CPU.
  set(flags -std=c++20 -O3 -fmad=false -lineinfo --compress-mode=size -Xptxas -v -I${PROJECT_SOURCE_DIR}
    -Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off
    -gencode arch=compute_80,code=sm_80
    -gencode arch=compute_86,code=sm_86
    -gencode arch=compute_89,code=sm_89
    -gencode arch=compute_90a,code=sm_90a
    -gencode arch=compute_100,code=sm_100
    -gencode arch=compute_100,code=compute_100)
  set(objects)
  set(logs)
  foreach(source ${ARG_SOURCES})
    get_filename_component(stem ${source} NAME_WE)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${stem}.cuda.o)
    set(include)
    set(digest)
    if(stem STREQUAL "cuda_library")  # it alone has the digest of all of them
      set(include -I${CMAKE_BINARY_DIR})
      set(digest ${ARG_DIGEST})
    endif()
    add_custom_command(OUTPUT ${object} ${object}.log
      COMMAND sh ${PROJECT_SOURCE_DIR}/cmake/keep_stderr.sh ${object}.log
        ${CMAKE_CXX_COMPILER_LAUNCHER} ${GRAFT_NVCC} ${flags} ${include} -c ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${object}
      DEPENDS ${source} ${ARG_DEPENDS} ${digest}
      COMMENT "Building CUDA object ${stem}" VERBATIM)
    list(APPEND objects ${object})
    list(APPEND logs ${object}.log)
  endforeach()
  add_custom_command(OUTPUT ${library} ${log}
    COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_LIBRARY_OUTPUT_DIRECTORY}
    COMMAND ${GRAFT_NVCC} -shared -cudart static -Xlinker=--exclude-libs,ALL ${objects}
      -o ${library}
    COMMAND ${CMAKE_COMMAND} -E echo "nvcc ${graft_nvcc_version}" > ${log}
    COMMAND cat ${logs} >> ${log}
    DEPENDS ${objects} COMMENT "Linking libgraft_cuda.so")
  add_custom_target(${name} ALL DEPENDS ${library} ${log})
  install(FILES ${library} DESTINATION lib)
endfunction()
