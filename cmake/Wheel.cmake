# SPDX-License-Identifier: Apache-2.0
# The library inside the Python package (pyproject.toml): with its GPU side where there is a compiler for it, and then in
# one binary for every GPU it can run on.
find_program(_nvcc nvcc HINTS "$ENV{CUDA_HOME}" "$ENV{CUDA_PATH}" /usr/local/cuda PATH_SUFFIXES bin)
if(_nvcc)
  set(_cuda ON)
  if(NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER "${_nvcc}")
  endif()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    execute_process(COMMAND "${_nvcc}" --version OUTPUT_VARIABLE _nvcc_version)
    string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" _match "${_nvcc_version}")
    # Code for x.0 also runs on x.1 to x.9.
    if(CMAKE_MATCH_1 VERSION_GREATER_EQUAL 12.8)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 100-real 120-real 120-virtual)
    else()
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
    endif()
  endif()
endif()
