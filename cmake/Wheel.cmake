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

# Called when the library's target exists.
function(macattn_install_wheel)
  add_library(macattn_openmp MODULE python/openmp.c)
  target_include_directories(macattn_openmp PRIVATE include)
  target_compile_definitions(macattn_openmp PRIVATE _GNU_SOURCE)
  target_link_libraries(macattn_openmp PRIVATE ${CMAKE_DL_LIBS})
  set_target_properties(macattn_openmp PROPERTIES PREFIX lib OUTPUT_NAME macattn-openmp)
  install(FILES "$<TARGET_FILE:macattn_shared>" DESTINATION macattn COMPONENT wheel RENAME libmacattn.so)
  install(FILES "$<TARGET_FILE:macattn_openmp>" DESTINATION macattn COMPONENT wheel)
endfunction()
