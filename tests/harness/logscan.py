# SPDX-License-Identifier: BSD-2-Clause
"""What a daemon's log may not hold when a test has passed: warnings, errors, assertions, sanitizer reports."""

import re

_SANITIZER = re.compile(r"(ERROR|WARNING|SUMMARY): \w*Sanitizer|: runtime error: |Assertion .* failed|"
                        r"\*\*\* .* \*\*\*|double free|corrupted size", re.IGNORECASE)
_STRUCTURED = re.compile(r"^ts=\S+ level=(\w+) ")
_COMPLAINT = re.compile(r"\b(warning|error|fatal|panic)\b|^mount\.larder: ", re.IGNORECASE)


def _is_complaint(line):
    """larder's own lines say their level; of anything else on its stderr the words decide."""
    structured = _STRUCTURED.match(line)
    return structured.group(1) in ("warning", "error") if structured else bool(_COMPLAINT.search(line))


def findings(text, allowed=()):
    """Lines that should not be there. `allowed` are regular expressions; no exemption covers a sanitizer."""
    found = []
    for line in text.splitlines():
        if _SANITIZER.search(line):
            found.append(line)
        elif _is_complaint(line) and not any(re.search(pattern, line) for pattern in allowed):
            found.append(line)
    return found
