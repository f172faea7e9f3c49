# SPDX-License-Identifier: Apache-2.0
"""A pretrained model, SmolLM2-135M, from its GGUF: the text sdpa gives, and what a budget changes.

MACATTN_SMOLLM2 is the file's path (fetch/get-model.sh smollm2 prints it); without it these are skipped."""
import os
import pathlib

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import macattn.transformers
from test_transformers import assert_same_text, text, use

FILE = pathlib.Path(os.environ.get("MACATTN_SMOLLM2", ""))
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="MACATTN_SMOLLM2 names no file")
PROMPT = pathlib.Path(__file__).parents[2] / "docs" / "algorithm.md"


@pytest.fixture(scope="module")
def smollm2():
    where = dict(pretrained_model_name_or_path=FILE.parent, gguf_file=FILE.name)
    ids = AutoTokenizer.from_pretrained(**where)(PROMPT.read_text(), return_tensors="pt").input_ids
    return AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval(), ids


def test_greedy_text(smollm2):
    model, ids = smollm2
    expected = text(use(model, "sdpa"), ids[:, :300], max_new_tokens=20)
    assert_same_text(text(use(model, "macattn"), ids[:, :300], max_new_tokens=20), expected)


@pytest.mark.parametrize("budget, most", [(0.002, 1e-4), (0.01, 1e-3)])
def test_a_budget_changes_predictions_little(smollm2, budget, most):
    """The text itself is fed, so that all see the same; the divergence is that of the next token's distribution."""
    model, ids = smollm2
    first, n = 700, 48

    def predictions(**settings):
        use(model, "macattn", **settings)
        cache = DynamicCache()
        with torch.no_grad():
            model(ids[:, :first], past_key_values=cache, logits_to_keep=1)
            return torch.cat([model(ids[:, t:t + 1], past_key_values=cache).logits[:, -1] for t in range(first, first + n)])

    exact = predictions(policy="exact").log_softmax(-1)
    reuse = predictions(policy="budget", budget=budget, min_tokens=0, band=128).log_softmax(-1)
    stats = macattn.transformers.stats(model)
    divergence = float((exact.exp() * (exact - reuse)).sum(-1).mean())
    assert 0 < stats["hits"] < stats["steps"] and stats["tokens_skipped"] > 0
    assert divergence < most, f"{divergence} with {stats['hits'] / stats['steps']:.2f} hits"
