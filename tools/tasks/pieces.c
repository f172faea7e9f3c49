/* SPDX-License-Identifier: Apache-2.0 */
#include "pieces.h"

#include <stddef.h>

random_state task_rng(const char *name, uint64_t seed, int64_t index)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (const char *c = name; *c; c++) hash = (hash ^ (unsigned char)*c) * 0x100000001b3u;
    random_state rng = {hash ^ seed * 0x9e3779b97f4a7c15u ^ (uint64_t)index * 0xd1b54a32d192ed03u};
    (void)random_next(&rng);
    return rng;
}

char *task_word(random_state *rng, int syllables)
{
    static const char consonants[] = "bdfgklmnprstvz", vowels[] = "aeiou";
    text t = {NULL, 0, 0};
    for (int i = 0; i < syllables; i++) {
        text_add_bytes(&t, &consonants[random_below(rng, sizeof consonants - 1)], 1);
        text_add_bytes(&t, &vowels[random_below(rng, sizeof vowels - 1)], 1);
    }
    return text_take(&t);
}

static const char *const adjectives[] = {
    "amber",   "ancient", "brave",  "bright",  "broad",  "calm",    "careful", "clear",  "cold",
    "curious", "dark",    "deep",   "distant", "early",  "empty",   "faint",   "fair",   "famous",
    "gentle",  "golden",  "green",  "grey",    "happy",  "heavy",   "hidden",  "hollow", "honest",
    "humble",  "late",    "light",  "little",  "lonely", "long",    "loud",    "modest", "narrow",
    "new",     "noble",   "old",    "open",    "pale",   "patient", "plain",   "polite", "proud",
    "quick",   "quiet",   "rapid",  "rare",    "red",    "round",   "rusty",   "sharp",  "shy",
    "silent",  "silver",  "simple", "slow",    "small",  "smooth",  "soft",    "steady", "strange",
    "strong",  "sunny",   "sweet",  "tall",    "thin",   "tidy",    "tiny",    "warm",   "wide",
    "wild",    "wise",    "wooden", "young"};
static const char *const nouns[] = {
    "anchor",   "apple",   "arrow",  "badge",   "barrel",  "basket", "beacon",  "bell",    "bench",
    "bird",     "boat",    "book",   "bottle",  "bridge",  "broom",  "bucket",  "button",  "candle",
    "carpet",   "castle",  "chair",  "circle",  "clock",   "cloud",  "coat",    "compass", "corner",
    "cottage",  "crown",   "desk",   "door",    "drum",    "engine", "farmer",  "feather", "fence",
    "field",    "flag",    "flute",  "forest",  "garden",  "gate",   "glove",   "guitar",  "hammer",
    "harbor",   "hill",    "house",  "island",  "jacket",  "kettle", "key",     "kitchen", "ladder",
    "lake",     "lamp",    "letter", "lion",    "map",     "market", "meadow",  "mirror",  "moon",
    "mountain", "needle",  "ocean",  "orchard", "painter", "paper",  "pencil",  "piano",   "pillow",
    "planet",   "pocket",  "rabbit", "railway", "ribbon",  "river",  "road",    "roof",    "sailor",
    "school",   "shelf",   "ship",   "shoe",    "song",    "spoon",  "spring",  "stone",   "street",
    "table",    "teacher", "tower",  "train",   "tree",    "valley", "village", "violin",  "wagon",
    "wheel",    "window",  "winter"};
static const char *const verbs[] = {
    "admires", "answers", "borrows", "builds", "calls",   "carries", "catches", "cleans",
    "crosses", "draws",   "drops",   "finds",  "follows", "forgets", "guards",  "hears",
    "hides",   "keeps",   "leaves",  "lifts",  "meets",   "mends",   "moves",   "opens",
    "paints",  "passes",  "pulls",   "reads",  "reaches", "sees",    "sells",   "shows",
    "touches", "turns",   "visits",  "watches"};

#define PICK(list, rng) list[random_below(rng, (int64_t)(sizeof list / sizeof list[0]))]

char *task_key(random_state *rng)
{
    text t = {NULL, 0, 0};
    const char *adjective = PICK(adjectives, rng), *noun = PICK(nouns, rng);
    text_printf(&t, "%s-%s", adjective, noun);
    return text_take(&t);
}

char *task_digits(random_state *rng, int n)
{
    text t = {NULL, 0, 0};
    for (int i = 0; i < n; i++) text_printf(&t, "%d", (int)random_below(rng, i ? 10 : 9) + !i);
    return text_take(&t);
}

char *task_uuid(random_state *rng)
{
    const uint64_t a = random_next(rng), b = random_next(rng);
    text t = {NULL, 0, 0};
    text_printf(&t, "%08x-%04x-4%03x-%04x-%012llx", (unsigned)(a >> 32),
                (unsigned)(a >> 16 & 0xffff), (unsigned)(a & 0xfff),
                (unsigned)(b >> 48 & 0x3fff) | 0x8000u, (unsigned long long)(b & 0xffffffffffff));
    return text_take(&t);
}

void task_add_prose(text *t, random_state *rng, int64_t n_words)
{
    for (int64_t i = 0; i < n_words; i += 9) {
        const char *a = PICK(adjectives, rng), *b = PICK(nouns, rng), *c = PICK(verbs, rng);
        const char *d = PICK(adjectives, rng), *e = PICK(nouns, rng), *f = PICK(nouns, rng);
        text_printf(t, "%sThe %s %s %s the %s %s near the %s.", t->n > 0 ? " " : "", a, b, c, d, e,
                    f);
    }
}
