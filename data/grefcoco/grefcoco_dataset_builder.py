"""gRefCOCO for TFDS, from the files of the REFER layout."""

from data.refer_dataset import ReferBuilder, ReferConfig


class Builder(ReferBuilder):
    """gRefCOCO: images with the expressions that refer to something in them."""

    FOLDER = "grefcoco"
    BUILDER_CONFIGS = (ReferConfig("unc"),)
