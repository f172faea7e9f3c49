# SPDX-License-Identifier: Apache-2.0
# The GPU side of the library (MACATTN_CUDA=ON): the sources below, and one generated file for each
# line of src/cuda/attend/kernels.inc, which is the only place to add an instantiation.
include(CheckLanguage)
if(NOT CMAKE_CUDA_ARCHITECTURES)
  # 8.0 for everything since Ampere, 9.0 for Hopper; PTX of the newest for what comes after.
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
endif()
enable_language(CUDA)
find_package(CUDAToolkit 12.0 REQUIRED)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)

file(GLOB MACATTN_CUDA_SOURCES CONFIGURE_DEPENDS src/cuda/host/*.c src/cuda/*.cu
  src/cuda/attend/*.cu)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS src/cuda/attend/kernels.inc)
file(STRINGS src/cuda/attend/kernels.inc _lines REGEX "^MAI_ATTEND\\(")
foreach(_line IN LISTS _lines)
  string(REGEX MATCHALL "[A-Za-z0-9_]+" _fields "${_line}")
  list(GET _fields 1 NAME)
  list(GET _fields 2 KV)
  list(GET _fields 3 DTYPE)
  list(GET _fields 4 DIM)
  list(GET _fields 5 HEADS)
  list(GET _fields 6 WARPS)
  list(GET _fields 7 STAGES)
  set(_file "${CMAKE_CURRENT_BINARY_DIR}/cuda/attend_${NAME}.cu")
  configure_file(src/cuda/attend/kernel.cu.in "${_file}" @ONLY)
  list(APPEND MACATTN_CUDA_SOURCES "${_file}")
endforeach()

set_source_files_properties(${MACATTN_CUDA_SOURCES} PROPERTIES
  INCLUDE_DIRECTORIES "${CUDAToolkit_INCLUDE_DIRS}")
