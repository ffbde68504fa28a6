"""The ground floor: errors for users, files written atomically, verified safetensors files.

What storage, the native builds and training all need, so that none of them imports another for it.
"""

from symrnn.files.atomic import (
    is_file_aside,
    remove_files_aside,
    replace_text,
    replacing,
    to_json,
)
from symrnn.files.cache import cache_folder
from symrnn.files.errors import UserError, describe_os_error, run_program
from symrnn.files.verified import FileKind

__all__ = [
    "FileKind",
    "UserError",
    "cache_folder",
    "describe_os_error",
    "is_file_aside",
    "remove_files_aside",
    "replace_text",
    "replacing",
    "run_program",
    "to_json",
]
