"""Rules that compete to apply: which rule changes which part of a state, seen in which context.

After Goyal, Didolkar, Ke, Blundell, Beaudoin, Heess, Mozer & Bengio, "Neural Production Systems:
Learning Rule-Governed Visual Dynamics" (2021, arXiv:2103.01937). A state is M slots, a rule is an
embedding R_r and a small network of its own. One application:

    match     (r, p) drawn by q(R_r) · k(V_p) / sqrt(d) over all rules and slots
    context   c drawn over the slots by q'(V_p, R_r) · k'(V_c) / sqrt(d)
    apply     V_p ← V_p + MLP_r([V_p; V_c]), every other slot as it was

Sequential systems repeat this, one rule at a time; in parallel ones every slot picks a rule of its
own, or none, and its context. Draws are hard with Gumbel noise in training, and the largest logit
otherwise. Training runs all rules and takes one by its mask, so that gradients compare them; else
only the rules that apply run.

Matching may also look at a condition, such as an action, that the rules do not see.

Where we depart: keys and queries are one linear map each; the context may be the primary slot
itself, as nothing in the text forbids it.

Legend: n states, M slots, N rules, D width of a slot, R rows (one for each rule to be applied),
d width of keys, K steps.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.cost import Cost, count_flops
from pointsman.depth.paths.choice import gumbel_choice
from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.route import Route


class RuleBank(nn.Module):
    """N networks of one hidden layer with ReLU, each on its own weights.

    Args:
        rules: N.
        width: of a row.
        hidden: units.
        out: width of what a rule gives.
    """

    def __init__(self, rules: int, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.up_NWH = nn.Parameter(torch.empty(rules, width, hidden))
        self.up_bias_NH = nn.Parameter(torch.empty(rules, hidden))
        self.down_NHO = nn.Parameter(torch.empty(rules, hidden, out))
        self.down_bias_NO = nn.Parameter(torch.empty(rules, out))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New weights, as torch's linear layers have them."""
        for weight, bias in ((self.up_NWH, self.up_bias_NH), (self.down_NHO, self.down_bias_NO)):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def every(self, rows_RW: Tensor) -> Tensor:
        """What every rule makes of every row, (N, R, O)."""
        hidden_NRH = functional.relu(rows_RW @ self.up_NWH + self.up_bias_NH[:, None])
        return hidden_NRH @ self.down_NHO + self.down_bias_NO[:, None]

    def forward(self, rows_RW: Tensor, rule_R: Tensor) -> Tensor:
        """What each row's own rule makes of it, (R, O); -1: none, which gives zeros."""
        rules = len(self.up_NWH)
        route = Route.from_indices(
            rule_R[:, None],
            torch.ones_like(rule_R, dtype=rows_RW.dtype)[:, None],
            num_branches=rules,
        )
        bounds = route.by_branch().offsets.tolist()
        sorted_rows = route.dispatch(rows_RW)
        parts = [
            functional.relu(sorted_rows[a:b] @ self.up_NWH[r] + self.up_bias_NH[r])
            @ self.down_NHO[r]
            + self.down_bias_NO[r]
            for r, (a, b) in enumerate(pairwise(bounds))
        ]
        return route.combine(torch.cat(parts), weighted=False)


@dataclass(frozen=True, eq=False)
class Applied:
    """Which rules were applied, in K steps of A applications each: 1, or M in parallel systems.

    Attributes:
        rule: (n, K, A) int64; -1: none.
        primary: (n, K, A) the slot that was changed.
        context: (n, K, A) the slot that was looked at.
        num_rules: N.
    """

    rule: Tensor
    primary: Tensor
    context: Tensor
    num_rules: int

    def route(self) -> Route:
        """Every application as an input of its own (n * K * A), the rules as branches."""
        return Route.from_indices(self.rule.reshape(-1, 1), num_branches=self.num_rules)


class ProductionSystem(nn.Module):
    """Rules over slots; (n, M, D) → (n, M, D) and what was applied.

    Args:
        width: D.
        rules: N.
        rule_width: of a rule's embedding.
        hidden: units of a rule's network.
        key_width: d; None: `rule_width`.
        steps: K applications one after the other, at least 1.
        parallel: every slot picks its own rule, or none, at each step; else one rule a step.
        temperature: of the draws in training, above 0.
        dropout: of rule embeddings in training.
        condition_width: of what else matching looks at, such as an action or an instruction; the
            rules' networks do not see it. 0: nothing.

    Raises:
        InputError: a size or number of steps below 1.
    """

    def __init__(
        self,
        width: int,
        rules: int,
        *,
        rule_width: int = 32,
        hidden: int = 128,
        key_width: int | None = None,
        steps: int = 1,
        parallel: bool = False,
        temperature: float = 1.0,
        dropout: float = 0.0,
        condition_width: int = 0,
    ) -> None:
        super().__init__()
        keys = rule_width if key_width is None else key_width
        sizes = (width, rules, rule_width, hidden, keys, steps)
        if min(sizes) < 1:
            raise InputError(
                f"width, rules, rule_width, hidden, key_width and steps are at least 1, got {sizes}"
            )
        self.num_rules, self.steps, self.parallel = rules, steps, parallel
        self.temperature = temperature
        # The last embedding of a parallel system is that of the rule that does nothing.
        self.embedding_NW = nn.Parameter(torch.randn(rules + parallel, rule_width))
        self.dropout = nn.Dropout(dropout)
        self.match_query = nn.Linear(rule_width, keys, bias=False)
        self.match_key = nn.Linear(width, keys, bias=False)
        self.match_condition = (
            nn.Linear(condition_width, keys, bias=False) if condition_width else None
        )
        self.context_query = nn.Linear(width + rule_width, keys, bias=False)
        self.context_key = nn.Linear(width, keys, bias=False)
        self.bank = RuleBank(rules, 2 * width, hidden, width)

    def forward(
        self,
        slots_nMD: Tensor,
        condition_nW: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Applied]:
        """The slots after all steps, and what was applied.

        Args:
            slots_nMD: states; n may be 0.
            condition_nW: what matching looks at besides; exactly where `condition_width` is set.
            generator: of the draws in training; None means torch's global one.

        Raises:
            InputError: slots of another shape or width, or a condition that does not fit.
        """
        width = self.match_key.in_features
        if slots_nMD.ndim != 3 or slots_nMD.shape[1] < 1 or slots_nMD.shape[2] != width:
            raise InputError(
                f"slots are (states, slots, {width}) with at least one slot, "
                f"got {tuple(slots_nMD.shape)}"
            )
        shift_nd = self._condition(condition_nW, len(slots_nMD))
        step = self._parallel if self.parallel else self._sequential
        records = []
        for _ in range(self.steps):
            slots_nMD, record = step(slots_nMD, shift_nd, generator)
            records.append(record)
        rule, primary, context = (torch.stack(part, dim=1) for part in zip(*records, strict=True))
        return slots_nMD, Applied(rule, primary, context, self.num_rules)

    def rule_cost(self) -> Cost:
        """MFLOPs of each rule's network on one row, amount (N,)."""
        row = self.bank.up_NWH.new_zeros(1, self.bank.up_NWH.shape[1])
        rule = torch.zeros(1, dtype=torch.int64, device=row.device)
        return count_flops(self.bank, row, rule) * np.ones(self.num_rules)

    def matching_cost(self, example: Tensor, condition: Tensor | None = None) -> Cost:
        """MFLOPs for each state that all steps spend on who applies where, rules left aside.

        Raises:
            InputError: an empty example.
        """
        if len(example) == 0:
            raise InputError("FLOPs are counted on at least one state, got none")
        with evaluating(self), torch.no_grad():
            _, applied = self(example, condition)
        rules = float(applied.route().cost(self.rule_cost()).sum())
        return (count_flops(self, example, condition) - Cost(rules, "MFLOPs")) / len(example)

    def _condition(self, condition_nW: Tensor | None, states: int) -> Tensor | None:
        """What the condition adds to every key of a state, (n, d)."""
        wanted = None if self.match_condition is None else self.match_condition.in_features
        got = None if condition_nW is None else tuple(condition_nW.shape)
        if got != (None if wanted is None else (states, wanted)):
            rule = "no condition" if wanted is None else f"a condition of shape {(states, wanted)}"
            raise InputError(f"this system was built for {rule}, got {got}")
        return None if self.match_condition is None else self.match_condition(condition_nW)

    def _sequential(
        self, slots_nMD: Tensor, shift_nd: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """One rule for one slot of each state."""
        logits_nMN, embedding_NW = self._match(slots_nMD, shift_nd)
        choice_nMN = self._choose(logits_nMN.flatten(1), generator).reshape(logits_nMN.shape)
        slot_nM, rule_nN = choice_nMN.sum(dim=2), choice_nMN.sum(dim=1)
        primary_nD = torch.einsum("nm,nmd->nd", slot_nM, slots_nMD)
        change_nD, context_n = self._fire(primary_nD, rule_nN, embedding_NW, slots_nMD, generator)
        after_nMD = slots_nMD + slot_nM[:, :, None] * change_nD[:, None]
        record = (rule_nN.argmax(dim=1), slot_nM.argmax(dim=1), context_n)
        return after_nMD, tuple(part[:, None] for part in record)  # type: ignore[return-value]

    def _parallel(
        self, slots_nMD: Tensor, shift_nd: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """A rule, or none, for every slot of each state, all on the slots as they were."""
        states, slots, _ = slots_nMD.shape
        logits_nMN, embedding_NW = self._match(slots_nMD, shift_nd)
        rule_RN = self._choose(logits_nMN.flatten(0, 1), generator)
        every_RMD = slots_nMD.repeat_interleave(slots, dim=0)
        change_RD, context_R = self._fire(
            slots_nMD.flatten(0, 1), rule_RN, embedding_NW, every_RMD, generator
        )
        rule_R = rule_RN.argmax(dim=1)
        rule_R = torch.where(rule_R == self.num_rules, -1, rule_R)
        primary_nM = torch.arange(slots, device=rule_R.device).expand(states, slots)
        record = (rule_R.reshape(states, slots), primary_nM, context_R.reshape(states, slots))
        return slots_nMD + change_RD.reshape(slots_nMD.shape), record

    def _match(self, slots_nMD: Tensor, shift_nd: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (n, M, N) of every rule for every slot, and the embeddings behind them."""
        embedding_NW = self.dropout(self.embedding_NW)
        query_Nd, key_nMd = self.match_query(embedding_NW), self.match_key(slots_nMD)
        if shift_nd is not None:
            key_nMd = key_nMd + shift_nd[:, None]
        return key_nMd @ query_Nd.T / math.sqrt(query_Nd.shape[1]), embedding_NW

    def _fire(
        self,
        primary_RD: Tensor,
        rule_RN: Tensor,
        embedding_NW: Tensor,
        slots_RMD: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """What the chosen rules add to their primary slots (R, D), and the context slots (R,)."""
        asked_RW = torch.cat([primary_RD, rule_RN @ embedding_NW], dim=1)
        query_Rd, key_RMd = self.context_query(asked_RW), self.context_key(slots_RMD)
        logits_RM = torch.einsum("rd,rmd->rm", query_Rd, key_RMd) / math.sqrt(query_Rd.shape[1])
        context_RM = self._choose(logits_RM, generator)
        context_RD = torch.einsum("rm,rmd->rd", context_RM, slots_RMD)
        rows_RW = torch.cat([primary_RD, context_RD], dim=1)
        if self.training:
            weight_RN = rule_RN[:, : self.num_rules]
            change_RD = torch.einsum("rn,nrd->rd", weight_RN, self.bank.every(rows_RW))
        else:
            rule_R = rule_RN.argmax(dim=1)
            change_RD = self.bank(rows_RW, torch.where(rule_R == self.num_rules, -1, rule_R))
        return change_RD, context_RM.argmax(dim=1)

    def _choose(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """One-hot rows: drawn in training, with the gradient of the soft draw; else the largest."""
        if self.training:
            return gumbel_choice(logits, temperature=self.temperature, generator=generator)
        best = logits.argmax(dim=1)
        return functional.one_hot(best, logits.shape[1]).to(logits.dtype)
