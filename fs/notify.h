/* SPDX-License-Identifier: BSD-2-Clause */
/* notify: tells the kernel what left, from a thread of its own that holds no lock and serves no request. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fs;
struct notify;

int notify_new(struct fs *fs, struct notify **ret_notify);
/* Starts the thread; before that everything is only queued. */
int notify_start(struct notify *n);
/* Sends what is queued, ends the thread. While the session still serves, or after it has ended. */
void notify_stop(struct notify *n);
void notify_free(struct notify *n); /* NULL is fine */

/* larder_callbacks: ctx is the struct fs. They copy and return. */
void notify_name_gone(void *ctx, uint64_t parent, uint64_t child, const char *name, size_t name_bytes);
void notify_node_changed(void *ctx, uint64_t node, bool data);
void notify_please_forget(void *ctx, uint64_t node);

#define NOTIFY_PRUNE_MINOR 45u /* protocol 7.45, Linux 6.18: the kernel can be asked to forget */
