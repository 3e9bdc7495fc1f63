"""Sampled tokens follow the distribution that the parameters define."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pagemill.params import SamplingParams
from pagemill.sampling.categorical import draw
from pagemill.sampling.filters import keep_top_p
from pagemill.sampling.random import uniform
from unit.sampling.harness import DEVICES, Slots, admission, distribution

VOCAB = 300
NUM_DRAWS = 20_000


def some_logits(seed: int = 0, spread: float = 2.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=VOCAB) * spread).float()


def check_fit(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square; tokens expected fewer than five times are put together."""
    assert counts[probabilities == 0].sum() == 0, "a token that was filtered out was drawn"
    expected = probabilities * counts.sum()
    rare = (expected < 5) & (probabilities > 0)
    observed = [*counts[~rare & (probabilities > 0)], counts[rare].sum()]
    wanted = [*expected[~rare & (probabilities > 0)], expected[rare].sum()]
    keep = np.array(wanted) > 0
    if keep.sum() == 1:
        return
    result = stats.chisquare(np.array(observed)[keep], np.array(wanted)[keep])
    assert result.pvalue > 1e-4, f"p = {result.pvalue}"


def counts_of(tokens: list[int]) -> np.ndarray:
    return np.bincount(tokens, minlength=VOCAB)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=2.0),
        SamplingParams(top_k=7),
        SamplingParams(top_k=1),
        SamplingParams(top_k=VOCAB + 5),
        SamplingParams(top_p=0.8),
        SamplingParams(top_p=0.01),
        SamplingParams(top_p=0.999),
        SamplingParams(min_p=0.1),
        SamplingParams(top_k=20, top_p=0.7),
        SamplingParams(top_k=40, top_p=0.9, min_p=0.02, temperature=1.3),
    ],
    ids=lambda p: f"t{p.temperature}-k{p.top_k}-p{p.top_p}-m{p.min_p}",
)
def test_draws_follow_the_parameters(params: SamplingParams, device: str) -> None:
    slots = Slots(VOCAB, device)
    slots.admit(admission(2, params, seed=11))
    logits = some_logits()
    tokens = slots.draw(logits.expand(NUM_DRAWS, -1), [2] * NUM_DRAWS, range(NUM_DRAWS))
    check_fit(counts_of(tokens), distribution(logits.double().numpy(), params))


def test_seeds_give_independent_draws() -> None:
    slots = Slots(VOCAB)
    logits = some_logits()
    p = distribution(logits.double().numpy(), SamplingParams())
    tokens = []
    for seed in range(2000):
        slots.admit(admission(seed % 4, SamplingParams(), seed=seed))
        tokens += slots.draw(logits[None], [seed % 4], [17])
    check_fit(counts_of(tokens), p)


def test_uniform_numbers_are_uniform_and_uncorrelated() -> None:
    seeds, places = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    values = uniform(seeds, places).numpy()
    assert values.min() >= 0 and values.max() < 1
    assert stats.kstest(values.ravel(), "uniform").pvalue > 1e-3
    for shifted in (values[1:] * 1, values[:, 1:] * 1):
        plain = values[: shifted.shape[0], : shifted.shape[1]]
        assert abs(np.corrcoef(plain.ravel(), shifted.ravel())[0, 1]) < 0.02


def test_uniform_is_splitmix64() -> None:
    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    gamma = 0x9E3779B97F4A7C15
    for seed, place in [(0, 0), (1, 5), (2**64 - 1, 123_456)]:
        expected = mix((mix((seed + gamma) % 2**64) + place * gamma) % 2**64) >> 11
        signed = seed - 2**64 if seed >= 2**63 else seed
        value = uniform(torch.tensor([signed]), torch.tensor([place])).item()
        assert value == expected * 2.0**-53


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.999_999_999_999, 1 - 2.0**-53])
def test_draw_never_takes_a_weightless_token(fraction: float) -> None:
    weights = torch.zeros(1, 1000)
    weights[0, [300, 301, 700]] = torch.tensor([1e-6, 1.0, 3.0])
    token = int(draw(weights, torch.tensor([fraction], dtype=torch.float64)))
    assert token == (300 if fraction == 0 else 301 if fraction <= 0.25 else 700)


def test_a_row_without_any_weight_still_gives_a_token() -> None:
    for fill in (0.0, torch.nan):
        weights = torch.full((1, 77), fill)
        assert draw(weights, torch.tensor([0.5], dtype=torch.float64)).tolist() == [0]


@pytest.mark.parametrize("vocab", [5, 128, 5000])
def test_top_p_keeps_the_smallest_sufficient_set(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    logits = torch.from_numpy(rng.normal(size=(50, vocab)) * rng.uniform(0.1, 8, (50, 1))).float()
    top_p = torch.from_numpy(rng.uniform(0.01, 0.999, 50)).float()
    distance = logits.amax(1, keepdim=True) - logits
    kept = keep_top_p(distance, torch.exp(-distance), top_p) > 0
    p = torch.softmax(logits.double(), 1)
    for row in range(50):
        chosen = p[row][kept[row]]
        assert chosen.sum() >= top_p[row] - 1e-6
        assert chosen.sum() - chosen.min() <= top_p[row] + 1e-6
        assert chosen.min() >= p[row][~kept[row]].max() if (~kept[row]).any() else True


def test_logits_that_are_no_numbers_break_nothing() -> None:
    slots = Slots(VOCAB)
    slots.admit(admission(0, SamplingParams(top_p=0.9, top_k=5, min_p=0.1)))
    for fill in (torch.nan, -torch.inf, torch.inf):
        tokens = slots.draw(torch.full((1, VOCAB), fill), [0], [0])
        assert 0 <= tokens[0] < VOCAB
