/* SPDX-License-Identifier: BSD-2-Clause */
/* fuzz_main: gives a target every file named, or in a directory named, when there is no libFuzzer to do it. */
#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"

static unsigned replay_count;

static void replay_file(const char *path)
{
    FILE *f = fopen(path, "re");
    struct stat st;
    uint8_t *data;

    FUZZ_CHECK(f && fstat(fileno(f), &st) == 0);
    data = malloc((size_t)st.st_size + 1);
    FUZZ_CHECK(data && fread(data, 1, (size_t)st.st_size, f) == (size_t)st.st_size);
    (void)fclose(f); /* only read */
    (void)fprintf(stderr, "%s\n", path);
    (void)LLVMFuzzerTestOneInput(data, (size_t)st.st_size);
    free(data);
    replay_count++;
}

static void replay_dir(const char *path)
{
    DIR *dir = opendir(path);
    struct dirent *entry;
    char file[4096];

    FUZZ_CHECK(dir);
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] == '.')
            continue;
        (void)snprintf(file, sizeof(file), "%s/%s", path, entry->d_name);
        replay_file(file);
    }
    (void)closedir(dir); /* only read */
}

int main(int argc, char **argv)
{
    struct stat st;

    (void)LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++) {
        FUZZ_CHECK(stat(argv[i], &st) == 0);
        if (S_ISDIR(st.st_mode))
            replay_dir(argv[i]);
        else
            replay_file(argv[i]);
    }
    FUZZ_CHECK(replay_count > 0);
    (void)printf("%u inputs\n", replay_count);
    return 0;
}

/* The targets' mutators name it; nobody mutates here. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t bytes, size_t bytes_max)
{
    (void)data;
    (void)bytes_max;
    return bytes;
}
