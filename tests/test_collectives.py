"""Collectives counted in the text of a compiled program, by the loop that they are in."""

from benchmarks.collectives import find_collectives, in_a_step

PROGRAM = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner.body (p: f32[4]) -> f32[4] {
  ROOT %all-reduce.3 = f32[4]{0} all-reduce(%p), channel_id=3, replica_groups={{0,1}}, to_apply=%add
}

%inner.condition (p: f32[4]) -> pred[] {
  ROOT %less = pred[] constant(false)
}

%replay (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %while.1 = f32[4]{0} while(%x), condition=%inner.condition, body=%inner.body, metadata={op_name="while"}
  ROOT %all-reduce.2 = (f32[3,3]{1,0}, bf16[4]{0}) all-reduce(%y, %z), channel_id=2, to_apply=%add
}

%trial (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  ROOT %gathered = (f32[4]{0}, f32[8]{0}) all-gather-start(%x), channel_id=5, dimensions={0}
  %done = f32[8]{0} all-gather-done(%gathered)
}

%enough (p: (s32[], f32[4])) -> pred[] {
  ROOT %all-reduce.4 = pred[] all-reduce(%x), channel_id=6, to_apply=%add
}

%branch (p: f32[2]) -> f32[2] {
  ROOT %swap = f32[2]{0} collective-permute(%p), channel_id=7, source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %all-reduce.1 = f32[]{} all-reduce(%loss), channel_id=1, to_apply=%add
  %w = (s32[], f32[4]) while(%t), condition=%enough, body=%trial, metadata={op_name="jit(step)/jvp(NODE18)/ode1_1/while"}
  %v = (s32[], f32[4]) while(%t), condition=%inner.condition, body=%replay, metadata={op_name="jit(step)/transpose(jvp(NODE18))/ode1_1/while"}
  %c = f32[2]{0} conditional(%i, %a, %b), branch_computations={%branch, %branch}
  ROOT %out = f32[8,4]{1,0} copy(%x)
}
"""  # noqa: E501


def test_collectives_are_counted_where_they_are():
    assert find_collectives(PROGRAM) == {
        "outside loops": {"collectives": 3, "bytes": 4 + 2 * 8},
        # The condition of a loop is run as often as its body. An asynchronous operation has both buffers.
        "ode1_1 forward": {"collectives": 2, "bytes": 1 + 4 * (4 + 8)},
        "ode1_1 backward": {"collectives": 2, "bytes": 4 * 9 + 2 * 4 + 4 * 4},
    }


def test_loops_count_as_often_as_the_solver_ran_them():
    found = {
        "outside loops": {"collectives": 3, "bytes": 10},
        "ode1_1 forward": {"collectives": 2, "bytes": 100},
        "ode1_1 backward": {"collectives": 5, "bytes": 1000},
    }
    counts = {"ode1_1": {"nfe": 20, "n_accepted": 4, "n_rejected": 3}}
    assert in_a_step(found, counts) == {"collectives": 3 + 7 * 2 + 4 * 5, "bytes": 10 + 7 * 100 + 4 * 1000}
