"""memtool info."""


def test_layers_of_a_checkpoint_are_listed_in_order_of_execution(run, runs):
    result = run("info", "--layers", runs.clean)
    lines = [line.split(",") for line in result.stdout.splitlines()]
    assert lines[0] == ["checkpoint", "layer", "type", "shape", "cut", "same_as"]
    assert [line[1] for line in lines[1:4]] == ["block1.conv", "block1.norm", "block1.relu"]
    assert lines[4][1:5] == ["block1", "Sequential", "16x8x8", "true"]
    assert lines[-1][1:5] == ["fc", "Linear", "10", "false"]
