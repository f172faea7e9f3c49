# SPDX-License-Identifier: Apache-2.0
# Which files of src/cpu/isa are compiled for this processor, and with which flags. A file gets the
# flags of its own instruction set and no other, so the rest of the library runs on the baseline and
# the choice is made at run time (src/cpu/dispatch.c).
#
# To add an instruction set: one line below, one file there, one line in the dispatch table.

include(CheckCCompilerFlag)

set(_avx2 -mavx2 -mfma -mf16c)
set(_avx512 ${_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)

set(MACATTN_ISA_SOURCES "")

# A name without its file stops the configuration: CMake does not find the source.
macro(_macattn_isa name)
  set(_file "${CMAKE_CURRENT_SOURCE_DIR}/src/cpu/isa/${name}.c")
  list(APPEND MACATTN_ISA_SOURCES "${_file}")
  # Kernels are compiled at -O3 in every build type that optimises, but not with sanitizers, where
  # it takes minutes.
  set(_flags ${ARGN})
  if(NOT MACATTN_SANITIZE)
    list(APPEND _flags "$<$<NOT:$<CONFIG:Debug>>:-O3>")
  endif()
  set_source_files_properties("${_file}" PROPERTIES COMPILE_OPTIONS "${_flags}")
endmacro()

string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" _processor)
if(_processor MATCHES "^(x86_64|amd64)$")
  _macattn_isa(avx512vnni ${_avx512} -mavx512vnni)
  _macattn_isa(avx512 ${_avx512})
  # GCC 11 and Clang 12 on.
  check_c_compiler_flag(-mavxvnni MACATTN_COMPILES_AVXVNNI)
  if(MACATTN_COMPILES_AVXVNNI)
    _macattn_isa(avxvnni ${_avx2} -mavxvnni)
    set_source_files_properties("${CMAKE_CURRENT_SOURCE_DIR}/src/cpu/dispatch.c" PROPERTIES
      COMPILE_DEFINITIONS MAI_COMPILES_AVXVNNI)
  endif()
  _macattn_isa(avx2 ${_avx2})
elseif(_processor MATCHES "^(aarch64|arm64)$")
  # GCC 10 and Clang 11 on.
  check_c_compiler_flag(-march=armv8.2-a+dotprod+i8mm MACATTN_COMPILES_NEON_I8MM)
  if(MACATTN_COMPILES_NEON_I8MM)
    _macattn_isa(neon_i8mm -march=armv8.2-a+dotprod+i8mm)
    set_source_files_properties("${CMAKE_CURRENT_SOURCE_DIR}/src/cpu/dispatch.c" PROPERTIES
      COMPILE_DEFINITIONS MAI_COMPILES_NEON_I8MM)
  endif()
  _macattn_isa(neon_dotprod -march=armv8.2-a+dotprod)
  _macattn_isa(neon -march=armv8-a)
endif()
_macattn_isa(scalar)
