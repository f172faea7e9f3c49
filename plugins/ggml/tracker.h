/* SPDX-License-Identifier: Apache-2.0 */
/* Which sequence a query belongs to, and whether its tokens are still those it had.
 *
 * ggml shows no sequences: only a mask, which says what KV cells each query sees, and the cells
 * into which the new keys are written. A query continues a sequence iff it sees exactly the first b
 * of the sequence's tokens and the cell of its own. What is not such a continuation (a context
 * shift, a defragmented or restored cache, a sliding window, a new prompt) starts the sequence
 * anew. Two further things keep a summary from being used for tokens it was not made of:
 *  - a cell that is written again takes its token, and all later ones, from every sequence that had
 *    it;
 *  - a fingerprint is kept of each token's key in the deepest layer, whose value depends on all
 *    tokens
 *    before it. It is compared with the cache for the last token before the new ones, since a cache
 *    can
 *    be replaced behind the graph's back (state restored from a file, sequences copied, keys
 *    shifted). */
#ifndef MACATTN_PLUGIN_TRACKER_H
#define MACATTN_PLUGIN_TRACKER_H

#include <stdbool.h>
#include <stdint.h>

/*! Why sequences were started anew. */
typedef struct tracker_counts {
    uint64_t prompts;    /*!< the first token of a sequence */
    uint64_t changes;    /*!< what a query saw continued no sequence */
    uint64_t mismatches; /*!< a fingerprint differed */
    uint64_t rollbacks;  /*!< last tokens taken back */
    uint64_t forks;      /*!< a prefix shared */
} tracker_counts;

typedef struct sequence sequence;

/*! The sequences of one stream (a stream of llama.cpp's cache: one buffer of cells). */
typedef struct tracker {
    sequence *sequences;
    int n_sequences;
    int64_t n_cells; /*!< of the stream */
    uint64_t clock;
    tracker_counts *counts; /*!< borrowed */
} tracker;

/*! One row of a step: consecutive queries of one sequence, query i of which sees the first
 *  n_tokens - n_queries + i + 1 of `cells`. */
typedef struct tracked_row {
    int32_t n_queries;
    int64_t n_tokens;
    const int32_t *cells; /*!< [n_tokens] in the order of the sequence; valid until the next step */
    bool contiguous;      /*!< cells[i] = cells[0] + i */
    sequence *sequence;   /*!< NULL: not tracked */
    int32_t index;        /*!< of the sequence in its tracker */
    int32_t fork_of;      /*!< index of the sequence this one begins as a copy of; -1 = none */
    int64_t keep;         /*!< tokens that the sequence keeps; 0 = starts anew */
    bool settled;         /*!< the sequence was seen to go on: worth remembering */
} tracked_row;

/*! The fingerprint of the token in a cell of this stream, from the cache as it is now. */
typedef struct tracker_probe {
    uint64_t (*hash)(void *user, int64_t cell);
    void *user;
} tracker_probe;

bool tracker_init(tracker *t, int n_sequences, int64_t n_cells, tracker_counts *counts);
void tracker_free(tracker *t);

/*! tracker_forget() : every sequence starts anew. */
void tracker_forget(tracker *t);

/*! tracker_begin_step() : cells that are about to be (or were just) written take their old
 *  tokens from every sequence. */
void tracker_begin_step(tracker *t, const int64_t *written, int64_t n_written);

/*! tracker_continue() : the row that starts with a query that sees `seen` ([n_words of n_cells],
 *  one of them `own`, the cell of its own token). `probe` NULL : there is nothing to compare with
 *  yet.
 * @return : false if there is no memory, or more sequences in this step than the tracker holds. */
bool tracker_continue(tracker *t, const uint64_t *seen, int64_t own, const tracker_probe *probe,
                      tracked_row *row);

/*! tracker_append() : one more query in the row, with its own cell.  @return : false without
 *  memory. */
bool tracker_append(tracked_row *row, int64_t own);

/*! tracker_fingerprint() : note the fingerprints of the row's new tokens, their keys being in
 *  place. */
void tracker_fingerprint(tracked_row *row, const tracker_probe *probe);

#endif
