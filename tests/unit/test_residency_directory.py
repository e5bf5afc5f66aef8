"""The engine's directory: which revision a request gets, and when one is no longer needed."""

from __future__ import annotations

from npu_weave.residency.directory import AdapterDirectory, Revision

OLD, NEW = "/adapters/old", "/adapters/new"


def published(directory: AdapterDirectory, path: str = OLD, public_id: int = 1, name: str = "math") -> Revision:
    """A revision in service, staged on the workers."""
    revision = directory.create(public_id, name, path, digest=f"digest of {path}")
    directory.mark_staged(revision)
    directory.publish(revision)
    return revision


def test_ids_are_never_used_twice() -> None:
    directory = AdapterDirectory(4)
    first = published(directory)
    directory.retire(1)
    directory.forget(first)
    assert published(directory).id > first.id >= 1


def test_a_revision_serves_once_it_is_published() -> None:
    directory = AdapterDirectory(4)
    revision = directory.create(1, "math", OLD, "d")
    assert directory.current(1) is None and directory.public_ids() == set()
    assert directory.find(1, "math", OLD) is None, "its load decides what becomes of it"
    directory.publish(revision)
    assert directory.current(1) is directory.find(1, "math", OLD) is directory.get(revision.id) is revision
    assert directory.public_ids() == {1} and not revision.opening


def test_requests_for_other_names_paths_or_ids_find_nothing() -> None:
    directory = AdapterDirectory(4)
    published(directory)
    assert directory.find(2, "math", OLD) is None
    assert directory.find(1, "law", OLD) is None
    assert directory.find(1, "math", NEW) is None


def test_after_a_re_point_old_and_new_path_get_the_new_revision() -> None:
    directory = AdapterDirectory(4)
    old = published(directory)
    new = published(directory, NEW)
    assert directory.find(1, "math", OLD) is directory.find(1, "math", NEW) is directory.current(1) is new
    assert directory.get(old.id) is old, "until nobody uses it"


def test_re_pointed_back_the_first_path_is_current_again() -> None:
    directory = AdapterDirectory(4)
    published(directory)
    published(directory, NEW)
    third = published(directory, OLD)
    assert directory.find(1, "math", OLD) is directory.find(1, "math", NEW) is third


def test_a_retired_id_forgets_its_former_paths() -> None:
    directory = AdapterDirectory(4)
    published(directory)
    new = published(directory, NEW)
    assert directory.retire(1) is new
    assert directory.find(1, "math", OLD) is directory.find(1, "math", NEW) is directory.current(1) is None
    assert directory.retire(1) is None
    published(directory, NEW)
    assert directory.find(1, "math", OLD) is None


def test_only_retired_revisions_without_requests_are_collectable() -> None:
    directory = AdapterDirectory(4)
    old = published(directory)
    assert directory.collectable([]) == []
    new = published(directory, NEW)
    assert directory.collectable([old.id]) == []
    assert directory.collectable([new.id]) == [old]
    directory.forget(old)
    assert directory.collectable([]) == [] and directory.get(old.id) is None
    directory.retire(1)
    assert directory.collectable([]) == [new]


def test_a_request_on_its_way_to_the_scheduler_holds_its_revision() -> None:
    directory = AdapterDirectory(4)
    revision = published(directory)
    directory.hold("request", revision)
    directory.hold("other", revision)
    directory.retire(1)
    directory.release("request")
    assert directory.collectable([]) == []
    directory.release("other")
    directory.release("other")
    assert directory.collectable([]) == [revision]


def test_a_held_revision_that_is_still_opening_is_not_collected() -> None:
    directory = AdapterDirectory(4)
    revision = directory.create(1, "math", OLD, "d")
    directory.hold("request", revision)
    assert directory.collectable([]) == []


def test_forgetting_the_current_revision_takes_it_out_of_service() -> None:
    directory = AdapterDirectory(4)
    revision = published(directory)
    directory.forget(revision)
    assert directory.public_ids() == set() and directory.find(1, "math", OLD) is None


def test_surplus_is_the_least_recently_asked_for() -> None:
    directory = AdapterDirectory(2)
    first, second, third = (published(directory, f"/adapters/{id}", id, f"a{id}") for id in (1, 2, 3))
    assert directory.surplus([]) == [first]
    directory.find(1, "a1", "/adapters/1")
    assert directory.surplus([]) == [second]
    assert directory.surplus([second.id]) == [third]
    directory.hold("request", third)
    assert directory.surplus([second.id]) == [first]
    assert directory.surplus([first.id, second.id]) == [], "in use, whatever the limit"


def test_room_for_a_revision_about_to_be_staged() -> None:
    directory = AdapterDirectory(2)
    first, second = (published(directory, f"/adapters/{id}", id, f"a{id}") for id in (1, 2))
    coming = directory.create(3, "a3", "/adapters/3", "d")
    assert directory.surplus([]) == []
    assert directory.surplus([], room_for=coming) == [first]
    directory.mark_staged(first, False)
    assert directory.surplus([], room_for=coming) == []
    assert second.staged


def test_idle_work_is_a_retired_revision_or_a_surplus() -> None:
    directory = AdapterDirectory(1)
    first = published(directory)
    assert not directory.has_idle_work
    second = published(directory, NEW)
    assert directory.has_idle_work
    directory.forget(first)
    assert not directory.has_idle_work
    published(directory, "/adapters/x", 2, "x")
    assert directory.has_idle_work, "two staged, one allowed"
    directory.mark_staged(second, False)
    assert not directory.has_idle_work
