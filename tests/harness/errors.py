# SPDX-License-Identifier: BSD-2-Clause
"""Errors as tests expect them."""

import pytest


def raises(*codes):
    """An OSError with one of these errnos, nothing else."""
    return pytest.raises(OSError, match="|".join(rf"\[Errno {code}\]" for code in codes))
