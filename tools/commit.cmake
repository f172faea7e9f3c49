# SPDX-License-Identifier: Apache-2.0
# Writes OUTPUT, a header with the commit that is being built; "unknown" outside a clone. Touched
# only if it changes, so that a build with nothing to do does nothing.
set(_commit "")
find_package(Git QUIET)
if(GIT_FOUND)
  execute_process(COMMAND "${GIT_EXECUTABLE}" describe --always --dirty --exclude=*
    WORKING_DIRECTORY "${SOURCE}" OUTPUT_VARIABLE _commit OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET)
endif()
if(_commit STREQUAL "")
  set(_commit "unknown")
endif()
file(CONFIGURE OUTPUT "${OUTPUT}" @ONLY CONTENT
  "/* Written by the build. */\n#define MACATTN_COMMIT \"${_commit}\"\n")
