"""For authors of passes: random modules and pipelines as Hypothesis strategies, and checks of what a pass promises.

    @given(graphs())
    def test_my_pass(module):
        assert_contract(MyPass(), module)
"""

from ingot.ir.copy import copy_module
from ingot.testing.compare import assert_exact, difference, inputs_for, sizes_for
from ingot.testing.contract import assert_contract
from ingot.testing.decoders import Decoder, decoder_plans, decoders
from ingot.testing.examples import Example, examples
from ingot.testing.graphs import graphs
from ingot.testing.pipelines import options_of, pipelines
from ingot.testing.weights import weights

__all__ = ["Decoder", "Example", "assert_contract", "assert_exact", "copy_module", "decoder_plans", "decoders", "difference",
           "examples", "graphs", "inputs_for", "options_of", "pipelines", "sizes_for", "weights"]
