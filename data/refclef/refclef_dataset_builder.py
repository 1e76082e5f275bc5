"""ReferIt for TFDS, from the files of the REFER layout."""

from data.refer_dataset import ReferBuilder, ReferConfig


class Builder(ReferBuilder):
    """ReferIt: images with the expressions that refer to something in them."""

    FOLDER = "refclef"
    BUILDER_CONFIGS = (ReferConfig("berkeley"), ReferConfig("unc"))
