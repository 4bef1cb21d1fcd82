# Third-party packages as imported targets, all from the distribution.
# A missing one ends the configuration with the one line that installs it.

find_package(Threads REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(OpenMP REQUIRED)

# graft_find(target header library): a package without a usable CMake file.
function(graft_find target header library)
  find_path(${target}_INCLUDE ${header} PATH_SUFFIXES hdf5/serial)
  find_library(${target}_LIBRARY ${library} PATH_SUFFIXES hdf5/serial)
  if(NOT ${target}_INCLUDE OR NOT ${target}_LIBRARY)
    message(FATAL_ERROR "${header} or lib${library} not found; `make deps` installs what graft needs")
  endif()
  add_library(${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(${target} SYSTEM INTERFACE ${${target}_INCLUDE})
  target_link_libraries(${target} INTERFACE ${${target}_LIBRARY})
endfunction()

graft_find(graft_simdjson simdjson.h simdjson)
graft_find(graft_yaml yaml-cpp/yaml.h yaml-cpp)
graft_find(graft_xxhash xxhash.h xxhash)
graft_find(graft_sentencepiece sentencepiece_processor.h sentencepiece)
graft_find(graft_hdf5 hdf5.h hdf5)
graft_find(graft_boost_context boost/context/fiber.hpp boost_context)
graft_find(graft_re2 re2/re2.h re2)
graft_find(graft_utf8proc utf8proc.h utf8proc)
