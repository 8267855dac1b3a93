"""The operator project: what builds the `gr::` operators' kernels on a host with CANN, printed from the table.

    project_files(["gr::pack", ...])  -> {"op_host/gr_pack.cpp": "...", "op_kernel/gr_pack/gr_pack.cpp": "...", ...}

The text depends on the operators alone, and holds no paths of this host. docs/ascend.md has the layout.
"""

from gr_compile.lowering.ascendc.project.files import project_files, write_project

__all__ = ["project_files", "write_project"]
