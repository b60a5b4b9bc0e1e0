"""What the user chooses for a comparison."""

import subprocess
import sys

from memtool.similarity import Estimator


def test_biased_is_another_name_of_exact_and_no_other_is():
    assert [one.canonical for one in Estimator] == [
        Estimator.auto,
        Estimator.exact,
        Estimator.exact,
        Estimator.unbiased,
        Estimator.minibatch,
    ]


def test_both_names_give_the_same_table(run, runs):
    command = ("cka", runs.noisy, runs.clean, "--layers", "fc", "--estimator")
    assert run(*command, "biased").stdout == run(*command, "exact").stdout
    assert ",exact," in run(*command, "biased").stdout


def test_settings_need_no_torch():
    script = "import sys, memtool.similarity.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
