# Third-party packages as imported targets, all from the distribution.
# A missing one ends the configuration with the one line that installs it.

include(CheckCXXSourceCompiles)
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

# The shared HDF5 of Debian and Ubuntu loads libcurl and 27 libraries behind it for a driver that
# graft never uses, 7 ms of every start of graft-data. Its archive leaves them out.
function(graft_hdf5_archive)
  find_library(GRAFT_HDF5_ARCHIVE libhdf5.a PATH_SUFFIXES hdf5/serial)
  find_library(GRAFT_SZ_ARCHIVE libsz.a)
  find_library(GRAFT_AEC_ARCHIVE libaec.a)
  find_library(GRAFT_Z_ARCHIVE libz.a)
  set(archives ${GRAFT_HDF5_ARCHIVE} ${GRAFT_SZ_ARCHIVE} ${GRAFT_AEC_ARCHIVE} ${GRAFT_Z_ARCHIVE}
      m ${CMAKE_DL_LIBS} Threads::Threads)
  if(archives MATCHES "NOTFOUND")
    return()
  endif()
  set(CMAKE_REQUIRED_INCLUDES ${graft_hdf5_INCLUDE})
  set(CMAKE_REQUIRED_LIBRARIES ${archives})
  check_cxx_source_compiles(
    "#include <hdf5.h>
     int main() { return H5Fcreate(\"\", H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT) < 0; }"
    GRAFT_HDF5_ARCHIVE_LINKS)
  if(GRAFT_HDF5_ARCHIVE_LINKS)
    set_target_properties(graft_hdf5 PROPERTIES INTERFACE_LINK_LIBRARIES "${archives}")
  endif()
endfunction()

graft_find(graft_simdjson simdjson.h simdjson)
graft_find(graft_yaml yaml-cpp/yaml.h yaml-cpp)
graft_find(graft_xxhash xxhash.h xxhash)
graft_find(graft_hdf5 hdf5.h hdf5)
graft_hdf5_archive()
graft_find(graft_boost_context boost/context/fiber.hpp boost_context)
graft_find(graft_re2 re2/re2.h re2)
graft_find(graft_pcre2 pcre2.h pcre2-8)
graft_find(graft_utf8proc utf8proc.h utf8proc)
