/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * faultheap: a heap whose N-th allocation fails, for programs linked with FAULTHEAP_LINK_ARGS of tests/meson.build
 * (the linker's --wrap puts it between our objects and the C library; what libraries allocate is theirs).
 */
#pragma once

#include <stdint.h>

/* Allocations number first..last from now on return NULL with ENOMEM; first 0: none. Counts from 1 again. */
void faultheap_plan(uint64_t first, uint64_t last);
uint64_t faultheap_counted(void);
uint64_t faultheap_failed(void);
/* Blocks allocated and not freed. */
int64_t faultheap_live(void);
