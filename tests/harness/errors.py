# SPDX-License-Identifier: BSD-2-Clause
"""Errors as tests expect them."""

import errno

import pytest


def raises(*codes):
    """An OSError with one of these errnos, nothing else."""
    return pytest.raises(OSError, match="|".join(rf"\[Errno {code}\]" for code in codes))


def fails_with(function, *args):
    """The errno function ends with; 0: it did not fail."""
    try:
        function(*args)
    except OSError as error:
        return error.errno
    return 0


#: What clients get whose daemon is gone, or gives their requests up.
GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED, errno.EIO, errno.ENODEV}
