"""Pages of rows: what a row holds is its own, whatever others take, share and give back."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ingot.backends.triton.paging import PageTable, in_place, pageable
from ingot.ir.text import parse_module
from tests.backends.triton.examples import example

SIZE = 4
FIXED = """
module @fixed {
  dim B in 1..4
  func @forward(%c: f32[B, 2, 8, 4], %n: f32[B, 2, 1, 4], %pos: i64[B, 1]) -> (f32[B, 2, 8, 4] reuse %c) {
    %w = cache.write(%c, %n, %pos) : f32[B, 2, 8, 4]
    return %w
  }
}
"""
LENGTHS = st.integers(0, 19)
STEPS = st.lists(st.one_of(
    st.tuples(st.just("write"), st.integers(0, 2), st.integers(1, 9)),
    st.tuples(st.just("rewind"), st.integers(0, 2), LENGTHS),
    st.tuples(st.just("select"), st.tuples(*[st.integers(0, 2)] * 3), st.just(0))), max_size=25)


@given(STEPS)
def test_rows_read_what_they_wrote(steps: list[tuple[str, object, int]]) -> None:
    """Beside a table of pages, rows as plain lists: reads agree after every step."""
    table, memory = PageTable(3, size=SIZE), dict[tuple[int, int], int]()
    rows: list[list[int]] = [[], [], []]
    for number, (what, which, count) in enumerate(steps):
        if what == "select":
            assert isinstance(which, tuple)
            rows = [list(rows[r]) for r in which]
            table.select(which)
        elif what == "rewind":
            assert isinstance(which, int)
            rows[which] = rows[which][:count]
        else:
            assert isinstance(which, int)
            held = len(rows[which])
            copies = table.reserve(which, held, held + count)
            memory |= {(to, i): memory[source, i] for source, to in copies for i in range(SIZE) if (source, i) in memory}
            for position in range(held, held + count):
                page = table.rows[which][position // SIZE]
                assert page, "page 0 is nobody's"
                memory[page, position % SIZE] = number
                rows[which].append(number)
        for row, wanted in enumerate(rows):
            pages = table.table(8)[row]
            assert [memory[int(pages[p // SIZE]), p % SIZE] for p in range(len(wanted))] == wanted
        held_by = Counter(page for pages in table.rows for page in pages)
        assert table.users == [1, *(held_by[page] for page in range(1, len(table.users)))]


def test_pages_are_given_back_and_taken_again() -> None:
    table = PageTable(2, size=SIZE)
    table.reserve(0, 0, 16)
    assert len(table.users) == 5
    table.reserve(0, 3, 4)
    table.reserve(1, 0, 12)
    assert len(table.users) == 5
    assert sorted(table.rows[0] + table.rows[1]) == [1, 2, 3, 4]


def test_a_row_kept_twice_costs_the_page_where_both_go_on() -> None:
    table = PageTable(1, size=SIZE)
    table.reserve(0, 0, 10)
    table.select([0, 0])
    assert len(table.users) == 4
    assert len(table.reserve(0, 10, 11)) == 1
    assert table.reserve(1, 10, 11) == []
    assert table.rows[0][:2] == table.rows[1][:2]
    assert table.rows[0][2] != table.rows[1][2]


def test_what_can_lie_in_pages() -> None:
    func = example("llama_layer").main
    found = pageable(func, 16)
    assert {v.type.dims for v in found} == {v.type.dims for v in func.reuse.values()}
    assert len(found) == 2 * len(func.reuse)
    assert not in_place(example("rows_and_moves").main)
    fixed = parse_module(FIXED)
    assert in_place(fixed.main)
    assert not pageable(fixed.main, 16), "a cache of a fixed length stays in one piece"
