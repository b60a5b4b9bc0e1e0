"""Column names are an interface: change them with a line in the CHANGELOG."""

import pytest

from memtool import tables

INTERFACE = {
    tables.TrainingRow: "checkpoint model data noise_ratio noise_kind seed epoch loss "
    "given_accuracy true_accuracy mislabelled_accuracy test_accuracy noise_seed true_loss "
    "mislabelled_loss mislabelled_true_loss mislabelled_true_accuracy clean_loss clean_accuracy "
    "test_loss order_seed",
    tables.CkaRow: "checkpoint reference layer reference_layer same_as model reference_model data "
    "epoch noise_ratio noise_kind noise_seed seed order_seed front_layer back_layer "
    "front_noise_ratio front_noise_seed front_seed back_noise_ratio back_noise_seed back_seed "
    "reference_epoch reference_noise_ratio reference_noise_kind reference_noise_seed "
    "reference_seed reference_order_seed estimator kernel bandwidth precision n batch_size "
    "sample_seed cka cka_se cka_null",
    tables.StitchingRow: "front back direction front_layer back_layer front_model back_model data "
    "front_epoch back_epoch front_noise_ratio back_noise_ratio front_noise_kind back_noise_kind "
    "front_noise_seed back_noise_seed front_seed back_seed connector batch_norm parameters init "
    "optimizer epochs epoch learning_rate batch_size seed n loss test_accuracy front_accuracy "
    "back_accuracy agreement control_accuracy stitched",
    tables.PointRow: "panel curve x measure value deviation n",
    tables.FileRow: "file kind model model_from parameters tensors types bytes data train test "
    "classes image_shape mean std fingerprint epoch steps noise_ratio noise_kind noise_seed "
    "front_noise_ratio back_noise_ratio seed order_seed loss given_accuracy true_accuracy "
    "mislabelled_accuracy test_accuracy computed_by",
    tables.LayerRow: "checkpoint layer type shape cut same_as",
    tables.StepRow: "step command output digest seconds memory warnings",
    tables.FindingRow: "claim measure value low high seeds verdict why",
}


@pytest.mark.parametrize("table", INTERFACE, ids=lambda table: table.__name__)
def test_the_columns_of_a_table(table):
    assert list(tables.columns(table)) == INTERFACE[table].split()
