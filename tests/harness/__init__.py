# SPDX-License-Identifier: BSD-2-Clause
"""What the tests share: the daemon as a process, conditions with deadlines, client processes, damage, the oracle."""
