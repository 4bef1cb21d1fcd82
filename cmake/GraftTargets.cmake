# graft_library(name SOURCES … [PUBLIC libs…] [PRIVATE libs…])
# graft_program(name SOURCES … LIBS …)     -> build/bin/name, installed
# graft_test(folder SOURCES … LIBS …)      -> one test program, every TEST_CASE a ctest test

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
# Installed programs look beside themselves first, then where the libraries were found.
set(CMAKE_INSTALL_RPATH "$ORIGIN/../lib")
set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
# -O2 and no contraction: the compiler may not fuse a*b+c, so that every path rounds alike.
set(CMAKE_CXX_FLAGS_RELEASE "-O2")
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)

# Only the libraries that a program calls are loaded when it starts.
add_link_options(-Wl,--as-needed)

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

add_library(graft_flags INTERFACE)
target_include_directories(graft_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(graft_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Wold-style-cast>
  $<$<AND:$<BOOL:${GRAFT_WERROR}>,$<COMPILE_LANGUAGE:CXX>>:-Werror>)
target_compile_definitions(graft_flags INTERFACE GRAFT_VERSION="${PROJECT_VERSION}")
if(GRAFT_SANITIZE)
  add_compile_options(-fsanitize=${GRAFT_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
  add_link_options(-fsanitize=${GRAFT_SANITIZE})
endif()

function(graft_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC graft_flags ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
endfunction()

function(graft_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE graft_flags ${ARG_LIBS})
  install(TARGETS ${name} RUNTIME DESTINATION bin)
endfunction()

function(graft_test folder)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  set(name test_${folder})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE graft_test_main ${ARG_LIBS})
  catch_discover_tests(${name}
    TEST_PREFIX "${folder}/"
    PROPERTIES SKIP_REGULAR_EXPRESSION "SKIPPED:" TIMEOUT 600
               ENVIRONMENT "OMP_WAIT_POLICY=passive")
endfunction()
