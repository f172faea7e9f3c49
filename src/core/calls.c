/* SPDX-License-Identifier: Apache-2.0 */
/* The three attention calls: check everything, then hand over to decode and prefill. */
#include "decode/decode.h"
#include "prefill.h"

/* Check that the plan's slots may be used by layer `layer`. */
static macattn_status check_slots(macattn *m, int32_t layer)
{
    const mai_plan *plan = m->plan;
    if (layer < 0 || layer >= m->cfg.n_layers) {
        return mai_fail(m, MACATTN_E_RANGE, "layer %d is not in [0, n_layers = %d)", (int)layer,
                        (int)m->cfg.n_layers);
    }
    if (plan->layer_done[layer]) {
        return mai_fail(m, MACATTN_E_STATE, "layer %d was already computed under this plan",
                        (int)layer);
    }
    for (int r = 0; r < plan->n_rows; r++) {
        const mai_row_plan *p = &plan->rows[r];
        if (p->row.slot < 0) {
            return mai_fail(m, MACATTN_E_STATE, "row %d has no slot: only macattn_attend takes it",
                            r);
        }
        if (p->row.n_tokens == 0) {
            return mai_fail(m, MACATTN_E_STATE,
                            "row %d has no tokens: only macattn_attend takes it", r);
        }
        if (p->generation != m->slots[p->row.slot].generation) {
            return mai_fail(
                m, MACATTN_E_STATE,
                "slot %d was reset, truncated, forked to or loaded after the plan was made",
                (int)p->row.slot);
        }
    }
    return MACATTN_OK;
}

/* From here on nothing fails: note that the layer is done, and the slots' new lengths. */
static void commit_slots(mai_run *run)
{
    run->plan->layer_done[run->layer] = 1;
    for (int r = 0; r < run->plan->n_rows; r++) {
        const macattn_row *row = &run->plan->rows[r].row;
        run->m->slots[row->slot].length = row->n_tokens;
    }
}

macattn_status macattn_attend(macattn *m, const macattn_io *io)
{
    if (!m) return MACATTN_E_ARG;
    mai_run run;
    MAI_TRY(mai_run_init(m, io, &run));
    mai_decode_rows(&run);
    mai_prefill_rows(&run, false);
    return MACATTN_OK;
}

/* What decode and prefill begin with. Nothing has changed if it fails. */
static macattn_status begin_layer(macattn *m, int32_t layer, const macattn_io *io, mai_run *run)
{
    MAI_TRY(mai_run_init(m, io, run));
    MAI_TRY(check_slots(m, layer));
    run->layer = layer;
    run->reuse = io->q_match && mai_keeps_rings(&m->cfg);
    return MACATTN_OK;
}

macattn_status macattn_decode(macattn *m, int32_t layer, const macattn_io *io)
{
    if (!m) return MACATTN_E_ARG;
    mai_run run;
    MAI_TRY(begin_layer(m, layer, io, &run));
    if (m->plan->n_single < m->plan->n_rows) {
        return mai_fail(m, MACATTN_E_STATE,
                        "a row of the plan has several queries: call macattn_prefill");
    }
    commit_slots(&run);
    mai_decode_rows(&run);
    return MACATTN_OK;
}

macattn_status macattn_prefill(macattn *m, int32_t layer, const macattn_io *io)
{
    if (!m) return MACATTN_E_ARG;
    mai_run run;
    MAI_TRY(begin_layer(m, layer, io, &run));
    commit_slots(&run);
    mai_prefill_rows(&run, true);
    return MACATTN_OK;
}
