/* SPDX-License-Identifier: Apache-2.0 */
#include "division.h"

#include <stdatomic.h>

typedef enum probing { PROBE_NONE, PROBE_NEXT, PROBE_NOW } probing;

static _Thread_local struct {
    uint64_t number;
    bool at_leaves;
    probing probe;
    int n_contexts; /* made since the last graph */
} division;

int division_note_context(void)
{
    division.probe = PROBE_NEXT;
    return division.n_contexts++;
}

void division_note_end(void)
{
    if (division.n_contexts > 0) division.n_contexts--;
    if (division.n_contexts == 0 && division.probe == PROBE_NEXT) division.probe = PROBE_NONE;
}

void division_note_leaf(void)
{
    static _Atomic uint64_t n_divisions;
    if (division.at_leaves) return;
    division.at_leaves = true;
    division.number = atomic_fetch_add(&n_divisions, 1) + 1;
    division.probe = division.probe == PROBE_NEXT ? PROBE_NOW : PROBE_NONE;
    division.n_contexts = 0;
}

void division_note_node(void)
{
    division.at_leaves = false;
}

uint64_t division_number(void)
{
    return division.number;
}

bool division_hidden(void)
{
    return division.probe == PROBE_NOW;
}
