"""For authors of passes: random modules as Hypothesis strategies, and checks that two modules compute the same.

    @given(graphs())
    def test_my_pass(module):
        before = copy_module(module)
        MyPass().run(module, Context())
        assert_exact(before, module)
"""

from ingot.ir.copy import copy_module
from ingot.testing.compare import assert_exact, difference, inputs_for, sizes_for
from ingot.testing.examples import Example, examples
from ingot.testing.graphs import graphs
from ingot.testing.weights import weights

__all__ = ["Example", "assert_exact", "copy_module", "difference", "examples", "graphs", "inputs_for", "sizes_for", "weights"]
