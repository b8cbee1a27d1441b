"""Everyday questions about one thing, step after step: commands, "its", "that number".

A line of a plan stands alone: every pronoun is a name or `#k`, and every verb is kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from compllm.build_scripts.datasets.forms import forms
from compllm.build_scripts.datasets.leaves import Asked, Leaf, Leaves, apart, lower, one, upper
from compllm.build_scripts.datasets.spoken import spoken_noun, spoken_question

_QUESTION_STARTS = ("What", "Which", "How", "In ", "To ", "Is ", "By ")
_Draft = tuple[str, list[str], list[tuple[int, ...]]]  # text, lines and parents so far


class Chains:
    """Draws the questions of one split."""

    def __init__(self, leaves: Leaves) -> None:
        self._leaves = leaves
        self._split = leaves.split
        self._rng = leaves.rng

    def single(self) -> Asked:
        rng = self._rng
        leaf = self._leaves.sum() if rng.random() < 0.3 else self._leaves.leaf()
        if leaf.noun and rng.random() < 0.6:
            return one(spoken_noun(rng, leaf.noun, self._split), leaf.question)
        return one(spoken_question(rng, leaf.question, self._split), leaf.question)

    def its(self) -> Asked:
        """Two or three properties of one thing."""
        rng, leaves = self._rng, self._leaves
        kind_of = rng.choice(("element", "element", "amino"))
        thing = leaves.thing(kind_of) if rng.random() < 0.8 else leaves.invented()
        names = rng.sample(leaves.attributes(kind_of), 3)
        count = 3 if rng.random() < 0.3 else 2
        a, b, c = names
        form = leaves.form("its_three" if count == 3 else "its")
        text = form.format(e=thing, E=upper(thing), a=a, b=b, c=c)
        return apart(text, [f"What is the {name} of {thing}?" for name in names[:count]])

    def its_after(self) -> Asked:
        """A question about a thing, then another one of "its" properties."""
        rng, leaves = self._rng, self._leaves
        if rng.random() < 0.5:  # of the thing that the first answer names
            kind_of = rng.choice(("element", "amino"))
            leaf = leaves.leaf(kind_of)
            follow, line = self._about(kind_of, "#1")
            return Asked(self._joined(leaf, follow), (leaf.question, line), ((), (0,)))
        kind_of = rng.choice(("element", "amino"))
        kind = rng.choice(leaves.kinds_about(kind_of))
        thing = leaves.thing(kind_of)
        first = rng.choice(kind.in_split(self._split, is_noun=False)).question((thing,))
        follow, line = self._about(kind_of, thing)
        text = first.removesuffix("?") + self._joint("joints_its", follow)
        return apart(text, [first, line])

    def command(self) -> Asked:
        """ "Multiply A by B.": each noun phrase is a line, and the command is the last."""
        rng = self._rng
        is_of_one = rng.random() < 0.3
        template = self._leaves.form("commands_of_one" if is_of_one else "commands")
        slots = re.findall(r"\{([xy])\}", template)
        is_known = [not is_of_one and rng.random() < 0.4 for _ in slots]
        if all(is_known):
            is_known[rng.randrange(len(slots))] = False
        said, refs, steps = {}, {}, []
        for slot, known in zip(slots, is_known, strict=True):
            if known:
                said[slot] = refs[slot] = str(rng.randint(2, 30))
                continue
            leaf = self._leaves.leaf("number", is_noun=True)
            said[slot] = str(leaf.noun)
            steps.append(leaf.question)
            refs[slot] = f"#{len(steps)}"
        parents = (*((),) * len(steps), tuple(range(len(steps))))
        text = self._politely(template.format(**said))
        return Asked(text, (*steps, template.format(**refs)), parents)

    def sequence(self) -> Asked:
        """One to three steps more, each on the result before."""
        rng, leaves = self._rng, self._leaves
        text, steps, parents = self._start()
        for index in range(rng.choices((1, 2, 3), (6, 3, 1))[0]):
            is_question = rng.random() < 0.5
            said, line = leaves.form("follow_questions" if is_question else "follow_commands")
            number = str(rng.randint(2, 20))
            said = said.format(it=leaves.pronoun("number"), n=number)
            text = self._glued(text, said, is_first=index == 0)
            parents.append((len(steps) - 1,))
            steps.append(line.format(it=f"#{len(steps)}", n=number))
        return Asked(text if text.endswith("?") else text + ".", tuple(steps), tuple(parents))

    def _start(self) -> _Draft:
        rng, leaves = self._rng, self._leaves
        if rng.random() < 0.25:
            first = self.command()
            return first.text.rstrip(".?"), [*first.steps], [*first.parents]
        if rng.random() < 0.25:
            return self._start_with_two()
        leaf = leaves.leaf("number")
        if leaf.noun and rng.random() < 0.75:
            text = leaves.form("intros").format(a=leaf.noun)
        else:
            text = leaf.question.removesuffix("?")
        return text, [leaf.question], [()]

    def _start_with_two(self) -> _Draft:
        rng, leaves = self._rng, self._leaves
        pair = [leaves.leaf("number", is_noun=rng.random() < 0.7) for _ in range(2)]
        said, line = leaves.form("paired")
        said = said.format(b=rng.choice(forms("both")))
        text = self._glued(self._both(pair), said)
        return text, [pair[0].question, pair[1].question, line], [(), (), (0, 1)]

    def _both(self, pair: Sequence[Leaf]) -> str:
        rng = self._rng
        if any(leaf.noun is None for leaf in pair) or rng.random() < 0.3:
            first, second = (leaf.question for leaf in pair)
            joint = rng.choice(forms("joints_both"))
            return str(joint.format(A=first, a=first[:-1], B=second, b=lower(second)))
        a, b = (str(leaf.noun) for leaf in pair)
        intro, second_intro, third_intro = (self._leaves.form("intros") for _ in range(3))
        return rng.choice(
            (
                intro.format(a=f"{a} and {b}"),
                intro.format(a=f"{a}, and {b}"),
                f"{intro.format(a=a)}. {second_intro.format(a=b)}",
                f"{intro.format(a=a)}, then {lower(third_intro).format(a=b)}",
            )
        )

    def _about(self, kind_of: str, name: str) -> tuple[str, str]:
        """(what is said with a pronoun, the line with the name)."""
        rng, leaves = self._rng, self._leaves
        if rng.random() < 0.6:
            attribute = rng.choice(leaves.attributes(kind_of))
            pronoun = leaves.pronoun(kind_of)
            said = rng.choice(forms("its_follow")).format(a=attribute, it=pronoun)
            return said, f"What is the {attribute} of {name}?"
        kind = rng.choice(leaves.kinds_about(kind_of))
        wording = rng.choice(kind.in_split(self._split, is_noun=False))
        return lower(wording.question((leaves.pronoun(kind_of),))), wording.question((name,))

    def _politely(self, command: str) -> str:
        rng = self._rng
        if rng.random() < 0.35:
            form = rng.choice(forms("polite"))
            return str(form.format(a=lower(command).removesuffix(".")))
        return command.removesuffix(".") if rng.random() < 0.2 else command

    def _glued(self, before: str, said: str, *, is_first: bool = False) -> str:
        glue = self._rng.choice(forms("glues"))
        if before.endswith("?") or (is_first and before.startswith(_QUESTION_STARTS)):
            before = before.removesuffix("?")
            glue = self._rng.choice(forms("glues_after_question"))
        return before + str(glue.format(b=said, B=upper(said)))

    def _joined(self, leaf: Leaf, follow: str) -> str:
        if leaf.noun and self._rng.random() < 0.5:
            intro = str(self._leaves.form("intros").format(a=leaf.noun))
            return intro + self._joint("joints_intro", follow)
        return leaf.question.removesuffix("?") + self._joint("joints_question", follow)

    def _joint(self, name: str, follow: str) -> str:
        return str(self._rng.choice(forms(name)).format(b=follow, B=upper(follow)))
