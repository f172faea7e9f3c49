/* SPDX-License-Identifier: Apache-2.0 */
/* Layers of the same shape that read the same kind of cache under the same mask form a group:
 * one macattn object, one set of tracked sequences. */
#ifndef MACATTN_PLUGIN_GROUP_H
#define MACATTN_PLUGIN_GROUP_H

#include "records.h"

/*! group_key_of() : what a node's group has in common; without a cache. */
group_key group_key_of(const struct ggml_tensor *node);

/*! group_get() : the group, made if there is none yet.  @return : NULL without memory. */
group *group_get(attention *a, const group_key *key);

/*! group_layer() : number in the group of the layer with these keys, new if unknown.
 *  @return : -1 without memory. */
int group_layer(group *g, const struct ggml_tensor *k, int nth_use);

/*! group_token_bytes() : of K and V of one token in one layer. */
uint64_t group_token_bytes(const group *g);

/*! group_object_create() : the object and the trackers, for as many layers as are known. More
 *  layers than before: start over.  @return : false without memory; the group's nodes are ggml's
 *  then. */
bool group_object_create(attention *a, group *g);

/*! group_object_make(), group_object_free() : the object alone, under the settings as they are. */
bool group_object_make(attention *a, group *g, int n_layers);
void group_object_free(group *g);

/*! group_set_budgets() : give the object's heads the budgets of the settings, if it has any. */
void group_set_budgets(const attention *a, group *g);

/*! group_forget_kept() : drop what macattn_ggml_interface.keep remembered. */
void group_forget_kept(group *g);
void group_free(group *g);

/*! Layers are numbered over all groups, for those who ask from outside: how many; the number of
 *  layer l of a group; the group of a number, and the layer's there (NULL = no such). */
int32_t attention_n_layers(const attention *a);
int group_layer_index(const attention *a, const group *g, int l);
group *group_of_layer(const attention *a, int32_t index, int *l);

/*! group_model_layer() : in the model, as llama.cpp names its cache; -1 = unknown. */
int32_t group_model_layer(const layer *l);

#endif
