/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * worker: a FIFO of jobs and threads that start when all others are busy, up to WORKER_THREADS_MAX; they
 * stay. A thread that serves a ring is bound to its processor; one that it starts here is not, else both would be.
 *
 * Invariant W1: a queued job is seen by a thread that is idle, or by one that will be when its job ends.
 */
#include "fs/worker.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "fs/fs.h"

#define WORKER_MAGIC 0x4b524f57u /* "WORK" */

struct worker {
    uint32_t magic;
    pthread_mutex_t lock;
    pthread_cond_t wake;                   /* a job came, or stop */
    pthread_cond_t idle;                   /* nothing queued, nobody busy */
    struct worker_job *head;               /* (l) */
    struct worker_job **tail;              /* (l) */
    unsigned queued;                       /* (l) */
    unsigned busy;                         /* (l) threads in a job */
    unsigned threads_waiting;              /* (l) */
    unsigned thread_count;                 /* (l) */
    bool stop;                             /* (l) */
    cpu_set_t processors;                  /* (c) none: they were not to be had */
    pthread_t threads[WORKER_THREADS_MAX]; /* (l) the first thread_count */
};

int worker_new(struct worker **ret_worker)
{
    struct worker *w = calloc(1, sizeof(*w));

    if (!w)
        return -ENOMEM;
    w->magic = WORKER_MAGIC;
    w->tail = &w->head;
    (void)pthread_mutex_init(&w->lock, NULL);
    (void)pthread_cond_init(&w->wake, NULL);
    (void)pthread_cond_init(&w->idle, NULL);
    if (sched_getaffinity(0, sizeof(w->processors), &w->processors) < 0)
        CPU_ZERO(&w->processors); /* more of them than a cpu_set_t holds */
    *ret_worker = w;
    return 0;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;

    CHECK_OBJ(w, WORKER_MAGIC);
    (void)pthread_setname_np(pthread_self(), "worker"); /* for those who look */
    if (CPU_COUNT(&w->processors) > 0)
        (void)sched_setaffinity(0, sizeof(w->processors), &w->processors); /* slower without */
    (void)pthread_mutex_lock(&w->lock);
    for (;;) {
        struct worker_job *job = w->head;

        if (!job) {
            if (w->stop)
                break;
            w->threads_waiting++;
            (void)pthread_cond_wait(&w->wake, &w->lock);
            w->threads_waiting--;
            continue;
        }
        w->head = job->next;
        if (!w->head)
            w->tail = &w->head;
        w->queued--;
        w->busy++;
        (void)pthread_mutex_unlock(&w->lock);
        larder_set_progress(job->progress);
        job->run(job);
        larder_set_progress(NULL);
        (void)pthread_mutex_lock(&w->lock);
        w->busy--;
        if (!w->head && w->busy == 0)
            (void)pthread_cond_broadcast(&w->idle);
    }
    (void)pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* One thread more when those waiting cannot take all that is queued. A failure is fine while there is one. */
static void worker_grow_locked(struct worker *w)
{
    if (w->queued <= w->threads_waiting || w->thread_count == WORKER_THREADS_MAX)
        return;
    if (pthread_create(&w->threads[w->thread_count], NULL, worker_main, w) == 0)
        w->thread_count++;
}

void worker_submit(struct worker *w, struct worker_job *job)
{
    bool inline_run = false;

    CHECK_OBJ(w, WORKER_MAGIC);
    job->next = NULL;
    (void)pthread_mutex_lock(&w->lock);
    w->queued++;
    worker_grow_locked(w);
    if (w->thread_count == 0 || w->stop) {
        w->queued--;
        inline_run = true;
    } else {
        *w->tail = job;
        w->tail = &job->next;
        (void)pthread_cond_signal(&w->wake); /* keeps W1 */
    }
    (void)pthread_mutex_unlock(&w->lock);
    if (inline_run) {
        larder_set_progress(job->progress);
        job->run(job);
    }
}

void worker_drain(struct worker *w)
{
    CHECK_OBJ(w, WORKER_MAGIC);
    (void)pthread_mutex_lock(&w->lock);
    while (w->head || w->busy > 0)
        (void)pthread_cond_wait(&w->idle, &w->lock);
    (void)pthread_mutex_unlock(&w->lock);
}

void worker_free(struct worker *w)
{
    if (!w)
        return;
    worker_drain(w);
    (void)pthread_mutex_lock(&w->lock);
    w->stop = true;
    (void)pthread_cond_broadcast(&w->wake);
    (void)pthread_mutex_unlock(&w->lock);
    for (unsigned i = 0; i < w->thread_count; i++)
        (void)pthread_join(w->threads[i], NULL);
    (void)pthread_cond_destroy(&w->wake);
    (void)pthread_cond_destroy(&w->idle);
    (void)pthread_mutex_destroy(&w->lock);
    w->magic = 0;
    free(w);
}
