"""`import torch`, and what to do where torch_npu without CANN breaks it.

torch loads installed device back ends when it is imported. torch_npu needs CANN's libraries; without them its loading
fails, and `import torch` with it.
"""

from __future__ import annotations

from importlib import metadata

WAY_OUT = (
    "torch_npu is installed and cannot be loaded (it needs Huawei's CANN toolkit), so that `import torch` fails: set "
    "TORCH_DEVICE_BACKEND_AUTOLOAD=0 (then `gr-compile doctor` says more), or uninstall torch_npu; gr_compile lowers "
    "to Ascend without it"
)


def import_torch() -> None:
    """Import torch.

    Raises:
        ImportError: torch_npu stops it; the message says what to do.
    """
    try:
        import torch  # noqa: F401
    except Exception as error:
        if is_trap(str(error)):
            raise ImportError(f"{WAY_OUT} ({type(error).__name__}: {str(error).splitlines()[0]})") from error
        raise


def is_trap(message: str) -> bool:
    """Does this failure of `import torch` come from loading torch_npu?"""
    return "torch_npu" in message and torch_npu_version() is not None


def torch_npu_version() -> str | None:
    """The installed torch_npu's version, without importing it."""
    try:
        return metadata.version("torch_npu")
    except metadata.PackageNotFoundError:
        return None
