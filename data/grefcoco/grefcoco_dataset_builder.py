"""gRefCOCO for TFDS, from the files of the REFER layout."""

from data.refer_dataset import ReferBuilder, ReferConfig


class Builder(ReferBuilder):
    """gRefCOCO: images with their expressions; an expression may refer to several objects or to nothing."""

    FOLDER = "grefcoco"
    BUILDER_CONFIGS = (ReferConfig("unc"),)
