/* SPDX-License-Identifier: Apache-2.0 */
/* What some of a prompt's queries show of selection. */
#ifndef MAI_SHOWN_H
#define MAI_SHOWN_H

#include "pick.h"

/* Once the prompt's results are there, and before its queries are remembered. */
void mai_show_selections(mai_run *run);
/* So that the layer's unit is known: the outputs of a row's queries that show selections, where none
 * shows reuse. */
void mai_note_shown(const mai_run *run, const mai_row_plan *p);
/* Learn what was shown of a group. */
void mai_learn_shown(const mai_run *run, int kv_head, float unit2);

#endif /* MAI_SHOWN_H */
