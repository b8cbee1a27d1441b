"""Everyday questions about several things: lists of up to five, comparisons, sums, short forms."""

from __future__ import annotations

from compllm.build_scripts.datasets.forms import forms
from compllm.build_scripts.datasets.leaves import Asked, Leaves, apart, lower, plural, upper
from compllm.build_scripts.datasets.wordings import read_joiners

_ADDABLE = ("number", "count", "mass", "codons", "period")  # how a property that adds up ends


class Several:
    """Draws the questions of one split."""

    def __init__(self, leaves: Leaves) -> None:
        self._leaves = leaves
        self._split = leaves.split
        self._rng = leaves.rng

    def listed(self) -> Asked:
        """One property of two to five things."""
        rng, leaves = self._rng, self._leaves
        kind_of = rng.choice(("element", "element", "amino"))
        attribute = rng.choice(leaves.attributes(kind_of))
        things = leaves.things(kind_of, rng.choices((2, 3, 4, 5), (2, 3, 3, 4))[0])
        listed = leaves.listed(things)
        many = {"as": plural(attribute), "As": upper(plural(attribute))}
        text = leaves.form("lists").format(a=attribute, l=listed, L=upper(listed), **many)
        return apart(text, [f"What is the {attribute} of {each}?" for each in things])

    def of_several(self) -> Asked:
        """One question with a verb, of two to five things."""
        rng, leaves = self._rng, self._leaves
        text, line, kind_of = leaves.form("of_several")
        things = leaves.things(kind_of, rng.choices((2, 3, 4, 5), (3, 3, 2, 2))[0])
        if rng.random() < 0.3:
            text = rng.choice(forms("before_lists")) + lower(text)
        text = text.format(l=leaves.listed(things))
        return apart(text, [line.format(x=each) for each in things])

    def compared(self) -> Asked:
        """Which of two things has more, and how much more; the last line names the answers."""
        leaves = self._leaves
        is_difference = self._rng.random() < 0.45
        text, line, kind_of = leaves.form("more_than" if is_difference else "compared")
        x, y = leaves.things(kind_of, 2)
        last = text.format(x=f"{x} with #1", y=f"{y} with #2")
        if is_difference:
            last = "What is #1 minus #2?"
        steps = (line.format(x=x), line.format(x=y), last)
        return Asked(text.format(x=x, y=y), steps, ((), (), (0, 1)))

    def total(self) -> Asked:
        """The sum or the product of a property of two or three things."""
        rng, leaves = self._rng, self._leaves
        kind_of = rng.choice(("element", "element", "amino"))
        names = leaves.attributes(kind_of)
        attribute = rng.choice([each for each in names if each.split()[-1] in _ADDABLE])
        things = leaves.things(kind_of, rng.choice((2, 2, 3)))
        template = leaves.form("totals")
        text = template.format(l=leaves.listed(things), **{"as": plural(attribute)})
        is_product = "ultipl" in template or "product" in template
        verb = "Multiply" if is_product else "Add"
        steps = [f"What is the {attribute} of {each}?" for each in things]
        steps.append(f"{verb} #1 and #2.")
        parents: list[tuple[int, ...]] = [*((),) * len(things), (0, 1)]
        if len(things) == 3:
            steps.append(f"{verb} #4 and #3.")
            parents.append((2, 3))
        return Asked(text, tuple(steps), tuple(parents))

    def short(self) -> Asked:
        """ "symbol of iron, 4 times 3 and AUG's amino acid": noun phrases alone."""
        rng, leaves = self._rng, self._leaves
        drawn = [leaves.leaf_or_sum(is_noun=True) for _ in range(rng.choice((2, 3, 3, 4, 5)))]
        nouns = [leaf.noun or lower(leaf.question).removesuffix("?") for leaf in drawn]
        if rng.random() < 0.5:
            nouns = [noun.removeprefix("the ") for noun in nouns]
        listed = leaves.listed(nouns)
        text = rng.choice(forms("around_nouns")).format(a=listed, A=upper(listed))
        return apart(text, [leaf.question for leaf in drawn])

    def joined(self) -> Asked:
        """Two to five questions in one."""
        rng = self._rng
        count = rng.choices((2, 3, 4, 5), (2, 3, 4, 4))[0]
        questions = [self._leaves.leaf_or_sum().question for _ in range(count)]
        joiner = read_joiners(self._split).draw(rng, are_nouns=False)
        return apart(joiner.join(questions, are_nouns=False), questions)
