/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * progress: see progress.h. The pointer is the thread's own; what it points to is read by others, hence atomic.
 */
#include "progress.h"

_Thread_local struct larder_progress *progress_mine;

void larder_set_progress(struct larder_progress *p)
{
    progress_mine = p;
}
