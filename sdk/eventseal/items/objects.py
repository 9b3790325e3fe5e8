"""Objects as their attributes, and back without calling ``__init__``: what was stored is what comes back."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from inspect import getattr_static
from types import FunctionType, MemberDescriptorType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from eventseal.errors import SerializationError
from eventseal.items.annotation_reading import Reader
from eventseal.items.annotations import Names
from eventseal.items.class_annotations import refuse_held
from eventseal.items.evolution import CLASS_VERSION, Form, current, form_of
from eventseal.items.personal import Plan, plan_of
from eventseal.items.topics import class_name

if TYPE_CHECKING:
    from collections.abc import Mapping

_ARGUMENTS = "__orig_class__"
_METHODS = (FunctionType, MethodType, classmethod, staticmethod)


class _Layout(NamedTuple):
    """
    Where the objects of a class keep their state.

    Attributes:
        slots: The slots that hold some, by name.
        has_dict: Whether they have a ``__dict__``.
        computed: Attributes that the class computes, and that are not stored.
        hidden: Names of properties without a setter: what is kept under them would not be seen.
        form: The form that the class has today.
    """

    slots: Mapping[str, MemberDescriptorType]
    has_dict: bool
    computed: tuple[str, ...]
    hidden: frozenset[str]
    form: Form


class _Today(NamedTuple):
    """
    What stored attributes of a class become.

    Attributes:
        is_simple: Whether they go into the ``__dict__`` as they are, if no field is missing.
        fields: The fields of a dataclass that are stored.
        layout: Where its objects keep their state.
        plan: Its personal data.
    """

    is_simple: bool
    fields: frozenset[str]
    layout: _Layout
    plan: Plan


_todays: dict[type[Any], _Today] = {}
_layouts: dict[type[Any], _Layout] = {}


def attributes_of(obj: object) -> dict[str, Any]:
    """
    Copy an object's attributes: its ``__dict__``, and its slots that are set.

    What a cached property or another descriptor of the class keeps there is computed, and left out.

    Args:
        obj: A domain event, or a dataclass inside one.

    Raises:
        SerializationError: Its class keeps state elsewhere, so that it could not come back whole, or hides an
            attribute behind a property. Or it has an attribute ``class_version`` and its class has none.
        ConfigurationError: It was created as ``Class[Argument](...)``, and the argument is personal data.
    """
    cls = type(obj)
    layout = _layouts.get(cls) or _read_layout(cls)
    state = getattr(obj, "__dict__", None)
    attributes = {} if state is None else dict(state)
    for name, slot in layout.slots.items():
        try:
            attributes[name] = slot.__get__(obj)
        except AttributeError:  # a slot that was never set
            continue
    if layout.hidden and not layout.hidden.isdisjoint(attributes):
        name = min(layout.hidden.intersection(attributes))
        raise SerializationError(
            f"a {class_name(cls)} keeps {name!r} under the name of a property without a setter",
            remedy="Give the property or the attribute another name. If the property only keeps what it "
            "computed, use functools.cached_property.",
        )
    for name in layout.computed:
        attributes.pop(name, None)
    if _ARGUMENTS in attributes:
        reader = Reader(Names(cls), class_name(cls))
        reader.refuse_inside(get_args(attributes.pop(_ARGUMENTS)), "its arguments")
        refuse_held(class_name(cls), reader.held, in_dataclasses=False)
    if layout.form.version > 1:
        attributes[CLASS_VERSION] = layout.form.version
    elif CLASS_VERSION in attributes and layout.form.is_counted:
        raise SerializationError(
            f"a {class_name(cls)} has an attribute {CLASS_VERSION!r}, which would be taken "
            "for the version of its class",
            remedy=f"Annotate {CLASS_VERSION!r} in the body of the class, or give it another name.",
        )
    return attributes


def restore(cls: type[Any], attributes: dict[str, Any]) -> Any:
    """
    Make an object of *cls*, frozen or not, without calling its ``__init__``.

    Args:
        cls: The class.
        attributes: The stored attributes. The dictionary is changed: it gets today's form, and masks.

    Raises:
        SerializationError: *cls* keeps state elsewhere, has no place for an attribute, or has a form that
            they cannot be brought into.
        ConfigurationError: *cls* has no upcast for them, or its annotations are refused.
    """
    is_simple, fields_, layout, plan = _todays.get(cls) or _read_today(cls)
    obj: Any = object.__new__(cls)
    if is_simple and CLASS_VERSION not in attributes and (not fields_ or attributes.keys() >= fields_):
        obj.__dict__.update(attributes)
        return obj
    current(cls, attributes)
    plan.put_masks(attributes)
    for name in layout.computed:  # an earlier release stored them
        attributes.pop(name, None)
    for name, value in attributes.items():
        if name in layout.slots:
            layout.slots[name].__set__(obj, value)
        elif layout.has_dict:
            obj.__dict__[name] = value
        else:
            raise SerializationError(
                f"{class_name(cls)} has no attribute {name!r} today",
                remedy="Give the class the attribute again, or remove it in an upcast.",
            )
    return obj


def _read_today(cls: type[Any]) -> _Today:
    layout = _layouts.get(cls) or _read_layout(cls)
    form, plan = layout.form, plan_of(cls)
    is_simple = form.version == 1 and not (layout.slots or layout.computed or plan.has_masks)
    today = _todays[cls] = _Today(is_simple, form.fields, layout, plan)
    return today


def _read_layout(cls: type[Any]) -> _Layout:
    try:
        probe = object.__new__(cls)
    except TypeError:  # a class with a built-in base, such as a named tuple, or an abstract one
        probe = None
    # Descriptors have the names that private slots were mangled to.
    slots = {
        name: member
        for base in reversed(cls.__mro__)
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType)
    }
    has_dict = hasattr(probe, "__dict__")
    if probe is None or not (slots or has_dict):
        raise SerializationError(
            f"{class_name(cls)} does not keep its state in attributes",
            remedy="Use a plain class or a dataclass, or register an encoding for the type.",
        )
    names = {name: None for base in cls.__mro__ for name in vars(base) if not name.startswith("__")}
    hidden = frozenset(name for name in names if _is_hiding(getattr_static(cls, name)))
    for field in fields(cls) if is_dataclass(cls) else ():
        names.pop(field.name, None)  # whatever stands there is its default
    computed = tuple(name for name in names if _is_computed(getattr_static(cls, name)))
    layout = _layouts[cls] = _Layout(slots, has_dict, computed, hidden, form_of(cls))
    return layout


def _is_hiding(member: object) -> bool:
    return isinstance(member, property) and member.fset is None


def _is_computed(member: object) -> bool:
    """Whether the class computes what its objects keep under a name, such as a cached property."""
    kind = type(member)
    return hasattr(kind, "__get__") and not hasattr(kind, "__set__") and not isinstance(member, _METHODS)
