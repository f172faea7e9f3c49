/* SPDX-License-Identifier: Apache-2.0 */
/* Merge attention over two halves of two tokens with equal logits: the mean of their values. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "macattn/macattn.h"

int main(void)
{
    const float left[2] = {1.0f, 0.0f}, right[2] = {0.0f, 1.0f};
    const float zero = 0.0f;
    float out[2], lse;

    if (strcmp(macattn_version(), MACATTN_VERSION) != 0) {
        fprintf(stderr, "header %s, library %s\n", MACATTN_VERSION, macattn_version());
        return 1;
    }
    macattn_status status = macattn_merge(1, 2, left, &zero, right, &zero, out, &lse);
    if (status != MACATTN_OK) {
        fprintf(stderr, "%s\n", macattn_status_string(status));
        return 1;
    }
    printf("macattn %s: (%g, %g), lse %g\n", macattn_version(), (double)out[0], (double)out[1],
           (double)lse);
    return fabsf(out[0] - 0.5f) < 1e-6f && fabsf(out[1] - 0.5f) < 1e-6f ? 0 : 1;
}
