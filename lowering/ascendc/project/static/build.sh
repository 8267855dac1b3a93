#!/usr/bin/env bash
# Build the operator package (build/custom_opp_*.run), and with --binding the torch binding, too.
set -euo pipefail
cd "$(dirname "$0")"
: "${ASCEND_HOME_PATH:?source the set_env.sh of CANN first}"
cmake --preset default
cmake --build build --target binary package --parallel
if [ "${1:-}" = "--binding" ]; then
  : "${ASCEND_CUSTOM_OPP_PATH:?install the package first, and source its bin/set_env.bash}"
  (cd torch_binding && python setup.py build_ext --inplace)
fi
