/* SPDX-License-Identifier: Apache-2.0 */
/* The object. Nothing here knows an instruction set; the kernels come through `mai_backend`
 * (backend.h). */
#ifndef MAI_OBJECT_H
#define MAI_OBJECT_H

#include "backend.h"
#include "base.h"
#include "policy/judge.h"
#include "policy/policy.h"
#include "policy/select.h"
#include "state/state.h"
#include "stats.h"
#include "work.h"

typedef struct mai_plan mai_plan; /* plan.h */

struct macattn {
    macattn_config cfg; /* validated, all defaults resolved */
    const mai_backend *backend;
    mai_shape shape;         /* what the kernels need to know of cfg (backend.h) */
    mai_ring_dims ring_dims; /* how a ring's arrays lie in its allocation */
    mai_runs_dims runs_dims; /* and those of a segment of runs */
    mai_threads *threads;
    mai_slot *slots; /* [max_slots] */
    mai_ring *free_rings;
    mai_run_segment *free_segments;
    mai_counters *counters;             /* [n_layers][n_heads] */
    mai_group_counters *group_counters; /* [n_layers][n_kv_heads] */
    mai_times *times;                   /* [n_layers] */
    mai_record *records;                /* [n_layers][n_heads]; NULL unless the policy judges */
    mai_habit *habits;                  /* [n_layers][n_kv_heads]; the same */
    mai_selector *selectors;            /* [n_layers][n_kv_heads]; the same */
    mai_plan *plan;                     /* NULL until first planned */
    mai_work work;
    char error[320];
};

/* What the kernels need of a resolved configuration. */
mai_shape mai_shape_of(const macattn_config *cfg);

#endif /* MAI_OBJECT_H */
