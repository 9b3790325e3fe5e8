"""The operations on keys and aliases themselves."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from eventseal_kms.fake_aws_kms.keys import FakeKey, Material
from eventseal_kms.fake_aws_kms.policies import default_key_policy, load
from eventseal_kms.fake_aws_kms.protocol import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventseal_kms.fake_aws_kms.policies import Document, Parameters, Session

_WINDOW = range(7, 31)
_ON_DEMAND_ROTATIONS = 25


def create_key(session: Session, asked: Parameters) -> dict[str, Any]:
    """CreateKey."""
    session.require_permission()
    key = session.registry.add(
        session.place,
        _policy(session, asked),
        multi_region=bool(asked.get("MultiRegion")),
        usage=asked.get("KeyUsage", "ENCRYPT_DECRYPT"),
        spec=asked.get("KeySpec", asked.get("CustomerMasterKeySpec", "SYMMETRIC_DEFAULT")),
        description=asked.get("Description", ""),
    )
    session.noted["key"] = str(key.arn)
    return {"KeyMetadata": key.metadata()}


def describe_key(session: Session, asked: Parameters) -> dict[str, Any]:
    """DescribeKey."""
    return {"KeyMetadata": session.key(asked["KeyId"]).metadata()}


def list_keys(session: Session, _asked: Parameters) -> dict[str, Any]:
    """ListKeys, in one page."""
    session.require_permission()
    keys = session.registry.keys.get(session.place, {}).values()
    return {"Keys": [{"KeyId": key.id, "KeyArn": str(key.arn)} for key in keys], "Truncated": False}


def get_key_policy(session: Session, asked: Parameters) -> dict[str, Any]:
    """GetKeyPolicy."""
    policy = session.key(asked["KeyId"]).policy
    return {"Policy": json.dumps(policy), "PolicyName": "default"}


def put_key_policy(session: Session, asked: Parameters) -> None:
    """PutKeyPolicy."""
    key = session.key(asked["KeyId"])
    key.policy = _policy(session, asked)


def enable_key(session: Session, asked: Parameters) -> None:
    """EnableKey."""
    _switch(session.key(asked["KeyId"]), "Enabled")


def disable_key(session: Session, asked: Parameters) -> None:
    """DisableKey."""
    _switch(session.key(asked["KeyId"]), "Disabled")


def schedule_key_deletion(session: Session, asked: Parameters) -> dict[str, Any]:
    """ScheduleKeyDeletion."""
    key = session.key(asked["KeyId"])
    days = asked.get("PendingWindowInDays", _WINDOW[-1])
    if days not in _WINDOW:
        raise Refusal("ValidationException", "PendingWindowInDays must be between 7 and 30")
    _switch(key, "PendingDeletion")
    key.deletion = session.registry.now() + timedelta(days=days)
    return {
        "KeyId": str(key.arn),
        "DeletionDate": key.deletion.timestamp(),
        "KeyState": key.state,
        "PendingWindowInDays": days,
    }


def cancel_key_deletion(session: Session, asked: Parameters) -> dict[str, Any]:
    """CancelKeyDeletion: the key is disabled afterwards."""
    key = session.key(asked["KeyId"])
    if key.state != "PendingDeletion":
        raise Refusal("KMSInvalidStateException", f"{key.arn} is not pending deletion.")
    key.state, key.deletion = "Disabled", None
    return {"KeyId": str(key.arn)}


def rotate_key_on_demand(session: Session, asked: Parameters) -> dict[str, Any]:
    """RotateKeyOnDemand: older material still decrypts its own ciphertexts."""
    key = session.key(asked["KeyId"])
    key.require_usable()
    family = key.family
    if key.spec != "SYMMETRIC_DEFAULT" or key.arn.region != family.primary:
        raise Refusal("UnsupportedOperationException", f"{key.arn} cannot be rotated.")
    if len(family.materials) > _ON_DEMAND_ROTATIONS:
        raise Refusal("LimitExceededException", "On-demand rotation limit exceeded.")
    family.materials.append(Material(session.registry.now()))
    return {"KeyId": str(key.arn)}


def list_key_rotations(session: Session, asked: Parameters) -> dict[str, Any]:
    """ListKeyRotations, in one page."""
    key = session.key(asked["KeyId"])
    every = asked.get("IncludeKeyMaterial") == "ALL_KEY_MATERIAL"
    current = key.family.materials[-1]
    rotations = [
        {
            "KeyId": str(key.arn),
            "KeyMaterialId": material.id,
            "KeyMaterialState": "CURRENT" if material is current else "NON_CURRENT",
            "RotationDate": material.since.timestamp(),
            "RotationType": "ON_DEMAND",
        }
        for material in key.family.materials[0 if every else 1 :]
    ]
    return {"Rotations": rotations, "Truncated": False}


def replicate_key(session: Session, asked: Parameters) -> dict[str, Any]:
    """ReplicateKey."""
    key = session.key(asked["KeyId"])
    key.require_usable()
    region = asked["ReplicaRegion"]
    if not key.family.multi_region or key.arn.region != key.family.primary:
        raise Refusal("UnsupportedOperationException", f"{key.arn} is not a multi-Region primary key.")
    if region in key.family.members:
        raise Refusal("AlreadyExistsException", f"{key.arn.in_region(region)} already exists")
    replica = session.registry.add_member(
        (key.arn.account, region),
        key.family,
        _policy(session, asked),
        description=asked.get("Description", ""),
    )
    return {"ReplicaKeyMetadata": replica.metadata()}


def create_alias(session: Session, asked: Parameters) -> None:
    """CreateAlias."""
    name = asked["AliasName"]
    if not name.startswith("alias/") or name.startswith("alias/aws/"):
        raise Refusal("InvalidAliasNameException", f"Invalid alias name {name}")
    names = session.registry.aliases.setdefault(session.place, {})
    target = _alias_target(session, asked)
    if name in names:
        raise Refusal("AlreadyExistsException", f"An alias with the name {name} already exists")
    names[name] = target.id


def update_alias(session: Session, asked: Parameters) -> None:
    """UpdateAlias: from now on the alias names another key."""
    session.registry.find(asked["AliasName"], session.place)
    target = _alias_target(session, asked)
    session.registry.aliases[session.place][asked["AliasName"]] = target.id


def delete_alias(session: Session, asked: Parameters) -> None:
    """DeleteAlias."""
    session.key(asked["AliasName"])
    del session.registry.aliases[session.place][asked["AliasName"]]


def list_aliases(session: Session, asked: Parameters) -> dict[str, Any]:
    """ListAliases, in one page."""
    session.require_permission()
    account, region = session.place
    wanted = session.registry.find(asked["KeyId"], session.place).key.id if "KeyId" in asked else None
    aliases = [
        {"AliasName": name, "AliasArn": f"arn:aws:kms:{region}:{account}:{name}", "TargetKeyId": target}
        for name, target in session.registry.aliases.get(session.place, {}).items()
        if wanted in {None, target}
    ]
    return {"Aliases": aliases, "Truncated": False}


OPERATIONS: dict[str, Callable[[Session, Parameters], dict[str, Any] | None]] = {
    "CreateKey": create_key,
    "DescribeKey": describe_key,
    "ListKeys": list_keys,
    "GetKeyPolicy": get_key_policy,
    "PutKeyPolicy": put_key_policy,
    "EnableKey": enable_key,
    "DisableKey": disable_key,
    "ScheduleKeyDeletion": schedule_key_deletion,
    "CancelKeyDeletion": cancel_key_deletion,
    "RotateKeyOnDemand": rotate_key_on_demand,
    "ListKeyRotations": list_key_rotations,
    "ReplicateKey": replicate_key,
    "CreateAlias": create_alias,
    "UpdateAlias": update_alias,
    "DeleteAlias": delete_alias,
    "ListAliases": list_aliases,
}


def _policy(session: Session, asked: Parameters) -> Document:
    try:
        return load(asked["Policy"]) if "Policy" in asked else default_key_policy(session.place[0])
    except (ValueError, AttributeError) as error:
        raise Refusal("MalformedPolicyDocumentException", str(error)) from None


def _switch(key: FakeKey, state: str) -> None:
    key.refuse_if_pending_deletion()
    key.state = state


def _alias_target(session: Session, asked: Parameters) -> FakeKey:
    key = session.key(asked["TargetKeyId"])
    key.refuse_if_pending_deletion()
    return key
