# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The statistics of a benchmark: values in closed form, what must not change them, and how often intervals hold."""

from statistics import fmean, stdev

import numpy as np
import pandas as pd
import pytest

from anomalib_fewshot.pipelines.report.statistics import by_category, macro_interval, paired_differences, summarize

METRIC = "image_AUROC"
NUMBERS = ["mean", "low", "high", "seed_std", "category_std", "worst"]


def table(scores: dict[str, dict[str, list[float]]], metric: str = METRIC) -> pd.DataFrame:
    """Return rows of one dataset and k from the scores of each method and category over seeds; None is a failure."""
    return pd.DataFrame([
        {"method": method, "dataset": "Parts", "category": category, "k_shot": 4, "seed": seed, metric: score,
         "status": "failed" if score is None else "ok", "support": f"{category} {seed}"}
        for method, categories in scores.items()
        for category, values in categories.items()
        for seed, score in enumerate(values)
    ]).astype({metric: float})  # fmt: skip


def noise(seed: int = 0, seeds: int = 5) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    return table({
        method: {category: list(generator.uniform(0.6, 0.9, seeds)) for category in ("bolt", "cap", "nut")}
        for method in ("A", "B", "C")
    })


def only(frame: pd.DataFrame, method: str) -> pd.Series:
    return frame.set_index("method").loc[method]


def test_summary_in_closed_form() -> None:
    rows = table({"A": {"bolt": [0.9, 0.8, 0.7], "nut": [0.6, 0.6, 0.9]}})
    found = only(summarize(rows, METRIC), "A")
    assert found["mean"] == pytest.approx((0.8 + 0.7) / 2)
    assert found["seed_std"] == pytest.approx(stdev([0.75, 0.7, 0.8]))
    assert found["category_std"] == pytest.approx(stdev([0.8, 0.7]))
    assert (found["worst_category"], found["categories"], found["runs"], found["missing"]) == ("nut", 2, 6, 0)
    assert found["worst"] == pytest.approx(0.7)
    assert found["low"] < 0.75 < found["high"]


def test_mean_is_macro_with_missing_seeds() -> None:
    """A category with one of three runs counts as much as the other; the pooled mean would be 0.6."""
    rows = table({"A": {"bolt": [0.5, 0.5, 0.5], "nut": [0.9, None, None]}})
    found = only(summarize(rows, METRIC), "A")
    assert found["mean"] == pytest.approx(0.7)
    assert (found["runs"], found["missing"]) == (4, 2)
    assert np.isnan(found["low"])  # one seed in a category says nothing of its spread
    assert np.isnan(found["seed_std"])  # and only one seed has both categories


def test_no_mean_where_a_category_lacks() -> None:
    rows = table({"A": {"bolt": [0.5, 0.5], "nut": [0.9, 0.9]}, "B": {"bolt": [0.6, 0.6], "nut": [None, None]}})
    found = summarize(rows, METRIC)
    assert only(found, "A")["mean"] == pytest.approx(0.7)
    assert only(found, "B")[NUMBERS[:-1]].isna().all()
    assert only(found, "B")["missing"] == 2
    difference = only(paired_differences(rows, "A", METRIC), "B")
    assert difference[NUMBERS[:-1]].isna().all()
    assert (difference["runs"], difference["missing"]) == (2, 2)


def test_a_category_without_any_result_is_missing_and_holds_up_no_mean() -> None:
    rows = table({method: {"bolt": [0.5, 0.7], "nut": [None, None]} for method in "AB"})
    found = only(summarize(rows, METRIC), "A")
    assert (found["mean"], found["categories"], found["missing"]) == (pytest.approx(0.6), 1, 2)


def test_a_method_without_rows_is_missing() -> None:
    rows = pd.concat([noise(), noise()[lambda frame: frame["method"] == "A"].assign(k_shot=8)])
    found = summarize(rows, METRIC).set_index(["k_shot", "method"])
    assert found.loc[(8, "B"), "missing"] == 15
    assert found.loc[(8, "A"), "missing"] == 0


def test_runs_that_an_override_leaves_out_are_not_missing() -> None:
    """A was to have five seeds, B three, of which one failed, and C none at all."""
    rows = table({
        "A": {"bolt": [0.5] * 5},
        "B": {"bolt": [0.5, None, 0.7]},
        "C": {"bolt": []},
    })
    planned = rows[["method", "dataset", "category", "k_shot", "seed"]]
    found = summarize(rows, METRIC, planned=planned)
    assert found.set_index("method")["missing"].to_dict() == {"A": 0, "B": 1}
    assert only(summarize(rows, METRIC), "B")["missing"] == 3
    pairs = only(paired_differences(rows, "B", METRIC, planned=planned), "A")
    assert (pairs["runs"], pairs["missing"]) == (2, 1)  # of the three that both were to have
    lacking = pd.concat([planned, planned.tail(1).assign(seed=4)])  # a run of B that is not there yet
    assert only(summarize(rows, METRIC, planned=lacking), "B")["missing"] == 2


@pytest.mark.parametrize("k_shot", ["all", np.inf])
def test_all_images_leave_no_choice_and_equal_values_no_interval(k_shot: float | str) -> None:
    rows = table({"A": {"bolt": [0.1] * 3, "nut": [0.7] * 3}, "B": {"bolt": [0.3] * 3, "nut": [0.5, 0.6, 0.7]}})
    assert only(summarize(rows, METRIC), "A")[["low", "high"]].tolist() == pytest.approx([
        0.4,
        0.4,
    ])
    rows = rows.assign(k_shot=k_shot)
    found = summarize(rows, METRIC)
    assert only(found, "A")[["low", "high"]].isna().all()
    assert only(found, "A")["mean"] == pytest.approx(0.4)
    assert only(found, "B")["low"] < only(found, "B")["high"]  # chance in the training
    assert only(paired_differences(rows, "A", METRIC), "B")["low"] < 0.05


def test_pixel_metrics_are_over_categories_with_masks() -> None:
    rows = table({
        "A": {"bolt": [0.8, 0.9], "nut": [np.nan, np.nan]},
        "no maps": {"bolt": [np.nan, np.nan], "nut": [np.nan, np.nan]},
    }, "pixel_AUROC")  # fmt: skip
    found = summarize(rows, "pixel_AUROC")
    assert only(found, "A")["mean"] == pytest.approx(0.85)
    assert only(found, "A")["missing"] == 0
    assert np.isnan(only(found, "no maps")["mean"])


def test_difference_in_closed_form() -> None:
    rows = table({
        "A": {"bolt": [0.9, 0.8, 0.7], "nut": [0.6, 0.6, 0.6]},
        "B": {"bolt": [0.8, 0.8, 0.8], "nut": [0.605, 0.5, 0.4]},
    })
    found = only(paired_differences(rows, "B", METRIC), "A")
    bolt, nut = [0.1, 0.0, -0.1], [-0.005, 0.1, 0.2]
    assert found["mean"] == pytest.approx((fmean(bolt) + fmean(nut)) / 2)
    assert found["seed_std"] == pytest.approx(stdev([(a + b) / 2 for a, b in zip(bolt, nut, strict=True)]))
    assert found["category_std"] == pytest.approx(stdev([fmean(bolt), fmean(nut)]))
    assert (found["wins"], found["ties"], found["losses"], found["runs"]) == (3, 2, 1, 6)
    assert found["worst_category"] == "bolt"
    wide = only(paired_differences(rows, "B", METRIC, tie=0.1), "A")
    assert (wide["wins"], wide["ties"], wide["losses"]) == (1, 5, 0)


def test_only_common_seeds_are_paired() -> None:
    """The first seed, which is easy, is there for one method only."""
    rows = table({"A": {"bolt": [0.99, 0.6, 0.7]}, "B": {"bolt": [None, 0.5, 0.6]}})
    found = only(paired_differences(rows, "B", METRIC), "A")
    assert (found["mean"], found["runs"], found["missing"]) == (pytest.approx(0.1), 2, 1)


@pytest.mark.parametrize("support", ["another", None])
def test_other_supports_are_left_out_and_counted(support: str | None) -> None:
    rows = noise()
    rows.loc[(rows["method"] == "A") & (rows["category"] == "nut") & (rows["seed"] < 2), "support"] = support
    found = only(paired_differences(rows, "B", METRIC), "A")
    assert (found["other_support"], found["missing"], found["runs"]) == (2, 2, 13)
    kept = rows.drop(rows.index[rows["support"].isna() | (rows["support"] == "another")])
    assert found["mean"] == pytest.approx(only(paired_differences(kept, "B", METRIC), "A")["mean"])


def test_order_of_rows_changes_nothing() -> None:
    rows, mixed = noise(), noise().sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(summarize(rows, METRIC), summarize(mixed, METRIC))
    pd.testing.assert_frame_equal(paired_differences(rows, "A", METRIC), paired_differences(mixed, "A", METRIC))
    pd.testing.assert_frame_equal(by_category(rows, METRIC), by_category(mixed, METRIC))


def test_other_datasets_methods_and_shots_change_nothing() -> None:
    rows = noise()
    more = pd.concat([rows, noise(1).assign(dataset="Others"), noise(2).assign(k_shot=1)])
    for found in (summarize(more, METRIC), paired_differences(more, "A", METRIC)):
        part = found[(found["dataset"] == "Parts") & (found["k_shot"] == 4)].reset_index(drop=True)
        alone = summarize(rows, METRIC) if "wins" not in found else paired_differences(rows, "A", METRIC)
        pd.testing.assert_frame_equal(part, alone)
    two = paired_differences(rows[rows["method"] != "C"], "A", METRIC)
    three = paired_differences(rows, "A", METRIC)
    bounds = ["low", "high"]
    pd.testing.assert_series_equal(only(two, "B").drop(bounds), only(three, "B").drop(bounds))


def test_intervals_of_differences_are_corrected_for_all_pairs() -> None:
    """With three methods there are three pairs, so each interval has the confidence 1 - 0.05 / 3."""
    rows = noise()
    alone = rows[rows["method"] != "C"]
    two, three = only(paired_differences(alone, "A", METRIC), "B"), only(paired_differences(rows, "A", METRIC), "B")
    single = only(paired_differences(alone, "A", METRIC, confidence=1 - 0.05 / 3), "B")
    assert three["low"] == single["low"] < two["low"]
    assert three["high"] == single["high"] > two["high"]
    reverse = only(paired_differences(rows, "B", METRIC), "A")
    assert (reverse["low"], reverse["high"]) == pytest.approx((-three["high"], -three["low"]), abs=1e-3)


def test_a_constant_moves_the_difference_by_it() -> None:
    rows, moved = noise(), noise()
    moved.loc[moved["method"] == "B", METRIC] += 0.05
    before, after = (only(paired_differences(frame, "A", METRIC), "B") for frame in (rows, moved))
    for name in ("mean", "low", "high", "worst"):
        assert after[name] == pytest.approx(before[name] + 0.05)
    for name in ("seed_std", "category_std"):
        assert after[name] == pytest.approx(before[name])


def test_swap_of_method_and_baseline_flips_the_sign() -> None:
    one = only(paired_differences(noise(), "A", METRIC), "B")
    other = only(paired_differences(noise(), "B", METRIC), "A")
    assert (other["mean"], other["low"], other["high"]) == pytest.approx((-one["mean"], -one["high"], -one["low"]))
    assert (other["wins"], other["ties"], other["losses"]) == (one["losses"], one["ties"], one["wins"])


def test_seed_of_the_interval() -> None:
    """The same seed gives the same interval; another gives a close one and the same mean."""
    first, again, other = (only(summarize(noise(), METRIC, seed=seed), "A") for seed in (0, 0, 1))
    assert first.equals(again)
    assert first["mean"] == other["mean"]
    assert 0 < abs(first["low"] - other["low"]) < 0.1 * (first["high"] - first["low"])


def test_global_seed_is_neither_used_nor_changed() -> None:
    np.random.seed(3)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    summarize(noise(), METRIC)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_interval_of_constant_samples_is_their_mean() -> None:
    assert macro_interval([np.full(3, 0.5), np.full(4, 0.75)]) == (0.625, 0.625)


def test_interval_scales_and_is_wider_at_a_higher_level() -> None:
    samples = [np.random.default_rng(number).normal(size=5) for number in range(3)]
    low, high = macro_interval(samples)
    assert macro_interval([3 * sample + 1 for sample in samples]) == pytest.approx((3 * low + 1, 3 * high + 1))
    wide = macro_interval(samples, confidence=0.99)
    assert wide[0] < low < high < wide[1]


def test_interval_is_close_to_students() -> None:
    """Of one category with many seeds it is the textbook's interval of a mean."""
    sample = np.random.default_rng(0).normal(size=200)
    half = 1.972 * sample.std(ddof=1) / np.sqrt(200)  # t of 199 degrees of freedom
    assert macro_interval([sample]) == pytest.approx((sample.mean() - half, sample.mean() + half), abs=0.05 * half)


@pytest.mark.parametrize("samples", [[], [np.ones(1)], [np.arange(5.0), np.ones(1)]])
def test_no_interval_of_one_seed(samples: list[np.ndarray]) -> None:
    assert np.isnan(macro_interval(samples)).all()


@pytest.mark.parametrize(("categories", "seeds"), [(5, 5), (1, 5), (1, 3)])
def test_coverage(categories: int, seeds: int) -> None:
    """95 % intervals of Gaussian values hold the truth in 92 to 98 % of 1000 sweeps; the standard error is 0.7 %."""
    generator = np.random.default_rng(0)
    held = 0
    for number in range(1000):
        samples = list(generator.normal(0, 0.02, (categories, seeds)))
        low, high = macro_interval(samples, n_resamples=500, seed=number)
        held += low <= 0 <= high
    assert 0.92 <= held / 1000 <= 0.98


def test_interval_of_a_summary_stays_in_range() -> None:
    rows = table({"A": {"bolt": [1.0, 1.0, 0.9]}})
    found = only(summarize(rows, METRIC), "A")
    assert found["high"] == pytest.approx(1)


def test_by_category() -> None:
    rows = table({"A": {"bolt": [0.9, 0.7, None], "nut": [0.6, None, None]}})
    found = by_category(rows, METRIC).set_index("category")
    assert tuple(found.loc["bolt", ["mean", "std", "runs"]]) == pytest.approx((0.8, stdev([0.9, 0.7]), 2))
    assert found.loc["nut", "runs"] == 1
    assert np.isnan(found.loc["nut", "std"])


def test_one_method_has_no_differences() -> None:
    rows = noise()
    found = paired_differences(rows[rows["method"] == "A"], "A", METRIC)
    assert found.empty
    assert {"mean", "wins", "other_support"} <= set(found)


def test_without_a_run_of_the_baseline_there_are_no_pairs() -> None:
    found = paired_differences(noise(), "D", METRIC)
    assert set(found["method"]) == {"A", "B", "C"}
    assert found["mean"].isna().all()
    assert (found["runs"] == 0).all()


def test_errors() -> None:
    rows = noise()
    with pytest.raises(ValueError, match="without support"):
        paired_differences(rows.drop(columns="support"), "A", METRIC)
    with pytest.raises(ValueError, match="without pixel_AUROC"):
        summarize(rows, "pixel_AUROC")
    with pytest.raises(
        ValueError,
        match="got 45 duplicates, such as method A, dataset Parts, category bolt, k_shot 4, seed 0",
    ):
        summarize(pd.concat([rows, rows]), METRIC)
    with pytest.raises(ValueError, match=r"`image_AUROC` must be in \[0, 1\], got 88\.0 and 0 more"):
        summarize(pd.concat([rows, rows.iloc[:1].assign(seed=9, image_AUROC=88.0)]), METRIC)


def test_runs_with_different_unlabeled_images_are_never_compared() -> None:
    """Each pool gives the same figures as a table of its own, and methods without runs with a pool are not missing."""
    rows = noise()
    pool = noise(1).assign(unlabeled=60, contamination=0.1)
    pool = pool[pool["method"] != "C"]
    both = pd.concat([rows, pool], ignore_index=True)
    for function in (summarize, lambda frame, metric: paired_differences(frame, "A", metric), by_category):
        found = function(both, METRIC)
        for frame, unlabeled, contamination in ((rows, 0, 0.0), (pool, 60, 0.1)):
            own = found[(found["unlabeled"] == unlabeled) & (found["contamination"] == contamination)]
            pd.testing.assert_frame_equal(own.reset_index(drop=True), function(frame, METRIC))
    assert set(summarize(pool, METRIC)["method"]) == {"A", "B"}
