"""
One caller's request, and the decision of the policies about it.

This is a small evaluator of IAM and key policies. It refuses to load a policy that it cannot evaluate.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from eventseal_kms.fake_aws_kms.protocol import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from eventseal_kms.fake_aws_kms.keys import FakeKey, Place, Registry

Document = dict[str, Any]
Parameters = dict[str, Any]
Values = tuple[str, ...]

_CONTEXT_PREFIX = "kms:encryptioncontext:"
_CONDITION_KEYS = frozenset(
    {
        "kms:encryptioncontextkeys",
        "kms:reencryptonsamekey",
        "kms:requestalias",
        "kms:calleraccount",
        "kms:keyspec",
        "kms:keyusage",
        "kms:multiregion",
        "aws:principalarn",
        "aws:requestedregion",
    }
)
_ELEMENTS = frozenset(
    {"Sid", "Effect", "Principal", "Action", "NotAction", "Resource", "NotResource", "Condition"}
)


@dataclass(slots=True)
class Session:
    """
    The view of an operation on its call.

    Attributes:
        operation: The name, such as ``Decrypt``.
        registry: The keys.
        caller: The IAM ARN of the caller.
        region: The Region of the call.
        policies: The policies of the caller.
        noted: More facts for the call log, in addition to the action.
    """

    operation: str
    registry: Registry
    caller: str
    region: str
    policies: Sequence[Document]
    noted: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        """The account of the caller, and the Region of the call."""
        return account_of(self.caller), self.region

    def key(
        self,
        reference: str,
        action: str | None = None,
        *,
        context: Mapping[str, str] | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> FakeKey:
        """
        Find a key, if the policies allow the caller this request.

        Args:
            reference: An id, an ARN or an alias.
            action: The required permission, if its name is not the operation's.
            context: The encryption context, if the operation has one.
            facts: Additional condition keys.

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
        self._require(action or f"kms:{self.operation}", str(key.arn), values, key)
        return key

    def require_permission(self) -> None:
        """
        Check a request that concerns no key.

        Raises:
            Refusal: A policy denies it.
        """
        self._require(f"kms:{self.operation}", "*", {}, None)

    def _require(
        self, action: str, resource: str, facts: Mapping[str, tuple[str, ...]], key: FakeKey | None
    ) -> None:
        common = {"aws:principalarn": (self.caller,), "aws:requestedregion": (self.region,)}
        request = Request(action, resource, self.caller, {**common, **facts})
        reason = _why_denied(request, key, self.policies)
        if reason is not None:
            text = (
                f"User: {self.caller} is not authorized to perform: {action} on resource: {resource} {reason}"
            )
            raise Refusal("AccessDeniedException", text)


@dataclass(frozen=True, slots=True)
class Request:
    """
    A request for a decision.

    Attributes:
        action: The permission, such as ``kms:Decrypt``.
        resource: The ARN of the key, or ``*`` if the request concerns no key.
        caller: The IAM ARN of the caller.
        facts: The condition keys, in lower case, with their values.
    """

    action: str
    resource: str
    caller: str
    facts: Mapping[str, Values]


def account_of(caller: str) -> str:
    """Return the account in an IAM ARN."""
    return caller.split(":")[4]


def root_of(account: str) -> str:
    """Return the account's root, which means the whole account in key policies."""
    return f"arn:aws:iam::{account}:root"


def default_key_policy(account: str) -> Document:
    """Return the default key policy: the account's IAM policies decide."""
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": root_of(account)},
        "Action": "kms:*",
        "Resource": "*",
    }
    return {"Version": "2012-10-17", "Statement": [statement]}


def load(policy: str | Mapping[str, Any]) -> Document:
    """
    Read a policy, and check that the fake can evaluate it.

    Raises:
        ValueError: The text is not a policy, or the fake cannot evaluate a part of it.
    """
    document: Document = json.loads(policy) if isinstance(policy, str) else json.loads(json.dumps(policy))
    statements = _listed(document.get("Statement", []))
    if document.get("Version") != "2012-10-17" or not statements:
        raise ValueError('a policy has "Version": "2012-10-17" and at least one Statement')
    for statement in statements:
        _check(statement)
    document["Statement"] = statements
    return document


def _why_denied(request: Request, key: FakeKey | None, identity: Sequence[Document]) -> str | None:
    """
    Decide as IAM does.

    Args:
        request: The request.
        key: The key, or ``None`` if the request concerns no key.
        identity: The policies of the caller.

    Returns:
        ``None`` if it is allowed, otherwise the reason in AWS's words.
    """
    asked = [statement for document in identity for statement in document["Statement"]]
    for statement in asked:
        if statement["Effect"] == "Deny" and _applies(statement, request):
            return "with an explicit deny in an identity-based policy"
    account = account_of(request.caller)
    owner = request.caller == root_of(account)
    granted = owner or any(s["Effect"] == "Allow" and _applies(s, request) for s in asked)
    if key is None:
        return None if granted else _no_policy("identity-based", request)
    named, delegated = False, False
    for statement in key.policy["Statement"]:
        principals = _principals(statement)
        if not _applies(statement, request):
            continue
        whole_account = bool(principals & {root_of(account), account})
        this_one = bool(principals & {"*", request.caller})
        if statement["Effect"] == "Deny" and (whole_account or this_one):
            return "with an explicit deny in a resource-based policy"
        named = named or this_one
        delegated = delegated or whole_account
    if not (named or delegated):
        return _no_policy("resource-based", request)
    if named and account == key.arn.account:
        return None
    return None if granted else _no_policy("identity-based", request)


def _no_policy(kind: str, request: Request) -> str:
    return f"because no {kind} policy allows the {request.action} action"


def _check(statement: Mapping[str, Any]) -> None:
    unknown = set(statement) - _ELEMENTS
    if unknown or statement.get("Effect") not in {"Allow", "Deny"}:
        raise ValueError(f"the fake cannot evaluate this statement: {json.dumps(statement)}")
    if "Action" not in statement and "NotAction" not in statement:
        raise ValueError("a statement has an Action")
    for operator, wanted in statement.get("Condition", {}).items():
        if _base_of(operator) not in _OPERATORS:
            raise ValueError(f"the fake does not know the condition operator {operator}")
        for name in wanted:
            if name.lower() not in _CONDITION_KEYS and not name.lower().startswith(_CONTEXT_PREFIX):
                raise ValueError(f"the fake does not know the condition key {name}")


def _applies(statement: Mapping[str, Any], request: Request) -> bool:
    if "NotAction" in statement:
        acts = not _matches_any(statement["NotAction"], request.action, ignore_case=True)
    else:
        acts = _matches_any(statement["Action"], request.action, ignore_case=True)
    if "NotResource" in statement:
        fits = not _matches_any(statement["NotResource"], request.resource)
    else:
        fits = _matches_any(statement.get("Resource", "*"), request.resource)
    return (
        acts
        and fits
        and all(
            _holds(operator, _listed(values), request.facts.get(name.lower()))
            for operator, wanted in statement.get("Condition", {}).items()
            for name, values in wanted.items()
        )
    )


def _holds(operator: str, wanted: list[str], found: Values | None) -> bool:
    base, quantifier = _base_of(operator), operator.partition(":")[0] if ":" in operator else ""
    if base == "Null":
        return (found is None) == (str(wanted[0]).lower() == "true")
    if found is None:
        return operator.endswith("IfExists") or "Not" in base or quantifier == "ForAllValues"
    holds = _OPERATORS[base]
    results = [holds(value, [str(want) for want in wanted]) for value in found]
    return all(results) if quantifier == "ForAllValues" else any(results)


def _base_of(operator: str) -> str:
    return operator.rpartition(":")[2].removesuffix("IfExists")


_OPERATORS: dict[str, Callable[[str, list[str]], bool]] = {
    "StringEquals": lambda value, wanted: value in wanted,
    "StringNotEquals": lambda value, wanted: value not in wanted,
    "StringEqualsIgnoreCase": lambda value, wanted: value.lower() in {want.lower() for want in wanted},
    "StringLike": lambda value, wanted: _matches_any(wanted, value),
    "StringNotLike": lambda value, wanted: not _matches_any(wanted, value),
    "ArnEquals": lambda value, wanted: _matches_any(wanted, value),
    "ArnLike": lambda value, wanted: _matches_any(wanted, value),
    "Bool": lambda value, wanted: value.lower() in {want.lower() for want in wanted},
    "Null": lambda _value, _wanted: False,
}


def _principals(statement: Mapping[str, Any]) -> set[str]:
    principal = statement.get("Principal", {})
    return {"*"} if principal == "*" else set(_listed(principal.get("AWS", [])))


def _matches_any(patterns: str | list[str], value: str, *, ignore_case: bool = False) -> bool:
    return any(_pattern(pattern, ignore_case).fullmatch(value) for pattern in _listed(patterns))


@cache
def _pattern(text: str, ignore_case: bool) -> re.Pattern[str]:
    escaped = re.escape(text).replace(r"\*", ".*").replace(r"\?", ".")
    return re.compile(escaped, re.IGNORECASE | re.DOTALL if ignore_case else re.DOTALL)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
