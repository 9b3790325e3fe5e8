"""A migration seals no item that names code of others, and runs no code that a row names."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text
from tests.fixtures.eventsourcing_store import TOPIC as OF_LIBRARY
from tests.fixtures.eventsourcing_store import Placed
from tests.rotation.test_migrate import MODULES, TOPIC, plaintext, tenant_of

from eventseal.errors import ConfigurationError, SerializationError
from eventseal.eventstore import Snapshot
from eventseal.items import SequencedItem
from eventseal.items.event_modules import EventModules
from eventseal.items.json import ClassChecks
from eventseal.rotation import begin_migration, copy_items, list_jobs, migrate, reencrypt
from eventseal.rotation.jobs import passes
from eventseal.rotation.jobs.older_formats import function_named
from eventseal.rotation.jobs.passes import work_in_process
from eventseal.storage import SQLAlchemySettings

ITEMS = "integer_sequenced_items"
SNAPSHOT = f"{Snapshot.__module__}:{Snapshot.__qualname__}"


@dataclass
class Done:
    def mutate(self, entity):
        return entity


def exits(context, data):
    sys.exit("hunter2")


def lacks_a_module(context, data):
    raise ModuleNotFoundError("hunter2", name="hunter2")


def other_rule(context, data):
    return "tenant:other"


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module on the path that nobody means, with a class and a function."""
    name = f"trap_{uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(
        "class Placed: ...\ndef tenant_of(context, data): return 'tenant:stolen'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def old_shop(open_shop, sqlite_url):
    shop = open_shop(sqlite_url, event_modules=MODULES, old_formats=["plain-json"])
    begin_migration(shop.seal)
    return shop


def hostile(trap: str) -> list[tuple[str, str]]:
    """Topics and data that name the trap."""
    return [
        (f"{trap}:Placed", "{}"),
        (TOPIC, f'{{"a":[{{"b":{{"$enum":["{trap}:Placed","A"]}}}}]}}'),
        (TOPIC, f'{{"a":{{"\\u0024dataclass":["{trap}:Placed",{{}}]}}}}'),
        (TOPIC, f'{{"a":{{"$enum":[{{"$state":"{trap}:Placed"}},"A"]}}}}'),
        (TOPIC, f'{{"originator_topic":"{trap}:Placed"}}'),
        (TOPIC, f'{{"originator_topic":{{"$state":"{trap}:Placed"}}}}'),
        (SNAPSHOT, f'{{"topic":"{trap}:Placed","state":{{}},"personal_topics":[]}}'),
        (SNAPSHOT, f'{{"topic":null,"state":null,"personal_topics":["{trap}:Placed"]}}'),
        (TOPIC, f'{{"$dict":[["originator_topic","{trap}:Placed"]]}}'),
        (TOPIC, f'{{"a":[{{"$dict":[[[],1]]}}],"originator_topic":"{trap}:Placed"}}'),
        (TOPIC, f'{{"n":NaN,"a":{{"$enum":["{trap}:Placed","A"]}}}}'),
        (TOPIC, f'{{"n":{"9" * 5000},"a":{{"$enum":["{trap}:Placed","A"]}}}}'),
    ]


def test_what_names_other_code_is_listed_and_never_sealed(old_shop, trap):
    stream = uuid4()
    rows = [(TOPIC, plaintext(0).decode()), *hostile(trap)[:-1]]  # Python reads no such number
    old_shop.strategy().append(
        [SequencedItem(stream, n, topic, data.encode()) for n, (topic, data) in enumerate(rows)]
    )
    expected = [str(n) for n in range(1, len(rows))]
    for looked in (
        begin_migration(old_shop.seal, dry_run=True),
        begin_migration(old_shop.seal),
        migrate(old_shop.seal, dry_run=True),
    ):
        assert looked.failed == len(expected)
        assert [failure.row["position"] for failure in looked.failures] == expected
    result = migrate(old_shop.seal)
    assert (result.done, result.failed, result.complete) == (1, len(expected), True)
    assert sorted((failure.row["position"] for failure in result.failures), key=int) == expected
    assert {failure.error for failure in result.failures} == {"SerializationError"}
    assert f'event_modules = ["{trap}"]' in str([failure.remedy for failure in result.failures])
    left = old_shop.execute(f"SELECT data FROM {ITEMS} WHERE key_id IS NULL")
    assert {row.data for row in left} == {data.encode() for _, data in rows[1:]}
    assert trap not in sys.modules


@pytest.mark.parametrize("number", range(len(hostile(""))))
def test_each_way_to_name_a_class_is_looked_at(trap, number):
    topic, data = hostile(trap)[number]
    with pytest.raises(SerializationError):
        ClassChecks(EventModules(MODULES)).check(topic, data.encode())
    assert trap not in sys.modules


def test_json_that_is_too_deep_to_look_into_is_refused():
    with pytest.raises(SerializationError, match="too deeply"):
        ClassChecks(EventModules(MODULES)).check(TOPIC, b'{"a":' + b"[" * 200_000)


def test_what_is_no_json_names_no_class():
    ClassChecks(EventModules(MODULES)).check(TOPIC, b"\x00\x01")
    with pytest.raises(SerializationError):
        ClassChecks(EventModules(MODULES)).check("no_such:Placed", b"\x00\x01")


def test_the_librarys_json_has_no_markers_but_names_aggregates(trap):
    checks = ClassChecks(EventModules(MODULES), is_library=True)
    checks.check(OF_LIBRARY, b'{"a":{"$enum":["anything","else"]},"n":NaN}')
    with pytest.raises(SerializationError):
        checks.check(OF_LIBRARY, f'{{"n":NaN,"originator_topic":"{trap}:Placed"}}'.encode())
    with pytest.raises(SerializationError):
        checks.check("eventsourcing.domain:Snapshot", f'{{"topic":"{trap}:Placed","state":{{}}}}'.encode())


@pytest.mark.parametrize(
    ("topic", "data"),
    [
        (SNAPSHOT, '{"topic":null,"__init__":1}'),
        (f"{__name__}:Done", '{"mutate":1}'),
        (f"{__name__}:Done", '{"$dict":[["mutate",1]]}'),
        (f"{__name__}:Done", '{"$state":{"mutate":1}}'),
        (SNAPSHOT, f'{{"topic":"{__name__}:Done","state":{{"mutate":1}}}}'),
        (SNAPSHOT, f'{{"topic":"{__name__}:Done","state":{{"$state":{{"mutate":1}}}}}}'),
        (TOPIC, f'{{"x":{{"$dataclass":["{__name__}:Done",{{"$dict":[["mutate",1]]}}]}}}}'),
        (TOPIC, f'{{"x":[{{"$dataclass":["{__name__}:Done",{{"mutate":1}}]}}]}}'),
    ],
)
def test_an_attribute_in_place_of_a_method_is_refused(topic, data):
    checks = ClassChecks(EventModules([*MODULES, __name__]))
    with pytest.raises(SerializationError, match="something to call"):
        checks.check(topic, data.encode())


def test_a_module_that_fails_stops_no_other_item(open_shop, sqlite_url, tmp_path, monkeypatch):
    name = f"failing_{uuid4().hex}"
    (tmp_path / name).mkdir()
    fails = {
        "manage": "import sys; sys.exit('hunter2')",
        "syntax": "x = = 1",
        "setup": "raise RuntimeError('hunter2')",
    }
    for module, source in {"__init__": "class Placed: ...", **fails}.items():
        (tmp_path / name / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    shop = open_shop(sqlite_url, event_modules=[name], old_formats=["plain-json"])
    rows = [f"{name}.{module}:Placed" for module in fails] + [f"{name}.__init__:Placed", f"{name}:Placed"]
    shop.strategy().append([SequencedItem(uuid4(), n, topic, b"{}") for n, topic in enumerate(rows)])
    for looked in (begin_migration(shop.seal), migrate(shop.seal)):
        assert looked.failed == 4
        assert {failure.error for failure in looked.failures} == {"SerializationError"}
        assert "hunter2" not in str(looked.failures)
        assert "SystemExit" in str(looked.failures)
    assert looked.done == 1
    assert f"{name}.__init__" not in sys.modules
    sys.modules.pop(name)


def test_a_module_that_is_not_there_stops_a_migration_before_it_writes(open_shop, sqlite_url):
    shop = open_shop(sqlite_url, event_modules=["no_such_shop"], old_formats=["plain-json"])
    shop.strategy().append([SequencedItem(uuid4(), 0, TOPIC, plaintext(0))])
    with pytest.raises(ConfigurationError, match="no module no_such_shop"):
        begin_migration(shop.seal)


def test_a_row_of_the_librarys_tables_is_looked_at_too(open_library, sqlite_url, trap):
    library = open_library(sqlite_url, old_formats=["plain-json"])
    for number, topic in enumerate((OF_LIBRARY, f"{trap}:Placed")):
        library.execute(
            "INSERT INTO stored_events (originator_id, originator_version, topic, state) "
            "VALUES (:i, :v, :t, :s)",
            i=uuid4().hex,
            v=number,
            t=topic,
            s=b"{}",
        )
    assert begin_migration(library.seal).failed == 1
    result = migrate(library.seal)
    assert (result.done, result.failed) == (1, 1)
    assert trap not in sys.modules
    assert Placed.__name__ == "Placed"


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_copy_lists_them_as_well(old_shop, trap, tmp_path, dry_run):
    url = f"sqlite:///{tmp_path / 'old.sqlite'}"
    engine = create_engine(url)
    rows = [(TOPIC, "{}"), (f"{trap}:Placed", "{}")]
    rows += [(TOPIC, f'{{"a":{{"__class__":{{"topic":"{trap}:Placed","state":{{}}}}}}}}')]
    rows += [(TOPIC, f'{{"a":{{"__enum__":{{"topic":"{trap}:Placed","name":"A"}}}}}}')]
    with engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE old_items (sequence_id BINARY(16), position BIGINT, topic TEXT, data TEXT)")
        )
        for number, (topic, data) in enumerate(rows):
            connection.execute(
                text("INSERT INTO old_items VALUES (:s, :p, :t, :d)"),
                {"s": uuid4().bytes, "p": number, "t": topic, "d": data},
            )
    engine.dispose()
    result = copy_items(
        old_shop.seal, source=SQLAlchemySettings(url), table="old_items", into=ITEMS, dry_run=dry_run
    )
    assert (result.done, result.failed) == (0 if dry_run else 1, 3)
    assert trap not in sys.modules


# --- the rule for key scopes: from the caller, never from the job's row ---


@pytest.mark.parametrize("rule", [exits, lacks_a_module])
def test_a_rule_that_fails_stops_no_other_item(old_shop, rule):
    old_shop.strategy().append([SequencedItem(uuid4(), 0, TOPIC, plaintext(0))])
    result = migrate(old_shop.seal, key_scope=rule)
    (failure,) = result.failures
    assert "hunter2" not in str(failure)
    assert ("PYTHONPATH" in failure.remedy) is (rule is lacks_a_module)


@pytest.mark.parametrize("source", ["import sys; sys.exit('hunter2')", "raise RuntimeError('hunter2')"])
def test_a_function_whose_module_fails_is_an_error_of_the_option(tmp_path, monkeypatch, source):
    name = f"rule_{uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ConfigurationError, match=f"--key-scope-function: the import of module {name}"
    ) as refused:
        function_named(f"{name}:scope")
    assert "hunter2" not in str(refused.value)
    for missing in (f"{__name__}:nothing", "no_colon", "a-b:c", ":f"):
        with pytest.raises(ConfigurationError, match=r"the function .* does not exist"):
            function_named(missing)


@pytest.fixture
def stopped(old_shop, monkeypatch):
    """A migration with a function that stopped before its first item, and its id."""
    old_shop.strategy().append([SequencedItem(uuid4(), n, TOPIC, plaintext(n)) for n in range(3)])
    with monkeypatch.context() as patched:
        patched.setattr(passes, "MOST_PASSES", 0)
        result = migrate(old_shop.seal, key_scope=tenant_of)
    assert (result.done, result.complete) == (0, False)
    return old_shop, result.job_id


def point_at(shop, function: str) -> None:
    """Let the row name another function."""
    options = dict(list_jobs(shop.seal)[0].options)
    old = options["key_scope"]["function"]
    changed = shop.execute(
        "UPDATE eventseal_reencryption_jobs SET options = replace(options, :old, :new)", old=old, new=function
    )
    assert changed == 1


def test_a_resumed_migration_wants_its_function_again_and_says_how(stopped):
    shop, job_id = stopped
    before = shop.execute("SELECT * FROM eventseal_reencryption_jobs")
    for given in (None, "tenant:acme", other_rule):
        with pytest.raises(ConfigurationError, match="another rule for scopes") as refused:
            migrate(shop.seal, resume=job_id, key_scope=given)
        command = f"eventseal migrate --resume {job_id} --key-scope-function {tenant_of.__module__}:tenant_of"
        assert command in refused.value.remedy
    assert shop.execute("SELECT * FROM eventseal_reencryption_jobs") == before
    assert migrate(shop.seal, resume=job_id, key_scope=tenant_of).done == 3


def test_a_function_that_the_row_names_is_never_imported(stopped, trap):
    shop, job_id = stopped
    point_at(shop, f"{trap}:tenant_of")
    for given in (None, tenant_of):
        with pytest.raises(ConfigurationError, match="another rule for scopes"):
            migrate(shop.seal, resume=job_id, key_scope=given)
    with pytest.raises(ConfigurationError, match="another rule for scopes"):
        migrate(shop.seal)
    assert trap not in sys.modules
    assert shop.execute(f"SELECT count(*) FROM {ITEMS} WHERE key_id IS NULL")[0][0] == 3


def test_a_name_that_is_none_is_not_put_into_a_command(stopped):
    shop, job_id = stopped
    point_at(shop, "x; rm -rf ~")
    with pytest.raises(ConfigurationError) as refused:
        migrate(shop.seal, resume=job_id)
    assert "rm" not in refused.value.remedy
    assert "--key-scope-function MODULE:FUNCTION" in refused.value.remedy


def test_without_a_function_no_second_job_is_begun_beside_one_that_has_it(stopped):
    shop, job_id = stopped
    with pytest.raises(ConfigurationError, match=f"job {job_id} began with another rule"):
        migrate(shop.seal)
    assert [job.job_id for job in list_jobs(shop.seal)] == [job_id]
    assert migrate(shop.seal, key_scope=tenant_of).job_id == job_id


def test_another_scope_than_the_jobs_is_refused(old_shop, monkeypatch):
    old_shop.strategy().append([SequencedItem(uuid4(), 0, TOPIC, plaintext(0))])
    with monkeypatch.context() as patched:
        patched.setattr(passes, "MOST_PASSES", 0)
        job_id = migrate(old_shop.seal, key_scope="tenant:acme").job_id
    for given in ("tenant:other", tenant_of):
        with pytest.raises(ConfigurationError, match="another rule") as refused:
            migrate(old_shop.seal, resume=job_id, key_scope=given)
        assert refused.value.remedy.endswith(f"eventseal migrate --resume {job_id}")
    assert migrate(old_shop.seal, resume=job_id).done == 1


@pytest.mark.parametrize("elsewhere", [True, False])
def test_workers_are_given_the_function_and_read_it_from_no_row(old_shop, trap, elsewhere, monkeypatch):
    """The row is edited when the job is set running: whoever takes a range has the caller's function."""
    old_shop.strategy().append([SequencedItem(uuid4(), n, TOPIC, plaintext(n)) for n in range(3)])
    real = passes.Passes._work

    def edit_first(self):
        if not any(trap in str(job.options) for job in list_jobs(old_shop.seal)):
            point_at(old_shop, f"{trap}:tenant_of")
        real(self)

    monkeypatch.setattr(passes.Passes, "_work", edit_first)
    with ThreadPoolExecutor(2) as executor:
        options = {"executor": executor, "shards": 2, "open_store": old_shop.again_open} if elsewhere else {}
        result = migrate(old_shop.seal, key_scope=tenant_of, **options)
    assert (result.done, result.failed) == (3, 0)
    assert trap not in sys.modules
    scopes = {record.scope for record in old_shop.seal.key_store.active("shop", ["tenant:acme"]).values()}
    assert scopes == {"tenant:acme"}


def test_a_worker_of_a_reencryption_never_becomes_one_of_a_migration(stopped):
    """The row says which verb it is of: a worker does what its caller does."""
    shop, job_id = stopped
    reencrypt(shop.seal)
    work_in_process(partial(shop.again_open), job_id, 10, "run", None)
    assert shop.execute(f"SELECT count(*) FROM {ITEMS} WHERE key_id IS NULL")[0][0] == 3
