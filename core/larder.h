/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * larder: the engine's public API. A cache with the semantics of a POSIX file system, no FUSE in it.
 *
 * Nodes are named by a 64-bit id (generation << 32 | slot), LARDER_ROOT for the root. Names are bytes, not
 * terminated strings with an encoding; 1..255 of them, no '/' or NUL.
 *
 * All functions return 0 (or what they say) or -errno, may be called from any thread, and may wait for
 * memory work of others; the ones marked [waits] may also wait for the device or for eviction, and belong on a
 * thread that may.
 * -ESTALE: the node is gone for good; larder_open_file, larder_getattr and larder_link also say so of one that was evicted
 * or has expired and that nobody has open, so that a caller with an old name in its cache looks it up again. Permissions
 * are the caller's business (FUSE: default_permissions); larder does what permission bits cannot: sticky inheritance of setgid, clearing of setuid bits, reserved names.
 *
 * Lookup references: every call that hands out an attr for a name (lookup, mknod, mkdir, symlink, link,
 * create, readdir's entries that were taken) adds one to the node; larder_forget takes them back. A node
 * without names lives on, readable, until its references and open files are gone.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "stats.h"

struct larder;
struct larder_file; /* an open file */
struct larder_dir;  /* an open directory: a position in it */

#define LARDER_ROOT 1ull
#define LARDER_FOREVER UINT64_MAX

/* Policies, as options and as user.larder.* xattrs. Ages are nanoseconds of cache time. */
#define LARDER_UNSET UINT64_MAX       /* nothing set */
#define LARDER_NEVER (UINT64_MAX - 1) /* set to "none" */

enum larder_compress { LARDER_COMPRESS_AUTO, LARDER_COMPRESS_LZ4, LARDER_COMPRESS_NONE };
enum larder_durability { LARDER_DURABILITY_CLOSE, LARDER_DURABILITY_FSYNC };
enum larder_hits { LARDER_HITS_EXACT, LARDER_HITS_SAMPLED };

struct larder_options {
    uint64_t quota_bytes;      /* 0: keep nothing; else >= LARDER_QUOTA_BYTES_MIN; UINT64_MAX: what the disk has */
    uint64_t max_entries;      /* files, symlinks and specials; 0: no bound */
    uint64_t min_free_bytes;   /* to leave free on the host file system */
    uint64_t ttl_ns, idle_ns;  /* LARDER_UNSET: none */
    enum larder_compress compress;
    enum larder_durability durability;
    uint32_t big_bytes;        /* larger values get a file of their own: 4 KiB .. 4 MiB */
    bool read_only;
    /* SAMPLED: nobody says when a file is opened and closed. A use is a lookup; larder_open_file is only the means to
     * read and write, also of what has expired or left since, as long as the caller has a reference to it. What the
     * caller has a reference to may be open, and does not leave for room before it is forgotten: see please_forget.
     * Not with a quota of 0. */
    enum larder_hits hits;
    uint32_t root_uid, root_gid, root_mode; /* of the root directory when the store is new */
};
#define LARDER_QUOTA_BYTES_MIN (1ull << 20)
#define LARDER_BIG_BYTES_DEFAULT (256u << 10)

enum larder_log_level { LARDER_LOG_ERROR, LARDER_LOG_WARNING, LARDER_LOG_INFO, LARDER_LOG_DEBUG };

/* What the engine tells its owner. Called from any thread, possibly with locks held: enqueue and return; never
 * call back into larder. */
struct larder_callbacks {
    /* A name the kernel may have cached is gone, without a request that removed it (eviction, expiry, purge). child 0: what
     * the name leads to is not what the answer to a request that failed made the kernel believe. */
    void (*name_gone)(void *ctx, uint64_t parent, uint64_t child, const char *name, size_t name_bytes);
    /* The attributes or the bytes of a node changed other than by a request on it, or they may no longer be cached
     * for as long as was said (a deadline came nearer). larder_getattr answers -ESTALE once it is past. */
    void (*node_changed)(void *ctx, uint64_t node, bool data);
    /* Sampled hits: room is wanted, and the node would leave if the caller gave up its references to it (larder_forget),
     * which it is to do soon, unless somebody has it open. Asked once a second at most. NULL with exact hits. */
    void (*please_forget)(void *ctx, uint64_t node);
    /* One structured line, without level or newline: event=... key=value... */
    void (*log)(void *ctx, enum larder_log_level level, const char *line);
    void *ctx;
};

/* Defaults: quota 1 GiB, everything else as the field says "none", big_bytes the default, root 0755 of the caller. */
void larder_options_init(struct larder_options *opts);

/* Opens the store at path, creating it (0700) when missing. err (LARDER_ERROR_BYTES) gets a message for a person
 * on failure: -EBUSY in use, -EPROTONOSUPPORT newer format, -ENOTDIR, -ELOOP (a symlink), -EPERM (owner or mode),
 * -ENOTEMPTY (holds something else), -EINVAL (option), or what the device said. [waits] */
#define LARDER_ERROR_BYTES 512
int larder_open(const char *path, const struct larder_options *opts, const struct larder_callbacks *callbacks,
                struct larder **ret_larder, char *err);
/* Starts eviction, expiry, cleaning and checkpoints (threads). Call it after the mount answers and after any fork. */
int larder_start(struct larder *l);
/* Commits nothing: files still open for writing lose what was not closed or fsynced. Stops the threads, writes a clean
 * checkpoint, frees everything. Returns what went wrong on the way (all is freed anyway). [waits] */
int larder_close(struct larder *l);

/* Attributes */
struct larder_attr {
    uint64_t ino;
    uint32_t mode, nlink, uid, gid;
    uint64_t rdev, size_bytes, disk_bytes;
    int64_t atime_ns, mtime_ns, ctime_ns, btime_ns;
    uint64_t valid_ns;      /* how long it may be cached; LARDER_FOREVER: until told */
    uint64_t name_valid_ns; /* likewise the name it was found by; no longer than that */
};

struct larder_cred {
    uint32_t uid, gid;
    uint32_t umask; /* applied to modes by larder */
};

enum {
    LARDER_SET_MODE = 1 << 0,
    LARDER_SET_UID = 1 << 1,
    LARDER_SET_GID = 1 << 2,
    LARDER_SET_SIZE = 1 << 3,
    LARDER_SET_ATIME = 1 << 4,
    LARDER_SET_MTIME = 1 << 5,
    LARDER_SET_ATIME_NOW = 1 << 6,
    LARDER_SET_MTIME_NOW = 1 << 7,
    LARDER_SET_CTIME = 1 << 8,
    LARDER_KILL_PRIV = 1 << 9, /* with SIZE or UID/GID: clear setuid/setgid as for a caller without CAP_FSETID */
};

/* Negative answers: -ENOENT with ret_attr->valid_ns set (how long the absence may be cached). */
int larder_lookup(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, struct larder_attr *ret_attr);
void larder_forget(struct larder *l, uint64_t node, uint64_t count);
/* The mount is gone: nobody has anything open any more, whatever was not forgotten. */
void larder_forget_all(struct larder *l);
/* The node a name leads to, 0: none. No reference, and no use of it. */
uint64_t larder_find(struct larder *l, uint64_t parent, const char *name, size_t name_bytes);
/* Is it a file that the caller has a reference to? */
bool larder_file_is_known(struct larder *l, uint64_t node);
int larder_getattr(struct larder *l, uint64_t node, struct larder_attr *ret_attr);
/* A change of size without an open file commits at once [waits]; f may be NULL. */
int larder_setattr(struct larder *l, uint64_t node, struct larder_file *f, unsigned set, const struct larder_attr *attr,
                   struct larder_attr *ret_attr);

/* Tree. rdev only for devices. Written to the journal on return (survives SIGKILL). [waits when eviction must make room] */
int larder_mknod(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, uint32_t mode, uint64_t rdev,
                 const struct larder_cred *cred, struct larder_attr *ret_attr);
int larder_mkdir(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, uint32_t mode,
                 const struct larder_cred *cred, struct larder_attr *ret_attr);
int larder_symlink(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, const char *target,
                   const struct larder_cred *cred, struct larder_attr *ret_attr);
/* out: at least 4096 bytes; terminated. */
int larder_readlink(struct larder *l, uint64_t node, char *out, size_t out_bytes);
int larder_link(struct larder *l, uint64_t node, uint64_t parent, const char *name, size_t name_bytes,
                struct larder_attr *ret_attr);
int larder_unlink(struct larder *l, uint64_t parent, const char *name, size_t name_bytes);
int larder_rmdir(struct larder *l, uint64_t parent, const char *name, size_t name_bytes);
/* flags: 0, RENAME_NOREPLACE, RENAME_EXCHANGE; RENAME_WHITEOUT as linux/fs.h says (a 0/0 character device is left).
 * A file renamed while written is committed first. Where one fsynced file takes the place of another the rename is as
 * durable as they are on return, so that a power cut shows either: [waits], and larder_rename_waits says so before. */
bool larder_rename_waits(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, uint64_t new_parent,
                         const char *new_name, size_t new_name_bytes);
int larder_rename(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, uint64_t new_parent,
                  const char *new_name, size_t new_name_bytes, unsigned flags, const struct larder_cred *cred);

/* Files. flags: O_ACCMODE, O_TRUNC, O_APPEND of open(2). An open counts as one use of the key
 * (but see enum larder_hits). */
int larder_open_file(struct larder *l, uint64_t node, int flags, struct larder_file **ret_file);
/* O_EXCL is the caller's (FUSE: the kernel's) business; -EEXIST if the name is there. */
int larder_create(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, uint32_t mode, int flags,
                  const struct larder_cred *cred, struct larder_attr *ret_attr, struct larder_file **ret_file);
/* A file without a name yet (O_TMPFILE); larder_link gives it one. */
int larder_tmpfile(struct larder *l, uint64_t parent, uint32_t mode, int flags, const struct larder_cred *cred,
                   struct larder_attr *ret_attr, struct larder_file **ret_file);
/* nowait: -EAGAIN where the device would have to be waited for; call again without, from a thread that may. */
int larder_read(struct larder_file *f, void *buf, size_t bytes, uint64_t offset, bool nowait, size_t *ret_bytes);
int larder_write(struct larder_file *f, const void *buf, size_t bytes, uint64_t offset, bool kill_priv);
int larder_allocate(struct larder_file *f, int mode, uint64_t offset, uint64_t bytes,
                    bool kill_priv); /* fallocate(2) [waits] */
/* Who has the backing file will write to it without telling: its checksums are void until the last writer is gone. */
int larder_expect_changes(struct larder_file *f);
int larder_seek(struct larder_file *f, uint64_t offset, int whence, uint64_t *ret_offset); /* SEEK_DATA, SEEK_HOLE */
int larder_copy_range(struct larder_file *in, uint64_t in_offset, struct larder_file *out, uint64_t out_offset,
                      uint64_t bytes, bool kill_priv, uint64_t *ret_bytes); /* [waits] */
/* close(2) of one descriptor: commits what was written (C2). [waits] when larder_flush_waits says so before: with
 * durability=fsync, and where a value that was fsynced has been changed in part, which is to be as durable. */
int larder_flush(struct larder_file *f);
bool larder_flush_waits(struct larder_file *f);
/* For the release, which the kernel sends some time after: by then another may be writing, and what is half written by
 * him is not this one's to commit. [waits] likewise */
int larder_flush_rest(struct larder_file *f);
/* datasync may leave times behind. [waits] */
int larder_fsync(struct larder_file *f, bool datasync);
/* Everything logged so far is on the device. [waits] */
int larder_sync(struct larder *l);
/* The last reference to the handle is gone. Commits what a mapping wrote after close. */
void larder_release(struct larder_file *f);
/* Likewise when the daemon stops: a file still being written is no value, what was not committed is lost. */
void larder_abandon(struct larder_file *f);
uint64_t larder_file_node(const struct larder_file *f);
bool larder_file_writable(const struct larder_file *f);
/* For passthrough: the descriptor of a raw big value, readable, while f is open; -ENOTSUP when there is none. -EAGAIN once,
 * for a value found at mount that was not read since: who gets that is to call larder_verify, until then it is -ENOTSUP. */
int larder_file_backing_fd(struct larder_file *f, int *ret_fd);
/* Verifies such a value. Not a use of it; damage makes it a miss. go_on is asked before each piece of it. [waits] */
void larder_verify(struct larder *l, uint64_t node, bool (*go_on)(void *ctx), void *ctx);

/* Directories. Offsets are cookies: 0 is the start, each entry carries the one that follows it; they stay valid
 * while other entries come and go. "." and ".." are included. */
int larder_open_dir(struct larder *l, uint64_t node, struct larder_dir **ret_dir);
void larder_close_dir(struct larder_dir *d);
/* emit: false = no room, stop (the entry counts as not given). With plus, attr is filled and a lookup reference is taken
 * for every entry given, except "." and "..". name is terminated. Called with a lock held: only copy. */
typedef bool (*larder_emit)(void *ctx, const char *name, size_t name_bytes, const struct larder_attr *attr,
                            uint64_t next_offset);
int larder_read_dir(struct larder_dir *d, uint64_t offset, bool plus, larder_emit emit, void *ctx);
int larder_fsync_dir(struct larder *l, uint64_t node); /* [waits] */

/* xattrs. user.larder.* are virtual (DESIGN 3): settable policies and readable facts, never listed. Values are text,
 * without newline. size 0 asks for the length. flags XATTR_CREATE/XATTR_REPLACE. setting a directory's policy
 * walks what is below it [waits]. */
int larder_getxattr(struct larder *l, uint64_t node, const char *name, void *out, size_t out_bytes, size_t *ret_bytes);
int larder_setxattr(struct larder *l, uint64_t node, const char *name, const void *value, size_t value_bytes, int flags);
int larder_removexattr(struct larder *l, uint64_t node, const char *name);
int larder_listxattr(struct larder *l, uint64_t node, char *out, size_t out_bytes, size_t *ret_bytes);

/* Numbers */
struct larder_space {
    uint64_t quota_bytes, used_bytes; /* used: never less than du of the store */
    uint64_t available_bytes;         /* what can be stored without eviction, the host's disk considered */
    uint64_t entries, entries_max;                /* entries_max 0: no bound */
};
void larder_space(struct larder *l, struct larder_space *ret_space);
void larder_stats(struct larder *l, struct larder_stats *ret_stats);
/* Of a directory's subtree, by walking it in bounded steps. [waits] */
struct larder_subtree {
    uint64_t entries, directories, logical_bytes, stored_bytes, hits, pinned, open_files;
};
int larder_subtree(struct larder *l, uint64_t directory, struct larder_subtree *ret_subtree);
/* One latency sample of an operation, nanoseconds; cheap, lock-free. */
void larder_count_latency(struct larder *l, enum larder_op op, uint64_t ns);
void larder_count_error(struct larder *l, int error);

/* Supervision. What the calling thread waits for in the store's file system, and how often it got on, is left in *p from
 * now on; NULL ends it. p outlives that. */
struct larder_progress {
    _Atomic uint64_t steps;        /* system calls on the store that returned */
    const char *_Atomic waits_in;  /* name of the one under way, NULL: none */
};
void larder_set_progress(struct larder_progress *p);
/* Returns once each of the locks that every request needs could be had: none is held for good. */
void larder_probe(struct larder *l);
/* For .stats: requests that newly make no progress, and how long the worst under way has made none. */
void larder_report_stuck(struct larder *l, uint64_t newly_stuck, uint64_t worst_ns);

/* The stream of what left and why: text lines "SECONDS.MILLIS reason bytes path\n" (path with \\ooo escapes for bytes
 * below 0x21, backslash and 0x7f..). Positions count bytes since mount; the oldest kept are forgotten past 1 MiB.
 * Copies up to `bytes` from *position on (moved forward if it was forgotten); *ret_bytes 0: nothing newer yet. */
void larder_events_read(struct larder *l, uint64_t *position, char *out, size_t bytes, size_t *ret_bytes);
void larder_events_range(struct larder *l, uint64_t *ret_oldest, uint64_t *ret_newest);

/* The options in force (after defaults). */
void larder_get_options(struct larder *l, struct larder_options *ret_opts);

/* Ages and sizes as people write them. Sizes: digits, optional fraction, optional unit: B, K/KiB M/MiB G/GiB T/TiB
 * (1024), kB MB GB TB (1000). Ages: digits with ms s m h d w (none: seconds), several in a row ("1h30m"). -EINVAL, -ERANGE.
 * Both refuse anything else. larder_parse_age also takes "none" (LARDER_NEVER). */
int larder_parse_size(const char *text, uint64_t *ret_bytes);
int larder_parse_age(const char *text, uint64_t *ret_ns);
/* "1h30m", "250ms"; exact. out: 32 bytes. */
void larder_format_age(uint64_t ns, char out[32]);
