"""What NumPy raises for files of arrays that are damaged, or of another kind."""

from __future__ import annotations

import struct
import zipfile
import zlib
from tokenize import TokenError

# SyntaxError, TokenError: the header of an array is parsed as Python. MemoryError, ArithmeticError,
# RuntimeError: a header of terabytes, a shape beyond 64 bits, an encrypted member of an archive.
UNREADABLE = (
    OSError,
    LookupError,
    ValueError,
    TypeError,
    EOFError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
