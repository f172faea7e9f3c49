/* SPDX-License-Identifier: Apache-2.0 */
/* usage: test_isa NAME
 * Whether the instruction set that is taken on this processor is NAME, and every other that it can run is listed
 * behind it. For emulated processors, of which it is known. */
#include <stdio.h>
#include <string.h>

#include "core/backend.h"

#include "macattn/macattn.h"

int main(int argc, char **argv)
{
    const mai_backend *best = mai_backend_find(NULL);
    int wrong = 0;
    if (argc != 2 || !best) {
        fprintf(stderr, "usage: test_isa NAME\n");
        return 2;
    }
    for (int i = 0; mai_backend_at(i) != best; i++) {
        if (macattn_isa_supported(macattn_isa_name(i))) {
            printf("%s is passed over\n", macattn_isa_name(i));
            wrong = 1;
        }
    }
    if (strcmp(best->name, argv[1]) != 0) {
        printf("%s is taken, not %s\n", best->name, argv[1]);
        wrong = 1;
    }
    return wrong;
}
