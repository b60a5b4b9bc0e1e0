"""The figures of a report, in their order, with how to read each."""

from dataclasses import dataclass, replace

from memtool.reproduction.rules import PLOTS, Plot


@dataclass(frozen=True)
class Exhibit:
    """A figure of the report, and how to read it."""

    plot: Plot
    title: str
    reading: str


EXHIBITS = (
    Exhibit(
        PLOTS["divergence-final"],
        "Where networks differ from the clean one in the end",
        "Each curve is a network that has learned labels of which r percent were drawn at random; "
        "it shows how similar its layers are to those of the final clean network. 1 is the same "
        "but for rotation and scale. A dotted line, where there is one, is a second clean network, "
        "which saw the images in another order: what is not below it has not diverged. A thin "
        "grey line is what unrelated layers would have.",
    ),
    Exhibit(
        PLOTS["figure1-convergence"],
        "Figure 1: convergence",
        "Each checkpoint is compared with the final model of its own run. A layer that is near 1 "
        "at an early epoch was soon as it is in the end; a layer that gets there late was changing "
        "for as long. Look for the layers in which noisy labels make networks lag behind.",
    ),
    Exhibit(
        PLOTS["figure2-stitching"],
        "Figure 2: stitching",
        "The front of one network runs into the back of another, with a layer between them that is "
        "trained on clean labels. Noisy front, clean back: as long as the front serves the back "
        "well (at the dotted line), nothing was lost up to the cut. Clean front, noisy back: what "
        "the front gives the back (dashed: the noisy network alone). The control: what the layer "
        "between repairs by itself. Only what goes beyond the control says something about a "
        "layer.",
    ),
    Exhibit(
        replace(PLOTS["figure2-stitching"], options={"net_of_control": True}),
        "Figure 2, net of the control",
        "The same after subtracting the control: above 0 a stitched network does better than the "
        "noisy network with a trained layer at the same cut.",
    ),
    Exhibit(
        PLOTS["figure3-divergence"],
        "Figure 3: divergence",
        "Each checkpoint is compared with the final clean network. CKA rises while a network "
        "learns what all labels have in common, and falls as it memorizes: look for how early the "
        "peak is, how far CKA falls from it, and in which layers.",
    ),
    Exhibit(
        PLOTS["supplement"],
        "Supplement: stitched networks, layer by layer",
        "Each stitched network is compared with the final clean network, layer by layer: hollow "
        "points are its front, full ones its back, and the dotted step between them is the "
        "stitching layer; a dashed line is a noisy network alone. Look for whether a clean back "
        "brings a noisy front near to the clean network again, and from which cut on it does not.",
    ),
    Exhibit(
        PLOTS["training"],
        "Training",
        "Accuracy on the given labels of the mislabelled images is memorization; that on all true "
        "labels and on the test images is what the network has learned besides. Where the first "
        "rises, the others fall.",
    ),
)
