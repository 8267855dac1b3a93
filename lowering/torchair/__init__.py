"""GE graphs for Ascend, made by torch_npu's own converter: torchair, run in a process of its own, also without CANN."""
