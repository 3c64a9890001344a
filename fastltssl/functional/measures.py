"""Every number that the project reports: its title, its unit and which way is better. Plain data, no torch."""

from typing import NamedTuple


class Measure(NamedTuple):
    """How a number is called in tables, legends and axes."""

    title: str
    unit: str = "%"
    is_higher_better: bool | None = True  # None where neither way is better
    digits: int = 1  # after the decimal point
    in_words: str = ""  # of an axis, which has room for more than the title
    heading: str = ""  # of a column, where it is not the title with its unit

    @property
    def column(self) -> str:
        """The heading of a table's column."""
        return self.heading or f"{self.title} {self.unit}"

    @property
    def axis(self) -> str:
        """The label of an axis."""
        return f"{self.in_words or self.title} ({self.unit})"

    @property
    def factor(self) -> int:
        """From a value of `metrics`, where shares are fractions, to the unit."""
        return 100 if self.unit == "%" else 1

    @property
    def sign(self) -> int:
        """1 where higher is better and -1 where lower is: signed values are compared by their maximum."""
        return -1 if self.is_higher_better is False else 1

    @property
    def direction(self) -> str:
        """Which way is better, in words; empty where neither is."""
        return {True: "higher is better", False: "lower is better", None: ""}[self.is_higher_better]


GROUPS = ("head", "medium", "tail")
TEST = {  # of the test rows; `metrics.evaluate` computes them, and a record has each by this name
    "top1": Measure("top-1", in_words="accuracy"),
    "bacc": Measure("bAcc", in_words="balanced accuracy"),
    "gm": Measure("GM"),
    "hm": Measure("HM"),
    "worst": Measure("worst class"),
    **{group: Measure(group, in_words="recall", heading=group) for group in GROUPS},
    "ece": Measure("ECE", is_higher_better=False),
    "mce": Measure("MCE", is_higher_better=False),
}
MAIN = ("top1", "bacc", "head", "medium", "tail", "ece")  # the columns of a table of results
AUDIT = {  # of the pseudo-labels, against the true labels of the pool; by the names in a record's "audit"
    "accuracy": Measure("pseudo-labels right", in_words="right, of accepted", heading="pl acc %"),
    "mask_rate": Measure("accepted", is_higher_better=None, in_words="rows accepted", heading="kept %"),
    "wrong_confidence": Measure("confidence of wrong ones", is_higher_better=False, in_words="mean confidence",
                                heading="wrong pl confidence %"),
    "right_confidence": Measure("confidence of right ones", in_words="mean confidence"),
    "kl": Measure("KL", "nats", is_higher_better=False, digits=2),
    "kl_all": Measure("KL of all rows", "nats", is_higher_better=False, digits=2, in_words="KL"),
    "prior_kl": Measure("KL of the estimated prior", "nats", is_higher_better=False, digits=2, in_words="KL"),
    "recall": Measure("pool recall", in_words="recall"),
    **{f"recall_{group}": Measure(f"{group} recall") for group in GROUPS},
    **{f"false_{group}": Measure(f"false {group} pl", "rows", is_higher_better=False, digits=0) for group in GROUPS},
}  # fmt: skip
MEASURES = TEST | AUDIT | {
    "val_bacc": Measure("validation bAcc", in_words="balanced accuracy"),
    "precision": Measure("precision"),  # the accuracy of accepted pseudo-labels, as the studies call it
    "tail_recall": AUDIT["recall_tail"],
    "false": Measure("false pl", "rows", is_higher_better=False, digits=0, heading="false pl"),
}  # fmt: skip


def measure(name: str) -> Measure:
    """The measure of a name in a record or in a history, where names of the audit begin with "pseudo_"."""
    return MEASURES[name.removeprefix("pseudo_")]
