"""One caller's request: who asks, where, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eventseal_kms.testing.policies import Document, Request, account_of, why_denied
from eventseal_kms.testing.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventseal_kms.testing.keys import FakeKey
    from eventseal_kms.testing.registry import Place, Registry

Parameters = dict[str, Any]


@dataclass(slots=True)
class Session:
    """
    What an operation sees.

    Attributes:
        registry: The keys.
        caller: An ARN of IAM.
        region: Which was called.
        policies: The caller's own.
        noted: What the call log should say beside the action.
    """

    registry: Registry
    caller: str
    region: str
    policies: Sequence[Document]
    noted: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        """The caller's account, and the Region."""
        return account_of(self.caller), self.region

    def key(
        self,
        reference: str,
        action: str,
        *,
        context: Mapping[str, str] | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> FakeKey:
        """
        Find a key that the caller may do *action* with.

        Args:
            reference: Id, ARN or alias.
            action: ``kms:Decrypt``.
            context: The encryption context, where the operation has one.
            facts: Further condition keys.

        Raises:
            Refusal: There is no such key, or a policy denies it.
        """
        found = self.registry.find(reference, self.place)
        key = found.key
        self.noted["key"] = str(key.arn)
        known = {
            "kms:calleraccount": self.place[0],
            "kms:keyspec": key.spec,
            "kms:keyusage": key.usage,
            "kms:multiregion": str(key.family.multi_region).lower(),
            **(facts or {}),
        }
        if found.alias:
            known["kms:requestalias"] = found.alias
        values: dict[str, tuple[str, ...]] = {name: (value,) for name, value in known.items()}
        if context:
            values["kms:encryptioncontextkeys"] = tuple(context)
            values |= {f"kms:encryptioncontext:{name}".lower(): (value,) for name, value in context.items()}
        self._require(action, str(key.arn), values, key)
        return key

    def require(self, action: str) -> None:
        """
        Check an action that concerns no key.

        Raises:
            Refusal: A policy denies it.
        """
        self._require(action, "*", {}, None)

    def _require(
        self, action: str, resource: str, facts: Mapping[str, tuple[str, ...]], key: FakeKey | None
    ) -> None:
        common = {"aws:principalarn": (self.caller,), "aws:requestedregion": (self.region,)}
        reason = why_denied(
            Request(action, resource, self.caller, {**common, **facts}),
            key_policy=key.policy if key else None,
            key_account=key.arn.account if key else None,
            identity=self.policies,
        )
        if reason is not None:
            text = (
                f"User: {self.caller} is not authorized to perform: {action} on resource: {resource} {reason}"
            )
            raise Refusal("AccessDeniedException", text)
