/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * store_identity: whose store is this, when FORMAT cannot say? Every journal, checkpoint and segment begins with a
 * checksummed header that names the store; what most of them say is believed. A file planted from another store is
 * outvoted, and one alone with nothing beside it is as good as any.
 *
 * What may never happen: a store of a newer format taken for a damaged one of ours.
 */
#pragma once

#include <stdint.h>

#include "io.h"

/* -ENOENT: no header can be read. -EPROTONOSUPPORT: headers of a newer format are there. *ret_files: how many agree. */
int store_learn_identity(struct io *io, int dir_fd, uint8_t ret_store_id[16], uint32_t *ret_files);
