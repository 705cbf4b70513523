/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * worker: requests that may wait for the device run here, so that the thread that serves a core's queue does
 * not. First in, first out. A job never waits for another job, only for the device and the engine, so a
 * bounded number of threads cannot deadlock however many jobs are queued; queued jobs are bounded by the
 * requests the kernel has under way.
 */
#pragma once

struct larder_progress;
struct worker;

/* First member of what a caller queues; run() owns the job from then on and frees it. */
struct worker_job {
    struct worker_job *next;
    struct larder_progress *progress; /* where the thread leaves how it gets on; NULL: nowhere */
    void (*run)(struct worker_job *job);
};

#define WORKER_THREADS_MAX 64

int worker_new(struct worker **ret_worker);
/* Runs the job on another thread; on the caller's when no thread can be had. */
void worker_submit(struct worker *w, struct worker_job *job);
/* Returns when every job submitted before is done. */
void worker_drain(struct worker *w);
/* Drains, ends the threads, frees. NULL is fine. */
void worker_free(struct worker *w);
