/* SPDX-License-Identifier: BSD-2-Clause */
/* fuzz_journal: a store whose journal is the input. Byte 0 is how it is sealed, byte 1 what is done to the store. */
#include "fuzz_store.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_store_init();
    fuzz_seed_logs(false);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct fuzz_in in = {.data = data, .left = bytes};
    unsigned how = fuzz_u8(&in), flags = fuzz_u8(&in);

    fuzz_store_reset(true);
    fuzz_log_build(&in, how, false);
    fuzz_exercise(flags);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t bytes_max, unsigned seed)
{
    return fuzz_log_mutate(data, bytes, bytes_max, seed, 2);
}
